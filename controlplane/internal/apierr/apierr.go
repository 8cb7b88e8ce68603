// Package apierr is where errors become what callers of the API see: a Connect code and one typed detail, ErrorInfo.
//
// Domain packages return errors of their own; transport wraps what a caller should know in an *Error made by New, and the
// Interceptor maps everything else. No other package builds a connect.Error.
package apierr

import (
	"context"
	"errors"
	"time"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/requestid"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Error is a failure that a caller of the API may see whole: it must hold no secret.
type Error struct {
	Code   connect.Code
	Reason fleetbanv1.Reason
	// Field is the request field at fault in proto notation ("prefixes[3]"); empty where it is none.
	Field string
	// Message says what failed.
	Message string
	// Fix says what to do about it, in one sentence.
	Fix string
	// Subject is the id of what it is about, where that is made by the refusal: an approval.
	Subject string
	// RetryAfter is how long to wait before the next try; 0: that isn't said.
	RetryAfter time.Duration

	cause error
}

// New makes an Error.
func New(code connect.Code, reason fleetbanv1.Reason, field, message, fix string) *Error {
	return &Error{Code: code, Reason: reason, Field: field, Message: message, Fix: fix}
}

// Wrap makes an Error that unwraps to cause. The cause's text isn't shown to the caller.
func Wrap(cause error, code connect.Code, reason fleetbanv1.Reason, field, message, fix string) *Error {
	return &Error{Code: code, Reason: reason, Field: field, Message: message, Fix: fix, cause: cause}
}

// Invalid is the error of a malformed or out-of-range field.
func Invalid(field, message, fix string) *Error {
	return New(connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD, field, message, fix)
}

// NotFound is the error of a name that names nothing.
func NotFound(field, message, fix string) *Error {
	return New(connect.CodeNotFound, fleetbanv1.Reason_REASON_NOT_FOUND, field, message, fix)
}

// Error is what failed and what to do.
func (e *Error) Error() string {
	text := e.Message
	if e.Fix != "" {
		text += "; " + e.Fix
	}
	return text
}

// Unwrap gives the cause, if there is one.
func (e *Error) Unwrap() error { return e.cause }

// From maps any error to what a caller sees, with the server's clock and the id of the call that ctx belongs to. Nil stays
// nil. A *connect.Error that carries an ErrorInfo passes unchanged.
func From(ctx context.Context, err error) *connect.Error { return FromAt(ctx, err, time.Now()) }

// FromAt is From with the server's clock given.
func FromAt(ctx context.Context, err error, now time.Time) *connect.Error {
	if err == nil {
		return nil
	}
	var own *Error
	if errors.As(err, &own) {
		return build(ctx, own, now)
	}
	var invalid *protovalidate.ValidationError
	if errors.As(err, &invalid) {
		return build(ctx, invalidField(invalid), now)
	}
	var already *connect.Error
	if errors.As(err, &already) {
		if Info(already) != nil {
			return already
		}
		return build(ctx, fromConnect(already), now, already.Details()...)
	}
	// net/http takes the end of what a client sends for its end, and has the call break off what it does at Redis: that is not
	// Redis' doing. The client may listen still.
	if errors.Is(ctx.Err(), context.Canceled) && (errors.Is(err, store.ErrOutcomeUnknown) || errors.Is(err, context.Canceled)) {
		return build(ctx, Wrap(err, connect.CodeCanceled, fleetbanv1.Reason_REASON_OUTCOME_UNKNOWN, "",
			"the connection was closed, or its sending half, before there was an answer: the change may or may not stand",
			"keep it open until the answer is there; look whether the change stands, then repeat it"), now)
	}
	return build(ctx, fromDomain(err), now)
}

// Info returns the ErrorInfo that err carries, or nil.
func Info(err error) *fleetbanv1.ErrorInfo {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return nil
	}
	for _, detail := range ce.Details() {
		if value, err := detail.Value(); err == nil {
			if info, ok := value.(*fleetbanv1.ErrorInfo); ok {
				return info
			}
		}
	}
	return nil
}

// ReasonOf returns the reason that err carries, on either side of the wire; unspecified when it carries none.
func ReasonOf(err error) fleetbanv1.Reason {
	var own *Error
	if errors.As(err, &own) {
		return own.Reason
	}
	return Info(err).GetReason()
}

func fromDomain(err error) *Error {
	switch {
	case errors.Is(err, store.ErrUnavailable):
		return Wrap(err, connect.CodeUnavailable, fleetbanv1.Reason_REASON_STORE_UNAVAILABLE, "",
			"the control plane can't reach Redis; nothing was changed", "try again; if it lasts, see /readyz of the control plane")
	case errors.Is(err, store.ErrOutcomeUnknown):
		return Wrap(err, connect.CodeUnavailable, fleetbanv1.Reason_REASON_OUTCOME_UNKNOWN, "",
			"Redis did not answer in time: the change may or may not stand", "look whether it stands, then repeat it: repeating it is safe")
	case errors.Is(err, context.Canceled):
		return Wrap(err, connect.CodeCanceled, fleetbanv1.Reason_REASON_UNSPECIFIED, "", "the caller left", "")
	case errors.Is(err, context.DeadlineExceeded):
		return Wrap(err, connect.CodeDeadlineExceeded, fleetbanv1.Reason_REASON_OUTCOME_UNKNOWN, "",
			"the deadline passed before there was an answer", "look whether the change stands, then repeat it")
	default:
		// Its text may name keys or addresses of the inside: it goes to the log, not to the caller.
		return Wrap(err, connect.CodeInternal, fleetbanv1.Reason_REASON_INTERNAL, "",
			"the control plane failed", "see the control plane's log for the request id")
	}
}

func fromConnect(err *connect.Error) *Error {
	out := &Error{Code: err.Code(), Message: err.Message(), cause: err}
	switch err.Code() {
	case connect.CodeResourceExhausted:
		out.Reason = fleetbanv1.Reason_REASON_MESSAGE_TOO_LARGE
		out.Fix = "send smaller messages: at most 1 MiB each"
	case connect.CodeInvalidArgument:
		out.Reason = fleetbanv1.Reason_REASON_INVALID_FIELD
		out.Fix = "correct the request"
	case connect.CodeUnauthenticated:
		out.Reason = fleetbanv1.Reason_REASON_BAD_CREDENTIAL
	case connect.CodePermissionDenied:
		out.Reason = fleetbanv1.Reason_REASON_PERMISSION_DENIED
	case connect.CodeNotFound:
		out.Reason = fleetbanv1.Reason_REASON_NOT_FOUND
	case connect.CodeInternal, connect.CodeUnknown, connect.CodeDataLoss:
		out.Reason = fleetbanv1.Reason_REASON_INTERNAL
	default:
	}
	return out
}

func invalidField(err *protovalidate.ValidationError) *Error {
	out := Wrap(err, connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD, "", "the request is invalid", "correct the field")
	if len(err.Violations) > 0 {
		first := err.Violations[0].Proto
		out.Field = protovalidate.FieldPathString(first.GetField())
		out.Message = plain(err.Violations[0])
	}
	return out
}

func build(ctx context.Context, e *Error, now time.Time, keep ...*connect.ErrorDetail) *connect.Error {
	out := connect.NewError(e.Code, errors.New(e.Error()))
	for _, detail := range keep {
		if detail.Type() != string((&fleetbanv1.ErrorInfo{}).ProtoReflect().Descriptor().FullName()) {
			out.AddDetail(detail)
		}
	}
	detail, err := connect.NewErrorDetail(fleetbanv1.ErrorInfo_builder{
		Reason: e.Reason, Fix: e.Fix, Field: e.Field, ServerUnixMs: now.UnixMilli(), RequestId: requestid.From(ctx), Subject: e.Subject,
		RetryAfterMs: uint32(min(max(e.RetryAfter, 0), 24*time.Hour).Milliseconds()), //nolint:gosec // a day at most
	}.Build())
	if err == nil {
		out.AddDetail(detail)
	}
	return out
}
