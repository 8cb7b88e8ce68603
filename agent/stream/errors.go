package stream

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"time"

	"connectrpc.com/connect"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Why a session ended, where it is this side's doing.
var (
	errSilent   = errors.New("the control plane fell silent")
	errGap      = errors.New("a set didn't follow what is held")
	errResync   = errors.New("what is held is to be told anew")
	errReplaced = errors.New("another stream took over")
	errNoHello  = errors.New("no Welcome came in time")
	errProtocol = errors.New("the control plane broke the protocol")
)

// InfoOf is the detail that says why a call failed; nil where it has none.
func InfoOf(err error) *fleetbanv1.ErrorInfo {
	var e *connect.Error
	if !errors.As(err, &e) {
		return nil
	}
	for _, d := range e.Details() {
		if m, err := d.Value(); err == nil {
			if info, ok := m.(*fleetbanv1.ErrorInfo); ok {
				return info
			}
		}
	}
	return nil
}

// verdict is what to do about an ended session.
type verdict int

const (
	// soon: ordinary trouble; backoff from nothing to 30 s.
	soon verdict = iota
	// now: no trouble at all.
	now
	// later: only a person can mend it; a minute to five.
	later
)

// judge says what to do about err and how to tell a person.
func judge(err error) (verdict, string) {
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return soon, "the control plane closed the stream"
	case errors.Is(err, errResync), errors.Is(err, errReplaced):
		return now, err.Error()
	}
	info := InfoOf(err)
	fix := info.GetFix()
	text := short(err)
	v := soon
	switch info.GetReason() {
	case fleetbanv1.Reason_REASON_HOST_CLONED:
		v, fix = later, or(fix, "Two machines use this identity. On the copy, remove the agent's state and enrol it anew: fleetban-agent uninstall, then fleetban-agent enroll.")
	case fleetbanv1.Reason_REASON_HOST_DISABLED:
		v, fix = later, or(fix, "The host was removed from the fleet. To join again: fleetban-agent enroll --force with a new join token.")
	case fleetbanv1.Reason_REASON_WRONG_KEY:
		v, fix = later, or(fix, "The control plane knows another key for this host. Enrol it again: fleetban-agent enroll --force with a new join token.")
	case fleetbanv1.Reason_REASON_PROTOCOL_UNSUPPORTED:
		v, fix = later, or(fix, "Upgrade the agent, or the control plane, so that both speak the same protocol.")
	case fleetbanv1.Reason_REASON_BAD_CREDENTIAL:
		v, fix = later, or(fix, "The control plane doesn't know this host: was it set up anew? Enrol again: fleetban-agent enroll --force.")
	case fleetbanv1.Reason_REASON_UNSPECIFIED:
		switch connect.CodeOf(err) {
		case connect.CodeUnimplemented:
			v, fix = later, "There is no Fleetban control plane at this URL; or a proxy in between doesn't pass gRPC on."
		case connect.CodeUnauthenticated, connect.CodePermissionDenied:
			v = later
		default: // what may pass by itself
		}
	default: // what may pass by itself
	}
	if fix != "" {
		text += ". " + fix
	}
	return v, text
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// short is an error without what connect wraps around it.
func short(err error) string {
	var e *connect.Error
	if errors.As(err, &e) {
		if errors.Is(err, context.DeadlineExceeded) {
			return "no answer in time"
		}
		return e.Message()
	}
	return err.Error()
}

// backoff spaces attempts: the first retry comes at once (within 0.2 s), then the pause doubles from 0.2 s to 30 s, each
// drawn between its half and its whole, so that a fleet doesn't come back in step.
type backoff struct{ failures int }

const (
	firstPause = 200 * time.Millisecond
	maxPause   = 30 * time.Second
	longPause  = time.Minute
)

func (b *backoff) next(v verdict) time.Duration {
	switch v {
	case now:
		return 0
	case later:
		b.failures++
		return jitter(min(longPause<<min(b.failures-1, 8), 5*longPause))
	case soon:
	}
	b.failures++
	if b.failures == 1 {
		return time.Duration(rand.Int64N(int64(firstPause))) //nolint:gosec // no secret
	}
	return jitter(min(firstPause<<min(b.failures-1, 20), maxPause))
}

func (b *backoff) reset() { b.failures = 0 }

func jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(rand.Int64N(int64(d/2)+1)) //nolint:gosec // no secret
}
