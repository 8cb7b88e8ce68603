package observe

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

const (
	pageSize = 1000
	// maxQueued changes wait for a slow subscriber. Beyond that it gets a new baseline instead.
	maxQueued = 4096
)

// ErrReplaced ends a subscription when another one takes its place.
var ErrReplaced = errors.New("another subscriber took over")

// Subscription hands over what fail2ban has banned: a baseline, then changes. A page 0 begins a new baseline, also in the
// middle of another, whose further pages then don't come.
type Subscription struct {
	observer *Observer

	mu     sync.Mutex
	ready  chan struct{} // closed when there is something to hand over
	closed error
	queue  []queued // at most one baseline among the changes
	// due: no change counts until the next baseline.
	due bool
}

// queued is a change and when it happened, or a baseline.
type queued struct {
	change   *hostv1.Change
	at       time.Time
	baseline *baseline
}

// baseline is a copy of what was banned at one moment, made into pages as they are asked for.
type baseline struct {
	jails      []string
	entries    []entry
	page       uint32
	afterStart bool
}

type entry struct {
	jail     string
	prefix   netip.Prefix
	since    time.Time
	duration time.Duration
}

// Next waits for the next message. Its ages are those of the moment it returns.
func (s *Subscription) Next(ctx context.Context) (*hostv1.ObserveResponse, error) {
	for {
		s.mu.Lock()
		if s.closed != nil {
			s.mu.Unlock()
			return nil, s.closed
		}
		if len(s.queue) > 0 {
			msg := s.take()
			s.mu.Unlock()
			return msg, nil
		}
		ready, due := s.ready, s.due
		s.mu.Unlock()
		if due {
			s.observer.nudge()
		}
		select {
		case <-ready:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Close ends the subscription.
func (s *Subscription) Close() { s.end(errors.New("the subscription was closed")) }

func (s *Subscription) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed == nil {
		s.closed = err
		s.queue = nil
		s.wake()
	}
}

func (s *Subscription) wake() {
	close(s.ready)
	s.ready = make(chan struct{})
}

// take makes the next message and leaves the queue less it.
func (s *Subscription) take() *hostv1.ObserveResponse {
	first := s.queue[0]
	if b := first.baseline; b != nil {
		page := s.observer.page(b)
		if page.GetLast() {
			s.pop()
		}
		return hostv1.ObserveResponse_builder{Baseline: page}.Build()
	}
	s.pop()
	first.change.SetAgeMs(milliseconds(s.observer.now().Sub(first.at)))
	return hostv1.ObserveResponse_builder{Change: first.change}.Build()
}

func (s *Subscription) pop() {
	s.queue[0] = queued{}
	if s.queue = s.queue[1:]; len(s.queue) == 0 {
		s.queue = nil
	}
}

func (o *Observer) page(b *baseline) *hostv1.Baseline {
	now := o.now()
	n := min(len(b.entries), pageSize)
	banned := make([]*hostv1.Banned, n)
	for i, e := range b.entries[:n] {
		banned[i] = hostv1.Banned_builder{
			Jail: e.jail, Prefix: prefix.Pack(e.prefix), AgeMs: milliseconds(now.Sub(e.since)), DurationMs: durationMs(e.duration),
		}.Build()
	}
	page := hostv1.Baseline_builder{
		Page: b.page, Last: n == len(b.entries), Jails: b.jails, AfterStart: b.afterStart, Banned: banned,
	}.Build()
	b.page++
	b.entries = b.entries[n:]
	return page
}

func (s *Subscription) change(c *hostv1.Change, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil || s.due {
		return
	}
	if len(s.queue) >= maxQueued {
		s.queue, s.due = nil, true
		return
	}
	s.queue = append(s.queue, queued{change: c, at: at})
	s.wake()
}

// wants reports whether a baseline is due and all before it was taken.
func (s *Subscription) wants() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed == nil && s.due
}

// offer queues a baseline behind the changes told before: it says what is, they say why. One that isn't finished yet is
// given up.
func (s *Subscription) offer(b *baseline) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return
	}
	s.queue = append(slices.DeleteFunc(s.queue, func(q queued) bool { return q.baseline != nil }), queued{baseline: b})
	s.due = false
	s.wake()
}

func milliseconds(d time.Duration) int64 { return max(0, d.Milliseconds()) }

func durationMs(d time.Duration) int64 {
	if d < 0 {
		return -1
	}
	return d.Milliseconds()
}
