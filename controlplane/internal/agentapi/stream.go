package agentapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/feed"
	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/hostauth"
)

// stream is one agent's stream.
type stream struct {
	service *Service
	tenant  *tenant
	grant   hostauth.Grant
	conn    duplex
	control control       // nil where the transport has none
	pushed  *pushedStream // nil where a goroutine of its own writes

	instance string
	facts    *fleetbanv1.HostFacts
	spool    string // the reader's
	name     string
	sets     []string
	sub      *feed.Subscription // the writer's
	more     bool               // the writer's: there was more to send than was sent at once

	// Milliseconds of a monotonic clock. reading is 0 while a message is being worked on: a peer isn't silent then.
	reading, sent, sending atomic.Int64

	wake chan struct{} // one element
	done chan struct{} // closed by end

	mu       sync.Mutex
	fence    hosts.Fence
	health   *fleetbanv1.Health // last said
	skew     time.Duration      // of the host's clock, where it is to be told
	refusals *fleetbanv1.Ack    // last list of exceptions, where there are some
	inert    fleetbanv1.Inert   // last said
	owed     owed
	held     bool // something waits until what is owed has come
	mark     mark
	box      mailbox
	ended    bool
	err      error
	cause    string

	unstored unstored // the tenant's lock
}

// mailbox is what the writer is to send, the latest of each kind.
type mailbox struct {
	eventsThrough uint64
	eventsSpool   string
	events        bool
	settings      *fleetbanv1.Settings
	heartbeat     bool
	commands      bool
	drain         *time.Duration
	offered       []string      // at most one a set
	beats         []sets.Cursor // of the last heartbeat
}

// recorded has it acknowledged that a spool is stored through an event: of another spool than before, from its own first one.
func (m *mailbox) recorded(spool string, through uint64) {
	if m.eventsSpool != spool {
		m.eventsSpool, m.eventsThrough = spool, 0
	}
	m.events, m.eventsThrough = true, max(m.eventsThrough, through)
}

var processStart = time.Now()

func monotonic() int64 { return max(1, time.Since(processStart).Milliseconds()) }

// connect serves one stream. pushed is for one on a link, else nil.
func (s *Service) connect(ctx context.Context, conn duplex, control control, pushed *pushedStream) error {
	grant, ok := ctx.Value(grantKey{}).(hostauth.Grant)
	if !ok {
		return apierr.New(connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "", "no host credential was verified", "")
	}
	st := &stream{service: s, grant: grant, conn: conn, control: control, pushed: pushed, done: make(chan struct{})}
	if pushed == nil {
		st.wake = make(chan struct{}, 1)
	}
	hello, err := st.hello()
	if err != nil {
		s.Metrics.StreamRefused(apierr.ReasonOf(apierr.From(ctx, err)))
		return err
	}
	st.tenant, err = s.acquire(ctx, grant.OrganisationID)
	if err != nil {
		return err
	}
	defer s.release(st.tenant)
	welcome, err := st.attach(ctx, hello)
	if err != nil {
		s.Metrics.StreamRefused(apierr.ReasonOf(apierr.From(ctx, err)))
		return err
	}
	return st.run(ctx, hello, welcome)
}

// hello reads the first message.
func (st *stream) hello() (*fleetbanv1.Hello, error) {
	st.readDeadline(time.Now().Add(helloWithin))
	m, err := st.conn.Receive(nil)
	st.readDeadline(time.Time{})
	if err != nil {
		return nil, fmt.Errorf("receive Hello: %w", err)
	}
	hello := m.GetHello()
	switch {
	case hello == nil:
		return nil, apierr.Invalid("hello", "the first message of a stream must be Hello", "use an agent of this release")
	case hello.GetProtocol() != Protocol:
		return nil, apierr.New(connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_PROTOCOL_UNSUPPORTED, "hello.protocol",
			fmt.Sprintf("the agent speaks protocol %d, this control plane speaks %d", hello.GetProtocol(), Protocol),
			"upgrade whichever of the two is older")
	case !printable(hello.GetSpool()) || !printable(hello.GetInstance()):
		return nil, apierr.Invalid("hello.spool", "the names of spool and instance must be printable ASCII without spaces", "use an agent of this release")
	default:
		return hello, nil
	}
}

// printable reports whether s can stand in keys and log lines.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// attach makes this the host's stream.
func (st *stream) attach(ctx context.Context, hello *fleetbanv1.Hello) (*fleetbanv1.Welcome, error) {
	s := st.service
	st.instance, st.facts, st.spool, st.health = hello.GetInstance(), hello.GetFacts(), hello.GetSpool(), hello.GetHealth()
	attached, err := st.takeOver(ctx)
	if err != nil {
		return nil, err
	}
	st.fence, st.name, st.sets = attached.Fence, attached.Name, hosts.Sets(attached.Tags)
	epoch, err := st.prepare(ctx)
	if err != nil {
		return nil, errors.Join(err, s.Hosts.Detach(ctx, st.fence, "its stream could not begin"))
	}
	through, err := sets.ThroughOf(attached.Stored, sets.Spool{HostID: st.grant.HostID, ID: st.spool})
	if err != nil {
		return nil, err
	}
	st.stored(st.spool, through)
	settings := st.tenant.current()
	infos := make([]*fleetbanv1.SetInfo, len(st.sets))
	for i, set := range st.sets {
		infos[i] = fleetbanv1.SetInfo_builder{Set: set, Kind: sets.KindOf(set)}.Build()
	}
	at, _ := s.Told()
	return fleetbanv1.Welcome_builder{
		ServerUnixMs: at.UnixMilli(), Replica: s.Replica, HostId: st.grant.HostID, HostName: st.name,
		OrganisationName: settings.name, Epoch: epoch, Sets: infos, HeartbeatMs: uint32(s.Heartbeat.Milliseconds()), //nolint:gosec // at most 25,000
		Settings: settings.wire, EventsThrough: through,
	}.Build(), nil
}

// takeOver attaches the host, and puts back first what Redis lost.
func (st *stream) takeOver(ctx context.Context) (hosts.Attachment, error) {
	h, g := st.service.Hosts, st.grant
	attached, err := h.Attach(ctx, g.OrganisationID, g.HostID, st.instance, st.service.Replica, g.PublicKey, st.facts, g.IssuedAt)
	if errors.Is(err, hosts.ErrMissing) {
		st.service.Logger.WarnContext(ctx, "host is taken back on the word of its grant", slog.String("host", g.HostID), slog.String("name", g.Name))
		if _, err := h.Adopt(ctx, g.OrganisationID, lost(g)); err != nil && !errors.Is(err, hosts.ErrDeleted) {
			return hosts.Attachment{}, err
		}
		attached, err = h.Attach(ctx, g.OrganisationID, g.HostID, st.instance, st.service.Replica, g.PublicKey, st.facts, g.IssuedAt)
	}
	var quarantined *hosts.QuarantinedError
	if errors.As(err, &quarantined) && quarantined.New {
		st.service.record(ctx, g.OrganisationID, hostActor(g.HostID, st.facts.GetHostname()), auth.Address(ctx), "host.quarantine", []string{g.HostID}, quarantined.Cause)
	}
	return attached, refusal(err)
}

func lost(g hostauth.Grant) hosts.Lost {
	return hosts.Lost{ID: g.HostID, Name: g.Name, PublicKey: g.PublicKey, Tags: g.Tags, Ephemeral: g.Ephemeral, Granted: g.IssuedAt}
}

// refusal says what a host sees of why it isn't served.
func refusal(err error) error {
	var quarantined *hosts.QuarantinedError
	switch {
	case errors.As(err, &quarantined):
		return clonedError(quarantined.Cause)
	case errors.Is(err, hosts.ErrDeleted):
		return errHostDeleted
	case errors.Is(err, hosts.ErrDisabled):
		return errHostDisabled
	case errors.Is(err, hosts.ErrWrongKey):
		return apierr.Wrap(err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_WRONG_KEY, "",
			"the control plane knows another key for this host", "enrol the host again: fleetban-agent enroll --force")
	default:
		return err
	}
}

// prepare stores what the fleet must know of a host before its stream begins, and gives the epoch.
func (st *stream) prepare(ctx context.Context) (epoch uint64, err error) {
	return st.service.Sets.Arrive(ctx, st.grant.OrganisationID, st.grant.HostID, hostAddresses(st.facts))
}

// run serves the stream until it ends.
func (st *stream) run(ctx context.Context, hello *fleetbanv1.Hello, welcome *fleetbanv1.Welcome) error {
	s := st.service
	now := monotonic()
	st.reading.Store(now)
	st.sent.Store(now)
	if err := s.add(st); err != nil {
		_ = s.Hosts.Detach(context.WithoutCancel(ctx), st.fence, "its replica was shut down")
		return err
	}
	st.tenant.join(st, welcome.GetSettings().GetVersion())
	log := s.Logger.With(slog.String("organisation", st.grant.OrganisationID), slog.String("host", st.grant.HostID), slog.String("name", st.name))
	log.InfoContext(ctx, "host connected", slog.String("instance", st.instance), slog.String("version", st.facts.GetAgentVersion()))
	s.Metrics.StreamAttached()

	cursors := make([]sets.Cursor, 0, len(st.sets))
	for _, set := range st.sets {
		cursor := sets.Cursor{Set: set}
		for _, c := range hello.GetCursors() {
			if c.GetSet() == set {
				cursor = sets.CursorFrom(c)
			}
		}
		cursors = append(cursors, cursor)
	}
	st.note(func(m *mailbox) { m.commands, m.heartbeat = true, s.storeAway.Load() })
	st.tenant.healthChanged(st)

	writeCtx, stopWriter := context.WithCancel(ctx)
	written := st.startWriter(writeCtx, welcome, cursors)
	if pushed := st.pushed; pushed != nil && pushed.welcomed != nil {
		pushed.welcomed()
		pushed.welcomed = nil
	}
	err := st.read(ctx)
	st.end(err, causeOf(err))
	stopWriter()
	written()
	if st.control != nil {
		_ = st.control.SetWriteDeadline(time.Time{})
	}
	st.tenant.leave(st)
	// Last: who waits for the streams to end waits for their ends to be recorded.
	defer s.remove(st)

	st.mu.Lock()
	final, cause, fence := st.err, st.cause, st.fence
	st.mu.Unlock()
	// The client has left, and its context with it.
	detach, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	if err := s.Hosts.Detach(detach, fence, cause); err != nil {
		log.WarnContext(ctx, "host's end not recorded: it will show as offline when its presence lapses", slog.Any("error", err))
	}
	s.Metrics.StreamEnded(endOf(final))
	log.InfoContext(ctx, "host disconnected", slog.String("cause", cause))
	return final
}

// end ends the stream; the first call decides why.
func (st *stream) end(err error, cause string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.ended {
		return
	}
	st.ended, st.err, st.cause = true, err, cause
	close(st.done)
	// A Receive returns at once; a Send that hangs gets a moment, for the error is sent after it.
	st.readDeadline(time.Unix(1, 0))
	if st.control != nil {
		_ = st.control.SetWriteDeadline(time.Now().Add(2 * time.Second))
	}
}

func (st *stream) readDeadline(t time.Time) {
	if st.control != nil {
		_ = st.control.SetReadDeadline(t)
	}
}

// note changes the mailbox and wakes the writer.
func (st *stream) note(f func(*mailbox)) {
	st.mu.Lock()
	f(&st.box)
	st.mu.Unlock()
	st.rouse()
}

// tick is called for each stream some twenty times a heartbeat.
func (st *stream) tick(time.Time) {
	beat, now := st.service.Heartbeat.Milliseconds(), monotonic()
	limit := int64(silentAfter * float64(beat))
	if reading := st.reading.Load(); reading > 0 && now-reading > limit {
		st.end(errSilent, fmt.Sprintf("not heard for %s", time.Duration(limit)*time.Millisecond))
		return
	}
	if st.pushed != nil {
		st.pushed.stuck(st, now)
	}
	if sending := st.sending.Load(); sending > 0 && now-sending > limit {
		st.end(errSlow, "it does not take what is sent to it")
		return
	}
	if now-st.sent.Load() >= beat {
		st.sent.Store(now)
		st.note(func(m *mailbox) { m.heartbeat = true })
	}
}

func (st *stream) currentFence() hosts.Fence {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.fence
}

func (st *stream) holds(set string) bool { return slices.Contains(st.sets, set) }

func causeOf(err error) string {
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return "the agent closed the stream"
	case connect.CodeOf(err) == connect.CodeInvalidArgument, connect.CodeOf(err) == connect.CodeResourceExhausted:
		return "the agent sent what was refused"
	default:
		return "the connection broke"
	}
}
