package agentapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// read works on what the agent sends, one message after the other, until the stream ends.
func (st *stream) read(ctx context.Context) error {
	for {
		st.reading.Store(monotonic())
		m, err := st.conn.Receive(st)
		st.reading.Store(0)
		switch {
		case err == nil && m == nil:
			continue
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("receive: %w", err)
		}
		select {
		case <-st.done:
			return nil
		default:
		}
		if err := st.handle(ctx, m); err != nil {
			return err
		}
	}
}

func (st *stream) handle(ctx context.Context, m *fleetbanv1.ConnectRequest) error {
	switch m.WhichMessage() {
	case fleetbanv1.ConnectRequest_Ack_case:
		st.acked(m.GetAck())
	case fleetbanv1.ConnectRequest_Events_case:
		return st.record(ctx, m.GetEvents())
	case fleetbanv1.ConnectRequest_Health_case:
		st.mu.Lock()
		st.health = m.GetHealth()
		st.mu.Unlock()
		st.tenant.healthChanged(st)
	case fleetbanv1.ConnectRequest_Heartbeat_case:
		beats := make([]sets.Cursor, 0, len(st.sets))
		for _, c := range m.GetHeartbeat().GetCursors() {
			if st.holds(c.GetSet()) {
				beats = append(beats, sets.CursorFrom(c))
			}
		}
		st.note(func(m *mailbox) { m.beats = beats })
		st.clockHeard(m.GetHeartbeat().GetHostUnixMs())
	case fleetbanv1.ConnectRequest_Offer_case:
		return st.offer(ctx, m.GetOffer())
	case fleetbanv1.ConnectRequest_CommandResult_case:
		return st.result(ctx, m.GetCommandResult())
	case fleetbanv1.ConnectRequest_Hello_case:
		return apierr.Invalid("hello", "a stream has one Hello", "open a new stream for another")
	default:
		// A kind that this release doesn't know.
	}
	return nil
}

// acked takes an acknowledgement of any kind.
func (st *stream) acked(ack *fleetbanv1.Ack) {
	cursors := make([]sets.Cursor, 0, len(ack.GetCursors()))
	for _, c := range ack.GetCursors() {
		if st.holds(c.GetSet()) {
			cursors = append(cursors, sets.CursorFrom(c))
		}
	}
	exceptions := ack
	if !ack.GetExceptionsChanged() {
		exceptions = nil
	}
	st.acknowledge(cursors, ack.GetInert(), exceptions)
}

// acknowledge takes what an acknowledgement says of sets that the host holds. exceptions is nil where they aren't told.
func (st *stream) acknowledge(cursors []sets.Cursor, inert fleetbanv1.Inert, exceptions *fleetbanv1.Ack) {
	st.mu.Lock()
	st.inert = inert
	waited := st.receive(cursors)
	if exceptions != nil {
		st.refusals = nil
		if len(exceptions.GetExceptions()) > 0 || exceptions.GetExceptionsTotal() > 0 {
			st.refusals = exceptions
		}
	}
	st.mu.Unlock()
	st.tenant.acknowledge(st, cursors, inert, exceptions)
	if waited {
		st.rouse()
	}
}

// offer takes what a host held when Redis lost it. Only what this control plane once issued is taken.
func (st *stream) offer(ctx context.Context, o *fleetbanv1.RecordOffer) error {
	if !st.holds(o.GetSet()) {
		return nil
	}
	records, denied := make([]sets.Record, 0, len(o.GetRecords())), 0
	for _, r := range o.GetRecords() {
		p, err := prefix.Unpack(r.GetPrefix())
		if err != nil || !st.service.Keys.VerifyRecord(st.grant.OrganisationID, o.GetSet(), r) {
			denied++
			continue
		}
		records = append(records, sets.Record{Prefix: p, Kind: r.GetKind(), Since: r.GetSinceUnixMs(), Expires: r.GetExpiresUnixMs()})
	}
	if denied > 0 {
		st.service.Metrics.OffersDenied(denied)
		st.service.Logger.WarnContext(ctx, "host offered records that this control plane never issued",
			slog.String("host", st.grant.HostID), slog.String("set", o.GetSet()), slog.Int("records", denied))
	}
	if len(records) > 0 {
		err := st.untilStored(ctx, func() error {
			_, err := st.service.Sets.Offer(ctx, st.grant.OrganisationID, o.GetSet(), records)
			if errors.Is(err, sets.ErrFull) {
				return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
			}
			return err
		})
		if err != nil && !errors.Is(err, sets.ErrNotRebuilding) {
			return fmt.Errorf("take offered records: %w", err)
		}
	}
	if o.GetLast() {
		st.note(func(m *mailbox) { m.offered = append(m.offered, o.GetSet()) })
	}
	return nil
}

func (st *stream) result(ctx context.Context, r *fleetbanv1.CommandResult) error {
	err := st.untilStored(ctx, func() error {
		err := st.service.Hosts.Result(ctx, st.currentFence(), r)
		if errors.Is(err, hosts.ErrStaleFence) {
			return st.tenant.recheck(ctx, st)
		}
		return err
	})
	if errors.Is(err, hosts.ErrNotFound) {
		// Trimmed, or lost with Redis.
		return nil
	}
	return err
}

// again is returned by what untilStored calls when it is to be called once more at once.
var errAgain = errors.New("call again")

// untilStored calls f until Redis took it or the stream ends. Nothing else is read meanwhile: the order of what an agent
// sends is kept, and it is slowed down instead of buffered.
func (st *stream) untilStored(ctx context.Context, f func() error) error {
	pause := 20 * time.Millisecond
	for {
		err := f()
		switch {
		case errors.Is(err, errAgain):
			continue
		case !isStore(err):
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-st.done:
			timer.Stop()
			return nil
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		pause = min(2*pause, time.Second)
	}
}

// hostAddresses are those of a host that mean something to others.
func hostAddresses(facts *fleetbanv1.HostFacts) []netip.Prefix {
	var out []netip.Prefix
	for _, raw := range facts.GetAddresses() {
		a, ok := netip.AddrFromSlice(raw)
		a = a.Unmap()
		if !ok || a.IsUnspecified() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() {
			continue
		}
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}
