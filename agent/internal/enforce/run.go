package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/fleetban/fleetban/agent/internal/nft"
	"github.com/fleetban/fleetban/agent/internal/policy"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// How often Run does what: each is a multiple of tick.
const (
	tick         = time.Second
	sshEvery     = 2
	watchEvery   = 5 // while there is nothing to watch
	protectEvery = 15
	countEvery   = 60
	auditEvery   = 300
)

// Run does what has to be done with time, until ctx ends: protections, policy file, audit, foreign changes, saving.
func (e *Engine) Run(ctx context.Context) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	return e.run(ctx, ticker.C)
}

// run is Run with ticks of its caller's.
func (e *Engine) run(ctx context.Context, ticks <-chan time.Time) error {
	var foreign <-chan struct{}
	for n := 0; ; {
		if foreign == nil && n%watchEvery == 0 {
			foreign = e.watch(ctx)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, ok := <-foreign:
			if !ok {
				foreign = nil
			}
			e.foreignChange(ctx)
		case <-ticks:
			n++
			e.everySecond(ctx, n)
			if n%auditEvery == 0 {
				e.foreignChange(ctx)
			}
		}
		e.tellAllows()
	}
}

func (e *Engine) watch(ctx context.Context) <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.kernel == nil {
		return nil
	}
	ch, err := e.kernel.Watch(ctx)
	if err != nil {
		e.log.Warn("Changes of nftables by others can't be watched; they are found by the audit every few minutes", "error", err)
		return nil
	}
	return ch
}

// foreignChange looks at what somebody else did to our table.
func (e *Engine) foreignChange(ctx context.Context) {
	result, err := e.Audit(ctx)
	if err != nil && ctx.Err() == nil {
		e.log.Warn("The nftables table can't be compared with what it should be", "error", err)
		return
	}
	if result.Missing+result.Foreign > 0 {
		e.noteForeign("missing", result.Missing, "foreign", result.Foreign)
	}
}

// noteForeign takes down that somebody changed our table. Whoever does may do so every second.
func (e *Engine) noteForeign(attrs ...any) {
	e.cfg.Lately.Note("nftables-changed", "Somebody changed our nftables table; it is put back", attrs...)
}

func (e *Engine) everySecond(ctx context.Context, n int) {
	e.hold.Maintain()
	if n%countEvery == 0 {
		e.mu.Lock()
		write := e.stateWriter() // the clock has gone on
		e.mu.Unlock()
		err := write()
		e.mu.Lock()
		e.stateSaved(err)
		e.mu.Unlock()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.clock.now()
	anew := e.clock.slept()
	if e.state.OffUntil != 0 && e.state.OffUntil <= now {
		e.state.OffUntil = 0
		e.saveState()
		e.log.Info("The time is over for which enforcement was switched off")
	}
	var u nft.Update
	lapsed := false
	for p, end := range e.state.Allows {
		if end <= now {
			delete(e.state.Allows, p)
			e.allowChanged(&u, p, now)
			lapsed = true
		}
	}
	recheck := e.loadPolicy()
	if recheck {
		e.prot.SetPolicy(e.policy.Policy)
	}
	if lapsed {
		e.saveState()
		e.update(ctx, u)
		recheck = true
	}
	if n%protectEvery == 0 {
		changed, err := e.prot.Refresh(ctx)
		if err != nil {
			e.log.Debug("Some of what this host must never ban can't be looked up", "error", err)
		}
		recheck = recheck || changed
	}
	if n%sshEvery == 0 && !recheck {
		recheck = e.sshChanged(now)
	}
	if n%countEvery == 0 {
		e.hold.Prune(now)
		e.count()
	}
	if recheck && e.inForce && !anew {
		e.recheck(ctx)
	}
	e.reconcile(ctx, anew)
	e.publish()
}

// sshChanged reports whether a ban in force cuts a live SSH session, or one that was refused for such a session's sake
// needs not be any more, or the kernel refused one and may have room again.
func (e *Engine) sshChanged(now int64) bool {
	for p, r := range e.refused {
		if r == fleetbanv1.Refusal_REFUSAL_SSH_PEER {
			if again, _ := e.prot.Check(p); again != r {
				return true
			}
		}
	}
	if e.enforced == 0 {
		return false
	}
	cuts := false
	e.prot.Connected(func(peer netip.Addr) bool {
		for length := range e.lengths {
			six := length >= 1000
			if six != peer.Is6() {
				continue
			}
			if six {
				length -= 1000
			}
			p, err := peer.Prefix(length)
			if err != nil || e.hold.Expires(kindBan, p) <= now {
				continue
			}
			if _, no := e.refused[p]; no {
				continue
			}
			if _, no := e.prot.Check(p); no {
				cuts = true
				return false
			}
		}
		return true
	})
	return cuts
}

// stamp tells a file's versions apart.
type stamp struct {
	mod  time.Time
	size int64
	mode os.FileMode
	err  bool
}

// loadPolicy reads the policy file if it has changed, and reports whether another policy is in force now.
func (e *Engine) loadPolicy() bool {
	var s stamp
	if info, err := os.Stat(e.cfg.PolicyPath); err != nil {
		s.err = true
	} else {
		s = stamp{info.ModTime(), info.Size(), info.Mode(), false}
	}
	if s == e.policyStamp && e.policyStamp != (stamp{}) {
		return false
	}
	e.policyStamp = s
	p, err := policy.Load(e.cfg.PolicyPath)
	if err != nil {
		var bad *policy.Error
		if !errors.As(err, &bad) {
			bad = &policy.Error{File: e.cfg.PolicyPath, Problem: err.Error()}
		}
		e.policy.Problem = bad
		e.log.Error("The policy file is wrong; the last good one stays in force, or nothing is enforced if there was none", "error", bad, "level", e.policy.Policy.Level)
		return false
	}
	e.policy.Problem = nil
	if p.Equal(e.policy.Policy) {
		return false
	}
	e.policy.Policy = p
	e.log.Info("The host's policy is in force", "file", e.cfg.PolicyPath, "level", p.Level)
	return true
}

// saveState saves the switches before it returns. The caller holds the lock.
func (e *Engine) saveState() { e.stateSaved(e.stateWriter()()) }

// stateWriter returns what saves the switches as they are now; it needs no lock.
func (e *Engine) stateWriter() func() error {
	e.state.ClockOffset, e.state.LastServer, e.state.ServerTold = e.clock.offset(), e.clock.now(), e.clock.told
	e.stateNumber++
	number := e.stateNumber
	data, err := e.state.marshal()
	return func() error {
		if err != nil {
			return err
		}
		return e.stateFile.write(e.cfg.StateDir, data, number)
	}
}

func (e *Engine) stateSaved(err error) {
	problem := ""
	if err != nil {
		problem = "the helper's switches can't be saved: " + err.Error()
	}
	switch {
	case problem != "" && e.stateProblem == "":
		e.log.Error("The helper's switches can't be saved", "error", err)
	case problem == "" && e.stateProblem != "":
		e.log.Info("The helper's switches are saved again")
	}
	e.stateProblem = problem
}

// TurnOff stops enforcement at once and through restarts, for d or (d = 0) until TurnOn. It returns the end in Unix
// milliseconds by the server's clock, 0 for none.
func (e *Engine) TurnOff(ctx context.Context, d time.Duration) (int64, error) {
	if d < 0 {
		return 0, fmt.Errorf("a duration of %s: write one from now on, or 0 for until it is turned on", d)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.state.OffUntil = forever
	if d > 0 {
		e.state.OffUntil = e.clock.now() + d.Milliseconds()
	}
	e.saveState()
	e.reconcile(ctx, true)
	e.publish()
	if e.problem != "" && e.inForce {
		return 0, fmt.Errorf("take the bans out of the kernel: %s; `nft delete table inet %s` as root does it by hand", e.problem, e.cfg.Table)
	}
	if d == 0 {
		return 0, e.unsaved()
	}
	return e.state.OffUntil, e.unsaved()
}

// TurnOn ends TurnOff.
func (e *Engine) TurnOn(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.state.OffUntil = 0
	e.saveState()
	e.reconcile(ctx, true)
	e.publish()
	return e.unsaved()
}

// unsaved is the error of a switch that holds now and wouldn't survive a restart.
func (e *Engine) unsaved() error {
	if e.stateProblem == "" {
		return nil
	}
	return fmt.Errorf("it holds until the helper restarts: %s", e.stateProblem)
}

// AllowLocal exempts p on this host for d or (d = 0) for ever, or takes the exemption back.
func (e *Engine) AllowLocal(ctx context.Context, p netip.Prefix, d time.Duration, remove bool) error {
	if !p.IsValid() || p != p.Masked() {
		return fmt.Errorf("%v is not a prefix", p)
	}
	if d < 0 {
		return fmt.Errorf("a duration of %s: write one from now on, or 0 for ever", d)
	}
	defer e.tellAllows()
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.clock.now()
	if remove {
		if _, ok := e.state.Allows[p]; !ok {
			return fmt.Errorf("%s is not exempted on this host", prefix.Format(p))
		}
		delete(e.state.Allows, p)
	} else {
		if _, ok := e.state.Allows[p]; !ok && len(e.state.Allows) >= mostAllows {
			return fmt.Errorf("%d prefixes are exempted on this host, which is the most: take some back first", mostAllows)
		}
		e.state.Allows[p] = forever
		if d > 0 {
			e.state.Allows[p] = now + d.Milliseconds()
		}
	}
	e.saveState()
	var u nft.Update
	e.allowChanged(&u, p, now)
	e.update(ctx, u)
	e.recheck(ctx)
	e.publish()
	return e.unsaved()
}

// Audit compares the kernel with what ought to be there and repairs it.
func (e *Engine) Audit(ctx context.Context) (AuditResult, error) {
	// Reading 100,000 elements takes half a second: no ban waits for it. What differs is looked at again with everything
	// else held up, for a change on the way looks like a difference.
	result, err := e.compare(ctx, &e.mu)
	if err != nil || result.Missing+result.Foreign == 0 {
		return result, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if result, err = e.compare(ctx, nowhere{}); err != nil {
		return result, err
	}
	if result.Missing+result.Foreign > 0 {
		e.repairs++
		e.reconcile(ctx, true)
		e.publish()
	}
	return result, nil
}

// nowhere is the lock of who holds it already.
type nowhere struct{}

func (nowhere) Lock()   {}
func (nowhere) Unlock() {}

// compare takes mu for each look at what ought to be there.
func (e *Engine) compare(ctx context.Context, mu sync.Locker) (AuditResult, error) {
	var result AuditResult
	begin := time.Now()
	mu.Lock()
	kernel := e.kernel
	if !e.inForce {
		kernel = nil
	}
	now := e.clock.now()
	mu.Unlock()
	if kernel == nil {
		return result, nil
	}
	soon := now + tolerance.Milliseconds()
	matched := 0
	err := kernel.List(ctx, func(el nft.Element, allow bool) error {
		mu.Lock()
		defer mu.Unlock()
		end := e.allows.ends[el.Prefix]
		if !allow {
			if end = e.hold.Expires(kindBan, el.Prefix); e.refused[el.Prefix] != 0 {
				end = 0
			}
		}
		want := remaining(end, now)
		switch {
		case end <= soon && el.Remaining != nft.Forever && el.Remaining <= 2*tolerance:
			return nil // about to end, or over since a moment: not counted on either side
		case end <= soon, (want == nft.Forever) != (el.Remaining == nft.Forever):
			result.Foreign++
		case want != nft.Forever && (el.Remaining > want+tolerance || el.Remaining < want-tolerance-time.Since(begin)):
			result.Foreign++
		default:
			matched++
			if !allow {
				result.Enforced++
			}
		}
		return nil
	})
	gone := errors.Is(err, nft.ErrGone)
	if err != nil && !gone {
		return result, err
	}
	mu.Lock()
	defer mu.Unlock()
	expected := 0
	e.hold.Each(kindBan, func(p netip.Prefix, end int64) bool {
		if _, no := e.refused[p]; !no && end > soon {
			expected++
		}
		return true
	})
	for _, end := range e.allows.ends {
		if end > soon {
			expected++
		}
	}
	result.Missing = max(0, expected-matched)
	if gone {
		result.Missing = max(1, expected) // the table itself, at least
	}
	result.Took = time.Since(begin)
	return result, nil
}
