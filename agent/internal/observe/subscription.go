package observe

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

const (
	pageSize = 1000
	// maxQueued changes, of so many bytes in all, wait for a subscriber or for its acknowledgement. Beyond that it gets a
	// new baseline instead.
	maxQueued, maxQueuedBytes = 4096, 1 << 20
)

// ErrReplaced ends a subscription when another one takes its place.
var ErrReplaced = errors.New("another subscriber took over")

// Position is how much of what an Observer told a subscriber has made its own. The zero value is nothing.
type Position struct {
	Feed, Through uint64
}

// feed is what is to be told, to whoever subscribes. What changes while nobody does waits, and what was handed over stays
// until it is acknowledged: a subscriber that comes back goes on where it was.
type feed struct {
	id  uint64 // never 0
	log *slog.Logger

	mu    sync.Mutex
	ready chan struct{} // closed when there is something to hand over
	sub   *Subscription // nil while nobody subscribes
	queue []queued      // at most one baseline among the changes
	next  int           // how many of the queue were handed over
	bytes int
	// Positions: of what was told last, of what was handed over to anyone, of what was acknowledged.
	last, handed, acked uint64
	// due: no change counts until the next baseline. wanted: the subscriber is to get one.
	due, wanted bool
	// started: fail2ban started while nobody was there to be told.
	started bool
	dropped int
}

// queued is a change and when it happened, or a baseline.
type queued struct {
	position uint64
	change   *hostv1.Change
	size     int
	at       time.Time
	baseline *baseline
}

// Subscription hands over what fail2ban has banned: the changes since a position, a baseline, then changes. A page 0
// begins a new baseline, also in the middle of another, whose further pages then don't come.
type Subscription struct {
	observer *Observer
	feed     *feed
	closed   error // under feed.mu
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

func newFeed(log *slog.Logger) *feed {
	return &feed{id: rand.Uint64() | 1, log: log, ready: make(chan struct{})} //nolint:gosec // no secret, only another one each time
}

// subscribe gives the feed to another subscriber. To one that has nothing, what changed before its baseline is history.
func (f *feed) subscribe(o *Observer, from Position) *Subscription {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leave(f.sub, ErrReplaced)
	s := &Subscription{observer: o, feed: f}
	f.sub, f.wanted = s, true
	f.queue = slices.DeleteFunc(f.queue, func(q queued) bool { return q.baseline != nil })
	f.next = 0
	switch from.Feed {
	case 0:
		f.clear()
	case f.id:
		for f.next < len(f.queue) && f.queue[f.next].position <= from.Through {
			f.next++
		}
	}
	return s
}

// clear gives up what waits, for a baseline to come.
func (f *feed) clear() {
	f.queue, f.next, f.bytes, f.due, f.wanted = nil, 0, 0, true, true
	f.last++ // acknowledged with the baseline only
}

func (f *feed) leave(s *Subscription, why error) {
	if s != nil && s.closed == nil {
		s.closed, f.sub = why, nil
		f.wake()
	}
}

func (f *feed) wake() {
	close(f.ready)
	f.ready = make(chan struct{})
}

// change tells of a change.
func (f *feed) change(c *hostv1.Change, at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.due {
		if f.dropped > 0 {
			f.dropped++
		}
		return
	}
	size := proto.Size(c)
	for len(f.queue) > 0 && (len(f.queue) >= maxQueued || f.bytes+size > maxQueuedBytes) {
		if f.next > 0 {
			f.pop() // it was handed over: only a subscriber that dies now misses it
			continue
		}
		f.dropped = len(f.queue) + 1
		f.clear()
		f.log.Warn("changes of fail2ban's bans wait for the agent's other half and there is room for no more: once it asks, " +
			"it gets all that is banned instead, and not why the rest went")
		return
	}
	f.last++
	f.bytes += size
	f.queue = append(f.queue, queued{position: f.last, change: c, size: size, at: at})
	f.wake()
}

// pop removes the first of the queue.
func (f *feed) pop() {
	f.bytes -= f.queue[0].size
	f.queue[0] = queued{}
	f.queue, f.next = f.queue[1:], max(0, f.next-1)
	if len(f.queue) == 0 {
		f.queue = nil
	}
}

// ack lets go of what is acknowledged.
func (f *feed) ack(p Position) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.Feed != f.id {
		return
	}
	f.acked = max(f.acked, min(p.Through, f.handed))
	for len(f.queue) > 0 && f.queue[0].position <= f.acked && f.queue[0].baseline == nil {
		f.pop()
	}
}

// told returns the position of the last change, and whether all through another is acknowledged.
func (f *feed) told(through uint64) (last uint64, acked bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last, f.acked >= through
}

// wants reports whether the subscriber is to get a baseline.
func (f *feed) wants() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sub != nil && f.wanted
}

// takes reports whether there is a subscriber to take a baseline. If not, it remembers for the next one what the baseline
// is to say.
func (f *feed) takes(afterStart bool) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.started = f.started || afterStart
	return f.sub != nil
}

// offer queues a baseline behind the changes told before: it says what is, they say why. One that isn't finished yet is
// given up.
func (f *feed) offer(b *baseline) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sub == nil {
		return
	}
	// Where changes were dropped, a ban that only the baseline tells of may be a new one.
	b.afterStart = b.afterStart || (f.started && f.dropped == 0)
	if f.dropped > 0 {
		f.log.Info("a baseline stands in for changes there was no room for", slog.Int("changes", f.dropped))
	}
	f.queue = slices.DeleteFunc(f.queue, func(q queued) bool { return q.baseline != nil })
	f.last++
	f.queue = append(f.queue, queued{position: f.last, baseline: b})
	f.due, f.wanted, f.started, f.dropped = false, false, false, 0
	f.wake()
}

// take hands over the next message.
func (f *feed) take(o *Observer) *hostv1.ObserveResponse {
	q := f.queue[f.next]
	m := hostv1.ObserveResponse_builder{Feed: f.id, Position: q.position}
	if b := q.baseline; b != nil {
		m.Baseline = o.page(b)
		if m.Baseline.GetLast() {
			f.queue = slices.Delete(f.queue, f.next, f.next+1)
			f.handed = max(f.handed, q.position)
		} else {
			m.Position = 0
		}
		return m.Build()
	}
	m.Change = q.change
	if q.position <= f.handed {
		m.Change = proto.CloneOf(q.change) // whoever got it first may still be at it
	}
	m.Change.SetAgeMs(milliseconds(o.now().Sub(q.at)))
	f.next++
	f.handed = max(f.handed, q.position)
	return m.Build()
}

// Next waits for the next message. Its ages are those of the moment it returns.
func (s *Subscription) Next(ctx context.Context) (*hostv1.ObserveResponse, error) {
	f := s.feed
	for {
		f.mu.Lock()
		if s.closed != nil {
			f.mu.Unlock()
			return nil, s.closed
		}
		if f.next < len(f.queue) {
			msg := f.take(s.observer)
			f.mu.Unlock()
			return msg, nil
		}
		ready, wanted := f.ready, f.wanted
		f.mu.Unlock()
		if wanted {
			s.observer.nudge()
		}
		select {
		case <-ready:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Close ends the subscription. What it wasn't handed waits for the next one.
func (s *Subscription) Close() {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.feed.leave(s, errors.New("the subscription was closed"))
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

func milliseconds(d time.Duration) int64 { return max(0, d.Milliseconds()) }

func durationMs(d time.Duration) int64 {
	if d < 0 {
		return -1
	}
	return d.Milliseconds()
}
