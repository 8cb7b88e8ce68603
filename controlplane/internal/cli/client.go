package cli

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/hashicorp/go-retryablehttp"

	"github.com/fleetban/fleetban/controlplane/internal/version"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
)

// client is the operator API.
type client struct {
	pin   string // of the server; empty where authorities are trusted
	url   string
	bans  operatorv1connect.BanServiceClient
	allow operatorv1connect.AllowlistServiceClient
	fleet operatorv1connect.FleetServiceClient
	hosts operatorv1connect.HostServiceClient
	join  operatorv1connect.JoinTokenServiceClient
	audit operatorv1connect.AuditServiceClient
	// people's
	sessions  operatorv1connect.SessionServiceClient
	account   operatorv1connect.AccountServiceClient
	members   operatorv1connect.MemberServiceClient
	tokens    operatorv1connect.TokenServiceClient
	orgTokens operatorv1connect.OrganisationTokenServiceClient
	factors   operatorv1connect.SecondFactorServiceClient
	approvals operatorv1connect.ApprovalServiceClient
	// anonymous, joining and linked carry no credential.
	anonymous operatorv1connect.SessionServiceClient
	joining   operatorv1connect.MemberServiceClient
	linked    operatorv1connect.AccountServiceClient
	setup     operatorv1connect.SetupServiceClient
	// anonymousSSO carries no credential.
	sso, anonymousSSO operatorv1connect.SsoServiceClient
	// terminal carries no credential.
	terminal operatorv1connect.TerminalServiceClient
	// person is who is signed in; nil where an API token is used.
	person *signedIn
	close  func()
}

func newClient(cfg config) (*client, error) {
	tlsConfig, err := tlsConfig(cfg)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:     tlsConfig,
		TLSHandshakeTimeout: 5 * time.Second,
		ForceAttemptHTTP2:   true,
	}
	// No Client.Timeout: it would end streams. Calls are bounded by their context.
	base := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // a token goes where the person said and nowhere else
	}}
	doer := &retrying{plain: base, reads: retryingClient(base)}
	u := strings.TrimRight(cfg.URL, "/")
	var person *signedIn
	var authorise connect.Interceptor = credential(cfg.Token)
	if cfg.Token == "" && cfg.Session != nil {
		person = &signedIn{path: cfg.path, now: time.Now, sessions: anonymous(doer, u), cfg: cfg}
		authorise = person
	}
	options := []connect.ClientOption{
		connect.WithInterceptors(authorise), connect.WithReadMaxBytes(64 << 20), connect.WithSendMaxBytes(4 << 20),
	}
	return &client{
		pin:          cfg.Pin,
		url:          u,
		bans:         operatorv1connect.NewBanServiceClient(doer, u, options...),
		allow:        operatorv1connect.NewAllowlistServiceClient(doer, u, options...),
		fleet:        operatorv1connect.NewFleetServiceClient(doer, u, options...),
		hosts:        operatorv1connect.NewHostServiceClient(doer, u, options...),
		join:         operatorv1connect.NewJoinTokenServiceClient(doer, u, options...),
		audit:        operatorv1connect.NewAuditServiceClient(doer, u, options...),
		sessions:     operatorv1connect.NewSessionServiceClient(doer, u, options...),
		account:      operatorv1connect.NewAccountServiceClient(doer, u, options...),
		members:      operatorv1connect.NewMemberServiceClient(doer, u, options...),
		tokens:       operatorv1connect.NewTokenServiceClient(doer, u, options...),
		orgTokens:    operatorv1connect.NewOrganisationTokenServiceClient(doer, u, options...),
		approvals:    operatorv1connect.NewApprovalServiceClient(doer, u, options...),
		anonymous:    anonymous(doer, u),
		factors:      operatorv1connect.NewSecondFactorServiceClient(doer, u, options...),
		linked:       operatorv1connect.NewAccountServiceClient(doer, u, connect.WithInterceptors(named{})),
		joining:      operatorv1connect.NewMemberServiceClient(doer, u, connect.WithInterceptors(named{})),
		sso:          operatorv1connect.NewSsoServiceClient(doer, u, options...),
		anonymousSSO: operatorv1connect.NewSsoServiceClient(doer, u, connect.WithInterceptors(named{})),
		terminal:     operatorv1connect.NewTerminalServiceClient(doer, u, connect.WithInterceptors(named{})),
		setup:        operatorv1connect.NewSetupServiceClient(doer, u, connect.WithInterceptors(named{})),
		person:       person,
		close:        transport.CloseIdleConnections,
	}, nil
}

// retrying repeats calls that only read, and nothing else: a change whose answer was lost may stand, and a stream has a
// way of its own to go on.
type retrying struct {
	plain *http.Client
	reads *retryablehttp.Client
}

// Do implements connect.HTTPClient.
func (r *retrying) Do(req *http.Request) (*http.Response, error) {
	if !readsOnly(req.URL.Path) {
		return r.plain.Do(req) //nolint:gosec // where it goes is what the person named
	}
	again, err := retryablehttp.FromRequest(req)
	if err != nil {
		return nil, fmt.Errorf("prepare the request: %w", err)
	}
	return r.reads.Do(again)
}

func readsOnly(procedure string) bool {
	switch path.Base(procedure) {
	case "ListBans", "Explain", "ListAllowed", "GetFleet", "ListHosts", "GetHost", "ListCommands", "ListJoinTokens", "GetMe", "GetSso", "ListSessions", "ListMembers", "GetFactors", "GetSecondFactorPolicy", "ListAudit", "VerifyAudit":
		return true
	default:
		return false
	}
}

func retryingClient(base *http.Client) *retryablehttp.Client {
	return &retryablehttp.Client{
		HTTPClient: base, RetryMax: 3, RetryWaitMin: 100 * time.Millisecond, RetryWaitMax: 2 * time.Second,
		CheckRetry: func(ctx context.Context, res *http.Response, err error) (bool, error) {
			switch {
			case ctx.Err() != nil:
				return false, ctx.Err()
			case err != nil:
				return transient(err), nil
			default:
				return res.StatusCode == http.StatusBadGateway || res.StatusCode == http.StatusServiceUnavailable || res.StatusCode == http.StatusGatewayTimeout, nil
			}
		},
		// Full jitter: many programs that lost one control plane don't come back in step.
		Backoff: func(low, high time.Duration, attempt int, _ *http.Response) time.Duration {
			return low/2 + rand.N(min(low<<attempt, high)) //nolint:gosec // spreads load, guards nothing
		},
		ErrorHandler: retryablehttp.PassthroughErrorHandler,
	}
}

// transient reports whether another attempt may end otherwise: not for a certificate that isn't trusted.
func transient(err error) bool {
	var pin *pinError
	var verification *tls.CertificateVerificationError
	var dns *net.DNSError
	return !errors.As(err, &pin) && !errors.As(err, &verification) && (!errors.As(err, &dns) || dns.Temporary())
}

type credential string

// WrapUnary implements connect.Interceptor.
func (t credential) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		t.set(req.Header())
		return next(ctx, req)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (t credential) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		t.set(conn.RequestHeader())
		return conn
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (credential) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (t credential) set(header http.Header) {
	header.Set("Authorization", "Bearer "+string(t))
	setAgent(header)
}

func setAgent(header http.Header) { header.Set("User-Agent", "fleetban/"+version.Version) }

// pinError: the server has another key than the one that was pinned.
type pinError struct{ got string }

func (e *pinError) Error() string { return "the server's key is " + e.got + ", not the pinned one" }

// tlsConfig trusts the system's authorities, or those of a file, or one key alone, written as curl does:
// sha256//BASE64 of the certificate's public key.
func tlsConfig(cfg config) (*tls.Config, error) {
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read --ca-file: %w", err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usage("--ca-file "+cfg.CAFile+" holds no certificate", "give a file of PEM certificates")
		}
	}
	if cfg.Pin == "" {
		return out, nil
	}
	sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(cfg.Pin, "sha256//"))
	if err != nil || len(sum) != sha256.Size || !strings.HasPrefix(cfg.Pin, "sha256//") {
		return nil, usage("the pin is malformed", "copy it whole, as the control plane prints it: sha256//…=")
	}
	// The pin says more than a name and a chain do. With --ca-file both must hold.
	out.InsecureSkipVerify = cfg.CAFile == "" //nolint:gosec // VerifyConnection checks the key itself
	out.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return &pinError{got: "missing"}
		}
		got := sha256.Sum256(state.PeerCertificates[0].RawSubjectPublicKeyInfo)
		if got != [sha256.Size]byte(sum) {
			return &pinError{got: "sha256//" + base64.StdEncoding.EncodeToString(got[:])}
		}
		return nil
	}
	return out, nil
}
