package stream_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/agent/stream"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
	"github.com/fleetban/fleetban/proto/wire/hostauth"
)

// patience is the longest that anything here may take, on a machine that runs many tests at once.
const patience = time.Minute

// peer is the other end of the protocol under a test's hand: each stream that is opened is given to the test, which
// sends and receives on it.
type peer struct {
	fleetbanv1connect.UnimplementedAgentServiceHandler
	t       *testing.T
	server  *httptest.Server
	key     ed25519.PublicKey
	private ed25519.PrivateKey
	streams chan *call
	// refuse answers a stream with an error, if it returns one.
	refuse func(http.Header) error
}

type call struct {
	t     *testing.T
	hello *fleetbanv1.Hello
	in    chan *fleetbanv1.ConnectRequest
	out   chan *fleetbanv1.ConnectResponse
	end   chan error    // closes or fails the stream
	gone  chan struct{} // the agent closed it
}

func newPeer(t *testing.T) *peer {
	t.Helper()
	p := &peer{t: t, streams: make(chan *call, 16)}
	p.key, p.private, _ = ed25519.GenerateKey(nil)
	mux := http.NewServeMux()
	mux.Handle(fleetbanv1connect.NewAgentServiceHandler(p))
	p.server = httptest.NewUnstartedServer(mux)
	p.server.Config.Protocols = new(http.Protocols)
	p.server.Config.Protocols.SetUnencryptedHTTP2(true)
	p.server.Start()
	t.Cleanup(func() {
		p.server.CloseClientConnections()
		p.server.Close()
	})
	return p
}

func (p *peer) Connect(ctx context.Context, s *connect.BidiStream[fleetbanv1.ConnectRequest, fleetbanv1.ConnectResponse]) error {
	if p.refuse != nil {
		if err := p.refuse(s.RequestHeader()); err != nil {
			return err
		}
	}
	m, err := s.Receive()
	if err != nil {
		return err
	}
	c := &call{t: p.t, hello: m.GetHello(), out: make(chan *fleetbanv1.ConnectResponse), in: make(chan *fleetbanv1.ConnectRequest, 10_000), end: make(chan error), gone: make(chan struct{})}
	go func() {
		defer close(c.gone)
		for {
			m, err := s.Receive()
			if err != nil {
				return
			}
			c.in <- m
		}
	}()
	p.streams <- c
	for {
		select {
		case m := <-c.out:
			if err := s.Send(m); err != nil {
				return err
			}
		case err := <-c.end:
			return err
		case <-c.gone:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (p *peer) next() *call {
	p.t.Helper()
	select {
	case c := <-p.streams:
		return c
	case <-time.After(patience):
		p.t.Fatal("no stream was opened")
		return nil
	}
}

// welcome answers the Hello, heartbeats every 25 s unless told otherwise.
func (c *call) welcome(w fleetbanv1.Welcome_builder) *call {
	c.t.Helper()
	if w.HeartbeatMs == 0 {
		w.HeartbeatMs = 25_000
	}
	if w.ServerUnixMs == 0 {
		w.ServerUnixMs = time.Now().UnixMilli()
	}
	c.send(fleetbanv1.ConnectResponse_builder{Welcome: w.Build()}.Build())
	return c
}

func (c *call) send(m *fleetbanv1.ConnectResponse) {
	c.t.Helper()
	select {
	case c.out <- m:
	case <-c.gone:
		c.t.Fatal("the agent closed the stream")
	case <-time.After(patience):
		c.t.Fatal("the agent doesn't read")
	}
}

func (c *call) delta(set string, version uint64, kind fleetbanv1.RecordKind) {
	c.t.Helper()
	c.send(fleetbanv1.ConnectResponse_builder{Delta: fleetbanv1.Delta_builder{
		Set: set, Kind: fleetbanv1.SetKind_SET_KIND_BAN, Epoch: 1, FromVersion: version, Version: version, Digest: version,
		Records: []*fleetbanv1.Record{fleetbanv1.Record_builder{Prefix: []byte{203, 0, 113, 9, 32}, Kind: kind}.Build()},
	}.Build()}.Build())
}

// await returns the first message that f accepts.
func (c *call) await(what string, f func(*fleetbanv1.ConnectRequest) bool) *fleetbanv1.ConnectRequest {
	c.t.Helper()
	limit := time.After(patience)
	for {
		select {
		case m := <-c.in:
			if f(m) {
				return m
			}
		case <-limit:
			c.t.Fatalf("the agent never sent %s", what)
		}
	}
}

func (c *call) awaitAck(set string, version uint64) *fleetbanv1.Ack {
	c.t.Helper()
	return c.await(fmt.Sprintf("an acknowledgement of %s %d", set, version), func(m *fleetbanv1.ConnectRequest) bool {
		for _, cur := range m.GetAck().GetCursors() {
			if cur.GetSet() == set && cur.GetVersion() >= version {
				return true
			}
		}
		return false
	}).GetAck()
}

// sink holds versions only.
type sink struct {
	mu         sync.Mutex
	versions   map[string]uint64
	away       bool
	clock      int64 // as Settings said last
	refused    int
	exceptions stream.Exceptions
	executed   []string
	begun      chan *fleetbanv1.Welcome
	slow       chan struct{} // if not nil, Apply waits for it
	hangs      atomic.Bool   // Cursors doesn't answer
}

func newSink() *sink {
	return &sink{versions: map[string]uint64{}, begun: make(chan *fleetbanv1.Welcome, 100)}
}

var errAway = errors.New("away")

func cursor(set string, version uint64) *fleetbanv1.SetCursor {
	return fleetbanv1.SetCursor_builder{Set: set, Epoch: 1, Version: version, Digest: version}.Build()
}

func (s *sink) Cursors(ctx context.Context) (out []*fleetbanv1.SetCursor, err error) {
	if s.hangs.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return nil, errAway
	}
	for set, v := range s.versions {
		out = append(out, cursor(set, v))
	}
	return out, nil
}

func (s *sink) Begin(_ context.Context, w *fleetbanv1.Welcome, _ int64, _ []netip.Addr) error {
	s.begun <- w
	return nil
}

func (s *sink) Apply(_ context.Context, u stream.Update, _ int64) (stream.Applied, error) {
	if s.slow != nil {
		<-s.slow
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		s.refused++
		return stream.Applied{}, errAway
	}
	switch {
	case u.Page != nil:
		if !u.Page.GetLast() {
			return stream.Applied{Outcome: stream.More}, nil
		}
		s.versions[u.Page.GetSet()] = u.Page.GetVersion()
		return stream.Applied{Outcome: stream.Done, Cursor: cursor(u.Page.GetSet(), u.Page.GetVersion())}, nil
	case u.Sync != nil:
		return stream.Applied{Outcome: stream.Done, Cursor: u.Sync.GetCursor()}, nil
	}
	set := u.Delta.GetSet()
	if u.Delta.GetRecords()[0].GetKind() > fleetbanv1.RecordKind_RECORD_KIND_EXPIRED {
		return stream.Applied{Outcome: stream.UnknownKind}, nil
	}
	if u.Delta.GetFromVersion() > s.versions[set]+1 {
		return stream.Applied{Outcome: stream.Gap}, nil
	}
	s.versions[set] = max(s.versions[set], u.Delta.GetVersion())
	return stream.Applied{Outcome: stream.Done, Cursor: cursor(set, s.versions[set])}, nil
}

func (s *sink) Settings(_ context.Context, _ *fleetbanv1.Settings, serverMS int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock = serverMS
	return nil
}

func (s *sink) Exceptions(context.Context) (stream.Exceptions, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.exceptions, nil
}

func (s *sink) Held(_ context.Context, _ string, above uint64, page func([]*fleetbanv1.Record) error) error {
	for i := range 3 {
		if err := page([]*fleetbanv1.Record{fleetbanv1.Record_builder{SinceUnixMs: int64(i), ExpiresUnixMs: int64(above)}.Build()}); err != nil { //nolint:gosec // small
			return err
		}
	}
	return nil
}

func (s *sink) Execute(_ context.Context, c *fleetbanv1.Command, _ int64) *fleetbanv1.CommandResult {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.executed = append(s.executed, c.GetCommandId())
	return fleetbanv1.CommandResult_builder{CommandId: c.GetCommandId(), Outcome: fleetbanv1.CommandOutcome_COMMAND_OUTCOME_DONE}.Build()
}

// source is a queue in memory.
type source struct {
	mu     sync.Mutex
	id     string
	events int
	acked  uint64
	notify chan struct{}
}

func newSource(events int) *source {
	return &source{id: "spool", events: events, notify: make(chan struct{}, 1)}
}

func (s *source) ID() string { s.mu.Lock(); defer s.mu.Unlock(); return s.id }

func (s *source) Begin(through uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if through > uint64(s.events) { //nolint:gosec // positive
		s.id += "'"
		return errors.New("rolled back")
	}
	return nil
}

func (s *source) Next(after uint64, limit int) (out []*fleetbanv1.Event, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for seq := after + 1; seq <= uint64(s.events) && len(out) < limit; seq++ { //nolint:gosec // positive
		out = append(out, fleetbanv1.Event_builder{Seq: seq, Jail: "sshd"}.Build())
	}
	return out, nil
}

func (s *source) Ack(_ string, through uint64) { s.mu.Lock(); defer s.mu.Unlock(); s.acked = through }

func (s *source) Appended() <-chan struct{} { return s.notify }

func (s *source) add(n int) {
	s.mu.Lock()
	s.events += n
	s.mu.Unlock()
	s.notify <- struct{}{}
}

func start(t *testing.T, p *peer, address string, sink stream.Sink, source stream.Source) *stream.Client {
	t.Helper()
	return startWith(t, p, address, sink, source, func(*stream.Config) {})
}

func startWith(t *testing.T, p *peer, address string, sink stream.Sink, source stream.Source, change func(*stream.Config)) *stream.Client {
	t.Helper()
	u, _ := url.Parse(address)
	cfg := stream.Config{
		URL: u, Key: p.private, HostID: "H1", Audience: "fleetban:test", Grant: "grant", Instance: "i",
		Facts:  func() *fleetbanv1.HostFacts { return &fleetbanv1.HostFacts{} },
		Health: func() *fleetbanv1.Health { return fleetbanv1.Health_builder{PolicyLevel: "ban"}.Build() },
		Sink:   sink, Source: source, Patience: patience / 2,
	}
	change(&cfg)
	client := stream.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = client.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(patience):
			t.Error("Run didn't end when it was told to")
		}
	})
	return client
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if f() {
			return
		}
	}
	t.Fatal("never: " + what)
}

func TestHelloSetsAndAcks(t *testing.T) {
	t.Parallel()
	p, sink := newPeer(t), newSink()
	sink.versions["all"] = 7
	sink.exceptions = stream.Exceptions{Total: 3, Inert: fleetbanv1.Inert_INERT_OFF}
	assertions := make(chan string, 1)
	p.refuse = func(h http.Header) error {
		if h.Get(hostauth.GrantHeader) != "grant" {
			t.Errorf("grant %q", h.Get(hostauth.GrantHeader))
		}
		assertions <- strings.TrimPrefix(h.Get("Authorization"), "Bearer ")
		return nil
	}
	client := start(t, p, p.server.URL, sink, newSource(0))
	c := p.next()
	if _, err := hostauth.VerifyAssertion(<-assertions, p.key, "H1", "fleetban:test", time.Now()); err != nil {
		t.Error(err)
	}
	if h := c.hello; h.GetProtocol() != 1 || h.GetInstance() != "i" || h.GetSpool() != "spool" || len(h.GetCursors()) != 1 ||
		h.GetCursors()[0].GetVersion() != 7 || h.GetHealth().GetPolicyLevel() != "ban" {
		t.Errorf("hello %v", h)
	}
	c.welcome(fleetbanv1.Welcome_builder{Replica: "r1", HostName: "web-1", OrganisationName: "Acme"})
	// What it holds and what it doesn't enforce is told at once.
	if a := c.awaitAck("all", 7); !a.GetExceptionsChanged() || a.GetExceptionsTotal() != 3 || a.GetInert() != fleetbanv1.Inert_INERT_OFF {
		t.Errorf("first ack %v", a)
	}
	c.delta("all", 8, fleetbanv1.RecordKind_RECORD_KIND_PRESENT)
	if a := c.awaitAck("all", 8); a.GetExceptionsChanged() || a.GetInert() != fleetbanv1.Inert_INERT_OFF {
		t.Errorf("ack %v", a)
	}
	for i := range uint32(3) {
		c.send(fleetbanv1.ConnectResponse_builder{Snapshot: fleetbanv1.SnapshotPage_builder{Set: "allow", Version: 5, Page: i, Last: i == 2}.Build()}.Build())
	}
	c.awaitAck("allow", 5)
	c.send(fleetbanv1.ConnectResponse_builder{SetSync: fleetbanv1.SetSync_builder{Cursor: cursor("hosts", 2)}.Build()}.Build())
	c.awaitAck("hosts", 2)
	// A kind of message from the future is skipped.
	future := new(fleetbanv1.ConnectResponse)
	if err := proto.Unmarshal(protowire.AppendBytes(protowire.AppendTag(nil, 900, protowire.BytesType), []byte("x")), future); err != nil {
		t.Fatal(err)
	}
	c.send(future)
	// A kind of record from the future is never acknowledged, nor what follows it in that set.
	c.delta("hosts", 3, 99)
	c.delta("hosts", 4, fleetbanv1.RecordKind_RECORD_KIND_PRESENT)
	c.delta("all", 9, fleetbanv1.RecordKind_RECORD_KIND_PRESENT)
	c.await("an acknowledgement of all 9", func(m *fleetbanv1.ConnectRequest) bool {
		done := false
		for _, cur := range m.GetAck().GetCursors() {
			if cur.GetSet() == "hosts" && cur.GetVersion() > 2 {
				t.Errorf("acknowledged %v", cur)
			}
			done = done || cur.GetSet() == "all" && cur.GetVersion() == 9
		}
		return done
	})
	if s := client.Status(); !s.Connected || s.Replica != "r1" || s.HostName != "web-1" || s.Organisation != "Acme" || s.RoundTrip <= 0 {
		t.Errorf("status %+v", s)
	}
	c.send(fleetbanv1.ConnectResponse_builder{OfferRequest: fleetbanv1.OfferRequest_builder{Set: "all", AboveVersion: 4}.Build()}.Build())
	n := 0
	c.await("the end of an offer", func(m *fleetbanv1.ConnectRequest) bool {
		n += len(m.GetOffer().GetRecords())
		return m.GetOffer().GetLast()
	})
	if n != 3 {
		t.Errorf("offered %d records", n)
	}
	client.HealthChanged()
	c.await("health", (*fleetbanv1.ConnectRequest).HasHealth)
}

func TestAcksAreGatheredUnderLoad(t *testing.T) {
	t.Parallel()
	p, sink := newPeer(t), newSink()
	sink.slow = make(chan struct{})
	start(t, p, p.server.URL, sink, newSource(0))
	c := p.next().welcome(fleetbanv1.Welcome_builder{})
	const n = 500
	for v := range uint64(n) {
		c.delta("all", v+1, fleetbanv1.RecordKind_RECORD_KIND_PRESENT)
	}
	began, acks := time.Now(), 0
	close(sink.slow)
	c.await("the last acknowledgement", func(m *fleetbanv1.ConnectRequest) bool {
		if m.HasAck() {
			acks++
		}
		for _, cur := range m.GetAck().GetCursors() {
			if cur.GetVersion() == n {
				return true
			}
		}
		return false
	})
	// Where the machine is slow, the agent isn't always at work, and then as many as are 5 ms apart.
	if most := max(n/5, int(time.Since(began)/(5*time.Millisecond))+1); acks > most {
		t.Errorf("%d acknowledgements of %d deltas, in %s", acks, n, time.Since(began))
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	p, source := newPeer(t), newSource(7000)
	start(t, p, p.server.URL, newSink(), source)
	c := p.next().welcome(fleetbanv1.Welcome_builder{EventsThrough: 10})
	want := uint64(11)
	until := func(last uint64) {
		t.Helper()
		c.await(fmt.Sprintf("event %d", last), func(m *fleetbanv1.ConnectRequest) bool {
			for _, e := range m.GetEvents().GetEvents() {
				if e.GetSeq() != want {
					t.Fatalf("event %d where %d was to come", e.GetSeq(), want)
				}
				want++
			}
			if len(m.GetEvents().GetEvents()) > 500 {
				t.Errorf("a batch of %d", len(m.GetEvents().GetEvents()))
			}
			return want > last
		})
	}
	until(5010) // no further before it is acknowledged
	select {
	case m := <-c.in:
		if m.HasEvents() {
			t.Fatal("more events under way than are bounded")
		}
	case <-time.After(50 * time.Millisecond):
	}
	c.send(fleetbanv1.ConnectResponse_builder{EventAck: fleetbanv1.EventAck_builder{Spool: "spool", Through: 5010}.Build()}.Build())
	until(7000)
	source.add(3)
	until(7003)
	// A stream that breaks: the next begins where the control plane says.
	c.end <- connect.NewError(connect.CodeUnavailable, errors.New("going"))
	c = p.next().welcome(fleetbanv1.Welcome_builder{EventsThrough: 6000})
	want = 6001
	until(7003)
	c.end <- nil
	// It has more than the spool: the spool begins anew, and says so in a new Hello.
	p.next().welcome(fleetbanv1.Welcome_builder{EventsThrough: 9999})
	if c = p.next(); c.hello.GetSpool() != "spool'" {
		t.Errorf("spool %q", c.hello.GetSpool())
	}
}

func TestGapMeansAFreshHello(t *testing.T) {
	t.Parallel()
	p, sink := newPeer(t), newSink()
	start(t, p, p.server.URL, sink, newSource(0))
	c := p.next().welcome(fleetbanv1.Welcome_builder{})
	c.delta("all", 1, fleetbanv1.RecordKind_RECORD_KIND_PRESENT)
	c.delta("all", 5, fleetbanv1.RecordKind_RECORD_KIND_PRESENT)
	c = p.next()
	if cs := c.hello.GetCursors(); len(cs) != 1 || cs[0].GetVersion() != 1 {
		t.Errorf("hello after a gap: %v", cs)
	}
}

func TestSinkAway(t *testing.T) {
	t.Parallel()
	p, sink, source := newPeer(t), newSink(), newSource(0)
	client := start(t, p, p.server.URL, sink, source)
	c := p.next().welcome(fleetbanv1.Welcome_builder{})
	c.delta("all", 1, fleetbanv1.RecordKind_RECORD_KIND_PRESENT)
	c.awaitAck("all", 1)
	sink.mu.Lock()
	sink.away = true
	sink.mu.Unlock()
	c.delta("all", 2, fleetbanv1.RecordKind_RECORD_KIND_PRESENT)
	source.add(1) // events go on
	c.await("an event", func(m *fleetbanv1.ConnectRequest) bool {
		if m.HasAck() && m.GetAck().GetCursors()[0].GetVersion() > 1 {
			t.Errorf("acknowledged %v", m)
		}
		return m.HasEvents()
	})
	eventually(t, "the delta is tried", func() bool {
		sink.mu.Lock()
		defer sink.mu.Unlock()
		return sink.refused > 0
	})
	sink.mu.Lock()
	sink.away = false
	sink.mu.Unlock()
	client.Resync()
	if c = p.next(); len(c.hello.GetCursors()) != 1 || c.hello.GetCursors()[0].GetVersion() != 1 {
		t.Errorf("hello %v", c.hello.GetCursors())
	}
}

// The sink is back between a stream's Hello, which it couldn't be asked for, and its Welcome: a stream that went on like this would
// read no set until it broke.
func TestSinkBackBeforeTheWelcome(t *testing.T) {
	t.Parallel()
	p, sink := newPeer(t), newSink()
	sink.away = true
	client := start(t, p, p.server.URL, sink, newSource(0))
	c := p.next()
	sink.mu.Lock()
	sink.away = false
	sink.mu.Unlock()
	client.Resync()
	c.welcome(fleetbanv1.Welcome_builder{})
	c = p.next().welcome(fleetbanv1.Welcome_builder{})
	c.delta("all", 1, fleetbanv1.RecordKind_RECORD_KIND_PRESENT)
	c.awaitAck("all", 1)
}

// A sink that doesn't answer at all keeps no stream from coming up: events and health need none.
func TestSinkHangs(t *testing.T) {
	t.Parallel()
	p, sink, source := newPeer(t), newSink(), newSource(0)
	sink.hangs.Store(true)
	client := startWith(t, p, p.server.URL, sink, source, func(c *stream.Config) { c.Patience = 9 * time.Second })
	c := p.next().welcome(fleetbanv1.Welcome_builder{})
	source.add(1)
	c.await("an event", (*fleetbanv1.ConnectRequest).HasEvents)
	c.delta("all", 1, fleetbanv1.RecordKind_RECORD_KIND_PRESENT)
	sink.hangs.Store(false)
	client.Resync()
	c = p.next().welcome(fleetbanv1.Welcome_builder{})
	c.delta("all", 1, fleetbanv1.RecordKind_RECORD_KIND_PRESENT)
	c.awaitAck("all", 1)
}

func TestDrainMakesBeforeItBreaks(t *testing.T) {
	t.Parallel()
	p, sink, source := newPeer(t), newSink(), newSource(0)
	client := start(t, p, p.server.URL, sink, source)
	old := p.next().welcome(fleetbanv1.Welcome_builder{Replica: "old"})
	old.send(fleetbanv1.ConnectResponse_builder{Drain: fleetbanv1.Drain_builder{ReconnectAfterMs: 20}.Build()}.Build())
	next := p.next()
	// The old one works until the new one is welcome.
	old.delta("all", 1, fleetbanv1.RecordKind_RECORD_KIND_PRESENT)
	old.awaitAck("all", 1)
	select {
	case <-old.gone:
		t.Fatal("the old stream was closed before the new one was welcome")
	default:
	}
	if !client.Status().Connected {
		t.Error("not connected while it moves")
	}
	// The first try to move fails; the old one still stands.
	next.end <- connect.NewError(connect.CodeUnavailable, errors.New("no"))
	next = p.next()
	old.delta("all", 2, fleetbanv1.RecordKind_RECORD_KIND_PRESENT)
	old.awaitAck("all", 2)
	next.welcome(fleetbanv1.Welcome_builder{Replica: "new"})
	select {
	case <-old.gone:
	case <-time.After(patience):
		t.Fatal("the old stream was never closed")
	}
	eventually(t, "connected to the new one", func() bool { s := client.Status(); return s.Connected && s.Replica == "new" })
	source.add(1)
	next.await("an event on the new one", (*fleetbanv1.ConnectRequest).HasEvents)
}

func TestHeartbeatsAndASilentPeer(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	client := start(t, p, p.server.URL, newSink(), newSource(0))
	c := p.next().welcome(fleetbanv1.Welcome_builder{HeartbeatMs: 1000})
	var began time.Time
	for range 3 {
		c.await("a heartbeat", (*fleetbanv1.ConnectRequest).HasHeartbeat)
		began = time.Now()
		c.send(fleetbanv1.ConnectResponse_builder{Heartbeat: fleetbanv1.ServerHeartbeat_builder{ServerUnixMs: time.Now().UnixMilli() + 3_600_000}.Build()}.Build())
	}
	if o := client.Status().Offset; o < 59*time.Minute || o > 61*time.Minute {
		t.Errorf("offset %v", o)
	}
	p.next() // it falls silent: another stream is opened
	if d := time.Since(began); d < 2*time.Second || d > patience/2 {
		t.Errorf("a silent peer was given up after %v", d)
	}
}

// TestFrozenConnection stops all traffic without closing anything, as a dead middlebox does, while the agent has more to
// send than buffers hold.
// A server's clock that is set back is followed at once, where the server says that it was; a heartbeat that is merely late changes
// nothing.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	p, sink := newPeer(t), newSink()
	client := start(t, p, p.server.URL, sink, newSource(0))
	c := p.next().welcome(fleetbanv1.Welcome_builder{})
	begun := time.Now()
	beat := func(ahead time.Duration, clock uint32) {
		t.Helper()
		c.send(fleetbanv1.ConnectResponse_builder{Heartbeat: fleetbanv1.ServerHeartbeat_builder{ServerUnixMs: time.Now().Add(ahead).UnixMilli(), Clock: clock}.Build()}.Build())
	}
	near := func(what string, ahead time.Duration) {
		t.Helper()
		eventually(t, what, func() bool { off := time.Until(client.ServerNow()) - ahead; return off.Abs() < 30*time.Second })
	}
	const jump = 10 * time.Minute
	beat(jump, 1)
	near("the clock that was set ahead", jump)
	beat(0, 1) // as if it had been on its way for so long
	beat(jump, 1)
	near("a late one changes nothing", jump)
	beat(-jump, 2)
	near("the clock that was set back", -jump)
	eventually(t, "the sink knows", func() bool {
		sink.mu.Lock()
		defer sink.mu.Unlock()
		return sink.clock != 0 && time.UnixMilli(sink.clock).Before(begun)
	})
}

func TestFrozenConnection(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	proxy := newFreezer(t, p.server.Listener.Addr().String())
	start(t, p, "http://"+proxy.address, newSink(), newSource(200_000))
	c := p.next().welcome(fleetbanv1.Welcome_builder{HeartbeatMs: 200})
	c.await("events, for which it has to be welcome", (*fleetbanv1.ConnectRequest).HasEvents)
	proxy.freeze()
	began := time.Now()
	p.next()
	if d := time.Since(began); d > patience/2 {
		t.Errorf("noticed after %v", d)
	}
}

func info(code connect.Code, i fleetbanv1.ErrorInfo_builder) error {
	e := connect.NewError(code, errors.New("no"))
	d, _ := connect.NewErrorDetail(i.Build())
	e.AddDetail(d)
	return e
}

func TestClockSkewIsCorrectedAtOnce(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	ahead := 2 * time.Hour
	p.refuse = func(h http.Header) error {
		now := time.Now().Add(ahead)
		if _, err := hostauth.VerifyAssertion(strings.TrimPrefix(h.Get("Authorization"), "Bearer "), p.key, "H1", "fleetban:test", now); err != nil {
			return info(connect.CodeUnauthenticated, fleetbanv1.ErrorInfo_builder{Reason: fleetbanv1.Reason_REASON_CLOCK_SKEW, ServerUnixMs: now.UnixMilli()})
		}
		return nil
	}
	began := time.Now()
	client := start(t, p, p.server.URL, newSink(), newSource(0))
	p.next().welcome(fleetbanv1.Welcome_builder{ServerUnixMs: time.Now().Add(ahead).UnixMilli()})
	if d := time.Since(began); d > patience/2 {
		t.Errorf("took %v", d)
	}
	eventually(t, "connected", func() bool { return client.Status().Connected })
	if d := client.ServerNow().Sub(time.Now().Add(ahead)).Abs(); d > time.Minute {
		t.Errorf("server time is off by %v", d)
	}
}

// A control plane without its Redis is another thing than none, whether a stream stands or is refused.
func TestStoreAway(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	var refused atomic.Pointer[fleetbanv1.Reason]
	p.refuse = func(http.Header) error {
		if reason := refused.Load(); reason != nil {
			return info(connect.CodeUnavailable, fleetbanv1.ErrorInfo_builder{Reason: *reason})
		}
		return nil
	}
	client := start(t, p, p.server.URL, newSink(), newSource(0))
	c := p.next().welcome(fleetbanv1.Welcome_builder{})
	beat := func(away bool) {
		t.Helper()
		c.send(fleetbanv1.ConnectResponse_builder{Heartbeat: fleetbanv1.ServerHeartbeat_builder{ServerUnixMs: time.Now().UnixMilli(), StoreAway: away}.Build()}.Build())
		eventually(t, "told", func() bool { s := client.Status(); return s.Connected && s.StoreAway.IsZero() != away })
	}
	beat(true)
	since := client.Status().StoreAway
	beat(true)
	if now := client.Status().StoreAway; !now.Equal(since) {
		t.Errorf("away since %s, and a heartbeat later since %s", since, now)
	}
	beat(false)

	refuse := func(reason fleetbanv1.Reason, away bool) {
		t.Helper()
		refused.Store(&reason)
		eventually(t, reason.String(), func() bool { s := client.Status(); return !s.Connected && s.StoreAway.IsZero() != away })
	}
	unavailable := fleetbanv1.Reason_REASON_STORE_UNAVAILABLE
	refused.Store(&unavailable)
	c.end <- nil
	refuse(unavailable, true)
	refuse(fleetbanv1.Reason_REASON_SHUTTING_DOWN, false)
	refused.Store(nil)
	p.next().welcome(fleetbanv1.Welcome_builder{})
	eventually(t, "connected, and all is well", func() bool { s := client.Status(); return s.Connected && s.StoreAway.IsZero() })
}

func TestWhatOnlyAPersonMends(t *testing.T) {
	t.Parallel()
	for reason, want := range map[fleetbanv1.Reason]string{
		fleetbanv1.Reason_REASON_HOST_CLONED:          "Two machines",
		fleetbanv1.Reason_REASON_HOST_DISABLED:        "was removed",
		fleetbanv1.Reason_REASON_WRONG_KEY:            "another key",
		fleetbanv1.Reason_REASON_PROTOCOL_UNSUPPORTED: "Upgrade",
	} {
		t.Run(reason.String(), func(t *testing.T) {
			t.Parallel()
			p := newPeer(t)
			p.refuse = func(http.Header) error {
				return info(connect.CodePermissionDenied, fleetbanv1.ErrorInfo_builder{Reason: reason})
			}
			client := start(t, p, p.server.URL, newSink(), newSource(0))
			eventually(t, "the problem is told", func() bool { return strings.Contains(client.Status().Problem, want) })
			if left := time.Until(client.Status().Retry); left < 20*time.Second {
				t.Errorf("tried again in %v", left)
			}
		})
	}
}

// A host whose stream comes by a proxy is told when its turn is, and comes then.
func TestRetryAfterIsObeyed(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	p.refuse = func(http.Header) error {
		return info(connect.CodeResourceExhausted, fleetbanv1.ErrorInfo_builder{Reason: fleetbanv1.Reason_REASON_RATE_LIMITED, RetryAfterMs: 90_000})
	}
	client := start(t, p, p.server.URL, newSink(), newSource(0))
	eventually(t, "the problem is told", func() bool { return strings.Contains(client.Status().Problem, "named the moment") })
	if left := time.Until(client.Status().Retry); left < 60*time.Second || left > 91*time.Second {
		t.Errorf("tried again in %v", left)
	}
}

func TestNobodyThere(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	client := start(t, p, "http://"+address, newSink(), newSource(0))
	eventually(t, "refused", func() bool { return strings.Contains(client.Status().Problem, "connection refused") })
}

func TestCommands(t *testing.T) {
	t.Parallel()
	p, sink := newPeer(t), newSink()
	start(t, p, p.server.URL, sink, newSource(0))
	c := p.next().welcome(fleetbanv1.Welcome_builder{})
	for _, id := range []string{"A", "B"} {
		c.send(fleetbanv1.ConnectResponse_builder{Command: fleetbanv1.Command_builder{CommandId: id}.Build()}.Build())
	}
	for _, id := range []string{"A", "B"} {
		m := c.await("a result", (*fleetbanv1.ConnectRequest).HasCommandResult)
		if m.GetCommandResult().GetCommandId() != id {
			t.Errorf("result %v, want %s", m, id)
		}
	}
}

// freezer is a TCP proxy that can stop passing anything on.
type freezer struct {
	address string
	mu      sync.Mutex
	frozen  map[net.Conn]bool
	conns   []net.Conn
}

func newFreezer(t *testing.T, to string) *freezer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &freezer{address: l.Addr().String(), frozen: map[net.Conn]bool{}}
	t.Cleanup(func() {
		_ = l.Close()
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, c := range f.conns {
			_ = c.Close()
		}
	})
	go func() {
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("tcp", to)
			if err != nil {
				_ = a.Close()
				continue
			}
			f.mu.Lock()
			f.conns = append(f.conns, a, b)
			f.mu.Unlock()
			go f.pass(a, b)
			go f.pass(b, a)
		}
	}()
	return f
}

func (f *freezer) pass(from, to net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		f.mu.Lock()
		frozen := f.frozen[from]
		f.mu.Unlock()
		if frozen {
			return // and nothing is closed
		}
		if err != nil {
			_ = to.Close()
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (f *freezer) freeze() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		f.frozen[c] = true
	}
}
