package enforce

import (
	"context"
	"errors"
	"net/netip"
	"time"

	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

var errNotYet = errors.New("not built yet")

// Engine holds the fleet's sets on this host and keeps the kernel equal to them. Safe for concurrent use.
type Engine struct{}

// Open loads what is saved and enforces it before it returns. It fails only where nothing could be kept: without
// nftables it works, and says so in Health.
func Open(ctx context.Context, cfg Config) (*Engine, error) { return nil, errNotYet }

// Run does what has to be done with time, until ctx ends: protections, policy file, audit, foreign changes, saving.
func (e *Engine) Run(ctx context.Context) error { return errNotYet }

// Close saves and lets go. The kernel goes on enforcing.
func (e *Engine) Close() error { return errNotYet }

// Apply applies a delta, a page or a sync. The answer means what its outcome says; an error means the request was malformed.
func (e *Engine) Apply(ctx context.Context, req *hostv1.ApplyRequest) (*hostv1.ApplyResponse, error) {
	return nil, errNotYet
}

// SetSession takes in what the stream's Welcome said.
func (e *Engine) SetSession(ctx context.Context, req *hostv1.SetSessionRequest) (*hostv1.SetSessionResponse, error) {
	return nil, errNotYet
}

// Cursors is what is held of each set.
func (e *Engine) Cursors() []*fleetbanv1.SetCursor { return nil }

// Sets is what is held of each set, for people.
func (e *Engine) Sets() []*hostv1.HeldSet { return nil }

// Held calls yield with the records of set received above a version, tombstones included, at most 1000 a call, until
// it returns an error.
func (e *Engine) Held(set string, above uint64, yield func([]*fleetbanv1.Record) error) error {
	return errNotYet
}

// TurnOff stops enforcement at once and through restarts, for d or (d = 0) until TurnOn. It returns the end in Unix
// milliseconds by the server's clock, 0 for none.
func (e *Engine) TurnOff(ctx context.Context, d time.Duration) (int64, error) { return 0, errNotYet }

// TurnOn ends TurnOff.
func (e *Engine) TurnOn(ctx context.Context) error { return errNotYet }

// AllowLocal exempts p on this host for d or (d = 0) for ever, or takes the exemption back.
func (e *Engine) AllowLocal(ctx context.Context, p netip.Prefix, d time.Duration, remove bool) error {
	return errNotYet
}

// LocalAllows is what AllowLocal exempted.
func (e *Engine) LocalAllows() []*hostv1.LocalAllow { return nil }

// Allowed reports whether the fleet's or this host's allowlist covers p: it must not be banned in fail2ban either.
func (e *Engine) Allowed(p netip.Prefix) bool { return false }

// Protected reports whether this host never bans p, and why: for bans that go to fail2ban by command.
func (e *Engine) Protected(ctx context.Context, p netip.Prefix) (fleetbanv1.Refusal, bool) {
	return 0, false
}

// Exceptions is the records that are held and not enforced, at most 1000, and how many there are.
func (e *Engine) Exceptions() ([]*fleetbanv1.SetException, uint32) { return nil, 0 }

// Health is the state of the enforcement.
func (e *Engine) Health() *fleetbanv1.EnforcerHealth { return nil }

// Findings is what needs a person.
func (e *Engine) Findings() []*fleetbanv1.Finding { return nil }

// Settings is the newest that the organisation said, kept through restarts; nil before the first.
func (e *Engine) Settings() *fleetbanv1.Settings { return nil }

// Policy is the policy in force.
func (e *Engine) Policy() PolicyState { return PolicyState{} }

// ServerNow is the server's clock as this host knows it, Unix milliseconds.
func (e *Engine) ServerNow() int64 { return 0 }

// Changed returns a channel that is closed when Health, Exceptions, Findings or Policy next change.
func (e *Engine) Changed() <-chan struct{} { return nil }

// Audit compares the kernel with what ought to be there and repairs it.
func (e *Engine) Audit(ctx context.Context) (AuditResult, error) { return AuditResult{}, errNotYet }

// Uninstall takes the table out of the kernel, for `fleetban-agent uninstall`.
func (e *Engine) Uninstall(ctx context.Context) error { return errNotYet }
