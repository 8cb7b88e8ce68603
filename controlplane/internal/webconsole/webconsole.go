// Package webconsole serves the web console, which is built from web/ into this binary.
//
// Its files have names that change with what they hold and were compressed when they were built; the page that loads them
// is asked for anew each time. It is the same for everybody: who is signed in, its script asks the API.
package webconsole

import (
	"bytes"
	"embed"
	"errors"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/browser"
)

//go:embed all:dist
var embedded embed.FS

// pages are the console's own paths; below those that end with a slash, any. Each is answered with the one page.
var pages = []string{
	"/{$}", "/hosts", "/hosts/", "/bans", "/address/", "/policy", "/audit", "/approvals", "/settings", "/terminal", "/invitation", "/reset", "/email",
}

// ErrNotBuilt says that this binary has no console in it; `make build` puts it there.
var ErrNotBuilt = errors.New("the console isn't built into this binary")

// Console serves the files of one build.
type Console struct {
	files fs.FS
	page  []byte
}

// New finds the console in this binary; ErrNotBuilt where it isn't.
func New() (*Console, error) {
	files, err := fs.Sub(embedded, "dist")
	if err != nil {
		return nil, err
	}
	return of(files)
}

func of(files fs.FS) (*Console, error) {
	page, err := fs.ReadFile(files, "index.html")
	if err != nil {
		return nil, ErrNotBuilt
	}
	return &Console{files: files, page: page}, nil
}

// Register puts the console on mux.
func (c *Console) Register(mux *http.ServeMux) {
	for _, p := range pages {
		mux.HandleFunc("GET "+p, c.servePage)
	}
	mux.HandleFunc("GET /assets/{file}", func(w http.ResponseWriter, r *http.Request) {
		c.serveFile(w, r, "assets/"+r.PathValue("file"), "public, max-age=31536000, immutable")
	})
	for _, name := range []string{"icon.svg", "theme.js"} {
		mux.HandleFunc("GET /"+name, func(w http.ResponseWriter, r *http.Request) { c.serveFile(w, r, name, "public, max-age=3600") })
	}
}

func (c *Console) servePage(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Security-Policy", browser.PagePolicy)
	header.Set("Cache-Control", "no-cache")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(c.page))
}

// encodings are how files were compressed when they were built, best first.
var encodings = []struct{ name, suffix string }{{"br", ".br"}, {"gzip", ".gz"}}

func (c *Console) serveFile(w http.ResponseWriter, r *http.Request, name, cache string) {
	kind := mime.TypeByExtension(path.Ext(name))
	if kind == "" || strings.HasSuffix(name, ".br") || strings.HasSuffix(name, ".gz") {
		http.NotFound(w, r)
		return
	}
	raw, encoding, err := c.read(name, r.Header.Get("Accept-Encoding"))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	header := w.Header()
	header.Set("Content-Type", kind)
	header.Set("Cache-Control", cache)
	header.Set("Vary", "Accept-Encoding")
	if encoding != "" {
		header.Set("Content-Encoding", encoding)
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(raw))
}

func (c *Console) read(name, accepts string) (raw []byte, encoding string, err error) {
	for _, e := range encodings {
		if !acceptsEncoding(accepts, e.name) {
			continue
		}
		if raw, err := fs.ReadFile(c.files, name+e.suffix); err == nil {
			return raw, e.name, nil
		}
	}
	raw, err = fs.ReadFile(c.files, name)
	return raw, "", err
}

func acceptsEncoding(header, name string) bool {
	for part := range strings.SplitSeq(header, ",") {
		coding, quality, _ := strings.Cut(part, ";")
		if strings.TrimSpace(coding) == name {
			q := strings.TrimSpace(quality)
			return q != "q=0" && !strings.HasPrefix(q, "q=0.0")
		}
	}
	return false
}
