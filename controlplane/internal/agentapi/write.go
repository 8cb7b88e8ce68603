package agentapi

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/feed"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// framesAtOnce bounds how long the mailbox waits behind the feed.
const framesAtOnce = 32

// storeRetry is how long the writer waits after Redis failed it.
const storeRetry = 500 * time.Millisecond

// startWriter sends the Welcome and then whatever there is, until the stream ends. written returns when nothing more is sent.
func (st *stream) startWriter(ctx context.Context, welcome *fleetbanv1.Welcome, cursors []sets.Cursor) (written func()) {
	if st.pushed == nil {
		done := make(chan struct{})
		go func() {
			defer close(done)
			err := st.write(ctx, welcome, cursors)
			st.end(err, "the connection broke")
		}()
		return func() { <-done }
	}
	if err := st.send(fleetbanv1.ConnectResponse_builder{Welcome: welcome}.Build()); err != nil {
		st.end(err, "the connection broke")
		return func() {}
	}
	st.sub = st.tenant.feed.Subscribe(cursors, func() { st.pushed.schedule(st) })
	raw, _ := st.conn.(linked)
	st.pushed.begin(ctx, st, &writer{stream: st, link: raw.raw})
	return func() {
		st.pushed.end()
		st.sub.Close()
	}
}

// write sends the Welcome, then whatever there is, until the stream ends.
func (st *stream) write(ctx context.Context, welcome *fleetbanv1.Welcome, cursors []sets.Cursor) error {
	if err := st.send(fleetbanv1.ConnectResponse_builder{Welcome: welcome}.Build()); err != nil {
		return err
	}
	st.sub = st.tenant.feed.Subscribe(cursors, nil)
	defer st.sub.Close()
	w := &writer{stream: st}
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	defer retry.Stop()
	for {
		again, err := w.mail(ctx)
		if err != nil {
			return err
		}
		st.mu.Lock()
		waits := st.waits()
		st.mu.Unlock()
		var frames []*feed.Frame
		var feedErr error
		if !waits {
			frames, feedErr = st.sub.Next(ctx, framesAtOnce)
		}
		if len(frames) > 0 {
			st.owe(frames)
		}
		for _, f := range frames {
			begun := time.Now()
			if err := st.sendOut(&outgoing{bytes: f.Message}); err != nil {
				return err
			}
			st.tellSent(ctx, []*feed.Frame{f}, begun)
		}
		if len(frames) > 0 {
			st.framesSent(frames)
			continue
		}
		if feedErr != nil && ctx.Err() == nil {
			st.service.Logger.DebugContext(ctx, "sets can't be read, trying again", slog.String("host", st.grant.HostID), slog.Any("error", feedErr))
		}
		if feedErr != nil || again {
			retry.Reset(storeRetry)
		}
		select {
		case <-st.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-st.wake:
		case <-st.sub.Ready():
		case <-retry.C:
			if again {
				st.note(func(m *mailbox) { m.commands = true })
			}
		}
		retry.Stop()
	}
}

// tellSent tells, to who debugs how long a ban takes, when frames left: microseconds of Unix time.
func (st *stream) tellSent(ctx context.Context, frames []*feed.Frame, begun time.Time) {
	logger := st.service.Logger
	if !logger.Enabled(ctx, slog.LevelDebug) {
		return
	}
	for _, f := range frames {
		logger.DebugContext(ctx, "frame sent", slog.String("host", st.name), slog.String("set", f.Cursor.Set),
			slog.Uint64("version", f.Cursor.Version), slog.Int64("sending_us", begun.UnixMicro()), slog.Int64("sent_us", time.Now().UnixMicro()))
	}
}

// writer is what is kept of writing beside the stream.
type writer struct {
	*stream

	link *linkConn // nil where there is none

	// delivered are the commands that this stream has sent.
	delivered map[string]bool
	// behind has, for each set whose heartbeat differed from what was sent, what was held and what was sent.
	behind map[string][2]sets.Cursor
}

// mail sends what is in the mailbox. again: Redis failed, and commands are to be looked for once more.
func (w *writer) mail(ctx context.Context) (again bool, err error) {
	w.mu.Lock()
	box := w.box
	w.box = mailbox{}
	w.mu.Unlock()
	b := fleetbanv1.ConnectResponse_builder{}
	if box.events {
		b.EventAck = fleetbanv1.EventAck_builder{Spool: box.eventsSpool, Through: box.eventsThrough}.Build()
		if err := w.send(b.Build()); err != nil {
			return false, err
		}
	}
	if box.settings != nil {
		if err := w.send(fleetbanv1.ConnectResponse_builder{Settings: box.settings}.Build()); err != nil {
			return false, err
		}
	}
	if box.drain != nil {
		after := uint32(box.drain.Milliseconds()) //nolint:gosec // seconds
		if err := w.send(fleetbanv1.ConnectResponse_builder{Drain: fleetbanv1.Drain_builder{ReconnectAfterMs: after}.Build()}.Build()); err != nil {
			return false, err
		}
	}
	for _, set := range box.offered {
		w.sub.Offered(set)
	}
	w.compare(ctx, box.beats)
	if box.commands {
		if again, err = w.commands(ctx); err != nil {
			return again, err
		}
	}
	if box.heartbeat {
		at, steps := w.service.Told()
		beat := fleetbanv1.ServerHeartbeat_builder{ServerUnixMs: at.UnixMilli(), Clock: steps, StoreAway: w.service.storeAway.Load()}.Build()
		if err := w.send(fleetbanv1.ConnectResponse_builder{Heartbeat: beat}.Build()); err != nil {
			return again, err
		}
	}
	return again, nil
}

// commands sends those that wait. One that was sent on this stream isn't sent again: the agent answers for it.
func (w *writer) commands(ctx context.Context) (again bool, err error) {
	pending, err := w.service.Hosts.Pending(ctx, w.grant.OrganisationID, w.grant.HostID)
	if err != nil {
		return true, nil //nolint:nilerr // it is tried again
	}
	waits := make(map[string]bool, len(pending))
	for _, c := range pending {
		waits[c.GetCommandId()] = true
		if w.delivered[c.GetCommandId()] {
			continue
		}
		if err := w.send(fleetbanv1.ConnectResponse_builder{Command: c}.Build()); err != nil {
			return false, err
		}
		if w.delivered == nil {
			w.delivered = map[string]bool{}
		}
		w.delivered[c.GetCommandId()] = true
	}
	for id := range w.delivered {
		if !waits[id] {
			delete(w.delivered, id)
		}
	}
	return false, nil
}

// compare looks for a host that holds something else than it was sent. One that is merely behind is busy; one that
// says the same wrong thing in two heartbeats, with nothing sent in between, has lost its way.
func (w *writer) compare(ctx context.Context, beats []sets.Cursor) {
	for _, held := range beats {
		sent := w.sub.Cursor(held.Set)
		if sent.Version == 0 || held == sent {
			delete(w.behind, held.Set)
			continue
		}
		if now := [2]sets.Cursor{held, sent}; w.behind[held.Set] != now {
			if w.behind == nil {
				w.behind = map[string][2]sets.Cursor{}
			}
			w.behind[held.Set] = now
			continue
		}
		delete(w.behind, held.Set)
		w.service.Metrics.DigestRepaired()
		w.service.Logger.WarnContext(ctx, "host holds something else than it was sent: sending the set again",
			slog.String("host", w.grant.HostID), slog.String("set", held.Set),
			slog.Uint64("held_version", held.Version), slog.Uint64("sent_version", sent.Version))
		w.sub.Resync(held)
	}
}

func (st *stream) send(m *fleetbanv1.ConnectResponse) error { return st.sendOut(&outgoing{message: m}) }

func (st *stream) sendOut(out *outgoing) error {
	now := monotonic()
	st.sending.Store(now)
	err := st.conn.Send(out)
	st.sending.Store(0)
	st.sent.Store(now)
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}
