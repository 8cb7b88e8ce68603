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
	// Logger gets one line for each failure.
	Logger *slog.Logger
}

var _ connect.Interceptor = (*Interceptor)(nil)

// WrapUnary implements connect.Interceptor.
func (i *Interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		if err != nil {
			return nil, i.mapped(ctx, req.Spec().Procedure, slog.LevelWarn, err)
		}
		return res, nil
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (i *Interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := next(ctx, conn); err != nil {
			// Redis away ends thousands of agents' attempts: its absence is logged elsewhere.
			return i.mapped(ctx, conn.Spec().Procedure, slog.LevelDebug, err)
		}
		return nil
	}
}

// WrapStreamingClient implements connect.Interceptor: servers make no calls through it.
func (*Interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// mapped maps err and logs it: as an error where it is the control plane's own, at level where Redis failed it, and else for
// who debugs.
func (i *Interceptor) mapped(ctx context.Context, procedure string, level slog.Level, err error) error {
	out := FromAt(ctx, err, i.Now())
	reason := ReasonOf(out)
	switch {
	case out.Code() == connect.CodeCanceled:
		level = slog.LevelDebug
	case reason == fleetbanv1.Reason_REASON_INTERNAL, errors.Is(err, context.DeadlineExceeded):
		level = slog.LevelError
	case reason == fleetbanv1.Reason_REASON_STORE_UNAVAILABLE, reason == fleetbanv1.Reason_REASON_OUTCOME_UNKNOWN:
	default:
		level = slog.LevelDebug
	}
	i.Logger.LogAttrs(ctx, level, "request failed", slog.String("procedure", procedure), slog.String("code", out.Code().String()),
		slog.String("reason", reason.String()), slog.Any("error", err))
	return out
}
