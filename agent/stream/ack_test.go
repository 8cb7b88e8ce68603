package stream

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// replica is the other end of links, by TLS over TCP with buffers as small as they go.
type replica struct {
	t   *testing.T
	l   net.Listener
	tls *tls.Config
	url *url.URL
}

func newReplica(t *testing.T) *replica {
	t.Helper()
	plain := httptest.NewTLSServer(nil) // for its certificate
	plain.Close()
	small := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) { // before it listens: a window that shrinks loses packets
		failed := c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1) })
		return errors.Join(failed, err)
	}}
	l, err := small.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return &replica{
		t, l, &tls.Config{Certificates: plain.TLS.Certificates, NextProtos: []string{linkAgreed}, MinVersion: tls.VersionTLS13},
		&url.URL{Scheme: "https", Host: l.Addr().String()},
	}
}

// dialSmall connects with a send buffer as small as it goes.
func dialSmall(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err == nil {
		err = c.(*net.TCPConn).SetWriteBuffer(1) //nolint:forcetypeassert // TCP was dialled
	}
	return c, err
}

// accept takes the next link, and its Hello.
func (r *replica) accept() *far {
	r.t.Helper()
	conn, err := r.l.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	f := &far{r.t, tls.Server(conn, r.tls)}
	if _, err := io.CopyN(io.Discard, f.conn, 24); err != nil {
		r.t.Fatal(err)
	}
	for range 3 { // SETTINGS, WINDOW_UPDATE, HEADERS
		f.frame()
	}
	f.message()
	return f
}

func (f *far) write(m *fleetbanv1.ConnectResponse, before ...byte) {
	f.t.Helper()
	b := mustMarshal(f.t, m)
	if _, err := f.conn.Write(append(before, data(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...))...)); err != nil {
		f.t.Fatal(err)
	}
}

func delta(version uint64) *fleetbanv1.ConnectResponse {
	return fleetbanv1.ConnectResponse_builder{Delta: fleetbanv1.Delta_builder{Set: "all", Version: version}.Build()}.Build()
}

// sets is a Sink that applies everything, and says so; and a Source without events.
type sets struct{ applied chan uint64 }

func (sets) Cursors(context.Context) ([]*fleetbanv1.SetCursor, error)              { return nil, nil }
func (sets) Begin(context.Context, *fleetbanv1.Welcome, int64, []netip.Addr) error { return nil }
func (sets) Settings(context.Context, *fleetbanv1.Settings, int64) error           { return nil }
func (sets) Exceptions(context.Context) (Exceptions, error)                        { return Exceptions{}, nil }

func (sets) Execute(context.Context, *fleetbanv1.Command, int64) *fleetbanv1.CommandResult {
	return nil
}

func (sets) Held(context.Context, string, uint64, func([]*fleetbanv1.Record) error) error { return nil }

func (s sets) Apply(_ context.Context, u Update, _ int64) (Applied, error) {
	s.applied <- u.Delta.GetVersion()
	return Applied{Outcome: Done, Cursor: fleetbanv1.SetCursor_builder{Set: "all", Version: u.Delta.GetVersion()}.Build()}, nil
}

type noEvents struct{}

func (noEvents) ID() string                                    { return "s" }
func (noEvents) Begin(uint64) error                            { return nil }
func (noEvents) Next(uint64, int) ([]*fleetbanv1.Event, error) { return nil, nil }
func (noEvents) Ack(string, uint64)                            {}
func (noEvents) Appended() <-chan struct{}                     { return nil }

func configOf(r *replica, sink Sink) Config {
	_, key, _ := ed25519.GenerateKey(nil)
	return Config{
		URL: r.url, TLS: &tls.Config{InsecureSkipVerify: true}, Dial: dialSmall, Key: key, //nolint:gosec // of this test
		Facts: func() *fleetbanv1.HostFacts { return nil }, Health: func() *fleetbanv1.Health { return nil }, Sink: sink, Source: noEvents{},
	}
}

// TestNoAckKeepsFromReceiving: a control plane that writes and doesn't read gets all of it applied, and what it reads in the end says so.
func TestNoAckKeepsFromReceiving(t *testing.T) {
	t.Parallel()
	r, sink := newReplica(t), sets{make(chan uint64)}
	client := New(configOf(r, sink))
	ended := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(ended)
		_ = client.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	f := r.accept()
	f.write(fleetbanv1.ConnectResponse_builder{Welcome: fleetbanv1.Welcome_builder{HeartbeatMs: 25_000}.Build()}.Build(), answered()...)
	const n = 150
	pace := time.NewTicker(ackGap + time.Millisecond) // each may be acknowledged
	defer pace.Stop()
	for v := uint64(1); v <= n; v++ {
		<-pace.C
		f.write(delta(v))
		select {
		case <-sink.applied:
		case <-time.After(10 * time.Second):
			t.Fatalf("change %d was not applied", v)
		}
	}
	last := uint64(0)
	for last < n {
		for _, c := range f.message().GetAck().GetCursors() {
			if c.GetVersion() <= last {
				t.Fatalf("%d is acknowledged after %d", c.GetVersion(), last)
			}
			last = c.GetVersion()
		}
	}
}

// TestLinkFree: a socket with something left in it isn't free, and is again when the other end has read.
func TestLinkFree(t *testing.T) {
	t.Parallel()
	r := newReplica(t)
	made := make(chan *link, 1)
	go func() {
		conn, err := dialSmall(t.Context(), "tcp", r.url.Host)
		if err == nil {
			conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{linkAgreed}}) //nolint:gosec // of this test
			var l *link
			if l, err = newLink(conn, r.url, nil, hello()); err == nil {
				made <- l
				return
			}
		}
		t.Error(err)
		made <- nil
	}()
	f := r.accept()
	l := <-made
	if l == nil {
		t.FailNow()
	}
	// Nothing tells how much of a socket's queue the other end has confirmed: it is looked at.
	until := func(otherwise string, holds func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal(otherwise)
			}
		}
	}
	until("what was read leaves it taken", l.free)
	const n = 100
	sent := make(chan error, n)
	go func() {
		for range n {
			sent <- l.send(fleetbanv1.ConnectRequest_builder{Offer: fleetbanv1.RecordOffer_builder{Set: "0123456789", Records: many(40)}.Build()}.Build())
		}
	}()
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	until("everything went into the socket", func() bool { // until the sender hangs in a write
		if !l.mu.TryLock() {
			return len(sent) < n-1
		}
		l.mu.Unlock()
		return false
	})
	if l.free() {
		t.Error("a socket that is full is free")
	}
	for range n {
		f.message()
	}
	until("it never was free again", l.free)
	l.room = fits - 1
	if l.free() {
		t.Error("it is free without a window")
	}
	plain, _ := linkTo(t)
	if plain.free() {
		t.Error("a link over something that is no socket is free")
	}
}

func many(n int) (out []*fleetbanv1.Record) {
	for range n {
		out = append(out, fleetbanv1.Record_builder{Prefix: []byte("0123456789"), Mac: make([]byte, 32)}.Build())
	}
	return out
}

// outbox is a pipe that keeps what is sent.
type outbox struct {
	overHTTP
	open bool
	sent []*fleetbanv1.ConnectRequest
}

func (o *outbox) free() bool { return o.open }

func (o *outbox) send(m *fleetbanv1.ConnectRequest) error {
	o.sent = append(o.sent, m)
	return nil
}

// TestReceiverAcknowledges: where it can do so at once; whatever isn't acknowledged stays due.
func TestReceiverAcknowledges(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, hinder := range map[string]func(*session, *outbox){
		"":                          func(*session, *outbox) {},
		"the socket is taken":       func(_ *session, o *outbox) { o.open = false },
		"something is being sent":   func(s *session, _ *outbox) { s.sending.Lock() },
		"one was sent a moment ago": func(s *session, _ *outbox) { s.lastAck = now.Add(-ackGap / 2) },
		"exceptions go with it":     func(s *session, _ *outbox) { s.exceptionsDue.Store(true) },
		"it would name many sets":   func(s *session, _ *outbox) { s.held = append(s.held, make([]held, heldFew)...) },
	} {
		o := &outbox{open: true}
		s := newSession(New(Config{}))
		s.stream = o
		s.hold("all", fleetbanv1.SetCursor_builder{Set: "all", Version: 7}.Build())
		hinder(s, o)
		did := s.acknowledge(now)
		switch {
		case name == "":
			if !did || s.ackDue.Load() || len(o.sent) != 1 || o.sent[0].GetAck().GetCursors()[0].GetVersion() != 7 {
				t.Errorf("it wasn't acknowledged: %v", o.sent)
			}
		case did || len(o.sent) > 0 || !s.ackDue.Load():
			t.Errorf("%s: it was acknowledged", name)
		}
	}
}

// TestLinkReady: only a message that is whole is at hand.
func TestLinkReady(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		after []byte
		want  bool
	}{
		"nothing":                 {nil, false},
		"a head":                  {data(beat(2))[:frameHeader], false},
		"half a message":          {data(beat(2))[:frameHeader+grpcPrefix+1], false},
		"half a message, a frame": {data(beat(2)[:grpcPrefix+1]), false},
		"a message in two frames": {append(data(beat(2)[:2]), data(beat(2)[2:])...), false},
		"something else":          {append(append(appendFrame(nil, framePing, flagAck, 0, 8), make([]byte, 8)...), data(beat(2))...), false},
		"a message":               {data(beat(2)), true},
		"one and a half":          {append(data(beat(2)), data(beat(3))[:12]...), true},
		"two in a frame":          {data(append(beat(2), beat(3)...)), true},
	} {
		l, f := linkTo(t)
		f.say(answered(), data(beat(1)), c.after)
		if _, err := l.receive(); err != nil {
			t.Fatal(err)
		}
		if got := l.ready(); got != c.want {
			t.Errorf("%s: ready is %t", name, got)
		}
	}
	// The rest of a frame whose first message was taken.
	l, f := linkTo(t)
	f.say(answered(), data(append(beat(1), beat(2)...)))
	if m, err := l.receive(); err != nil || !l.ready() || proto.Size(m) == 0 {
		t.Errorf("the second message of a frame isn't at hand: %v", err)
	}
}
