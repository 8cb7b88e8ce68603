package feed

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// history is how many versions of a set are read when its first stream comes, so that others that are a little behind
// need nothing of Redis.
const history = 512

// receive listens to the doorbell until the feed ends. It never waits for anything but the next message: what needs
// Redis is left to catch.
func (f *Feed) receive() {
	defer f.done.Done()
	backoff := newBackoff()
	for f.ctx.Err() == nil {
		began := time.Now()
		err := f.listen()
		if f.ctx.Err() != nil {
			return
		}
		if time.Since(began) > 10*time.Second {
			backoff = newBackoff()
		}
		f.feeds.o.Metrics.DoorbellLost()
		f.feeds.o.Logger.Warn("doorbell lost, subscribing again", "organisation", f.org, "error", err)
		backoff.wait(f.ctx)
	}
}

var (
	errSilent = errors.New("the doorbell is silent: probes are sent and not heard")
	// errMoved: another server of the cluster has the organisation now.
	errMoved = errors.New("the doorbell was moved to another server")
)

// subscribed is the kind of message that says so; Redis ends a subscription with another when its slot is moved.
const subscribed = "ssubscribe"

// listen subscribes and handles messages until something fails. A subscription can die without an error (after a
// failover the old server may keep the connection and ring no more), so when nothing comes for a while the reader rings
// itself, and trusts only what it hears.
func (f *Feed) listen() error {
	client, channel := f.feeds.o.Store.Client(), store.BellChannel(f.org)
	pubsub := client.SSubscribe(f.ctx, channel)
	defer func() { _ = pubsub.Close() }()
	// Close unblocks a Receive that waits when the feed ends.
	defer context.AfterFunc(f.ctx, func() { _ = pubsub.Close() })()
	token := rand.Text()
	unheard := 0
	for {
		message, err := pubsub.ReceiveTimeout(f.ctx, f.feeds.o.Probe)
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			if unheard++; unheard > 2 {
				return errSilent
			}
			// A ring takes a round trip; not here.
			f.mu.Lock()
			f.spawn(func() { _ = f.feeds.o.Store.Ring(f.ctx, f.org, store.Bell{Kind: store.BellProbe, Token: token}) })
			f.mu.Unlock()
			continue
		}
		if err != nil {
			return fmt.Errorf("listen to the doorbell: %w", err)
		}
		unheard = 0
		switch m := message.(type) {
		case *redis.Subscription:
			if m.Kind != subscribed {
				return errMoved
			}
			// Subscribed before anything is read: what rang meanwhile is in what is read now.
			f.mu.Lock()
			f.reload = true
			f.mu.Unlock()
			f.kick()
			f.tell(store.Bell{Kind: store.BellEpoch})
		case *redis.Message:
			f.hear(m.Payload)
		}
	}
}

func (f *Feed) hear(payload string) {
	b, err := store.ParseBell(payload)
	if err != nil {
		f.feeds.o.Logger.Warn("doorbell message skipped", "organisation", f.org, "error", err)
		return
	}
	f.feeds.o.Metrics.Rang(string(b.Kind))
	switch b.Kind {
	case store.BellProbe:
	case store.BellDelta:
		f.hearDelta(b)
	case store.BellEpoch:
		f.mu.Lock()
		f.reload = true
		f.mu.Unlock()
		f.kick()
		f.tell(b)
	default:
		f.tell(b)
	}
}

func (f *Feed) hearDelta(b store.Bell) {
	records, err := sets.UnpackRecords(b.Records)
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.lines[b.Set]
	switch {
	case l == nil || !l.loaded:
		return
	case b.Epoch != l.epoch:
		f.reload = true
	case b.Version <= l.last.delta.Version:
		return
	case err == nil && len(records) > 0 && b.Version == l.last.delta.Version+1:
		l.push(sets.Delta{Set: l.set, Kind: l.kind, Epoch: b.Epoch, Version: b.Version, Digest: b.Digest, Records: records})
		f.notify(l.set)
		if logger := f.feeds.o.Logger; logger.Enabled(f.ctx, slog.LevelDebug) {
			logger.Debug("change heard", "set", b.Set, "version", b.Version, "heard_us", time.Now().UnixMicro())
		}
		return
	default:
		// One that is next and without records is too large to ring with.
		if b.Version != l.last.delta.Version+1 && !l.behind {
			f.feeds.o.Metrics.DoorbellGap()
		}
		l.behind = true
	}
	f.kick()
}

// catch reads what the doorbell left out.
func (f *Feed) catch() {
	defer f.done.Done()
	backoff := newBackoff()
	for {
		f.mu.Lock()
		over := f.rebuildUntil
		f.mu.Unlock()
		rebuilt := time.NewTimer(time.Until(over))
		if over.IsZero() {
			rebuilt.Stop()
		}
		select {
		case <-f.ctx.Done():
			rebuilt.Stop()
			return
		case <-f.wake:
			rebuilt.Stop()
		case <-rebuilt.C:
			f.mu.Lock()
			f.reload = true
			f.mu.Unlock()
		}
		for {
			err := f.catchUp()
			if err == nil {
				backoff = newBackoff()
				break
			}
			if f.ctx.Err() != nil {
				return
			}
			f.feeds.o.Metrics.SetsUnreadable()
			f.feeds.o.Logger.Warn("sets can't be read, trying again", "organisation", f.org, "error", err)
			if !backoff.wait(f.ctx) {
				return
			}
		}
	}
}

// catchUp brings every line to what Redis has.
func (f *Feed) catchUp() error {
	f.mu.Lock()
	reload := f.reload
	f.reload = false
	lacking := reload
	known := make(map[*line]*node, len(f.lines))
	for _, l := range f.lines {
		lacking = lacking || l.behind || !l.loaded
		known[l] = l.last
	}
	f.mu.Unlock()
	if !lacking {
		return nil
	}
	states, err := f.feeds.o.Sets.States(f.ctx, f.org)
	if err != nil {
		f.mu.Lock()
		f.reload = f.reload || reload
		f.mu.Unlock()
		return err
	}
	f.mu.Lock()
	if f.epoch != 0 && f.epoch != states.Epoch {
		f.feeds.o.Metrics.EpochChanged()
	}
	f.epoch = states.Epoch
	was := f.rebuildUntil
	f.rebuildUntil = time.Time{}
	if states.RebuildUntil > states.Now {
		f.rebuildUntil = time.Now().Add(time.Duration(states.RebuildUntil-states.Now+50) * time.Millisecond)
	}
	clear(f.resumes)
	if !was.IsZero() && f.rebuildUntil.IsZero() {
		f.notify("") // those with a partial snapshot need a whole one
	}
	wanted := make([]string, 0, len(f.lines))
	for set := range f.lines {
		wanted = append(wanted, set)
	}
	f.mu.Unlock()
	for _, set := range wanted {
		if err := f.catchUpLine(set, states, known); err != nil {
			f.mu.Lock()
			f.reload = true
			f.mu.Unlock()
			return err
		}
	}
	return nil
}

// catchUpLine brings one to what states say. known are the newest versions that lines had before these were read.
func (f *Feed) catchUpLine(set string, states sets.States, known map[*line]*node) error {
	state := states.Set(set)
	f.mu.Lock()
	l := f.lines[set]
	if l == nil {
		f.mu.Unlock()
		return nil
	}
	l.kind = state.Kind
	fresh := !l.loaded || l.epoch != states.Epoch || l.contradicts(state.Cursor, known[l])
	var after uint64
	if fresh {
		if state.Cursor.Version > history {
			after = state.Cursor.Version - history
		}
	} else {
		after = l.last.delta.Version
	}
	generation := l.generation
	f.mu.Unlock()

	var deltas []sets.Delta
	for at := after; at < state.Cursor.Version; {
		page, err := f.feeds.o.Sets.Log(f.ctx, f.org, set, at, history)
		if errors.Is(err, sets.ErrTrimmed) || err == nil && len(page) == 0 {
			// The log doesn't tell how it came here: begin where it is now.
			deltas, fresh = nil, true
			break
		}
		if err != nil {
			return err
		}
		deltas = append(deltas, page...)
		at = page[len(page)-1].Version
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lines[set] != l || l.generation != generation {
		return nil
	}
	if fresh {
		start := state.Cursor
		if len(deltas) > 0 {
			// A first position whose digest isn't known: nobody resumes at it, only after it.
			start = sets.Cursor{Set: set, Epoch: states.Epoch, Version: deltas[0].Version - 1}
			if start.Version > 0 {
				start = sets.Cursor{Set: set, Epoch: states.Epoch, Version: deltas[0].Version, Digest: deltas[0].Digest}
				deltas = deltas[1:]
			}
		}
		l.reset(start)
	}
	l.behind = false
	for _, d := range deltas {
		if d.Version == l.last.delta.Version+1 { // the doorbell may have brought it meanwhile
			d.Epoch = states.Epoch
			l.push(d)
		}
	}
	f.notify(set)
	return nil
}

// sweep drops what ran out. Any replica may, and one is enough: the first to take the turn does.
func (f *Feed) sweep() {
	defer f.done.Done()
	const every = time.Second
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-f.ctx.Done():
			return
		case <-tick.C:
		}
		turn, err := f.feeds.o.Store.Client().SetNX(f.ctx, store.Key(f.org, "lease", "sweep"), 1, every-50*time.Millisecond).Result()
		if err != nil || !turn {
			continue // Redis away: the reader says so
		}
		for {
			swept, err := f.feeds.o.Sets.Sweep(f.ctx, f.org)
			f.feeds.o.Metrics.Expired(swept.Expired)
			if err != nil || !swept.More {
				break
			}
		}
	}
}

// backoff waits longer each time, with jitter, so that replicas don't come back in step.
type backoff struct{ next time.Duration }

func newBackoff() *backoff { return &backoff{next: 50 * time.Millisecond} }

func (b *backoff) wait(ctx context.Context) bool {
	const most = 2 * time.Second
	timer := time.NewTimer(b.next/2 + mathrand.N(b.next)) //nolint:gosec // jitter
	defer timer.Stop()
	b.next = min(2*b.next, most)
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
