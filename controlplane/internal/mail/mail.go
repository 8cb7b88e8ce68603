// Package mail sends the few letters that people get: links to set a password, to confirm an address, to join; and notices.
//
// Letters wait in Redis, and are made and sent in the background by whichever replica comes first: what asks for one answers
// at once, and alike whether one is sent or not. One that can't be delivered within a quarter of an hour is given up, which
// the log says; who waits for it asks again.
package mail

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/mail"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

const (
	// timeout is for one delivery.
	timeout = 30 * time.Second
	// maxPassword bounds the password file.
	maxPassword = 4096
)

// backoff is how long is waited after each failed delivery.
var backoff = []time.Duration{2 * time.Second, 20 * time.Second, 2 * time.Minute, 10 * time.Minute}

// Config says how mail is sent.
type Config struct {
	// URL is smtp://[user@]host[:587], where TLS is asked for with STARTTLS, or smtps://[user@]host[:465]. Without TLS nothing
	// is sent, except to a server on this machine.
	URL string
	// From is the sender: fleet@example.com or "Fleet <fleet@example.com>".
	From string
	// PasswordFile holds the user's password.
	PasswordFile string
	// TLS is used for connections; nil takes the system's roots.
	TLS *tls.Config
	// Store and Keys are where letters wait, and what they are encrypted with. Without them nothing can be sent: for who looks
	// whether the rest is right.
	Store *store.Store
	Keys  Keys
	// Logger; default slog.Default().
	Logger *slog.Logger
	// Backoff overrides how long is waited after each failed delivery, in tests.
	Backoff []time.Duration
}

// Letter is what somebody gets.
type Letter struct {
	To      string
	Subject string
	Text    string
}

// Mailer sends letters. A nil Mailer sends none. Safe for concurrent use.
type Mailer struct {
	from    string
	options []gomail.Option
	host    string
	queue   *queue
	make    func(ctx context.Context, request []byte) (*Letter, error)
	backoff []time.Duration
	logger  *slog.Logger
}

// New makes a Mailer; nil without a URL.
func New(c Config) (*Mailer, error) {
	if c.URL == "" {
		return nil, nil //nolint:nilnil // documented
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	from, err := mail.ParseAddress(c.From)
	if err != nil {
		return nil, fmt.Errorf("the sender of mail %q is no address: write fleet@example.com or \"Fleet <fleet@example.com>\"", c.From)
	}
	u, err := url.Parse(c.URL)
	if err != nil || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, errors.New("the URL of the mail server is none: write smtp://user@mail.example.com:587 or smtps://user@mail.example.com:465")
	}
	if _, has := u.User.Password(); has {
		return nil, errors.New("the URL of the mail server holds a password, which others on this machine can see: put it in a file")
	}
	m := &Mailer{
		from: from.String(), host: u.Hostname(), backoff: c.Backoff, logger: c.Logger,
	}
	if m.backoff == nil {
		m.backoff = backoff
	}
	if m.options, err = m.connection(u, c); err != nil {
		return nil, err
	}
	_, err = gomail.NewClient(m.host, m.options...)
	if err != nil {
		return nil, fmt.Errorf("mail server: %w", err)
	}
	if c.Store != nil {
		if m.queue, err = newQueue(c.Store, c.Keys); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *Mailer) connection(u *url.URL, c Config) ([]gomail.Option, error) {
	policy, port := gomail.TLSMandatory, 587
	if isLocal(m.host) && u.Scheme == "smtp" {
		policy = gomail.TLSOpportunistic
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.TLS != nil {
		config = c.TLS.Clone()
	}
	if config.ServerName == "" {
		config.ServerName = m.host
	}
	options := []gomail.Option{gomail.WithTimeout(timeout), gomail.WithTLSConfig(config)}
	switch u.Scheme {
	case "smtp":
		options = append(options, gomail.WithTLSPolicy(policy))
	case "smtps":
		options, port = append(options, gomail.WithSSL()), 465
	default:
		return nil, fmt.Errorf("the URL of the mail server begins with %s://: write smtp:// (STARTTLS) or smtps://", u.Scheme)
	}
	if text := u.Port(); text != "" {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("the URL of the mail server has the port %s: 1 to 65535 is possible", text)
		}
		port = int(n)
	}
	options = append(options, gomail.WithPort(port))
	if (u.User.Username() == "") != (c.PasswordFile == "") {
		return nil, errors.New("the mail server's user and the password file belong together: give both, or neither")
	}
	if c.PasswordFile != "" {
		raw, err := os.ReadFile(c.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("read the mail server's password: %w", err)
		}
		password := strings.TrimRight(string(raw), "\r\n")
		if password == "" || len(password) > maxPassword || strings.ContainsAny(password, "\r\n\x00") {
			return nil, fmt.Errorf("the mail server's password in %s must be one line", c.PasswordFile)
		}
		options = append(options, gomail.WithSMTPAuth(gomail.SMTPAuthAutoDiscover), gomail.WithUsername(u.User.Username()), gomail.WithPassword(password))
	}
	return options, nil
}

// isLocal reports whether what is sent to host doesn't leave this machine.
func isLocal(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.IsLoopback()
	}
	return host == "localhost"
}

// On reports whether mail is sent at all.
func (m *Mailer) On() bool { return m != nil }

// deliver sends one letter, once.
func (m *Mailer) deliver(ctx context.Context, l Letter) error {
	msg := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	if err := errors.Join(msg.From(m.from), msg.To(l.To)); err != nil {
		return fmt.Errorf("address letter: %w", err)
	}
	msg.Subject(strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, l.Subject))
	msg.SetDate()
	msg.SetMessageID()
	// Nobody is to answer it with an absence note.
	msg.SetGenHeader("Auto-Submitted", "auto-generated")
	msg.SetBodyString(gomail.TypeTextPlain, l.Text)
	client, err := gomail.NewClient(m.host, m.options...)
	if err != nil {
		return fmt.Errorf("mail server: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	if err := client.DialAndSendWithContext(ctx, msg); err != nil {
		return fmt.Errorf("send letter through %s: %w", m.host, err)
	}
	return nil
}

// worthTrying: not what the server refuses for good, or isn't safe to send it.
func worthTrying(err error) bool {
	var send *gomail.SendError
	if errors.As(err, &send) {
		return send.IsTemp() || send.Reason == gomail.ErrConnCheck
	}
	var op *net.OpError
	return errors.As(err, &op) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errNotMade)
}

func domainOf(address string) string {
	_, domain, _ := strings.Cut(address, "@")
	return domain
}
