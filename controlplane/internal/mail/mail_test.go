package mail

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	gomail "github.com/wneessen/go-mail"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/mail/mailtest"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
)

// running is a Mailer that sends until the test ends.
func running(t *testing.T, s *mailtest.Server, c Config) *Mailer {
	t.Helper()
	c.TLS = &tls.Config{RootCAs: s.Roots, MinVersion: tls.VersionTLS12}
	if c.Store == nil {
		c.Store = redistest.Start(t).Open()
	}
	c.Keys = keys.New([keys.SecretLen]byte{3})
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
	if err := m.Send(t.Context(), l); err != nil {
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

// Letters outlive who was to send them: what a replica took and didn't send when it died, another one sends; what was made is
// made once; and nobody who reads Redis finds an address or a link.
func TestLettersOutliveReplicas(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	server := mailtest.Start(t, mailtest.Options{How: mailtest.StartTLS})
	config := func() Config {
		return Config{
			URL: "smtp://127.0.0.1:" + server.Port, From: "fleet@example.com", Logger: slog.New(slog.DiscardHandler), Store: redis.Open(),
			Keys: keys.New([keys.SecretLen]byte{3}), TLS: &tls.Config{RootCAs: server.Roots, MinVersion: tls.VersionTLS12},
		}
	}
	dies, err := New(config())
	if err != nil {
		t.Fatal(err)
	}
	ctx, client := t.Context(), redis.Open().Client()
	dies.sends(t, Letter{To: "ada@example.com", Subject: "first", Text: "https://fleet.example.com/reset#fbp_x"})
	if err := dies.SendMade(ctx, map[string]string{"email": "bob@example.com"}); err != nil {
		t.Fatal(err)
	}
	for id, raw := range client.HGetAll(ctx, lettersKey).Val() {
		if decoded, _ := base64.RawStdEncoding.DecodeString(raw); strings.Contains(raw+string(decoded), "example") {
			t.Errorf("%s is readable: %s", id, raw)
		}
	}
	// It takes one, and dies.
	taken, _, err := dies.queue.take(ctx)
	if err != nil || taken == "" {
		t.Fatal(taken, err)
	}
	if other, _, err := dies.queue.take(ctx); err != nil || other == taken {
		t.Fatalf("one letter is taken twice at once: %s, %v", other, err)
	}
	if none, _, err := dies.queue.take(ctx); err != nil || none != "" {
		t.Fatal(none, err)
	}
	// The lease is over: that is when it was due.
	for _, id := range client.ZRange(ctx, dueKey, 0, -1).Val() {
		client.ZAdd(ctx, dueKey, goredis.Z{Member: id, Score: 1})
	}
	lives, err := New(config())
	if err != nil {
		t.Fatal(err)
	}
	var made atomic.Int64
	lives.backoff = []time.Duration{time.Millisecond, time.Millisecond}
	lives.OnRequest(func(_ context.Context, request []byte) (*Letter, error) {
		if made.Add(1) == 1 {
			return nil, errors.New("Redis was away")
		}
		return &Letter{To: "bob@example.com", Subject: "made of " + string(request), Text: "x"}, nil
	})
	// What somebody else wrote there is nobody's letter, and stands in nobody's way.
	client.HSet(ctx, lettersKey, "forged", "AAAA")
	client.ZAdd(ctx, dueKey, goredis.Z{Member: "forged", Score: 1})
	client.ZAdd(ctx, dueKey, goredis.Z{Member: "nothing there", Score: 1})
	running, end := context.WithCancel(ctx)
	var all sync.WaitGroup
	all.Go(func() { lives.Run(running) })
	server.Wait("ada@example.com", "first")
	server.Wait("bob@example.com", `made of {"email":"bob@example.com"}`)
	testwait.For(t, "nothing waits any more", func() bool {
		return client.HLen(ctx, lettersKey).Val() == 0 && client.ZCard(ctx, dueKey).Val() == 0
	})
	if n := made.Load(); n != 2 {
		t.Errorf("made %d times", n)
	}
	end()
	all.Wait()
}

// A queue that is full says so at once, and so does one that can't be reached.
func TestQueue(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	m, err := New(Config{URL: "smtp://127.0.0.1:1", From: "fleet@example.com", Store: redis.Open(), Keys: keys.New([keys.SecretLen]byte{3})})
	if err != nil {
		t.Fatal(err)
	}
	for range maxWaiting {
		m.sends(t, Letter{To: "ada@example.com", Subject: "x", Text: "x"})
	}
	if err := m.Send(t.Context(), Letter{}); !errors.Is(err, ErrFull) {
		t.Errorf("one too many: %v", err)
	}
	redis.Kill()
	if err := m.Send(t.Context(), Letter{}); err == nil || errors.Is(err, ErrFull) {
		t.Errorf("without Redis: %v", err)
	}
}

func TestWorthTrying(t *testing.T) {
	t.Parallel()
	if !worthTrying(context.DeadlineExceeded) || worthTrying(gomail.ErrNoRcptAddresses) {
		t.Error("what is worth another try")
	}
}

// Whatever stands in Redis is a job of this fleet's or refused; whatever a job is, it has an end.
func FuzzJob(f *testing.F) {
	q, err := newQueue(nil, keys.New([keys.SecretLen]byte{3}))
	if err != nil {
		f.Fatal(err)
	}
	seal := func(raw []byte) string {
		return base64.RawStdEncoding.EncodeToString(q.aead.Seal(nil, nil, raw, []byte("id"))) //nolint:gosec // this AEAD makes its nonces itself
	}
	for _, s := range []string{
		"", "{}", "null", `{"letter":null}`, `{"letter":{"To":"ada@example.com","Subject":"a\r\nb"},"tries":1}`, `{"request":{"email":"x"},"tries":-1}`,
		`{"letter":{},"request":1}`, `{"tries":99999999999999999999}`, seal([]byte("{}")),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := q.open("id", string(text)); err == nil {
			t.Errorf("%q was sealed by nobody and is taken", text)
		}
		sealed := seal(text)
		if _, err := q.open("another", sealed); err == nil {
			t.Errorf("%q is taken under another id", text)
		}
		j, err := q.open("id", sealed)
		if err != nil {
			return
		}
		if j.Tries < 0 || (j.Letter == nil) == (j.Request == nil) {
			t.Errorf("%q is %+v", text, j)
		}
		raw, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseJob(raw); err != nil || again.Tries != j.Tries || again.subject() != j.subject() {
			t.Errorf("%q is %+v, and %+v (%v) when it is kept again", text, j, again, err)
		}
	})
}
