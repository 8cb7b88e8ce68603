package server

import (
	"context"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// gate refuses requests while this replica disagrees with its peers: a balancer that looks at no health check, or an agent
// with this replica's own address, must not be told that its credential is bad because the secret here is another.
type gate struct{ ready *readiness }

var _ connect.Interceptor = gate{}

func (g gate) err() error {
	reason := g.ready.disagrees.Load()
	if reason == nil {
		return nil
	}
	return apierr.New(connect.CodeUnavailable, fleetbanv1.Reason_REASON_REPLICA_DISAGREES, "",
		"this replica may not serve: "+reason.Problem, reason.Fix)
}

// WrapUnary implements connect.Interceptor.
func (g gate) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if err := g.err(); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (g gate) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := g.err(); err != nil {
			return err
		}
		return next(ctx, conn)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (gate) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}
