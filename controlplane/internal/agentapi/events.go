package agentapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/promotion"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// record decides on a batch of events, stores it, and acknowledges it.
func (st *stream) record(ctx context.Context, batch *fleetbanv1.EventBatch) error {
	s, org, host := st.service, st.grant.OrganisationID, st.grant.HostID
	if batch.GetSpool() != st.spool {
		if !printable(batch.GetSpool()) {
			return apierr.Invalid("events.spool", "the name of a spool must be printable ASCII without spaces", "use an agent of this release")
		}
		// A new spool was made under the stream: its numbers are its own.
		st.spool = batch.GetSpool()
	}
	received := time.Now()
	last := batch.GetEvents()[len(batch.GetEvents())-1].GetSeq()
	var result sets.EventsResult
	var events []sets.Event
	policy := uint64(0)
	decided := false
	err := st.untilStored(ctx, func() error {
		if !decided {
			p, err := st.tenant.policy(ctx)
			if err != nil {
				return err
			}
			events = st.decide(ctx, batch, p)
			policy, decided = p.version, true
		}
		if len(events) == 0 {
			result.Through = last
			return nil
		}
		// Waiting for Redis made them older.
		waited := time.Since(received)
		aged := make([]sets.Event, len(events))
		for i, e := range events {
			e.Age += waited
			aged[i] = e
		}
		var err error
		result, err = s.Sets.RecordEvents(ctx, org, sets.EventsInput{
			HostID: host, Fence: st.currentFence().N, Spool: batch.GetSpool(), After: st.storedThrough().after(batch.GetSpool()),
			Events: aged, PolicyVersion: policy, HostRate: promotion.HostPerMinute, OrganisationRate: promotion.OrganisationPerMinute,
		})
		switch {
		case errors.Is(err, sets.ErrPolicyChanged):
			decided = false
			st.tenant.forgetPolicy()
			return errAgain
		case errors.Is(err, sets.ErrStaleFence):
			return st.tenant.recheck(ctx, st)
		case errors.Is(err, sets.ErrRewound):
			return errRewound
		case errors.Is(err, sets.ErrFull):
			// It stays in the agent's spool until there is room.
			return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
		}
		return err
	})
	if err != nil || result.Through == 0 {
		return err
	}
	if len(events) > 0 {
		st.stored(batch.GetSpool(), result.Through)
	}
	st.tellRecorded(ctx, events, received)
	s.Metrics.EventsStored(len(events), result.Promoted, result.OverHostRate, result.OverOrganisationRate, time.Since(received))
	switch {
	case result.OverHostRate > 0:
		st.tellRate(ctx, result.OverHostRate, operatorv1.Unpromoted_UNPROMOTED_HOST_RATE)
	case result.OverOrganisationRate > 0:
		st.tellRate(ctx, result.OverOrganisationRate, operatorv1.Unpromoted_UNPROMOTED_ORGANISATION_RATE)
	}
	st.note(func(m *mailbox) { m.recorded(batch.GetSpool(), max(result.Through, last)) })
	return nil
}

// tellRecorded tells, to who debugs how long a ban takes, when each step of its way here was over: microseconds of Unix
// time.
func (st *stream) tellRecorded(ctx context.Context, events []sets.Event, received time.Time) {
	logger := st.service.Logger
	if !logger.Enabled(ctx, slog.LevelDebug) {
		return
	}
	recorded := time.Now().UnixMicro()
	for _, e := range events {
		if e.Kind == sets.EventBan {
			logger.DebugContext(ctx, "ban recorded", slog.String("host", st.grant.HostID), slog.String("prefix", e.Prefix.String()),
				slog.Int64("received_us", received.UnixMicro()), slog.Int64("recorded_us", recorded))
		}
	}
}

// decide turns a batch into what sets records. Events that can't be understood are left out, and acknowledged with
// their batch: sending them again would not help.
func (st *stream) decide(ctx context.Context, batch *fleetbanv1.EventBatch, p policy) []sets.Event {
	events := make([]sets.Event, 0, len(batch.GetEvents()))
	for _, e := range batch.GetEvents() {
		event, d, err := decideOne(e, p.mode)
		if err != nil {
			st.service.Logger.WarnContext(ctx, "event can't be understood, leaving it out",
				slog.String("host", st.grant.HostID), slog.Uint64("seq", e.GetSeq()), slog.Any("error", err))
			continue
		}
		event.Set, event.Unpromoted, event.Window, event.Cap = d.Set, d.Unpromoted, d.Window, d.Cap
		events = append(events, event)
	}
	return events
}

func decideOne(e *fleetbanv1.Event, mode fleetbanv1.Mode) (sets.Event, promotion.Decision, error) {
	p, err := prefix.Unpack(e.GetPrefix())
	if err != nil {
		return sets.Event{}, promotion.Decision{}, err
	}
	if len(e.GetJail()) > maxJail || e.GetSeq() >= maxSeq {
		return sets.Event{}, promotion.Decision{}, fmt.Errorf("a jail's name of %d bytes, number %d", len(e.GetJail()), e.GetSeq())
	}
	out := sets.Event{Seq: e.GetSeq(), Jail: e.GetJail(), Prefix: p, Age: max(milliseconds(min(e.GetAgeMs(), maxAge)), 0)}
	decision := promotion.Decision{Cap: promotion.CapOf(e.GetJail())}
	switch e.WhichChange() {
	case fleetbanv1.Event_Ban_case:
		b := e.GetBan()
		out.Kind, out.Duration, out.Failures = sets.EventBan, milliseconds(b.GetDurationMs()), b.GetFailures()
		decision = promotion.Decide(mode, promotion.Observed{
			Jail: e.GetJail(), Prefix: p, Restored: b.GetRestored(), Preexisting: b.GetPreexisting(), Commanded: b.GetCommandId() != "",
		})
	case fleetbanv1.Event_Extension_case:
		out.Kind, out.Duration = sets.EventExtension, milliseconds(e.GetExtension().GetDurationMs())
	case fleetbanv1.Event_Unban_case:
		out.Kind, out.Cause = sets.EventUnban, e.GetUnban().GetCause()
	default:
		return sets.Event{}, promotion.Decision{}, errors.New("a change of a kind that this release doesn't know")
	}
	return out, decision, nil
}

// What sets can record: bytes of a jail's name (its rule counts characters), and the number of an event.
const (
	maxJail = 128
	maxSeq  = 1 << 48
)

// maxAge is longer than any ban that could still stand, milliseconds.
const maxAge = int64(10 * 366 * 24 * time.Hour / time.Millisecond)

// milliseconds converts, and keeps -1 (for ever) and what is too long for a Duration negative: for ever.
func milliseconds(n int64) time.Duration {
	if n < 0 || n > math.MaxInt64/int64(time.Millisecond) {
		return -1
	}
	return time.Duration(n) * time.Millisecond
}

// tellRate tells people, once a minute and organisation, that bans stay local because there are too many.
func (st *stream) tellRate(ctx context.Context, excess int, why operatorv1.Unpromoted) {
	s, org := st.service, st.grant.OrganisationID
	first, err := s.Store.Client().SetNX(ctx, store.Key(org, "notice", "rate"), "", time.Minute).Result()
	if err != nil || !first {
		return
	}
	reason := "this host has more bans than it may promote in a minute; the excess stays local"
	if why == operatorv1.Unpromoted_UNPROMOTED_ORGANISATION_RATE {
		reason = "all hosts together have more bans than may be promoted in a minute; the excess stays local"
	}
	s.Logger.WarnContext(ctx, "promotions exceed their rate", slog.String("organisation", org), slog.String("host", st.grant.HostID), slog.Int("excess", excess))
	if err := s.Sets.AppendEvent(ctx, org, sets.FleetEvent{
		Kind: operatorv1.FleetEventKind_FLEET_EVENT_KIND_NOTICE, HostID: st.grant.HostID, Reason: reason,
	}); err != nil {
		s.Logger.WarnContext(ctx, "event not recorded", slog.Any("error", err))
	}
}
