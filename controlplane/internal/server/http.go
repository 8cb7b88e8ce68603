package server

import (
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/requestid"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

// requestWithin bounds reading and answering a request that is no stream.
const requestWithin = time.Minute

// streams live as long as both sides want.
var streams = map[string]bool{
	fleetbanv1connect.AgentServiceConnectProcedure:     true,
	operatorv1connect.BanServiceWatchReceiptsProcedure: true,
	operatorv1connect.FleetServiceWatchProcedure:       true,
	operatorv1connect.AuditServiceExportAuditProcedure: true,
}

// wrap gives each request an id, and those that are no stream a deadline.
func wrap(next http.Handler, logger *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := requestid.Of(r.Header)
		w.Header().Set(requestid.Header, id)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		ctx := requestid.With(r.Context(), id)
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

// clientAddr finds the caller's address behind trusted proxies: the last hop of X-Forwarded-For that isn't one of them.
func clientAddr(trusted []netip.Prefix) func(connect.Peer, http.Header) netip.Addr {
	isTrusted := func(a netip.Addr) bool {
		for _, p := range trusted {
			if p.Contains(a) {
				return true
			}
		}
		return false
	}
	return func(peer connect.Peer, header http.Header) netip.Addr {
		addr := auth.PeerAddr(peer)
		if !addr.IsValid() || !isTrusted(addr) {
			return addr
		}
		hops := strings.Split(strings.Join(header.Values("X-Forwarded-For"), ","), ",")
		for i := len(hops) - 1; i >= 0; i-- {
			hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
			if err != nil {
				return addr
			}
			addr = hop.Unmap()
			if !isTrusted(addr) {
				return addr
			}
		}
		return addr
	}
}

// invitation is where links of invitations lead. What stands behind the # isn't sent here.
func invitation(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Referrer-Policy", "no-referrer")
	_, _ = io.WriteString(w, "You are invited to a Fleetban fleet. Run\n\n    fleetban accept\n\nand paste this page's whole address when it asks for the link.\n")
}
