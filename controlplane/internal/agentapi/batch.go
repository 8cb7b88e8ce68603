package agentapi

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Bounds of one script.
const (
	acksAtOnce   = 500
	healthAtOnce = 250
)

// healthEvery is the least time between two writes of health.
const healthEvery = time.Second

// acknowledge keeps an acknowledgement for the next batch; one that waits already is merged with it.
func (t *tenant) acknowledge(st *stream, ack *fleetbanv1.Ack) {
	t.mu.Lock()
	if t.acksSince.IsZero() {
		t.acksSince = time.Now()
	}
	if waiting := t.acks[st]; waiting != nil {
		ack = mergeAcks(waiting, ack)
	}
	t.acks[st] = ack
	t.mu.Unlock()
	poke(t.flush)
}

// mergeAcks is what both say: cursors are cumulative, the rest is the later one's.
func mergeAcks(before, after *fleetbanv1.Ack) *fleetbanv1.Ack {
	out := proto.CloneOf(after)
	said := make(map[string]bool, len(after.GetCursors()))
	for _, c := range after.GetCursors() {
		said[c.GetSet()] = true
	}
	cursors := out.GetCursors()
	for _, c := range before.GetCursors() {
		if !said[c.GetSet()] {
			cursors = append(cursors, c)
		}
	}
	out.SetCursors(cursors)
	if before.GetExceptionsChanged() && !after.GetExceptionsChanged() {
		out.SetExceptionsChanged(true)
		out.SetExceptions(before.GetExceptions())
		out.SetExceptionsTotal(before.GetExceptionsTotal())
	}
	return out
}

// healthChanged has the stream's health stored soon.
func (t *tenant) healthChanged(st *stream) {
	t.mu.Lock()
	t.health[st] = struct{}{}
	t.mu.Unlock()
	poke(t.flushHealth)
}

// storeAcknowledged writes batches while there is something to write. One batch is in flight at a time and what comes meanwhile
// goes with the next: no timer, no wait when idle, fewer and larger scripts under load.
func (t *tenant) storeAcknowledged(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.flush:
		}
		if t.storeAcks(ctx) && ctx.Err() == nil {
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

// storeAcks stores what waits; true when Redis failed and it waits still.
func (t *tenant) storeAcks(ctx context.Context) bool {
	for {
		t.mu.Lock()
		batch := make([]hosts.AckWrite, 0, min(len(t.acks), acksAtOnce))
		from := make([]*stream, 0, cap(batch))
		for st, ack := range t.acks {
			if len(batch) == acksAtOnce {
				break
			}
			batch, from = append(batch, hosts.AckWrite{Fence: st.currentFence(), Ack: ack}), append(from, st)
			delete(t.acks, st)
		}
		since := t.acksSince
		if len(t.acks) == 0 {
			t.acksSince = time.Time{}
		}
		t.mu.Unlock()
		if len(batch) == 0 {
			return false
		}
		stale, err := t.service.Hosts.StoreAcks(ctx, t.org, batch)
		if err != nil {
			t.service.Logger.DebugContext(ctx, "acknowledgements wait for Redis", slog.Any("error", err))
			t.putBack(from, batch, since)
			return true
		}
		t.service.Metrics.AcksStored(len(batch), time.Since(since))
		if len(stale) > 0 {
			// Either a newer stream took over, or Redis lost the host: in that case its acknowledgement is still wanted.
			refused := make(map[string]bool, len(stale))
			for _, id := range stale {
				refused[id] = true
			}
			for i, st := range from {
				if refused[st.grant.HostID] && st.currentFence() == batch[i].Fence {
					t.keep(st, batch[i].Ack)
				}
			}
			poke(t.look)
			if len(stale) == len(batch) {
				return true
			}
		}
	}
}

func (t *tenant) putBack(from []*stream, batch []hosts.AckWrite, since time.Time) {
	t.mu.Lock()
	t.acksSince = since
	t.mu.Unlock()
	for i, st := range from {
		t.keep(st, batch[i].Ack)
	}
}

// keep puts back an acknowledgement that wasn't stored, under one that came since.
func (t *tenant) keep(st *stream, ack *fleetbanv1.Ack) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.streams[st.grant.HostID] != st {
		return
	}
	if since := t.acks[st]; since != nil {
		ack = mergeAcks(ack, since)
	}
	if t.acksSince.IsZero() {
		t.acksSince = time.Now()
	}
	t.acks[st] = ack
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
