package server

import (
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/requestid"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

const (
	// requestWithin bounds reading and answering a request that is no stream.
	requestWithin = time.Minute
	// hsts says for how long a browser that came by HTTPS comes by nothing else: a year.
	hsts = "max-age=31536000"
)

// streams live as long as both sides want.
var streams = map[string]bool{
	fleetbanv1connect.AgentServiceConnectProcedure:     true,
	operatorv1connect.BanServiceWatchReceiptsProcedure: true,
	operatorv1connect.FleetServiceWatchProcedure:       true,
	operatorv1connect.AuditServiceExportAuditProcedure: true,
}

// fixed stand on every answer. What is no page of ours may load, run, frame and post nothing, whatever somebody makes a
// browser take it for; handlers of pages set a policy of their own (browser.PagePolicy).
var fixed = map[string]string{
	"X-Content-Type-Options":       "nosniff",
	"Referrer-Policy":              "no-referrer",
	"Content-Security-Policy":      "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
	"X-Frame-Options":              "DENY", // for browsers that don't know frame-ancestors
	"Cross-Origin-Opener-Policy":   "same-origin",
	"Cross-Origin-Resource-Policy": "same-origin",
	"Permissions-Policy":           "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}

// wrap gives each request an id, each answer the headers that keep browsers from harm, and those that are no stream a
// deadline.
func wrap(next http.Handler, from proxies, logger *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := requestid.Of(r.Header)
		header := w.Header()
		header.Set(requestid.Header, id)
		for name, value := range fixed {
			header[name] = []string{value}
		}
		if from.secure(r) {
			header.Set("Strict-Transport-Security", hsts)
		}
		ctx := auth.WithAnswer(requestid.With(r.Context(), id), header)
		// A stream on a connection that served something else must not inherit its deadline.
		var deadline time.Time
		if !streams[r.URL.Path] {
			deadline = time.Now().Add(requestWithin)
		}
		control := http.NewResponseController(w)
		_ = control.SetReadDeadline(deadline)
		_ = control.SetWriteDeadline(deadline)
		began := time.Now()
		next.ServeHTTP(w, r.WithContext(ctx))
		logger.DebugContext(ctx, "request", slog.String("method", r.Method), slog.String("path", r.URL.Path),
			slog.String("peer", r.RemoteAddr), slog.Duration("took", time.Since(began)))
	})
}

// invitation is where links of invitations lead. What stands behind the # isn't sent here.
func invitation(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "You are invited to a Fleetban fleet. Run\n\n    fleetban accept\n\nand paste this page's whole address when it asks for the link.\n")
}

// root tells a person who came by chance where they are. Which release it is, nobody needs to know before signing in.
func root(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, "Fleetban control plane.\nOperators use the program `fleetban`; hosts are enrolled with `fleetban join-token create`.\n")
}
