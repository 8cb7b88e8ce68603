package store_test

import (
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
)

// Redis asks for TLS, a certificate and a password, in each topology: with them everything works, without any one of them
// nothing does, and the error says which.
func TestTLS(t *testing.T) {
	t.Parallel()
	secure := redistest.NewSecure(t)
	for name, start := range map[string]func(testing.TB) *redistest.Server{
		"one":      func(t testing.TB) *redistest.Server { return redistest.StartSecure(t, secure) },
		"sentinel": func(t testing.TB) *redistest.Server { return &redistest.StartSecureSentinels(t, secure).Server },
		"cluster":  func(t testing.TB) *redistest.Server { return &redistest.StartSecureCluster(t, secure).Server },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := start(t)
			works(t, server.Open())
			another := redistest.NewSecure(t)
			for what, c := range map[string]struct{ from, to, says string }{
				"no authority":          {"ca_file=", "x", "certificate"},
				"another authority":     {url.QueryEscape(secure.CA), url.QueryEscape(another.CA), "certificate"},
				"another's certificate": {url.QueryEscape(secure.Cert) + "&key_file=" + url.QueryEscape(secure.Key), url.QueryEscape(another.Cert) + "&key_file=" + url.QueryEscape(another.Key), "tls"},
				"another password":      {secure.Password + "@", "hunter2@", "WRONGPASS"},
			} {
				target := server.URL()
				// The order of a query that was encoded is that of its names: ca, cert, key.
				if what == "no authority" {
					target = strings.Replace(target, "ca_file="+url.QueryEscape(secure.CA)+"&", "", 1)
				} else if target = strings.Replace(target, c.from, c.to, 1); target == server.URL() {
					t.Fatalf("%s: %s has no %s", what, target, c.from)
				}
				st, err := store.Open(store.Options{URL: target, Timeout: 20 * time.Second})
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				err = st.Ping(t.Context())
				_ = st.Close()
				if name == "cluster" && c.says == "tls" {
					c.says = "read the cluster's slots" // what went wrong with it is told for its first server only
				}
				if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hunter2") {
					t.Errorf("%s: %v; want one that says %s", what, err, c.says)
				}
				if what == "another password" && !errors.Is(err, store.ErrUnavailable) {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
}

// works does one of each kind of thing that the control plane does with Redis.
func works(t *testing.T, st *store.Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := st.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	if n, err := add.Run(ctx, st, []string{store.Key("O", "n")}, 2).Int(); err != nil || n != 2 {
		t.Fatalf("%d, %v", n, err)
	}
	if facts, err := st.Inspect(ctx); err != nil || facts.Durability() != store.Always {
		t.Errorf("%+v, %v", facts, err)
	}
	if _, err := st.Time(ctx, "O"); err != nil {
		t.Error(err)
	}
	bell := st.Client().SSubscribe(ctx, store.BellChannel("O"))
	defer func() { _ = bell.Close() }()
	if _, err := bell.Receive(ctx); err != nil {
		t.Fatal(err)
	}
	if err := st.Ring(ctx, "O", store.Bell{Kind: store.BellEvents}); err != nil {
		t.Fatal(err)
	}
	if m, err := bell.ReceiveMessage(ctx); err != nil || m.Payload != "events" {
		t.Errorf("%+v, %v", m, err)
	}
}

// Files that can't be used are found at the start, by name, and not when the first connection is made.
func TestTLSFiles(t *testing.T) {
	t.Parallel()
	secure := redistest.NewSecure(t)
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for target, says := range map[string]string{
		"rediss://h/0?ca_file=/nonexistent":                                       "/nonexistent",
		"rediss+cluster://h?ca_file=" + empty:                                     "no certificate",
		"rediss://h?cert_file=" + secure.Cert:                                     "belong together",
		"rediss+sentinel://h/m?cert_file=" + secure.Cert + "&key_file=" + empty:   "key_file",
		"redis://h?ca_file=" + secure.CA:                                          "without TLS",
		"redis+cluster://h?ca_file=" + secure.CA:                                  "without TLS",
		"rediss://h?ca_file=" + secure.CA + "&ca_file=" + secure.CA:               "twice",
		"rediss://h?ca_file=%zz":                                                  "percent-encoded",
		"rediss://h?pool_size=3&ca_file=" + secure.CA + "&hunter2=" + secure.Cert: "can't be parsed",
	} {
		if _, err := store.Open(store.Options{URL: target}); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v; want one that says %q", target, err, says)
		}
	}
	st, err := store.Open(store.Options{URL: "rediss://h/1?pool_size=3&ca_file=" + secure.CA})
	if err != nil {
		t.Fatal(err)
	}
	_ = st.Close()
}
