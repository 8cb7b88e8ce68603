// Package requestid names calls: one id stands in every log line of a call, in the header of its answer, and in the detail
// of its error, so that what a person is shown finds what the log says.
//
// A stream of an agent is one call: its id is in the agent's log too.
package requestid

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net/http"
)

// Header carries the id both ways.
const Header = "X-Request-Id"

// maxLength of an id that a caller gives, bytes.
const maxLength = 64

type key struct{}

// New makes an id of 16 hexadecimal digits.
func New() string {
	var random [8]byte
	_, _ = rand.Read(random[:])
	return hex.EncodeToString(random[:])
}

// Of is the id that a request gives, or a new one where it gives none that can stand in a log line: 1 to 64 letters, digits
// or ._:- of ASCII.
func Of(h http.Header) string {
	if id := h.Get(Header); good(id) {
		return id
	}
	return New()
}

func good(id string) bool {
	for i := range len(id) {
		switch c := id[i]; {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '.', c == '_', c == ':', c == '-':
		default:
			return false
		}
	}
	return id != "" && len(id) <= maxLength
}

// With is ctx of the call with that id.
func With(ctx context.Context, id string) context.Context { return context.WithValue(ctx, key{}, id) }

// From is the id of the call that ctx belongs to; "" where it belongs to none.
func From(ctx context.Context) string {
	id, _ := ctx.Value(key{}).(string)
	return id
}

// Handler puts the id into each log line whose context belongs to a call.
type Handler struct{ slog.Handler }

// Handle implements slog.Handler.
func (h Handler) Handle(ctx context.Context, r slog.Record) error {
	if id := From(ctx); id != "" {
		r.AddAttrs(slog.String("request_id", id))
	}
	return h.Handler.Handle(ctx, r) //nolint:wrapcheck // a decorator
}

// WithAttrs implements slog.Handler.
func (h Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return Handler{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h Handler) WithGroup(name string) slog.Handler { return Handler{h.Handler.WithGroup(name)} }
