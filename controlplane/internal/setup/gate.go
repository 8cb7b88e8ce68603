package setup

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

// Gate lets nothing but the set-up through before there is an organisation. Open, it costs nothing; closed, each request
// costs a look at Redis, so that what one replica set up is served by the others at once.
type Gate struct {
	setup *Setup
	open  atomic.Bool
}

var _ connect.Interceptor = (*Gate)(nil)

// NewGate makes a Gate, closed.
func NewGate(s *Setup) *Gate { return &Gate{setup: s} }

// Open opens it for good: an organisation was seen.
func (g *Gate) Open() { g.open.Store(true) }

// Closed reports whether there was no organisation when anyone last looked.
func (g *Gate) Closed() bool { return !g.open.Load() }

func (g *Gate) pass(ctx context.Context) (bool, error) {
	if g.open.Load() {
		return true, nil
	}
	done, err := g.setup.Done(ctx)
	if done {
		g.Open()
	}
	return done, err
}

// before answers without an organisation. Hosts' streams are asked for their credential, as ever: after Redis lost
// everything it is they who bring their organisation back.
var before = []string{
	"/" + operatorv1connect.SetupServiceName + "/", fleetbanv1connect.AgentServiceConnectProcedure,
}

func (g *Gate) rpc(ctx context.Context, procedure string) error {
	for _, b := range before {
		if strings.HasPrefix(procedure, b) {
			return nil
		}
	}
	pass, err := g.pass(ctx)
	if pass || err != nil {
		return err
	}
	return apierr.New(connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_NOT_SET_UP, "", "this control plane was not set up yet",
		"open the link that it printed when it started, or run fleetban-controlplane setup-link for another one")
}

// WrapUnary implements connect.Interceptor.
func (g *Gate) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if err := g.rpc(ctx, req.Spec().Procedure); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (g *Gate) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := g.rpc(ctx, conn.Spec().Procedure); err != nil {
			return err
		}
		return next(ctx, conn)
	}
}

// WrapStreamingClient implements connect.Interceptor: it guards servers.
func (*Gate) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// notYet is what is answered to whoever is no RPC.
const notYet = "This Fleetban control plane was not set up yet. Open the link that it printed when it started,\n" +
	"or run `fleetban setup LINK`. Is it lost: fleetban-controlplane setup-link prints another one.\n"

// Wrap guards what is no RPC: those have the interceptor, whose errors their clients understand.
func (g *Gate) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.Path; {
		case g.open.Load(), strings.HasPrefix(path, "/fleetban."), path == Path, strings.HasPrefix(path, Path+"/"),
			path == "/livez", path == "/healthz", path == "/readyz":
			next.ServeHTTP(w, r)
			return
		}
		pass, err := g.pass(r.Context())
		if pass {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		if err != nil {
			http.Error(w, "The control plane can't reach Redis: see /readyz.", http.StatusServiceUnavailable)
			return
		}
		if r.URL.Path == "/install.sh" {
			// It is piped into a shell, which shows what this says.
			w.Header().Set("Content-Type", "text/x-shellscript; charset=utf-8")
			_, _ = w.Write([]byte("echo 'fleetban: this control plane was not set up yet; open the link that it printed when it started' >&2\nexit 1\n"))
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(notYet))
	})
}
