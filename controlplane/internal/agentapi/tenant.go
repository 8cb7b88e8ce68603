package agentapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/feed"
	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// tenant is one organisation with streams on this replica.
type tenant struct {
	service *Service
	org     string
	feed    *feed.Feed
	refs    int // the Service's lock

	cancel context.CancelFunc
	closed sync.WaitGroup

	pace pace

	// One element each.
	refresh, look, flush, flushHealth chan struct{}

	mu       sync.Mutex
	streams  map[string]*stream // by host; the latest
	settings settings
	decided  *policy
	// acked are the streams with something unstored, in the order in which it came; ackedSince is when the first of them came to wait.
	acked      []*stream
	ackedSince time.Time
	health     map[*stream]struct{}
}

// settings is what hosts are told.
type settings struct {
	name string
	wire *fleetbanv1.Settings
}

// policy is what promotion is decided by. version is read before mode, so that a change in between is refused by the
// script that writes.
type policy struct {
	version uint64
	mode    fleetbanv1.Mode
}

// acquire returns the organisation's tenant, begun if it is the first of its streams here.
func (s *Service) acquire(ctx context.Context, org string) (*tenant, error) { //nolint:contextcheck // a tenant outlives the stream that began it
	s.mu.Lock()
	t := s.tenants[org]
	if t != nil {
		t.refs++
	}
	s.mu.Unlock()
	if t != nil {
		return t, nil
	}
	first, err := s.organisation(ctx, org, settings{})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.tenants[org]; t != nil {
		t.refs++
		return t, nil
	}
	t = &tenant{
		service: s, org: org, refs: 1, streams: map[string]*stream{}, settings: first,
		health:  map[*stream]struct{}{},
		refresh: make(chan struct{}, 1), look: make(chan struct{}, 1), flush: make(chan struct{}, 1), flushHealth: make(chan struct{}, 1),
	}
	t.pace.most.Store(mostPatience.Nanoseconds())
	s.tenants[org] = t
	var release func()
	t.feed, release = s.Feeds.Acquire(org)
	runCtx, cancel := context.WithCancel(s.ctx)
	t.cancel = cancel
	stop := t.feed.Listen(t.rung)
	t.closed.Go(func() { t.run(runCtx) })
	t.closed.Go(func() { t.storeAcknowledged(runCtx) })
	t.closed.Go(func() { t.storeHealth(runCtx) })
	s.wg.Go(func() {
		t.closed.Wait()
		stop()
		release()
	})
	// What changed before the doorbell was listened to.
	poke(t.refresh)
	return t, nil
}

func (s *Service) release(t *tenant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.refs--; t.refs == 0 {
		delete(s.tenants, t.org)
		t.cancel()
	}
}

// organisation reads an organisation. One that Redis lost, but whose hosts have good grants, is put back as it is
// remembered; if nothing is, it only watches until a person says otherwise.
func (s *Service) organisation(ctx context.Context, org string, remembered settings) (settings, error) {
	o, err := s.Orgs.Get(ctx, org)
	if errors.Is(err, orgs.ErrNotFound) {
		s.Logger.WarnContext(ctx, "organisation is taken back on the word of its hosts' grants", slog.String("organisation", org))
		if o, err = s.Orgs.Adopt(ctx, org, remembered.name, remembered.wire.GetMode()); err != nil {
			return settings{}, err
		}
		if err := s.Sets.AppendEvent(ctx, org, sets.FleetEvent{
			Kind:   operatorv1.FleetEventKind_FLEET_EVENT_KIND_NOTICE,
			Reason: "Redis lost this organisation; it was taken back on the word of its hosts' grants: check its mode, and make new tokens",
		}); err != nil {
			s.Logger.WarnContext(ctx, "event not recorded", slog.Any("error", err))
		}
	}
	if err != nil {
		return settings{}, err
	}
	return settings{name: o.Name, wire: o.Settings()}, nil
}

// join makes st the host's stream on this replica, unless a newer one was quicker to get here.
func (t *tenant) join(st *stream, welcomed uint64) {
	t.mu.Lock()
	old := t.streams[st.grant.HostID]
	if old != nil && old.currentFence().N > st.currentFence().N {
		t.mu.Unlock()
		st.displaced()
		return
	}
	t.streams[st.grant.HostID] = st
	now := t.settings.wire
	t.mu.Unlock()
	if old != nil {
		old.displaced()
	}
	if now.GetVersion() != welcomed {
		st.note(func(m *mailbox) { m.settings = now })
	}
}

func (t *tenant) leave(st *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.streams[st.grant.HostID] == st {
		delete(t.streams, st.grant.HostID)
	}
	delete(t.health, st)
	st.unstored = unstored{} // and no batch takes it
}

func (st *stream) displaced() {
	st.end(errDisplaced, "a newer stream took over")
}

func (t *tenant) current() settings {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.settings
}

// rung is called by the feed's reader: it must not block.
func (t *tenant) rung(b store.Bell) {
	switch b.Kind {
	case store.BellSettings:
		t.forgetPolicy()
		poke(t.refresh)
	case store.BellCommand:
		if st := t.stream(b.Host); st != nil {
			st.note(func(m *mailbox) { m.commands = true })
		}
	case store.BellKick:
		if st := t.stream(b.Host); st != nil && st.currentFence().N < b.Fence {
			poke(t.look)
		}
	case store.BellEpoch:
		// Anything may have been missed, and Redis may have lost everything.
		t.forgetPolicy()
		poke(t.refresh)
		poke(t.look)
		for _, st := range t.all() {
			st.note(func(m *mailbox) { m.commands = true })
		}
	default:
	}
}

func (t *tenant) stream(host string) *stream {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.streams[host]
}

func (t *tenant) all() []*stream {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*stream, 0, len(t.streams))
	for _, st := range t.streams {
		out = append(out, st)
	}
	return out
}

// run keeps settings and presence current.
func (t *tenant) run(ctx context.Context) {
	touch := time.NewTicker(touchEvery)
	defer touch.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.refresh:
			t.refreshSettings(ctx)
		case <-t.look:
			t.touch(ctx)
		case <-touch.C:
			t.touch(ctx)
		}
	}
}

func (t *tenant) refreshSettings(ctx context.Context) {
	now, err := t.service.organisation(ctx, t.org, t.current())
	if err != nil {
		if ctx.Err() == nil {
			t.service.Logger.WarnContext(ctx, "settings can't be read, trying again", slog.String("organisation", t.org), slog.Any("error", err))
			t.after(ctx, t.refresh)
		}
		return
	}
	t.mu.Lock()
	changed := now.wire.GetVersion() != t.settings.wire.GetVersion()
	t.settings = now
	t.mu.Unlock()
	if !changed {
		return
	}
	for _, st := range t.all() {
		st.note(func(m *mailbox) { m.settings = now.wire })
	}
}

// after pokes again in a while.
func (t *tenant) after(ctx context.Context, c chan struct{}) {
	t.closed.Go(func() {
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
			poke(c)
		}
	})
}

// touch tells Redis which streams live, and looks after those that aren't as they were.
func (t *tenant) touch(ctx context.Context) {
	const page = 500
	all := t.all()
	for len(all) > 0 {
		n := min(page, len(all))
		fences := make([]hosts.Fence, n)
		for i, st := range all[:n] {
			fences[i] = st.currentFence()
		}
		states, err := t.service.Hosts.Touch(ctx, t.org, fences)
		if err != nil {
			if ctx.Err() == nil {
				t.service.Logger.WarnContext(ctx, "presence can't be recorded, trying again", slog.String("organisation", t.org), slog.Any("error", err))
			}
			return
		}
		for i, st := range all[:n] {
			if state, ok := states[st.grant.HostID]; ok && st.currentFence() == fences[i] {
				t.settle(ctx, st, state)
			}
		}
		t.lookForLost(ctx, all[:n])
		all = all[n:]
	}
}

// settle does what a stream's state asks for.
func (t *tenant) settle(ctx context.Context, st *stream, state hosts.State) {
	switch state {
	case hosts.StateDeleted:
		st.end(errHostDeleted, "the host was deleted")
	case hosts.StateDisabled:
		st.end(errHostDisabled, "the host was disabled")
	case hosts.StateQuarantined:
		st.end(clonedError("two running agents use this identity"), "quarantined")
	case hosts.StateStale:
		st.displaced()
	case hosts.StateLost:
		if err := t.attachAnew(ctx, st); err != nil {
			if isStore(err) {
				t.after(ctx, t.look)
				return
			}
			st.end(err, "it could not be attached anew")
		}
	case hosts.StateBack:
	}
}

// attachAnew puts back what Redis lost of a host whose stream stands.
func (t *tenant) attachAnew(ctx context.Context, st *stream) error {
	if _, err := t.service.organisation(ctx, t.org, t.current()); err != nil {
		return err
	}
	attached, err := st.takeOver(ctx)
	if err != nil {
		return err
	}
	st.mu.Lock()
	st.fence = attached.Fence
	refusals, inert := st.refusals, st.inert
	st.mu.Unlock()
	if _, err := st.prepare(ctx); err != nil {
		t.service.Logger.WarnContext(ctx, "addresses of host not recorded", slog.String("host", st.grant.HostID), slog.Any("error", err))
	}
	t.healthChanged(st)
	if refusals == nil {
		refusals = &fleetbanv1.Ack{}
	}
	t.acknowledge(st, nil, inert, refusals)
	st.note(func(m *mailbox) { m.commands = true })
	return nil
}

// recheck is called when a write of st was refused: it ends st, or attaches it anew and says to try again.
func (t *tenant) recheck(ctx context.Context, st *stream) error {
	fence := st.currentFence()
	states, err := t.service.Hosts.Touch(ctx, t.org, []hosts.Fence{fence})
	if err != nil {
		return err
	}
	if state, ok := states[st.grant.HostID]; ok && st.currentFence() == fence {
		t.settle(ctx, st, state)
	}
	select {
	case <-st.done:
		return errDisplaced // what it ended with stands
	default:
		return fmt.Errorf("%w: its host is attached anew", store.ErrUnavailable) // tried again after a pause
	}
}

// policy returns what promotion is decided by.
func (t *tenant) policy(ctx context.Context) (policy, error) {
	t.mu.Lock()
	kept := t.decided
	t.mu.Unlock()
	if kept != nil {
		return *kept, nil
	}
	states, err := t.service.Sets.States(ctx, t.org)
	if err != nil {
		return policy{}, err
	}
	o, err := t.service.Orgs.Get(ctx, t.org)
	switch {
	case errors.Is(err, orgs.ErrNotFound):
		// Redis was emptied under us; what was there is put back in a moment.
		poke(t.refresh)
		return policy{}, fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	case err != nil:
		return policy{}, err
	}
	p := policy{version: states.PolicyVersion, mode: o.Mode}
	t.mu.Lock()
	t.decided = &p
	t.mu.Unlock()
	return p, nil
}

func (t *tenant) forgetPolicy() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.decided = nil
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
