package stream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/agent/internal/envelope"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

const (
	// protocol is the number of the protocol that this speaks.
	protocol = 1
	// maxMessage bounds a message in both directions, in bytes.
	maxMessage = 4 << 20
	// maxBatch is how many events go into one message, maxUnacked how many may be under way.
	maxBatch, maxUnacked = 500, 5000
	// While more waits to be applied, acknowledgements are at least ackGap apart, and at most ackWait late.
	ackGap, ackWait = 5 * time.Millisecond, time.Second
	// healthGap is the least time between two Healths.
	healthGap = 250 * time.Millisecond
	// driftLeast is how long changes of nothing but counts wait for more, and at most twice that. Where they go on, each wait is twice
	// the one before, up to driftMost.
	driftLeast, driftMost = time.Second, 10 * time.Second
	// sinkShare is the part of the patience with a new stream that a Sink may take that hangs.
	sinkShare = 3
	// Bounds of the heartbeat that a Welcome may ask for.
	minBeat, maxBeat = 50 * time.Millisecond, 25 * time.Second
)

// pipe is the stream below a session.
type pipe interface {
	// send sends a message; one goroutine at a time. Its error says little: receive tells why a stream ended.
	send(m *fleetbanv1.ConnectRequest) error
	receive() (*fleetbanv1.ConnectResponse, error)
	// ready reports whether receive would not wait.
	ready() bool
	// free reports whether it is known that the next message, a short one, can be sent without waiting for the other end to read.
	free() bool
	// requestID is what the replica's log calls the stream, once something was received.
	requestID() string
	closeRequest()
	closeResponse()
}

// overHTTP is a stream that net/http and connect carry.
type overHTTP struct {
	stream *connect.BidiStreamForClient[envelope.Envelope, envelope.Envelope]
}

func (p overHTTP) send(m *fleetbanv1.ConnectRequest) error {
	return p.stream.Send(&envelope.Envelope{Message: m})
}

func (p overHTTP) receive() (*fleetbanv1.ConnectResponse, error) {
	e, err := p.stream.Receive()
	if err != nil {
		return nil, err
	}
	return e.Message.(*fleetbanv1.ConnectResponse), nil //nolint:forcetypeassert // made by newResponse
}

func (overHTTP) ready() bool { return false }

func (overHTTP) free() bool { return false }

func (p overHTTP) requestID() string { return p.stream.ResponseHeader().Get("X-Request-Id") }

func (p overHTTP) closeRequest() { _ = p.stream.CloseRequest() }

func (p overHTTP) closeResponse() { _ = p.stream.CloseResponse() }

// prove is the header that says who this host is. It is good for one stream, and for a minute.
func (s *session) prove() (http.Header, error) {
	key, grant := s.cfg.Key, s.cfg.Grant
	if s.cfg.Credentials != nil {
		key, grant = s.cfg.Credentials(s.ctx)
	}
	s.grant = grant
	assertion, err := Assertion(key, s.cfg.HostID, s.cfg.Audience, s.c.clock.now())
	return http.Header{"Authorization": {"Bearer " + assertion}, GrantHeader: {grant}}, err
}

// open begins the stream.
func (s *session) open(hello *fleetbanv1.ConnectRequest) (pipe, error) {
	if direct(s.cfg) && s.c.mayLink() {
		conn, err := s.conn.link(s.ctx, s.cfg, s.c.sessions)
		if err != nil {
			return nil, connect.NewError(connect.CodeUnavailable, err)
		}
		if conn != nil {
			header, err := s.prove()
			if err != nil {
				return nil, err
			}
			l, err := newLink(conn, s.cfg.URL, header, hello)
			if err != nil && l == nil {
				return nil, err
			}
			if s.cfg.Decode != nil {
				l.decode = s.cfg.Decode
			}
			return l, nil
		}
		s.c.noLink()
	}
	header, err := s.prove()
	if err != nil {
		return nil, err
	}
	client := connect.NewClient[envelope.Envelope, envelope.Envelope](s.conn.client(s.cfg), s.cfg.URL.String()+fleetbanv1connect.AgentServiceConnectProcedure,
		envelope.Responses(newResponse), connect.WithGRPC(), connect.WithReadMaxBytes(maxMessage), connect.WithSendMaxBytes(maxMessage))
	p := overHTTP{client.CallBidiStream(s.ctx)}
	for name, values := range header {
		p.stream.RequestHeader()[name] = values
	}
	// Its error says only that the stream ended; receive says why.
	_ = p.send(hello)
	return p, nil
}

func newResponse() proto.Message { return new(fleetbanv1.ConnectResponse) }

// session is one stream. run owns it; the other methods may be called from anywhere.
type session struct {
	c      *Client
	cfg    *Config
	conn   *connection
	stream pipe

	// Closed when the Welcome came; when a Drain's pause is over; when run has ended and err is set.
	welcomed, drain, done chan struct{}
	welcome               *fleetbanv1.Welcome
	grant                 string // that it was opened with
	requestID             string // what the replica's log calls this stream
	err                   error
	began                 atomic.Int64 // when it was welcome, Unix nanoseconds

	cancel context.CancelCauseFunc
	ctx    context.Context //nolint:containedctx // a session is its context

	// For the sender: something is due.
	wake                                chan struct{}
	healthDue, countsDue, exceptionsDue atomic.Bool
	out                                 chan *fleetbanv1.ConnectRequest
	// sending is held by who makes something to send, until it is sent: what is acknowledged never goes back.
	sending sync.Mutex
	lastAck time.Time // under sending

	// The receiver waits for a message since then; 0 while it is at work on one.
	idleSince atomic.Int64
	standing  string // of the Hello's Health
	deaf      bool   // the sink is away: sets are left unread. The receiver's own.
	blocked   map[string]bool

	// ackDue: something is to be acknowledged. gathered: the sender knows, and waits for more.
	ackDue   atomic.Bool
	gathered bool // the receiver's own

	mu       sync.Mutex
	held     []held
	ackSince time.Time
	eventAck uint64
	probe    uint64 // the event whose acknowledgement tells the round trip
	probedAt time.Time
}

// held is what is held of a set, and whether that is still to be acknowledged.
type held struct {
	set    string
	cursor *fleetbanv1.SetCursor
	unsent bool
}

func newSession(c *Client) *session {
	return &session{
		c: c, cfg: &c.cfg,
		welcomed: make(chan struct{}), drain: make(chan struct{}), done: make(chan struct{}),
		wake: make(chan struct{}, 1), out: make(chan *fleetbanv1.ConnectRequest),
		blocked: map[string]bool{},
	}
}

// run makes the stream and keeps it until it ends.
func (s *session) run(ctx context.Context) {
	s.mu.Lock()
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.mu.Unlock()
	s.conn = dial(s.cfg)
	stop := context.AfterFunc(s.ctx, s.conn.close)   //nolint:contextcheck // s.ctx comes of ctx, above
	err := s.live()                                  //nolint:contextcheck // as above
	if cause := context.Cause(s.ctx); cause != nil { //nolint:contextcheck // as above
		err = cause
	}
	s.cancel(err)
	stop()
	s.conn.close()
	s.err = err
	close(s.done)
}

// end makes run return with an error, unless it has one already.
func (s *session) end(err error) {
	s.mu.Lock()
	cancel := s.cancel
	s.mu.Unlock()
	if cancel != nil {
		cancel(err)
	}
}

// stop ends the session and waits for that.
func (s *session) stop(err error) {
	s.end(err)
	<-s.done
}

func (s *session) upFor() time.Duration {
	if b := s.began.Load(); b != 0 {
		return time.Duration(time.Now().UnixNano() - b)
	}
	return 0
}

// poke wakes the sender; what is due, if not nil, is set before.
func (s *session) poke(due *atomic.Bool) {
	if due != nil {
		due.Store(true)
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *session) live() error {
	patience := time.AfterFunc(s.cfg.Patience, func() { s.cancel(errNoHello) })
	defer patience.Stop()
	hello, err := s.hello()
	if err != nil {
		return err
	}
	asked := time.Now()
	if s.stream, err = s.open(fleetbanv1.ConnectRequest_builder{Hello: hello}.Build()); err != nil {
		return err
	}
	// Cancelling alone doesn't end a Receive; closing the connection below it and both halves does.
	defer func() {
		s.stream.closeRequest()
		s.conn.close()
		s.stream.closeResponse()
	}()
	for s.welcome == nil {
		m, err := s.stream.receive()
		if err != nil {
			return err
		}
		s.welcome = m.GetWelcome() // anything else before it is skipped
	}
	patience.Stop()
	if id := s.stream.requestID(); len(id) <= 64 {
		s.requestID = id
	}
	s.c.setRoundTrip(time.Since(asked))
	s.c.clock.sample(s.welcome.GetServerUnixMs(), true)
	if err := s.cfg.Source.Begin(s.welcome.GetEventsThrough()); err != nil {
		return errors.Join(errResync, err)
	}
	s.eventAck = s.welcome.GetEventsThrough()
	if !s.deaf {
		s.deaf = s.cfg.Sink.Begin(s.ctx, s.welcome, s.c.clock.nowMS(), s.conn.peers()) != nil
	}
	for _, c := range hello.GetCursors() {
		s.held = append(s.held, held{c.GetSet(), c, !s.deaf})
	}
	s.ackDue.Store(!s.deaf && len(s.held) > 0)
	s.exceptionsDue.Store(!s.deaf)
	s.began.Store(time.Now().UnixNano())
	s.c.welcomeStore()
	close(s.welcomed)

	beat := min(max(time.Duration(s.welcome.GetHeartbeatMs())*time.Millisecond, minBeat), maxBeat)
	s.idleSince.Store(time.Now().UnixNano())
	watchdog := s.watch(beat*5/2, beat/2)
	defer watchdog.Stop()
	received := make(chan error, 1)
	go func() {
		err := s.receive()
		received <- err
		s.cancel(err)
	}()
	sent := s.send(beat)
	if sent != nil && s.ctx.Err() == nil {
		// A Send that fails says little; the receiver is about to learn why.
		select {
		case <-s.ctx.Done():
		case <-time.After(2 * time.Second):
			s.cancel(sent)
		}
	}
	s.stream.closeRequest()
	s.conn.close()
	return <-received
}

func (s *session) hello() (*fleetbanv1.Hello, error) {
	within, cancel := context.WithTimeout(s.ctx, s.cfg.Patience/sinkShare)
	cursors, err := s.cfg.Sink.Cursors(within)
	cancel()
	if err != nil {
		if s.ctx.Err() != nil {
			return nil, err
		}
		// What it held when it last said: better a delta too many than a snapshot for nobody.
		s.deaf = true
		cursors = s.c.Status().Cursors
	}
	health := s.cfg.Health()
	s.standing = standing(health)
	return fleetbanv1.Hello_builder{
		Protocol: protocol, Features: s.cfg.Features, Instance: s.cfg.Instance, Facts: s.cfg.Facts(),
		Spool: s.cfg.Source.ID(), Cursors: cursors, Health: health,
	}.Build(), nil
}

// watch ends the session when nothing came for so long while the receiver waited: a dead peer. It is a timer, for the
// sender may hang in a Send to that very peer.
func (s *session) watch(longest, every time.Duration) *time.Timer {
	var t *time.Timer
	var mu sync.Mutex
	mu.Lock()
	defer mu.Unlock()
	t = time.AfterFunc(every, func() {
		since := s.idleSince.Load()
		if since != 0 && time.Duration(time.Now().UnixNano()-since) > longest {
			s.cancel(fmt.Errorf("%w for %s", errSilent, longest.Round(time.Millisecond)))
			return
		}
		if s.ctx.Err() == nil {
			mu.Lock()
			t.Reset(every)
			mu.Unlock()
		}
	})
	return t
}

// receive takes what comes until the stream ends.
func (s *session) receive() error {
	for {
		due := s.ackDue.Load()
		switch {
		case !s.stream.ready():
			now := time.Now()
			s.idleSince.Store(now.UnixNano())
			if due && !s.acknowledge(now) {
				s.poke(nil)
			}
		case due && !s.gathered:
			s.gathered = true
			s.poke(nil)
		}
		m, err := s.stream.receive()
		if err != nil {
			return err
		}
		s.idleSince.Store(0)
		if err := s.take(m); err != nil {
			return err
		}
	}
}

func (s *session) take(m *fleetbanv1.ConnectResponse) error {
	switch m.WhichMessage() {
	case fleetbanv1.ConnectResponse_Delta_case:
		return s.apply(m.GetDelta().GetSet(), Update{Delta: m.GetDelta()})
	case fleetbanv1.ConnectResponse_Snapshot_case:
		return s.apply(m.GetSnapshot().GetSet(), Update{Page: m.GetSnapshot()})
	case fleetbanv1.ConnectResponse_SetSync_case:
		return s.apply(m.GetSetSync().GetCursor().GetSet(), Update{Sync: m.GetSetSync()})
	case fleetbanv1.ConnectResponse_EventAck_case:
		s.eventsStored(m.GetEventAck())
	case fleetbanv1.ConnectResponse_Heartbeat_case:
		if s.c.clock.beat(m.GetHeartbeat().GetServerUnixMs(), m.GetHeartbeat().GetClock()) && !s.deaf {
			s.deaf = s.cfg.Sink.Settings(s.ctx, nil, s.c.clock.nowMS()) != nil
		}
		s.c.setStoreAway(m.GetHeartbeat().GetStoreAway(), true)
	case fleetbanv1.ConnectResponse_Drain_case:
		s.drainAfter(time.Duration(m.GetDrain().GetReconnectAfterMs()) * time.Millisecond)
	case fleetbanv1.ConnectResponse_Command_case:
		s.c.order(s.ctx, m.GetCommand())
	case fleetbanv1.ConnectResponse_OfferRequest_case:
		s.c.setRebuilding(m.GetOfferRequest().GetSet(), true)
		return s.offer(m.GetOfferRequest())
	case fleetbanv1.ConnectResponse_Settings_case:
		if !s.deaf {
			s.deaf = s.cfg.Sink.Settings(s.ctx, m.GetSettings(), s.c.clock.nowMS()) != nil
			s.poke(&s.exceptionsDue)
		}
	case fleetbanv1.ConnectResponse_Welcome_case:
		return fmt.Errorf("%w: a second Welcome", errProtocol)
	}
	return nil // a kind of message of a later version is skipped
}

func (s *session) apply(set string, u Update) error {
	if s.deaf || s.blocked[set] {
		return nil
	}
	received := time.Now()
	a, err := s.cfg.Sink.Apply(s.ctx, u, s.c.clock.nowMS())
	if err != nil { // the sink is away and says so itself; the stream goes on without sets
		s.deaf = true
		return nil //nolint:nilerr // see above
	}
	switch a.Outcome {
	case Gap:
		return fmt.Errorf("%w: %s", errGap, set)
	case UnknownKind:
		s.blocked[set] = true
		s.cfg.Log.Warn("the control plane sends a kind of record that this agent doesn't know; its set stays as it is. Upgrade the agent", "set", set)
		return nil
	case More:
		return nil
	case Done:
	}
	if u.Sync != nil || u.Page.GetLast() && !u.Page.GetPartial() {
		s.c.setRebuilding(set, false)
	}
	s.tellApplied(u.Delta, received)
	if a.ExceptionsChanged {
		s.exceptionsDue.Store(true)
	}
	s.hold(set, a.Cursor)
	return nil
}

func (s *session) eventsStored(ack *fleetbanv1.EventAck) {
	s.cfg.Source.Ack(ack.GetSpool(), ack.GetThrough())
	s.mu.Lock()
	s.eventAck = max(s.eventAck, ack.GetThrough())
	var took time.Duration
	if s.probe != 0 && ack.GetThrough() >= s.probe {
		took, s.probe = time.Since(s.probedAt), 0
	}
	s.mu.Unlock()
	if took > 0 {
		s.c.setRoundTrip(took)
	}
	s.poke(nil)
}

func (s *session) drainAfter(d time.Duration) {
	select {
	case <-s.drain:
		return
	default:
	}
	d = min(d, 5*time.Minute)
	if d <= 0 {
		close(s.drain)
		return
	}
	// A timer of the session's, not a goroutine: thousands of sessions may drain at once.
	var once sync.Once
	t := time.AfterFunc(d, func() { once.Do(func() { close(s.drain) }) })
	context.AfterFunc(s.ctx, func() { t.Stop() })
}

func (s *session) offer(r *fleetbanv1.OfferRequest) error {
	if s.deaf {
		return nil // asked again once it is back
	}
	put := func(o *fleetbanv1.RecordOffer) error {
		select {
		case s.out <- fleetbanv1.ConnectRequest_builder{Offer: o}.Build():
			return nil
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
	err := s.cfg.Sink.Held(s.ctx, r.GetSet(), r.GetAboveVersion(), func(records []*fleetbanv1.Record) error {
		return put(fleetbanv1.RecordOffer_builder{Set: r.GetSet(), Records: records}.Build())
	})
	if err != nil {
		if s.ctx.Err() == nil {
			s.deaf = true
		}
		return nil
	}
	return put(fleetbanv1.RecordOffer_builder{Set: r.GetSet(), Last: true}.Build())
}
