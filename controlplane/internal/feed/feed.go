// Package feed carries an organisation's sets from Redis to any number of streams of one replica.
//
// There is one reader a replica and organisation, however many streams hang on it. It listens to the doorbell, reads
// the logs where the doorbell left something out, and encodes each delta once: every stream sends the same bytes.
//
//	doorbell ─▶ reader ─▶ line "all":   [v7]▶[v8]▶[v9]▶…      a linked list of encoded frames a set
//	   logs ──▶           line "allow": [v2]▶…                 a stream holds a position in each
//
// A stream never blocks the reader and the reader holds no queue a stream: one that lags behind what is kept resumes
// from Redis's log, or from a snapshot. A stream's way in each set:
//
//	  ┌────────────── dropped from the line, or a new epoch ◀──────────────┐
//	  ▼                                                                     │
//	resume ──current──────────────────────────────▶ SetSync ──▶ tail ───────┤
//	  │ ├─────deltas─────────────────────────────────────────▶ tail         │
//	  │ └─────snapshot──▶ pages ────────────────────────────▶ tail ─────────┘
//	offer ─▶ OfferRequest ─▶ (Offered) ─▶ pages, partial ─▶ tail; when the rebuild is over: pages again
package feed

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/metrics"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// ErrClosed is what Next returns once the feed is released or closed.
var ErrClosed = errors.New("the feed is closed")

// Options of New.
type Options struct {
	Store *store.Store
	Sets  *sets.Sets
	// Sign makes a record's MAC under the organisation's key: 16 bytes.
	Sign func(org, set string, r sets.Record) []byte
	// Logger; default slog.Default().
	Logger *slog.Logger
	// Probe is how often a silent doorbell is rung to hear whether it is heard. Default 2 s. Unheard twice, the reader
	// subscribes anew.
	Probe time.Duration
	// Metrics, optional.
	Metrics *metrics.Metrics
}

// Feeds holds the feeds of all organisations that have streams here. It also sweeps their sets (see sets.Sweep).
type Feeds struct {
	o Options

	mu     sync.Mutex
	feeds  map[string]*Feed
	closed bool
}

// New makes a Feeds.
func New(o Options) *Feeds {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Probe <= 0 {
		o.Probe = 2 * time.Second
	}
	return &Feeds{o: o, feeds: map[string]*Feed{}}
}

// Close ends all feeds and waits for their goroutines. Streams that still hold one get nothing more.
func (f *Feeds) Close() {
	f.mu.Lock()
	f.closed = true
	all := make([]*Feed, 0, len(f.feeds))
	for _, feed := range f.feeds {
		all = append(all, feed)
	}
	f.mu.Unlock()
	for _, feed := range all {
		feed.stop()
	}
}

// Acquire returns the organisation's feed, started if it is the first; release it when the stream ends.
func (f *Feeds) Acquire(org string) (feed *Feed, release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	feed = f.feeds[org]
	if feed == nil {
		ctx, cancel := context.WithCancel(context.Background())
		feed = &Feed{
			feeds: f, org: org, ctx: ctx, cancel: cancel, lines: map[string]*line{}, subs: map[*Subscription]struct{}{},
			listeners: map[int]func(store.Bell){}, wake: make(chan struct{}, 1), resumes: map[sets.Cursor]*shared[sets.Resume]{},
		}
		f.feeds[org] = feed
		if f.closed {
			cancel()
		}
		feed.start()
	}
	feed.users++
	var once sync.Once
	return feed, func() {
		once.Do(func() {
			f.mu.Lock()
			feed.users--
			last := feed.users == 0
			if last && f.feeds[org] == feed {
				delete(f.feeds, org)
			}
			f.mu.Unlock()
			if last {
				feed.stop()
			}
		})
	}
}

// Feed is one organisation's.
type Feed struct {
	feeds  *Feeds
	org    string
	users  int // guarded by feeds.mu
	ctx    context.Context
	cancel context.CancelFunc
	done   sync.WaitGroup
	wake   chan struct{} // to the catcher

	mu        sync.Mutex
	closing   bool
	lines     map[string]*line
	subs      map[*Subscription]struct{}
	listeners map[int]func(store.Bell)
	listener  int
	// reload: read every set's state again.
	reload bool
	// rebuildUntil is when the rebuild ends, by this machine's clock; zero when none is open.
	rebuildUntil time.Time
	epoch        uint64 // last seen
	resumes      map[sets.Cursor]*shared[sets.Resume]
}

func (f *Feed) start() {
	f.done.Add(4)
	go f.receive()
	go f.catch()
	go f.sweep()
	go f.look()
}

func (f *Feed) stop() {
	f.mu.Lock()
	f.closing = true
	f.mu.Unlock()
	f.cancel()
	f.done.Wait()
}

// spawn runs work that stop waits for; not any more once the feed is closing. The caller holds f.mu.
func (f *Feed) spawn(work func()) bool {
	if f.closing {
		return false
	}
	f.done.Go(work)
	return true
}

// Listen calls back with doorbells that aren't deltas or probes (command, result, kick, settings, acks, events, epoch),
// from the reader's goroutine: the callback must not block. Rings may be missed while Redis is away; after each
// (re)subscription the callback gets a Bell of kind BellEpoch with Epoch 0, which means "look at everything again". stop
// ends it; a call that is under way may still come.
func (f *Feed) Listen(callback func(store.Bell)) (stop func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.listener++
	id := f.listener
	f.listeners[id] = callback
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.listeners, id)
	}
}

func (f *Feed) tell(b store.Bell) {
	f.mu.Lock()
	callbacks := make([]func(store.Bell), 0, len(f.listeners))
	for _, c := range f.listeners {
		callbacks = append(callbacks, c)
	}
	f.mu.Unlock()
	for _, c := range callbacks {
		c(b)
	}
}

// notify wakes the streams that follow a set; all where set is "". The caller holds f.mu.
func (f *Feed) notify(set string) {
	if set == "" {
		for s := range f.subs {
			s.ring()
		}
		return
	}
	if l := f.lines[set]; l != nil {
		for _, p := range l.followers {
			p.sub.ring()
		}
	}
}

func (f *Feed) kick() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// shared is a result that several streams wait for and use for a while.
type shared[T any] struct {
	done  chan struct{}
	made  time.Time
	value T
	err   error
}
