package operatorapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/leases"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// GetFleet implements FleetService.
func (a *API) GetFleet(ctx context.Context, _ *connect.Request[operatorv1.GetFleetRequest]) (*connect.Response[operatorv1.GetFleetResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	org, err := a.o.Orgs.Get(ctx, p.Org)
	if err != nil {
		return nil, mapped(err)
	}
	states, err := a.o.Sets.States(ctx, p.Org)
	if err != nil {
		return nil, mapped(err)
	}
	all, online, err := a.o.Hosts.CountWithin(ctx, p.Org, p.Tags)
	if err != nil {
		return nil, mapped(err)
	}
	answer := operatorv1.GetFleetResponse_builder{
		OrganisationId: org.ID, OrganisationName: org.Name, Mode: org.Mode, PausedUntilUnixMs: org.PausedUntil, Hosts: all, HostsOnline: online,
		Durability: a.o.Durability(ctx), RebuildUntilUnixMs: states.RebuildUntil, ServerUnixMs: states.Now,
	}
	if org.PausedUntil <= states.Now {
		answer.PausedUntilUnixMs = 0
	}
	for _, s := range states.Sets {
		if !p.Tags.Shows(s.Cursor.Set) {
			continue
		}
		answer.Sets = append(answer.Sets, operatorv1.SetState_builder{Cursor: s.Cursor.Proto(), Kind: s.Kind, Records: s.Records}.Build())
		if s.Kind == fleetbanv1.SetKind_SET_KIND_BAN {
			answer.Bans += s.Records
		}
	}
	for _, l := range a.o.Leases(ctx) {
		answer.Leases = append(answer.Leases, leaseProto(l))
	}
	slices.SortFunc(answer.Sets, func(x, y *operatorv1.SetState) int {
		return strings.Compare(x.GetCursor().GetSet(), y.GetCursor().GetSet())
	})
	return connect.NewResponse(answer.Build()), nil
}

func leaseProto(l leases.State) *operatorv1.Lease {
	ms := func(t time.Time) int64 {
		if t.IsZero() {
			return 0
		}
		return t.UnixMilli()
	}
	out := operatorv1.Lease_builder{Name: l.Name, Holder: l.Holder, Term: l.Term, SinceUnixMs: ms(l.Since), UntilUnixMs: ms(l.Until)}
	for _, t := range l.History {
		out.History = append(out.History, operatorv1.LeaseTerm_builder{
			Holder: t.Holder, Term: t.Term, SinceUnixMs: ms(t.Since), EndedUnixMs: ms(t.Ended), Released: t.Released,
		}.Build())
	}
	for _, r := range l.Runs {
		out.Runs = append(out.Runs, operatorv1.JobRun_builder{
			Name: r.Name, BeganUnixMs: ms(r.Began), TookMs: uint32(min(r.Took.Milliseconds(), 1<<31)), Problem: r.Problem, Term: r.Term, //nolint:gosec // bounded
		}.Build())
	}
	return out.Build()
}

// Pause implements FleetService.
func (a *API) Pause(ctx context.Context, req *connect.Request[operatorv1.PauseRequest]) (*connect.Response[operatorv1.PauseResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	org, err := a.o.Orgs.Pause(ctx, p.Org, time.Duration(req.Msg.GetDurationS())*time.Second)
	if err != nil {
		return nil, mapped(err)
	}
	a.event(ctx, p, operatorv1.FleetEventKind_FLEET_EVENT_KIND_PAUSED, req.Msg.GetReason(), org.PausedUntil)
	return connect.NewResponse(operatorv1.PauseResponse_builder{PausedUntilUnixMs: org.PausedUntil}.Build()), nil
}

// Resume implements FleetService.
func (a *API) Resume(ctx context.Context, _ *connect.Request[operatorv1.ResumeRequest]) (*connect.Response[operatorv1.ResumeResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	_, changed, err := a.o.Orgs.Resume(ctx, p.Org)
	if err != nil {
		return nil, mapped(err)
	}
	if changed {
		a.event(ctx, p, operatorv1.FleetEventKind_FLEET_EVENT_KIND_RESUMED, "", 0)
	}
	return connect.NewResponse(&operatorv1.ResumeResponse{}), nil
}

// SetMode implements FleetService.
func (a *API) SetMode(ctx context.Context, req *connect.Request[operatorv1.SetModeRequest]) (*connect.Response[operatorv1.SetModeResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	_, changed, err := a.o.Orgs.SetMode(ctx, p.Org, req.Msg.GetMode())
	if err != nil {
		return nil, mapped(err)
	}
	if changed {
		text := "enforce"
		if req.Msg.GetMode() == fleetbanv1.Mode_MODE_WATCH {
			text = "watch"
		}
		a.event(ctx, p, operatorv1.FleetEventKind_FLEET_EVENT_KIND_MODE, text, 0)
	}
	return connect.NewResponse(&operatorv1.SetModeResponse{}), nil
}

const (
	// eventsPage is how many events are read at once.
	eventsPage = 500
	// watchRecheck is how often a watch looks without having heard the doorbell, which may be missed.
	watchRecheck = 15 * time.Second
	// watchRetry is how long a watch waits after Redis failed it: a stream outlives that.
	watchRetry = time.Second
	// AfterHeader is the response header of Watch that says where it began, for a client whose stream ends before its
	// first event.
	AfterHeader = "Fleetban-After"
)

// Watch implements FleetService.
func (a *API) Watch(ctx context.Context, req *connect.Request[operatorv1.WatchRequest], stream *connect.ServerStream[operatorv1.WatchResponse]) error {
	p, err := caller(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := a.streaming(ctx)
	defer cancel()
	bell, release := a.bell(p.Org)
	defer release()
	// Heard before the first look: nothing falls in between.
	rung, stop := rings(bell, store.BellEvents, store.BellEpoch)
	defer stop()
	w := &watcher{api: a, caller: p, org: p.Org, after: req.Msg.GetAfter(), would: req.Msg.GetWould(), stream: stream}
	if w.after == "" {
		if w.after, err = a.o.Sets.LastEventID(ctx, p.Org); err != nil {
			return ended(ctx, err)
		}
	}
	stream.ResponseHeader().Set(AfterHeader, w.after)
	if recent := int(req.Msg.GetRecent()); recent > 0 && req.Msg.GetAfter() == "" {
		if err := w.sendRecent(ctx, recent); err != nil {
			return ended(ctx, err)
		}
	}
	for first := true; ; first = false {
		wait := watchRecheck
		err := w.send(ctx)
		switch {
		case err == nil && first:
			// The headers, so that the client knows it is let in, though nothing happens.
			if err := stream.Send(nil); err != nil {
				return ended(ctx, err)
			}
		case err == nil:
		case ctx.Err() != nil || first && !w.sent || !away(err):
			if errors.Is(err, sets.ErrInvalid) {
				return apierr.Invalid("after", fmt.Sprintf("%q is not an event's id", req.Msg.GetAfter()), "pass the id of an event, or none")
			}
			return ended(ctx, err)
		default:
			a.o.Logger.WarnContext(ctx, "watch waits for Redis", slog.Any("error", err))
			wait = watchRetry
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-rung:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return ended(ctx, ctx.Err())
		}
	}
}

// watcher is one Watch's position.
type watcher struct {
	api    *API
	caller auth.Principal
	org    string
	after  string
	would  bool
	gap    bool
	// sent: the client has something, and so a stream that is worth keeping.
	sent   bool
	stream *connect.ServerStream[operatorv1.WatchResponse]
}

// send sends everything after the position.
func (w *watcher) send(ctx context.Context) error {
	for {
		events, gap, err := w.api.o.Sets.Events(ctx, w.org, w.after, eventsPage)
		if err != nil {
			return err
		}
		w.gap = w.gap || gap
		if len(events) == 0 {
			return nil
		}
		v, err := w.api.view(ctx, w.caller)
		if err != nil {
			return err
		}
		for _, e := range events {
			if w.shows(v, e) {
				if err := w.stream.Send(operatorv1.WatchResponse_builder{Event: v.names.event(e), Gap: w.gap}.Build()); err != nil {
					return fmt.Errorf("send event: %w", err)
				}
				w.gap, w.sent = false, true
			}
			w.after = e.ID
		}
	}
}

// sendRecent sends the newest events up to the position, oldest first.
func (w *watcher) sendRecent(ctx context.Context, limit int) error {
	v, err := w.api.view(ctx, w.caller)
	if err != nil {
		return err
	}
	events, err := w.api.o.Sets.EventsUpTo(ctx, w.org, w.after, limit, func(e sets.FleetEvent) bool { return w.shows(v, e) })
	if err != nil {
		return err
	}
	for _, e := range slices.Backward(events) {
		if err := w.stream.Send(operatorv1.WatchResponse_builder{Event: v.names.event(e)}.Build()); err != nil {
			return fmt.Errorf("send event: %w", err)
		}
		w.sent = true
	}
	return nil
}

// shows: the caller sees it, and asked for its like.
func (w *watcher) shows(v view, e sets.FleetEvent) bool {
	return v.event(e) && (!w.would || wouldHave(e))
}

// wouldHave: what only the mode kept from being a fleet ban.
func wouldHave(e sets.FleetEvent) bool {
	return e.Kind == operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED && e.Unpromoted == operatorv1.Unpromoted_UNPROMOTED_WATCH_MODE
}

// away: Redis may be back in a while.
func away(err error) bool {
	return errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrOutcomeUnknown)
}
