package server

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/acmecert"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/mail"
	"github.com/fleetban/fleetban/controlplane/internal/requestid"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Backend says where state is kept. Every command takes it.
type Backend struct {
	RedisURL   string `name:"redis-url" env:"FLEETBAN_REDIS_URL" placeholder:"URL" help:"Redis or Valkey: redis://[user:password@]host:6379/0, rediss://… for TLS, unix:///path, redis+sentinel://host:26379,host:26379/MASTER, redis+cluster://host:6379,host:6379. Without it the control plane runs a redis-server of its own in --data-dir."`
	DataDir    string `name:"data-dir" env:"FLEETBAN_DATA_DIR" default:"/var/lib/fleetban" placeholder:"DIR" help:"Folder of this process alone: the secret where --secret-file isn't given, and the data of its own redis-server."`
	SecretFile string `name:"secret-file" env:"FLEETBAN_SECRET_FILE" placeholder:"FILE" help:"The fleet's secret, 32 bytes or 64 hex digits, the same for every replica; make the organisation with setup then. Without it: DATA-DIR/secret, made at the first start."`
	// KEKFile and KMSKeyIDs have the secret stand in Redis, wrapped.
	KEKFile   string   `name:"kek-file" env:"FLEETBAN_KEK_FILE" placeholder:"FILE" help:"Keep the fleet's secret in Redis, encrypted under the key in this file: 32 bytes, or lines of 64 hex digits, of which the first encrypts and the others still decrypt. The same for every replica; the first start of all makes the secret."`
	KMSKeyIDs []string `name:"kms-key-id" env:"FLEETBAN_KMS_KEY_ID" placeholder:"ARN" help:"The same under a symmetric key in AWS KMS: ARN, id or alias. Several: the first encrypts, the others (and --kek-file) still decrypt."`
	PublicURL string   `name:"public-url" env:"FLEETBAN_PUBLIC_URL" placeholder:"URL" help:"How hosts and people reach the control plane: https://fleet.example.com. Without it: the host's name and the port of --listen."`
	// AcceptUnsigned is for the time of an upgrade from a release that didn't sign members and tokens.
	AcceptUnsigned bool `name:"accept-unsigned" env:"FLEETBAN_ACCEPT_UNSIGNED" help:"Take members and API tokens that Redis keeps without this fleet's signature: while replicas of a release that didn't sign still run. Then run fleetban-controlplane sign, and leave this out."`

	LogLevel  string `name:"log-level" env:"FLEETBAN_LOG_LEVEL" enum:"debug,info,warn,error" default:"info" help:"debug, info, warn or error."`
	LogFormat string `name:"log-format" env:"FLEETBAN_LOG_FORMAT" enum:"auto,json,text" default:"auto" help:"json, text for people, or auto: text on a terminal, json elsewhere."`

	// What serve is told of the audit log; only it drops entries.
	auditKeep       time.Duration
	auditKeepNumber int
}

// Config is everything that `serve` can be told.
type Config struct {
	Backend

	Listen           string        `name:"listen" env:"FLEETBAN_LISTEN" default:":8443" placeholder:"ADDR" help:"Address for agents, people and the installer; default :8443."`
	TLSCert          string        `name:"tls-cert" env:"FLEETBAN_TLS_CERT" placeholder:"FILE" help:"Certificate with its chain, PEM; read again when it changes. Without it one is made, which hosts pin."`
	TLSKey           string        `name:"tls-key" env:"FLEETBAN_TLS_KEY" placeholder:"FILE" help:"Its private key, PEM."`
	ACMEDomains      []string      `name:"acme-domain" env:"FLEETBAN_ACME_DOMAIN" placeholder:"NAME" help:"Have the certificate made for these names by an authority that speaks ACME, and renewed, by one replica for all. The names must lead to the replicas, port 443. Needs --acme-accept-terms."`
	ACMEEmail        string        `name:"acme-email" env:"FLEETBAN_ACME_EMAIL" placeholder:"E-MAIL" help:"Address that the authority is told."`
	ACMEAcceptTerms  bool          `name:"acme-accept-terms" env:"FLEETBAN_ACME_ACCEPT_TERMS" help:"The authority's terms of service are accepted. Read them first: https://letsencrypt.org/repository/"`
	ACMEDirectory    string        `name:"acme-directory" env:"FLEETBAN_ACME_DIRECTORY" placeholder:"URL" help:"Directory of the authority. Without it: Let's Encrypt."`
	ACMECAFile       string        `name:"acme-ca-file" env:"FLEETBAN_ACME_CA_FILE" placeholder:"FILE" help:"Authorities, PEM, of the directory's own certificate, instead of the system's: for an authority of your own."`
	ACMEHTTPListen   string        `name:"acme-http-listen" env:"FLEETBAN_ACME_HTTP_LISTEN" placeholder:"ADDR" help:"Prove the names by plain HTTP at this address, which is port 80 to the authority, and send all others there to HTTPS. Without it they are proven in the TLS handshake (TLS-ALPN-01), which a proxy that ends TLS doesn't pass on."`
	AgentClientCA    string        `name:"agent-client-ca" env:"FLEETBAN_AGENT_CLIENT_CA" placeholder:"FILE" help:"Let hosts in with a client certificate only, which an authority in this file (PEM; read again when it changes) made for the host's id. They must reach the control plane's own TLS."`
	TLSOff           bool          `name:"tls-off" env:"FLEETBAN_TLS_OFF" help:"Speak HTTP/1.1 and h2c without TLS: behind a proxy that ends TLS, or in a lab."`
	Pin              string        `name:"pin" env:"FLEETBAN_PUBLIC_PIN" placeholder:"sha256//…" help:"The key that hosts shall pin, where a proxy ends TLS with a certificate that is not publicly trusted."`
	TrustedProxies   []string      `name:"trusted-proxy" env:"FLEETBAN_TRUSTED_PROXIES" placeholder:"PREFIX" help:"Networks of proxies whose X-Forwarded-For names the client, and whose X-Forwarded-Proto says whether it came by HTTPS."`
	ProxyProtocol    []string      `name:"proxy-protocol" env:"FLEETBAN_PROXY_PROTOCOL" placeholder:"PREFIX" help:"Networks of proxies that pass connections on and begin each with the PROXY protocol's header, version 1 or 2 (haproxy's send-proxy-v2, AWS NLB). From there it is required, from elsewhere refused."`
	MetricsListen    string        `name:"metrics-listen" env:"FLEETBAN_METRICS_LISTEN" default:"127.0.0.1:9464" placeholder:"ADDR" help:"Address for /metrics and /debug/pprof; keep it private; default 127.0.0.1:9464. off: none."`
	AcceptDurability []string      `name:"accept-durability" env:"FLEETBAN_ACCEPT_DURABILITY" placeholder:"CLASS" help:"Durability of Redis to accept beside always: replicated, everysec, none, unknown. Acknowledged bans may be lost with these."`
	AuditKeep        time.Duration `name:"audit-keep" env:"FLEETBAN_AUDIT_KEEP" default:"2160h" help:"How long the audit log keeps an entry, 24h to 87600h."`
	AuditKeepEntries int           `name:"audit-keep-entries" env:"FLEETBAN_AUDIT_KEEP_ENTRIES" default:"100000" help:"How many entries of an organisation the audit log keeps at most, 1000 to 1000000."`
	SMTPURL          string        `name:"smtp-url" env:"FLEETBAN_SMTP_URL" placeholder:"URL" help:"Mail server for links and notices to people: smtp://[user@]host:587 (STARTTLS) or smtps://[user@]host:465. TLS is required unless it is on this machine. Without it no mail is sent."`
	MailFrom         string        `name:"mail-from" env:"FLEETBAN_MAIL_FROM" placeholder:"ADDRESS" help:"Sender of mail: fleet@example.com, or \"Fleet <fleet@example.com>\"."`
	SMTPPasswordFile string        `name:"smtp-password-file" env:"FLEETBAN_SMTP_PASSWORD_FILE" placeholder:"FILE" help:"Password of the mail server's user."`
	SSOAllowPrivate  bool          `name:"sso-allow-private" env:"FLEETBAN_SSO_ALLOW_PRIVATE" help:"Let identity providers have private addresses. Owners of organisations choose them: only where you trust all of them with what stands beside the control plane."`
	SSOCAFile        string        `name:"sso-ca-file" env:"FLEETBAN_SSO_CA_FILE" placeholder:"FILE" help:"Authorities, PEM, of identity providers' certificates, instead of the system's."`
	Organisation     string        `name:"organisation" env:"FLEETBAN_ORGANISATION" default:"default" placeholder:"NAME" help:"Name of the organisation that the first start makes."`
	Mode             string        `name:"mode" env:"FLEETBAN_MODE" enum:"enforce,watch" default:"enforce" help:"What the first start's organisation does with what hosts ban: enforce it on all, or watch: only record what would be banned."`
	DrainWindow      time.Duration `name:"drain-window" env:"FLEETBAN_DRAIN_WINDOW" default:"5s" help:"On SIGTERM, agents are sent elsewhere spread over this time."`
	Replica          string        `name:"replica" env:"FLEETBAN_REPLICA" placeholder:"NAME" help:"Name of this replica, unlike any other's. Without it: the host's name and a random part."`
}

// ConfigError is a value that can't be used: it names the flag, its variable, what is wrong and what would be right.
type ConfigError struct {
	Flag, Env, Problem, Want string
}

func (e *ConfigError) Error() string {
	return fmt.Sprintf("--%s (%s): %s; %s", e.Flag, e.Env, e.Problem, e.Want)
}

const (
	// defaultMetrics is where metrics are served unless another address is given.
	defaultMetrics = "127.0.0.1:9464"
	metricsOff     = "off"
)

// durabilityClasses are what Redis can promise, best first.
var durabilityClasses = []string{"always", "replicated", "everysec", "none", "unknown"}

// Complete checks the configuration and fills in what follows from the rest.
func (c *Config) Complete() error {
	_, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return &ConfigError{"listen", "FLEETBAN_LISTEN", fmt.Sprintf("%q is no address", c.Listen), "write HOST:PORT, [IPV6]:PORT or :PORT"}
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		return &ConfigError{"tls-cert", "FLEETBAN_TLS_CERT", "--tls-cert and --tls-key belong together", "give both, or neither to have a certificate made"}
	}
	if c.TLSOff && c.TLSCert != "" {
		return &ConfigError{"tls-off", "FLEETBAN_TLS_OFF", "it contradicts --tls-cert", "leave one of them out"}
	}
	if c.TLSOff && c.AgentClientCA != "" {
		return &ConfigError{"agent-client-ca", "FLEETBAN_AGENT_CLIENT_CA", "it contradicts --tls-off: who ends TLS elsewhere can't pass certificates on", "leave one of them out"}
	}
	if err := c.completeACME(port); err != nil {
		return err
	}
	for _, class := range c.AcceptDurability {
		if !slices.Contains(durabilityClasses, class) {
			return &ConfigError{"accept-durability", "FLEETBAN_ACCEPT_DURABILITY", fmt.Sprintf("there is no class %q", class), "choose from " + strings.Join(durabilityClasses, ", ")}
		}
	}
	if _, err := parseProxies(c.TrustedProxies); err != nil {
		return &ConfigError{"trusted-proxy", "FLEETBAN_TRUSTED_PROXIES", err.Error(), "write 10.0.0.0/8 or an address"}
	}
	if _, err := parseProxies(c.ProxyProtocol); err != nil {
		return &ConfigError{"proxy-protocol", "FLEETBAN_PROXY_PROTOCOL", err.Error(), "write 10.0.0.0/8 or an address"}
	}
	if c.MetricsListen == metricsOff {
		c.MetricsListen = ""
	}
	if c.MetricsListen != "" {
		if _, _, err := net.SplitHostPort(c.MetricsListen); err != nil {
			return &ConfigError{"metrics-listen", "FLEETBAN_METRICS_LISTEN", fmt.Sprintf("%q is no address", c.MetricsListen), "write HOST:PORT, or off"}
		}
	}
	if c.DrainWindow < 0 || c.DrainWindow > 10*time.Minute {
		return &ConfigError{"drain-window", "FLEETBAN_DRAIN_WINDOW", c.DrainWindow.String() + " is out of range", "0s to 10m is possible"}
	}
	if c.AuditKeep == 0 {
		c.AuditKeep = audit.DefaultKeep
	}
	if c.AuditKeep < 24*time.Hour || c.AuditKeep > 87600*time.Hour {
		return &ConfigError{"audit-keep", "FLEETBAN_AUDIT_KEEP", c.AuditKeep.String() + " is out of range", "24h to 87600h is possible"}
	}
	if c.AuditKeepEntries == 0 {
		c.AuditKeepEntries = audit.DefaultKeepNumber
	}
	if c.AuditKeepEntries < 1000 || c.AuditKeepEntries > audit.MaxKeepNumber {
		return &ConfigError{"audit-keep-entries", "FLEETBAN_AUDIT_KEEP_ENTRIES", fmt.Sprintf("%d is out of range", c.AuditKeepEntries), "1000 to 1000000 is possible"}
	}
	if c.SMTPURL == "" && (c.MailFrom != "" || c.SMTPPasswordFile != "") {
		return &ConfigError{"smtp-url", "FLEETBAN_SMTP_URL", "there is none, and mail is configured", "write smtp://user@mail.example.com:587, or leave --mail-from and --smtp-password-file out"}
	}
	if _, err := mail.New(c.mail()); err != nil {
		return &ConfigError{"smtp-url", "FLEETBAN_SMTP_URL", err.Error(), "correct it, --mail-from or --smtp-password-file"}
	}
	c.auditKeep, c.auditKeepNumber = c.AuditKeep, c.AuditKeepEntries
	if c.Replica == "" {
		c.Replica = replicaName()
	}
	if c.PublicURL == "" {
		c.PublicURL = defaultURL(c.Listen, port, c.TLSOff)
	}
	return c.complete()
}

// completeACME checks what is said of certificates by ACME. port is that of Listen.
func (c *Config) completeACME(port string) error {
	if len(c.ACMEDomains) == 0 {
		if c.ACMEEmail != "" || c.ACMEAcceptTerms || c.ACMEDirectory != "" || c.ACMECAFile != "" || c.ACMEHTTPListen != "" {
			return &ConfigError{"acme-domain", "FLEETBAN_ACME_DOMAIN", "there is none, and ACME is configured", "name what the certificate is for, or leave the other --acme-… out"}
		}
		return nil
	}
	if c.TLSOff || c.TLSCert != "" {
		return &ConfigError{"acme-domain", "FLEETBAN_ACME_DOMAIN", "it contradicts --tls-cert and --tls-off", "leave one of them out"}
	}
	if !c.ACMEAcceptTerms {
		return &ConfigError{"acme-accept-terms", "FLEETBAN_ACME_ACCEPT_TERMS", "the authority's terms of service are not accepted", "read them, then add --acme-accept-terms"}
	}
	for _, name := range c.ACMEDomains {
		if err := acmecert.ParseDomain(name); err != nil {
			return &ConfigError{"acme-domain", "FLEETBAN_ACME_DOMAIN", err.Error(), "write fleet.example.com"}
		}
	}
	if len(c.ACMEDomains) > maxDomains {
		return &ConfigError{"acme-domain", "FLEETBAN_ACME_DOMAIN", "there are too many", fmt.Sprintf("%d fit into one certificate", maxDomains)}
	}
	if u, err := url.Parse(c.ACMEDirectory); c.ACMEDirectory != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
		return &ConfigError{"acme-directory", "FLEETBAN_ACME_DIRECTORY", fmt.Sprintf("%q is no URL of a directory", c.ACMEDirectory), "write https://ca.example.com/directory"}
	}
	if _, _, err := net.SplitHostPort(c.ACMEHTTPListen); c.ACMEHTTPListen != "" && err != nil {
		return &ConfigError{"acme-http-listen", "FLEETBAN_ACME_HTTP_LISTEN", fmt.Sprintf("%q is no address", c.ACMEHTTPListen), "write HOST:PORT or :80"}
	}
	if c.PublicURL == "" {
		c.PublicURL = "https://" + c.ACMEDomains[0]
		if port != "443" {
			c.PublicURL += ":" + port
		}
	}
	if u, err := url.Parse(c.PublicURL); err == nil && !slices.Contains(c.ACMEDomains, strings.ToLower(u.Hostname())) {
		return &ConfigError{"acme-domain", "FLEETBAN_ACME_DOMAIN", "the host of --public-url is not among the names", "add " + u.Hostname()}
	}
	return nil
}

// maxDomains is how many names a certificate may have.
const maxDomains = 32

// mail is how letters are sent.
func (c *Config) mail() mail.Config {
	return mail.Config{URL: c.SMTPURL, From: c.MailFrom, PasswordFile: c.SMTPPasswordFile}
}

func (b *Backend) complete() error {
	if b.SecretFile != "" && b.wrapped() {
		return &ConfigError{"secret-file", "FLEETBAN_SECRET_FILE", "it contradicts --kek-file and --kms-key-id, which keep the secret in Redis", "leave one of them out"}
	}
	if b.PublicURL != "" {
		u, err := url.Parse(b.PublicURL)
		if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") || strings.Trim(u.Path, "/") != "" {
			return &ConfigError{"public-url", "FLEETBAN_PUBLIC_URL", fmt.Sprintf("%q is no URL of a server", b.PublicURL), "write https://fleet.example.com or https://203.0.113.5:8443"}
		}
		b.PublicURL = strings.TrimRight(b.PublicURL, "/")
	}
	dir, err := filepath.Abs(b.DataDir)
	if err != nil || b.DataDir == "" {
		return &ConfigError{"data-dir", "FLEETBAN_DATA_DIR", "there is none", "name a folder that this user may write to"}
	}
	b.DataDir = dir
	if b.LogLevel == "" {
		b.LogLevel = "info"
	}
	return nil
}

func defaultURL(listen, port string, off bool) string {
	host, _, _ := net.SplitHostPort(listen)
	if a, err := netip.ParseAddr(host); host == "" || (err == nil && a.IsUnspecified()) {
		host, _ = os.Hostname()
	} else if err == nil && a.IsLoopback() {
		host = "localhost"
	}
	if host == "" {
		host = "localhost"
	}
	scheme, standard := "https", "443"
	if off {
		scheme, standard = "http", "80"
	}
	if port == standard {
		return scheme + "://" + bracket(host)
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}

func bracket(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

// replicaName is unlike that of any other process, also of this one's last run: streams are fenced by it.
func replicaName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		name = "replica"
	}
	var random [3]byte
	_, _ = rand.Read(random[:])
	return name + "-" + hex.EncodeToString(random[:])
}

func modeOf(name string) (fleetbanv1.Mode, error) {
	switch name {
	case "enforce":
		return fleetbanv1.Mode_MODE_ENFORCE, nil
	case "watch":
		return fleetbanv1.Mode_MODE_WATCH, nil
	default:
		return 0, errors.New("a mode is enforce or watch")
	}
}

// NewLogger makes the process's logger, to stderr.
func (b *Backend) NewLogger(stderr *os.File) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(b.LogLevel))
	options := &slog.HandlerOptions{Level: level}
	text := b.LogFormat == "text"
	if b.LogFormat == "auto" || b.LogFormat == "" {
		info, err := stderr.Stat()
		text = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	var h slog.Handler = slog.NewJSONHandler(stderr, options)
	if text {
		h = newConsole(stderr, level)
	}
	return slog.New(requestid.Handler{Handler: h})
}
