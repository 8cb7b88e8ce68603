package webconsole

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/fleetban/fleetban/controlplane/internal/browser"
)

func start(t *testing.T) *httptest.Server {
	t.Helper()
	c, err := of(fstest.MapFS{
		"index.html":        {Data: []byte("<!doctype html><title>page</title>")},
		"theme.js":          {Data: []byte("theme()")},
		"assets/a-1.js":     {Data: []byte("plain")},
		"assets/a-1.js.br":  {Data: []byte("brotli")},
		"assets/a-1.js.gz":  {Data: []byte("gzip")},
		"assets/b-2.css":    {Data: []byte("b{}")},
		".vite/secret.json": {Data: []byte("{}")},
	})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	c.Register(mux)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func get(t *testing.T, url, accepts string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept-Encoding", accepts) // also keeps the client from undoing it
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

func TestPages(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, path := range []string{"/", "/hosts", "/hosts/web-1.example", "/address/2001:db8::/64", "/bans?q=203", "/settings", "/invitation"} {
		res, body := get(t, s.URL+path, "")
		if res.StatusCode != http.StatusOK || !strings.Contains(body, "<title>page") {
			t.Errorf("%s: %s %q", path, res.Status, body)
		}
		if policy := res.Header.Get("Content-Security-Policy"); policy != browser.PagePolicy || strings.Contains(policy, "unsafe") {
			t.Errorf("%s: policy %q", path, policy)
		}
		if cache := res.Header.Get("Cache-Control"); cache != "no-cache" {
			t.Errorf("%s: a page that is kept names files that are gone: %q", path, cache)
		}
	}
	for _, path := range []string{"/nowhere", "/.vite/secret.json", "/assets/../index.html", "/assets/none.js", "/assets/a-1.js.br", "/index.html.gz"} {
		if res, _ := get(t, s.URL+path, "br"); res.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %s", path, res.Status)
		}
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	s := start(t)
	for accepts, want := range map[string]struct{ body, encoding string }{
		"gzip, deflate, br": {"brotli", "br"},
		"gzip":              {"gzip", "gzip"},
		"br;q=0, gzip;q=1":  {"gzip", "gzip"},
		"identity":          {"plain", ""},
	} {
		res, body := get(t, s.URL+"/assets/a-1.js", accepts)
		if body != want.body || res.Header.Get("Content-Encoding") != want.encoding || res.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("%q: %q %q", accepts, body, res.Header)
		}
		if !strings.Contains(res.Header.Get("Cache-Control"), "immutable") || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/javascript") {
			t.Errorf("%q: %q", accepts, res.Header)
		}
	}
	if res, body := get(t, s.URL+"/theme.js", "br"); body != "theme()" || strings.Contains(res.Header.Get("Cache-Control"), "immutable") {
		t.Errorf("%q %q", body, res.Header)
	}
}

func TestNotBuilt(t *testing.T) {
	t.Parallel()
	if _, err := of(fstest.MapFS{".gitkeep": {}}); !errors.Is(err, ErrNotBuilt) {
		t.Fatal(err)
	}
}
