package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/agentapi"
	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/leases"
	"github.com/fleetban/fleetban/controlplane/internal/operatorapi"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/requestid"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
)

func TestLease(t *testing.T) {
	t.Parallel()
	st := redistest.Start(t).Open()
	s := sets.New(st, sets.Options{})
	t.Cleanup(s.Close)
	job := func(holder string) *jobs {
		return &jobs{lease: leases.New(st, jobsLease, holder, leaseLife), sets: s, hosts: hosts.New(st, s, nil), orgs: orgs.New(st, seal.New(keys.New([keys.SecretLen]byte{1}), seal.Options{Logger: slog.New(slog.DiscardHandler)})), logger: slog.New(slog.DiscardHandler)}
	}
	one, two := job("one"), job("two")
	hold := func(j *jobs) bool {
		t.Helper()
		held, err := j.hold(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return held
	}
	if !hold(one) || hold(two) || !hold(one) {
		t.Fatal("not exactly one has the lease")
	}
	first := one.lease.Term()
	one.release(context.Background())
	if !hold(two) || hold(one) {
		t.Fatal("the lease was given back, and nobody else got it")
	}
	if two.lease.Term() <= first {
		t.Errorf("term %d after %d", two.lease.Term(), first)
	}
	if err := two.once(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestConsole(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	logger := slog.New(requestid.Handler{Handler: newConsole(&out, slog.LevelInfo)}).With("replica", "one")
	ctx := requestid.With(t.Context(), "R1")
	logger.DebugContext(ctx, "unseen")
	logger.InfoContext(ctx, "host connected", slog.String("name", "web 1"), slog.Group("from", slog.Int("port", 22)), slog.String("raw", "a\x1b[2Jb\n"))
	logger.WithGroup("g").Warn("odd", slog.Any("error", errors.New("x=1")), slog.String("none", ""))
	want := `  host connected  replica=one name="web 1" from.port=22 raw="a\x1b[2Jb\n" request_id=R1` + "\n" + `  WARNING odd  replica=one g.error="x=1" g.none=""` + "\n"
	var got strings.Builder
	for line := range strings.Lines(out.String()) {
		if _, err := time.Parse(time.TimeOnly, line[:8]); err != nil {
			t.Error(err)
		}
		got.WriteString(line[8:])
	}
	if got.String() != want {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}
}

func TestCertificateIsReadAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	write := func(secret byte, at time.Time) {
		t.Helper()
		made, err := selfSigned(keys.New([32]byte{secret}), "https://fleet.example")
		if err != nil {
			t.Fatal(err)
		}
		key, err := x509.MarshalPKCS8PrivateKey(made.current.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: made.current.Certificate[0]}, keyFile: {Type: "PRIVATE KEY", Bytes: key}} {
			if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(1, time.Unix(1000, 0))
	c, err := loadCertificates(certFile, keyFile, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	pin, err := c.pin("https://fleet.example")
	if err != nil || pin == "" {
		t.Fatalf("a certificate that nobody trusts has the pin %q, %v", pin, err)
	}
	get := func() *tls.Certificate {
		t.Helper()
		c.looked = time.Time{}
		got, err := c.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	first := get()
	if get() != first {
		t.Error("read again without a change")
	}
	// Half written: the old one serves on.
	if err := os.WriteFile(certFile, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if get() != first {
		t.Error("a broken file was taken")
	}
	write(2, time.Unix(2000, 0))
	if second := get(); second == first {
		t.Error("the new certificate isn't served")
	}
}

func TestClientAddr(t *testing.T) {
	t.Parallel()
	trusted, err := parseProxies([]string{"10.0.0.0/8", "2001:db8::/32", "192.0.2.7"})
	if err != nil {
		t.Fatal(err)
	}
	find := trusted.client
	for _, tc := range []struct{ peer, forwarded, want string }{
		{"203.0.113.9:1", "", "203.0.113.9"},
		{"203.0.113.9:1", "198.51.100.1", "203.0.113.9"}, // not a trusted proxy: it may claim what it wants
		{"10.0.0.1:1", "198.51.100.1", "198.51.100.1"},
		{"10.0.0.1:1", "6.6.6.6, 198.51.100.1, 10.0.0.2", "198.51.100.1"},
		{"10.0.0.1:1", "nonsense", "10.0.0.1"},
		{"192.0.2.7:1", "198.51.100.1", "198.51.100.1"},
		{"192.0.2.8:1", "198.51.100.1", "192.0.2.8"},
		{"[::ffff:10.0.0.1]:1", "::ffff:198.51.100.1", "198.51.100.1"},
		{"[2001:db8::1]:1", "2001:db9::5", "2001:db9::5"},
		{"10.0.0.1:1", "198.51.100.1:4711", "198.51.100.1"},
		{"10.0.0.1:1", "[2001:db9::5]:4711", "2001:db9::5"},
		{"10.0.0.1:1", "fe80::1%eth0", "fe80::1"},
		{"10.0.0.1:1", "198.51.100.1, unknown, 10.0.0.2", "10.0.0.2"},
		{"10.0.0.1:1", "198.51.100.1,", "10.0.0.1"},
		{"10.0.0.1:1", "198.51.100.1\r\n, 10.0.0.2", "198.51.100.1"},
		{"10.0.0.1:1", "' OR 1=1 --, <script>", "10.0.0.1"},
		{"10.0.0.1:1", strings.Repeat("6.6.6.6,", 4000) + "10.0.0.3", "6.6.6.6"},
		{"10.0.0.1:1", "6.6.6.6," + strings.Repeat("10.0.0.2,", 40) + "10.0.0.3", "10.0.0.2"}, // nobody has so many proxies
		{"@", "198.51.100.1", "invalid IP"},
		{"10.0.0.1:1", "", "10.0.0.1"},
	} {
		header := http.Header{}
		if tc.forwarded != "" {
			header.Set("X-Forwarded-For", tc.forwarded)
		}
		if got := find(connect.Peer{Addr: tc.peer}, header); got.String() != tc.want {
			t.Errorf("%+v: %s", tc, got)
		}
	}
}

// deadlines is an answer that remembers what deadlines its connection was given.
type deadlines struct {
	http.ResponseWriter

	read, write []time.Time
}

func (d *deadlines) SetReadDeadline(at time.Time) error {
	d.read = append(d.read, at)
	return nil
}

func (d *deadlines) SetWriteDeadline(at time.Time) error {
	d.write = append(d.write, at)
	return nil
}

// Every procedure that streams has no deadline, one that its connection had before included; every other has one. One that is new and
// left out here would be cut after a minute.
func TestOnlyStreamsHaveNoDeadline(t *testing.T) {
	t.Parallel()
	procedures := map[string]bool{"/install.sh": false, "/": false}
	for _, service := range append(operatorapi.Services(), agentapi.Descriptor()) {
		for i := range service.Methods().Len() {
			m := service.Methods().Get(i)
			procedures["/"+string(service.FullName())+"/"+string(m.Name())] = m.IsStreamingServer() || m.IsStreamingClient()
		}
	}
	handler := wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), nil, slog.New(slog.DiscardHandler))
	seen := 0
	for path, stream := range procedures {
		answer := &deadlines{ResponseWriter: httptest.NewRecorder()}
		handler.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, nil))
		for _, set := range [][]time.Time{answer.read, answer.write} {
			if len(set) != 1 || set[0].IsZero() != stream || !stream && time.Until(set[0]) > requestWithin {
				t.Errorf("%s streams: %t; its deadlines: %v", path, stream, set)
			}
		}
		if stream {
			seen++
		}
	}
	if seen != len(streams) {
		t.Errorf("%d procedures stream, and %d are listed", seen, len(streams))
	}
}
