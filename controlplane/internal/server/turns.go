package server

import (
	"context"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

// turns lets agents in one after the other whose streams come by a proxy, as the door does with those that come themselves: a proxy's
// connections are few, and long since there. Who would have to wait too long is told when to come again, in the error's retry_after_ms.
type turns struct{ admission *admission }

var _ connect.Interceptor = turns{}

// byProxy marks what net/http serves; the door has let all else in.
type byProxy struct{}

func (turns) mark(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), byProxy{}, true)))
	})
}

// WrapUnary implements connect.Interceptor: calls have no turns.
func (turns) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc { return next }

// WrapStreamingClient implements connect.Interceptor.
func (turns) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (t turns) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if conn.Spec().Procedure != fleetbanv1connect.AgentServiceConnectProcedure || ctx.Value(byProxy{}) == nil {
			return next(ctx, conn)
		}
		leave, after := t.admission.enter(ctx, sourceOf(nil)) // of one address for all that this tells
		if after > 0 {
			err := apierr.New(connect.CodeResourceExhausted, fleetbanv1.Reason_REASON_RATE_LIMITED, "", "too many hosts are coming at once",
				"come again in "+after.Round(time.Second).String())
			err.RetryAfter = after
			return err
		}
		leave = sync.OnceFunc(leave)
		defer leave()
		return next(ctx, &arriving{conn, leave})
	}
}

// arriving is a stream that takes a place until its first message, the Welcome, is sent.
type arriving struct {
	connect.StreamingHandlerConn

	leave func()
}

func (a *arriving) Send(m any) error {
	err := a.StreamingHandlerConn.Send(m)
	a.leave()
	return err
}
