package operatorapi

import (
	"crypto/sha256"
	"encoding/base64"
	"html/template"
	"net/http"
)

// writeRefusal answers a browser that isn't signed in, with a page that a person can read.
func writeRefusal(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", refusedPolicy)
	w.WriteHeader(status)
	_ = refusedPage.Execute(w, message) // a browser that left reads nothing
}

// refusedPage tells a person why they aren't signed in, and leads back. It loads nothing, and runs nothing.
var refusedPage = template.Must(template.New("").Parse(`<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Not signed in · Fleetban</title>
<style>` + refusedStyle + `</style>
<main>
<h1>You are not signed in</h1>
<p>{{.}}.</p>
<p><a href="/">Back to the sign-in page</a></p>
</main>
</html>
`))

const refusedStyle = `:root{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}main{max-width:32rem;margin:20vh auto 0;padding:0 1.5rem}h1{font-size:1.4rem}p::first-letter{text-transform:uppercase}`

var refusedPolicy = func() string {
	sum := sha256.Sum256([]byte(refusedStyle))
	return "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}()
