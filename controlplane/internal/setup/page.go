package setup

import (
	"bytes"
	"embed"
	"io/fs"
	"net/http"
	"time"
)

//go:embed page
var page embed.FS

// files are the page's, by path. They hold nothing that is secret: the link's secret never leaves the browser but with
// the form.
var files = map[string]struct{ name, kind string }{
	Path:                {"page/index.html", "text/html; charset=utf-8"},
	Path + "/style.css": {"page/style.css", "text/css; charset=utf-8"},
	Path + "/script.js": {"page/script.js", "text/javascript; charset=utf-8"},
}

// policy lets the page load its own files and call its own server, and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Register puts the page on mux. Once the fleet is set up it says so instead.
func (g *Gate) Register(mux *http.ServeMux) {
	for path, file := range files {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			header := w.Header()
			header.Set("Cache-Control", "no-store")
			header.Set("Content-Security-Policy", policy)
			header.Set("Referrer-Policy", "no-referrer")
			header.Set("X-Content-Type-Options", "nosniff")
			if pass, err := g.pass(r.Context()); pass && err == nil && path == Path {
				header.Set("Content-Type", "text/plain; charset=utf-8")
				_, _ = w.Write([]byte("This control plane was set up before. Sign in: fleetban login --url URL --email E-MAIL\n"))
				return
			}
			raw, err := fs.ReadFile(page, file.name)
			if err != nil {
				http.NotFound(w, r)
				return
			}
			header.Set("Content-Type", file.kind)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(raw))
		})
	}
}
