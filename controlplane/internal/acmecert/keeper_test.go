package acmecert

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/leases"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
)

const domain = "fleet.example.com"

func newKeeper(t testing.TB, st *store.Store, secret byte) *Keeper {
	t.Helper()
	k := keys.New([keys.SecretLen]byte{secret})
	keeper, err := New(Options{
		Store: st, Seal: seal.New(k, seal.Options{Logger: slog.New(slog.DiscardHandler)}), Keys: k, Replica: "r", Domains: []string{domain},
		Directory: "https://127.0.0.1:1/", Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return keeper
}

// certify makes what an authority might.
func certify(t testing.TB, k *Keeper, name string, ends time.Time) *tls.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(ends.UnixNano()), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: ends}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.key.Public(), k.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k.key, Leaf: leaf}
}

// Whoever writes to Redis chooses no certificate and no proof: only what this fleet signed, for this key, these names and now counts.
func TestForgedCertificates(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	st, err := store.Open(store.Options{URL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	k, stranger := newKeeper(t, st, 1), newKeeper(t, st, 2)
	good := certify(t, k, domain, time.Now().Add(time.Hour))
	put := func(by *Keeper, c *tls.Certificate) {
		t.Helper()
		if err := by.save(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	served := func() *tls.Certificate {
		t.Helper()
		if err := k.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		return k.Certificate()
	}
	put(stranger, good)
	if served() != nil {
		t.Error("one that another fleet signed is served")
	}
	put(k, certify(t, stranger, domain, time.Now().Add(time.Hour)))
	if served() != nil {
		t.Error("one for another key is served")
	}
	put(k, certify(t, k, "other.example.com", time.Now().Add(time.Hour)))
	if served() != nil {
		t.Error("one for another name is served")
	}
	put(k, good)
	if got := served(); got == nil || !got.Leaf.Equal(good.Leaf) {
		t.Fatalf("the good one isn't served: %v", got)
	}
	put(k, certify(t, k, domain, time.Now().Add(time.Minute)))
	if got := served(); !got.Leaf.Equal(good.Leaf) {
		t.Error("an older one was put back, and is served")
	}
	// Redis loses it: it is put back, and nothing ordered.
	if err := st.Client().Del(t.Context(), k.redisKey("certificate")).Err(); err != nil {
		t.Fatal(err)
	}
	if err := k.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if stands, err := k.read(t.Context()); err != nil || !stands {
		t.Errorf("it isn't back: %v", err)
	}
	for _, by := range []*Keeper{stranger, k} {
		sealed := by.o.Seal.Seal("acme challenge", "", domain, "token")
		if err := st.Client().Set(t.Context(), store.Global("acme", "challenge", domain), sealed, time.Minute).Err(); err != nil {
			t.Fatal(err)
		}
		got, err := k.token(t.Context(), "FLEET.example.com.")
		if by == k && (err != nil || got != "token") || by != k && !errors.Is(err, seal.ErrForged) {
			t.Errorf("a challenge: %q, %v", got, err)
		}
	}
	answer := httptest.NewRecorder()
	request := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+domain+wellKnown+"token", nil)
	if k.HTTPHandler().ServeHTTP(answer, request); answer.Code != http.StatusOK || len(answer.Body.String()) < 40 {
		t.Errorf("%d %s", answer.Code, answer.Body)
	}
	if _, err := k.token(t.Context(), "other.example.com"); err == nil {
		t.Error("a name that isn't ours has a proof")
	}
}

// Whatever is asked for by plain HTTP, what it is sent to is one of the names.
func TestRedirectsHome(t *testing.T) {
	t.Parallel()
	handler := newKeeper(t, redistest.Start(t).Open(), 1).HTTPHandler()
	for _, c := range []struct{ asked, host, location string }{
		{"/hosts?x=1", domain + ":80", "https://" + domain + "/hosts?x=1"},
		{"/a%2Fb", "FLEET.example.com", "https://" + domain + "/a%2Fb"},
		{"//evil.example/", domain, "https://" + domain + "//evil.example/"},
		{"http://" + domain + "/hosts", domain, "https://" + domain + "/hosts"},
		{"http://evil.example/hosts", domain, ""},
		{"x:@evil.example/", domain, "https://" + domain},
		{"x:.evil.example/", domain, "https://" + domain},
		{"*", domain, "https://" + domain + "/*"},
		{"/", "evil.example", ""},
		{"/", domain + ".evil.example", ""},
	} {
		raw := "GET " + c.asked + " HTTP/1.1\r\nHost: " + c.host + "\r\n\r\n"
		request, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
		if err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		if got := answer.Header().Get("Location"); got != c.location || (c.location == "") != (answer.Code == http.StatusBadRequest) {
			t.Errorf("%q: %d to %q, want %q", raw, answer.Code, got, c.location)
		}
	}
}

// An attempt that fails is not repeated at once, by no replica: authorities count them.
func TestFailedOrdersPause(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	st, err := store.Open(store.Options{URL: server.URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	for i, want := range []int{1, 0} {
		k := newKeeper(t, st, 1)
		if err := k.look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if k.failures != want {
			t.Errorf("replica %d made %d attempts, not %d", i, k.failures, want)
		}
	}
	lease, err := leases.Read(t.Context(), st, LeaseName)
	if err != nil || lease.Holder != "" || len(lease.Runs) != 1 || lease.Runs[0].Name != work || lease.Runs[0].Problem == "" || strings.Contains(lease.Runs[0].Problem, "127.0.0.1") {
		t.Errorf("the attempt is told as %+v, %v", lease, err)
	}
	wait, err := st.Client().PTTL(t.Context(), newKeeper(t, st, 1).redisKey("wait")).Result()
	if err != nil || wait < firstWait/2 || wait > firstWait {
		t.Errorf("the next attempt is in %v, %v", wait, err)
	}
}

func FuzzStored(f *testing.F) {
	k := newKeeper(f, nil, 1)
	good := certify(f, k, domain, time.Now().Add(time.Hour))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: good.Certificate[0]}))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := k.parse(text)
		if err == nil && (c.Leaf.VerifyHostname(domain) != nil || !k.key.PublicKey.Equal(c.Leaf.PublicKey)) {
			t.Fatalf("%q is taken", text)
		}
	})
}

func FuzzParseDomain(f *testing.F) {
	for _, name := range []string{domain, "a", "*.example.com", "1.2.3.4", "a..b", "-a.b", "xn--bcher-kva.example", "A.b", "a\r\nb.c"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if ParseDomain(name) != nil {
			return
		}
		// What is taken stands in keys of Redis and in URLs.
		for _, r := range name {
			if r != '.' && r != '-' && (r < 'a' || r > 'z') && (r < '0' || r > '9') {
				t.Fatalf("%q is taken", name)
			}
		}
	})
}
