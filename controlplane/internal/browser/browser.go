// Package browser lets a browser hold a session in cookies that no script can read.
//
//	browser ── fleetban-session: cookie ──▶ Handler ── authorization: Bearer … ──▶ Connect handlers
//	        ◀── Set-Cookie: __Host-… ────── Interceptor ◀── tokens in the message ──┘
//
// It is one layer around the API: handlers see a bearer token and answer with tokens, whoever calls. A cookie counts only
// beside a request header that no page of another origin can send unasked (CORS is closed here), and only where
// http.CrossOriginProtection lets the request pass, whatever its method: so neither a form, a link, an image nor a fetch of
// another site acts with it, in any content type that Connect accepts.
package browser

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/sessions"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

const (
	// Header asks, where its value is Cookie, that the call's session be held in cookies.
	Header = "Fleetban-Session"
	// Cookie is the one value of Header that means something.
	Cookie = "cookie"

	// AccessCookie holds the access token. The prefix has browsers refuse it from other hosts and over plain HTTP: nobody can
	// plant one.
	AccessCookie = "__Host-fleetban-access"
	// RefreshCookie holds the refresh token, likewise.
	RefreshCookie = "__Host-fleetban-refresh"
)

// Layer guards an API against other sites, and turns cookies into credentials.
type Layer struct {
	protection *http.CrossOriginProtection
	errors     *connect.ErrorWriter
}

// New makes a Layer. Pages of publicURL's origin are the console's own.
func New(publicURL string) (*Layer, error) {
	l := &Layer{protection: http.NewCrossOriginProtection(), errors: connect.NewErrorWriter()}
	u, err := url.Parse(publicURL)
	if err != nil {
		return nil, fmt.Errorf("the public URL: %w", err)
	}
	if u.Host == "" {
		return l, nil
	}
	// Browsers that send no Sec-Fetch-Site are judged by Origin, which a proxy that rewrites Host would have differ from it.
	if err := l.protection.AddTrustedOrigin(u.Scheme + "://" + u.Host); err != nil {
		return nil, fmt.Errorf("the public URL: %w", err)
	}
	return l, nil
}

// request is what Handler found in a request that asks for cookies. Its presence in a context says that the request is the
// console's own.
type request struct {
	refresh string
	device  string
	// header is the answer's. Cookies go there and not into an error's metadata, which gRPC-Web has in its body.
	header http.Header
}

type requestKey struct{}

// Handler wraps the whole of a server's handler.
func (l *Layer) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked := r.Header.Values(Header)
		checked := r
		if len(asked) > 0 && safe(r.Method) {
			// The standard library lets GET pass. A GET with cookies may be a call, and answers with what only its owner may read.
			checked = &http.Request{Method: http.MethodPost, URL: r.URL, Header: r.Header, Host: r.Host}
		}
		if err := l.protection.Check(checked); err != nil {
			l.refuse(w, r, apierr.Wrap(err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "",
				"a page of another site sent this request", "use the console at the control plane's own address; programs send no Origin"))
			return
		}
		if len(asked) == 0 {
			next.ServeHTTP(w, r)
			return
		}
		if len(asked) > 1 || asked[0] != Cookie {
			l.refuse(w, r, apierr.New(connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD, "",
				"the header fleetban-session means nothing here", "send `fleetban-session: cookie` once, or leave it out"))
			return
		}
		found := request{refresh: one(r, RefreshCookie), device: one(r, DeviceCookie), header: w.Header()}
		access := one(r, AccessCookie)
		r = r.WithContext(context.WithValue(r.Context(), requestKey{}, found))
		r.Header = r.Header.Clone()
		if access != "" && len(r.Header.Values("Authorization")) == 0 {
			r.Header.Set("Authorization", "Bearer "+access)
		}
		// Nobody behind this layer has any business with them.
		r.Header.Del("Cookie")
		next.ServeHTTP(w, r)
	})
}

func safe(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
}

// one is the value of a cookie that is there once. A browser sends a __Host- cookie once: of two, somebody made one up.
func one(r *http.Request, name string) string {
	found := r.CookiesNamed(name)
	if len(found) != 1 {
		return ""
	}
	return found[0].Value
}

func (l *Layer) refuse(w http.ResponseWriter, r *http.Request, err error) {
	typed := apierr.From(r.Context(), err)
	if l.errors.IsSupported(r) {
		_ = l.errors.Write(w, r, typed)
		return
	}
	status := http.StatusForbidden
	if typed.Code() == connect.CodeInvalidArgument {
		status = http.StatusBadRequest
	}
	http.Error(w, typed.Message(), status)
}

// SetTokens gives a browser its session where no Connect handler does: at the end of a sign-in with another provider.
func SetTokens(w http.ResponseWriter, t sessions.Tokens) {
	set(w.Header(), t.Access, int64(sessions.AccessLife.Seconds()), t.Refresh, t.Ends)
	w.Header().Set("Cache-Control", "no-store")
}

// errNoCookie is wrapped by the refusal of a refresh without its cookie.
var errNoCookie = errors.New("no refresh token in a cookie")

// PagePolicy is the Content-Security-Policy of the console's pages: scripts, styles, fonts and images from here alone,
// nothing inline, no frames, and nothing that turns text into markup or code.
const PagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; " +
	"manifest-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'; require-trusted-types-for 'script'"
