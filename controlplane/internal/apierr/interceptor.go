package apierr

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"connectrpc.com/connect"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Interceptor maps what handlers return, unary and streaming, with From. It must be the outermost interceptor.
type Interceptor struct {
	// Now is the server's clock (Redis TIME, as the replica knows it).
	Now func() time.Time
	// Logger gets one line for each failure that is the control plane's own.
	Logger *slog.Logger
}

var _ connect.Interceptor = (*Interceptor)(nil)

// WrapUnary implements connect.Interceptor.
func (i *Interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		if err != nil {
			return nil, i.mapped(ctx, req.Spec().Procedure, err)
		}
		return res, nil
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (i *Interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := next(ctx, conn); err != nil {
			return i.mapped(ctx, conn.Spec().Procedure, err)
		}
		return nil
	}
}

// WrapStreamingClient implements connect.Interceptor: servers make no calls through it.
func (*Interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (i *Interceptor) mapped(ctx context.Context, procedure string, err error) error {
	out := FromAt(ctx, err, i.Now())
	if reason := ReasonOf(out); reason == fleetbanv1.Reason_REASON_INTERNAL || errors.Is(err, context.DeadlineExceeded) {
		i.Logger.ErrorContext(ctx, "request failed", slog.String("procedure", procedure), slog.Any("error", err))
	}
	return out
}
