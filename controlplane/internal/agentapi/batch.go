package agentapi

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Bounds of one script.
const (
	acksAtOnce   = 500
	healthAtOnce = 250
)

// Of many hosts, which answer for some tenths of a second, a script is to store some at once: what it costs beside them is as much as
// that of forty. A replica of few hosts waits for nothing.
const (
	acksTogether = 128
	acksGathered = 5 * time.Millisecond
)

// healthEvery is the least time between two writes of health.
const healthEvery = time.Second

// unstored is what of a stream's acknowledgements isn't in Redis yet. The tenant's lock guards it.
type unstored struct {
	waits      bool          // it is in acked
	cursors    []sets.Cursor // cumulative: one a set
	inert      fleetbanv1.Inert
	exceptions *fleetbanv1.Ack // nil: none are told
}

// acknowledge keeps an acknowledgement for the next batch; one that waits already is merged with it: cursors are cumulative, the rest is
// the later one's. exceptions is nil where none are told.
func (t *tenant) acknowledge(st *stream, cursors []sets.Cursor, inert fleetbanv1.Inert, exceptions *fleetbanv1.Ack) {
	t.mu.Lock()
	u := &st.unstored
	if u.gather(cursors); exceptions != nil {
		u.exceptions = exceptions
	}
	u.inert = inert
	poked := t.wait(st)
	t.mu.Unlock()
	if poked {
		poke(t.flush)
	}
}

// gather takes cursors, which are newer.
func (u *unstored) gather(cursors []sets.Cursor) {
next:
	for _, c := range cursors {
		for i := range u.cursors {
			if u.cursors[i].Set == c.Set {
				u.cursors[i] = c
				continue next
			}
		}
		u.cursors = append(u.cursors, c)
	}
}

// wait puts the stream among those that have something unstored; false where it is. The caller holds the lock.
func (t *tenant) wait(st *stream) bool {
	if st.unstored.waits {
		return false
	}
	st.unstored.waits = true
	if len(t.acked) == 0 {
		t.ackedSince = time.Now()
	}
	t.acked = append(t.acked, st)
	return true
}

// healthChanged has the stream's health stored soon.
func (t *tenant) healthChanged(st *stream) {
	t.mu.Lock()
	t.health[st] = struct{}{}
	t.mu.Unlock()
	poke(t.flushHealth)
}

// storeAcknowledged writes batches while there is something to write. One batch is in flight at a time and what comes meanwhile
// goes with the next: fewer and larger scripts under load.
func (t *tenant) storeAcknowledged(ctx context.Context) {
	var batch ackBatch
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.flush:
		}
		if t.storeAcks(ctx, &batch) && ctx.Err() == nil {
			timer := time.NewTimer(200 * time.Millisecond)
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
				poke(t.flush)
			}
		}
	}
}

// gatherAcks gives the many that answer at the same time a moment.
func (t *tenant) gatherAcks(ctx context.Context) {
	t.mu.Lock()
	enough := len(t.acked) == 0 || len(t.acked) >= acksTogether || len(t.streams) < 2*acksTogether
	t.mu.Unlock()
	if enough {
		return
	}
	timer := time.NewTimer(acksGathered)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// ackBatch is what one script stores: acks[i] is what from[i] said.
type ackBatch struct {
	from  []*stream
	acks  []hosts.AckWrite
	since time.Time
	held  []sets.Cursor // of all acks
}

// nextAcks takes what waits, at most acksAtOnce. It uses the memory of the batch before.
func (t *tenant) nextAcks(b *ackBatch) {
	clear(b.from)
	clear(b.acks)
	b.from, b.acks, b.held = b.from[:0], b.acks[:0], b.held[:0]
	t.mu.Lock()
	defer t.mu.Unlock()
	b.since = t.ackedSince
	n := 0
	for ; n < len(t.acked) && len(b.acks) < acksAtOnce; n++ {
		st := t.acked[n]
		u := &st.unstored
		if !u.waits {
			continue // it has ended
		}
		from := len(b.held)
		b.held = append(b.held, u.cursors...)
		b.from = append(b.from, st)
		b.acks = append(b.acks, hosts.AckWrite{Fence: st.currentFence(), Cursors: b.held[from:len(b.held):len(b.held)], Inert: u.inert, Exceptions: u.exceptions})
		u.waits, u.cursors, u.exceptions = false, u.cursors[:0], nil
	}
	rest := copy(t.acked, t.acked[n:])
	clear(t.acked[rest:])
	t.acked = t.acked[:rest]
}

// storeAcks stores what waits; true when Redis failed and it waits still. It uses the memory of batch.
func (t *tenant) storeAcks(ctx context.Context, batch *ackBatch) bool {
	for {
		t.gatherAcks(ctx)
		t.nextAcks(batch)
		if len(batch.acks) == 0 {
			return false
		}
		stale, err := t.service.Hosts.StoreAcks(ctx, t.org, batch.acks)
		if err != nil {
			t.service.Logger.DebugContext(ctx, "acknowledgements wait for Redis", slog.Any("error", err))
			for i, st := range batch.from {
				t.keep(st, &batch.acks[i], batch.since)
			}
			return true
		}
		t.service.Metrics.AcksStored(len(batch.acks), time.Since(batch.since))
		if len(stale) > 0 {
			// Either a newer stream took over, or Redis lost the host: in that case its acknowledgement is still wanted.
			refused := make(map[string]bool, len(stale))
			for _, id := range stale {
				refused[id] = true
			}
			for i, st := range batch.from {
				if refused[st.grant.HostID] && st.currentFence() == batch.acks[i].Fence {
					t.keep(st, &batch.acks[i], time.Now())
				}
			}
			poke(t.look)
			if len(stale) == len(batch.acks) {
				return true
			}
		}
	}
}

// keep puts back an acknowledgement that wasn't stored, under one that came since. since is when it came.
func (t *tenant) keep(st *stream, ack *hosts.AckWrite, since time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.streams[st.grant.HostID] != st {
		return
	}
	u := &st.unstored
	later := slices.Clone(u.cursors)
	u.cursors = append(u.cursors[:0], ack.Cursors...)
	u.gather(later)
	if u.exceptions == nil {
		u.exceptions = ack.Exceptions
	}
	if !u.waits {
		u.inert = ack.Inert
	}
	if t.wait(st); since.Before(t.ackedSince) {
		t.ackedSince = since
	}
}

// storeHealth stores the health of hosts while it changes, at most once in healthEvery: what a ban changes, it changes on
// every host, and many bans in a while cost no more than one.
func (t *tenant) storeHealth(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.flushHealth:
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		t.storeChangedHealth(ctx)
		timer.Reset(healthEvery)
	}
}

// storeChangedHealth stores what has changed. Where Redis fails it waits for the next time.
func (t *tenant) storeChangedHealth(ctx context.Context) {
	t.mu.Lock()
	changed := make([]*stream, 0, len(t.health))
	for st := range t.health {
		changed = append(changed, st)
	}
	clear(t.health)
	t.mu.Unlock()
	for len(changed) > 0 {
		n := min(healthAtOnce, len(changed))
		writes := make([]hosts.HealthWrite, 0, n)
		for _, st := range changed[:n] {
			st.mu.Lock()
			if st.health != nil {
				writes = append(writes, hosts.HealthWrite{Fence: st.fence, Health: st.withSkew()})
			}
			st.mu.Unlock()
		}
		// A stale one is found by the touch.
		if _, err := t.service.Hosts.StoreHealth(ctx, t.org, writes); isStore(err) {
			t.service.Logger.DebugContext(ctx, "health waits for Redis", slog.Any("error", err))
			t.mu.Lock()
			for _, st := range changed {
				if t.streams[st.grant.HostID] == st {
					t.health[st] = struct{}{}
				}
			}
			t.mu.Unlock()
			poke(t.flushHealth)
			return
		}
		changed = changed[n:]
	}
}
