package mail

import (
	"context"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	gomail "github.com/wneessen/go-mail"

	"github.com/fleetban/fleetban/controlplane/internal/mail/mailtest"
)

// running is a Mailer that sends until the test ends.
func running(t *testing.T, s *mailtest.Server, c Config) *Mailer {
	t.Helper()
	c.TLS = &tls.Config{RootCAs: s.Roots, MinVersion: tls.VersionTLS12}
	c.From, c.Logger = "Fleet <fleet@example.com>", slog.New(slog.NewTextHandler(t.Output(), nil))
	if c.Backoff == nil {
		c.Backoff = []time.Duration{time.Millisecond, time.Millisecond}
	}
	m, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { m.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		all.Wait()
	})
	return m
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (m *Mailer) sends(t *testing.T, l Letter) {
	t.Helper()
	if err := m.Send(func(context.Context) (*Letter, error) { return &l, nil }); err != nil {
		t.Fatal(err)
	}
}

func TestSend(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]struct {
		scheme string
		how    mailtest.How
	}{"STARTTLS": {"smtp", mailtest.StartTLS}, "TLS": {"smtps", mailtest.TLS}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := mailtest.Start(t, mailtest.Options{How: o.how, User: "fleet@example.com", Password: "tr0ub4dor ü", Fail: 2})
			m := running(t, server, Config{URL: o.scheme + "://fleet%40example.com@127.0.0.1:" + server.Port, PasswordFile: file(t, "tr0ub4dor ü\n")})
			link := "https://fleet.example.com/reset#fbp_" + strings.Repeat("x", 43)
			m.sends(t, Reset("ada@example.com", link, 30*time.Minute))
			got := server.Wait("ada@example.com", "new Fleetban password")
			if got.From != "fleet@example.com" || !got.Secure || got.User == "" || !strings.Contains(got.Text, "\n  "+link+"\n") || !strings.Contains(got.Text, "30 minutes") {
				t.Errorf("%+v", got)
			}
			if got.Header.Get("Auto-Submitted") != "auto-generated" || got.Header.Get("Message-Id") == "" || got.Header.Get("Date") == "" {
				t.Errorf("%v", got.Header)
			}
			if n := server.Tries(); n != 3 {
				t.Errorf("%d tries", n)
			}
		})
	}
}

// Without TLS nothing leaves the machine, nor to a server whose certificate isn't its own.
func TestTLSIsRequired(t *testing.T) {
	t.Parallel()
	l := Letter{To: "ada@example.com", Subject: "secret", Text: "secret"}
	for name, o := range map[string]struct {
		how  mailtest.How
		host string
	}{"none offered": {mailtest.Plain, ""}, "another's certificate": {mailtest.StartTLS, "other.example.com"}} {
		server := mailtest.Start(t, mailtest.Options{How: o.how})
		config := Config{
			URL: "smtp://mail.example.com:" + server.Port, From: "fleet@example.com",
			TLS: &tls.Config{RootCAs: server.Roots, MinVersion: tls.VersionTLS12, ServerName: o.host},
		}
		m, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		m.host = "127.0.0.1" // where mail.example.com leads here
		if err := m.deliver(t.Context(), l); err == nil || server.Tries() != 0 {
			t.Errorf("%s: %v, %d letters", name, err, server.Tries())
		}
	}
	// To this machine it may go as it is.
	server := mailtest.Start(t, mailtest.Options{How: mailtest.Plain})
	running(t, server, Config{URL: "smtp://127.0.0.1:" + server.Port}).sends(t, l)
	if got := server.Wait(l.To, l.Subject); got.Secure {
		t.Errorf("%+v", got)
	}
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	password := file(t, "x\n")
	for _, c := range []Config{
		{URL: "mail.example.com"},
		{URL: "http://mail.example.com"},
		{URL: "smtp://"},
		{URL: "smtp://mail.example.com:0"},
		{URL: "smtp://mail.example.com/x"},
		{URL: "smtp://user:hunter2@mail.example.com"},
		{URL: "smtp://user@mail.example.com"},
		{URL: "smtp://mail.example.com", PasswordFile: password},
		{URL: "smtp://user@mail.example.com", PasswordFile: file(t, "")},
		{URL: "smtp://user@mail.example.com", PasswordFile: "/nowhere"},
		{URL: "smtp://mail.example.com", From: "a@b\r\nBcc: c@d"},
		{URL: "smtp://mail.example.com", From: "-"},
	} {
		if c.From == "" {
			c.From = "fleet@example.com"
		}
		if m, err := New(c); err == nil || m != nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if m, err := New(Config{}); m.On() || err != nil {
		t.Error(m, err)
	}
}

// What others wrote can't add lines or headers.
func TestHostileLetters(t *testing.T) {
	t.Parallel()
	server := mailtest.Start(t, mailtest.Options{How: mailtest.StartTLS})
	m := running(t, server, Config{URL: "smtp://127.0.0.1:" + server.Port})
	m.sends(t, Invitation("ada@example.com", "bob\r\n.\r\nMAIL FROM:<evil@example.com>\u2028x", "owner", "https://x/invitation#y", 7*24*time.Hour))
	got := server.Wait("ada@example.com", "invited")
	if !strings.Contains(got.Text, "bob.MAIL FROM:<evil@example.com>x invites you") || got.Header.Get("Bcc") != "" {
		t.Errorf("%+v", got)
	}
	m.sends(t, Letter{To: "ada@example.com", Subject: "a\r\nBcc: eve@example.com", Text: "x"})
	if got = server.Wait("ada@example.com", "a  Bcc"); got.Header.Get("Bcc") != "" {
		t.Errorf("%+v", got)
	}
	if err := m.deliver(t.Context(), Letter{To: "ada@example.com>\r\nRCPT TO:<eve@example.com", Subject: "x"}); err == nil {
		t.Error("an address with lines in it was taken")
	}
}

// A queue that is full says so at once; what waits at the end is sent.
func TestQueue(t *testing.T) {
	t.Parallel()
	server := mailtest.Start(t, mailtest.Options{How: mailtest.StartTLS})
	m, err := New(Config{
		URL: "smtp://127.0.0.1:" + server.Port, From: "fleet@example.com", Logger: slog.New(slog.DiscardHandler),
		TLS: &tls.Config{RootCAs: server.Roots, MinVersion: tls.VersionTLS12},
	})
	if err != nil {
		t.Fatal(err)
	}
	nothing := func(context.Context) (*Letter, error) { return nil, nil } //nolint:nilnil // nothing to send
	m.sends(t, Letter{To: "ada@example.com", Subject: "last", Text: "x"})
	for range queueLen - 1 {
		if err := m.Send(nothing); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Send(nothing); err != ErrFull { //nolint:errorlint // it is that
		t.Errorf("one too many: %v", err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	m.Run(ended)
	server.Wait("ada@example.com", "last")
}

func TestWorthTrying(t *testing.T) {
	t.Parallel()
	if !worthTrying(context.DeadlineExceeded) || worthTrying(gomail.ErrNoRcptAddresses) {
		t.Error("what is worth another try")
	}
}
