package enforce

import (
	"context"
	"fmt"
	"net/netip"
	"runtime/debug"
	"slices"
	"sort"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/agent/internal/policy"
	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// mostExceptions is how many are named; all are counted.
const mostExceptions = 1000

// freeMemory gives back what loading a large set needed.
func freeMemory() { debug.FreeOSMemory() }

// Cursors is what is held of each set.
func (e *Engine) Cursors() []*fleetbanv1.SetCursor { return e.hold.Cursors() }

// Sets is what is held of each set, for people.
func (e *Engine) Sets() []*hostv1.HeldSet { return e.hold.Sets() }

// Held calls yield with the records of set received above a version, tombstones included, at most 1000 a call, until
// it returns an error.
func (e *Engine) Held(set string, above uint64, yield func([]*fleetbanv1.Record) error) error {
	return e.hold.Held(set, above, yield)
}

// Exceptions is the records that are held and not enforced, at most 1000, and how many there are.
func (e *Engine) Exceptions() ([]*fleetbanv1.SetException, uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.exceptions == nil || e.exceptionsStale {
		e.publish()
	}
	return e.exceptions, uint32(len(e.refused)) //nolint:gosec // bounded by the sets
}

func (e *Engine) listExceptions() []*fleetbanv1.SetException {
	prefixes := make([]netip.Prefix, 0, len(e.refused))
	for p := range e.refused {
		prefixes = append(prefixes, p)
	}
	sort.Slice(prefixes, func(i, j int) bool { return prefixes[i].Compare(prefixes[j]) < 0 })
	out := make([]*fleetbanv1.SetException, 0, min(len(prefixes), mostExceptions))
	for _, p := range prefixes {
		for _, set := range e.hold.In(kindBan, p) {
			if len(out) == mostExceptions {
				return out
			}
			out = append(out, fleetbanv1.SetException_builder{Set: set, Prefix: prefix.Pack(p), Refusal: e.refused[p]}.Build())
		}
	}
	return out
}

// Health is the state of the enforcement.
func (e *Engine) Health() *fleetbanv1.EnforcerHealth {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.health()
}

func (e *Engine) health() *fleetbanv1.EnforcerHealth {
	h := fleetbanv1.EnforcerHealth_builder{
		Backend: policy.EnforcerNftables, Inert: e.inert(), Repairs: e.repairs,
		Suppressed: uint64(max(0, e.quieted)), Refused: uint64(len(e.refused)), Problem: e.problem, //nolint:gosec // counts
	}
	if e.policy.Policy.Enforcer == policy.EnforcerNone || (e.kernel == nil && e.problem != "") {
		h.Backend = policy.EnforcerNone
	}
	if e.state.OffUntil > e.clock.now() {
		h.OffUntilUnixMs = e.state.OffUntil
	}
	switch {
	case h.Inert != 0:
	case !e.inForce:
		h.Inert = fleetbanv1.Inert_INERT_UNABLE
	default:
		h.Enforced = uint64(max(0, e.enforced-e.quieted)) //nolint:gosec // a count
		if e.policy.Policy.Proxied {
			h.Inert = fleetbanv1.Inert_INERT_PROXIED
		}
	}
	return h.Build()
}

// Findings is what needs a person.
func (e *Engine) Findings() []*fleetbanv1.Finding {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []*fleetbanv1.Finding
	add := func(severity fleetbanv1.Finding_Severity, code, problem, fix string) {
		out = append(out, fleetbanv1.Finding_builder{Severity: severity, Code: code, Problem: limit(problem), Fix: limit(fix)}.Build())
	}
	if p := e.policy.Problem; p != nil {
		force := "the last good policy stays in force"
		if e.policy.Policy.Level == policy.LevelObserve {
			force = "until it is mended, this host observes only"
		}
		add(fleetbanv1.Finding_SEVERITY_ERROR, "policy-file", p.Error()+"; "+force, p.Fix)
	}
	if e.problem != "" {
		add(fleetbanv1.Finding_SEVERITY_ERROR, "enforcer", "fleet bans can't be enforced: "+e.problem, "nft list ruleset as root shows whether nftables works here")
	}
	if p := e.hold.Problem(); p != "" {
		add(fleetbanv1.Finding_SEVERITY_ERROR, "state-not-saved", p, "free space or make the state folder writable; what is held stays in force meanwhile")
	} else if e.stateProblem != "" {
		add(fleetbanv1.Finding_SEVERITY_ERROR, "state-not-saved", e.stateProblem, "free space or make the state folder writable")
	}
	if p := e.hold.Full(); p != "" {
		add(fleetbanv1.Finding_SEVERITY_ERROR, "too-many-records", p, "put whole networks on the lists instead of their addresses, or let old bans end")
	}
	if p := e.prot.Problem(); p != "" {
		add(fleetbanv1.Finding_SEVERITY_WARNING, "ssh-peers", p, "give the helper the capabilities of its unit file")
	}
	if back := e.clock.refused; back != 0 {
		add(fleetbanv1.Finding_SEVERITY_WARNING, "control-plane-clock", fmt.Sprintf("the control plane set its clock back by %s, which this host's own clock "+
			"contradicts: bans end by the time before", back.Round(time.Second)), "turn time synchronisation on where Redis runs, and here: timedatectl set-ntp true")
	}
	if e.policy.Policy.Proxied {
		add(fleetbanv1.Finding_SEVERITY_INFO, "proxied", "the policy file says that clients reach this host through a proxy: dropping packets stops nobody", "ban at the proxy")
	}
	return out
}

func limit(s string) string {
	const most = 1000
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// Settings is the newest that the organisation said, kept through restarts; nil before the first.
func (e *Engine) Settings() *fleetbanv1.Settings {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.state.settings
}

// Policy is the policy in force.
func (e *Engine) Policy() PolicyState {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.policy
}

// ServerNow is the server's clock as this host knows it, Unix milliseconds.
func (e *Engine) ServerNow() int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.clock.now()
}

// Changed returns a channel that is closed when Health, Exceptions, Findings or Policy next change.
func (e *Engine) Changed() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.changed
}

// publish closes the channel of Changed if there is something to tell. The caller holds the lock.
func (e *Engine) publish() {
	next := e.reported
	if e.exceptionsStale || e.exceptions == nil {
		e.exceptionsStale = false
		list := e.listExceptions()
		if e.exceptions == nil || !slices.EqualFunc(list, e.exceptions, func(a, b *fleetbanv1.SetException) bool { return proto.Equal(a, b) }) {
			next.exceptions++
		}
		e.exceptions = list
	}
	h := e.health()
	next.health = fmt.Sprint(h.GetBackend(), h.GetInert(), h.GetRepairs(), h.GetProblem(), h.GetOffUntilUnixMs(), h.GetEnforced(),
		h.GetSuppressed(), h.GetRefused(), e.hold.Problem(), e.hold.Full(), e.stateProblem, e.prot.Problem())
	next.policy = e.policy.Policy.Level.String()
	if e.policy.Problem != nil {
		next.policy += e.policy.Problem.Error()
	}
	if next != e.reported {
		e.reported = next
		close(e.changed)
		e.changed = make(chan struct{})
	}
}

// LocalAllows is what AllowLocal exempted.
func (e *Engine) LocalAllows() []*hostv1.LocalAllow {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.clock.now()
	var out []*hostv1.LocalAllow
	for p, end := range e.state.Allows {
		switch {
		case end <= now:
		case end >= forever:
			out = append(out, hostv1.LocalAllow_builder{Prefix: prefix.Pack(p)}.Build())
		default:
			out = append(out, hostv1.LocalAllow_builder{Prefix: prefix.Pack(p), UntilUnixMs: end}.Build())
		}
	}
	sort.Slice(out, func(i, j int) bool { return string(out[i].GetPrefix()) < string(out[j].GetPrefix()) })
	return out
}

// Allowed reports whether the fleet's or this host's allowlist covers p: it must not be banned in fail2ban either.
func (e *Engine) Allowed(p netip.Prefix) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.allows.covers(p, e.clock.now())
}

// Protected reports whether this host never bans p, and why: for bans that go to fail2ban by command.
func (e *Engine) Protected(_ context.Context, p netip.Prefix) (fleetbanv1.Refusal, bool) {
	if r, refused := e.prot.Check(p); refused {
		return r, true
	}
	if e.Allowed(p) {
		return fleetbanv1.Refusal_REFUSAL_LOCAL_ALLOW, true
	}
	return fleetbanv1.Refusal_REFUSAL_UNSPECIFIED, false
}

// count goes over the bans for what time alone has changed.
func (e *Engine) count() {
	now := e.clock.now()
	for p := range e.refused {
		if e.hold.Expires(kindBan, p) <= now {
			e.accept(p)
		}
	}
	e.covered, e.enforced, e.quieted = coverage{}, 0, 0
	e.hold.Each(kindBan, func(p netip.Prefix, end int64) bool {
		if _, no := e.refused[p]; no || end <= now {
			return true
		}
		e.covered.add(p)
		e.enforced++
		if e.allows.covers(p, now) {
			e.quieted++
		}
		return true
	})
}

// tolerance is by how much a timeout in the kernel may differ from what it should be.
const tolerance = 2 * time.Second
