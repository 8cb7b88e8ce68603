package stream

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

// far is a control plane whose bytes a test writes.
type far struct {
	t    *testing.T
	conn net.Conn
}

// linkTo begins a link; what it has sent by then is read.
func linkTo(t *testing.T) (*link, *far) {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	f := &far{t, b}
	_ = b.SetDeadline(time.Now().Add(time.Minute))
	u, _ := url.Parse("https://fleet.test/base")
	type begun struct {
		l   *link
		err error
	}
	made := make(chan begun, 1)
	go func() {
		l, err := newLink(a, u, http.Header{"Fleetban-Grant": {strings.Repeat("g", 300)}}, hello())
		made <- begun{l, err}
	}()
	preface := make([]byte, 24)
	_, _ = io.ReadFull(b, preface)
	if string(preface) != "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" {
		t.Fatalf("it begins with %q", preface)
	}
	for range 2 { // SETTINGS, WINDOW_UPDATE
		f.frame()
	}
	kind, _, block := f.frame()
	fields, err := fieldsOf(block)
	if kind != frameHeaders || err != nil || fields[":path"] != "/base"+fleetbanv1connect.AgentServiceConnectProcedure || len(fields["fleetban-grant"]) != 300 {
		t.Fatalf("the request is a frame %d with %v, %v", kind, fields, err)
	}
	if m := f.message(); m.GetHello().GetSpool() != "s" {
		t.Fatalf("the first message is %v", m)
	}
	got := <-made
	if got.err != nil {
		t.Fatal(got.err)
	}
	return got.l, f
}

func hello() *fleetbanv1.ConnectRequest {
	return fleetbanv1.ConnectRequest_builder{Hello: fleetbanv1.Hello_builder{Spool: "s"}.Build()}.Build()
}

func (f *far) frame() (kind, flags byte, payload []byte) {
	f.t.Helper()
	var h [frameHeader]byte
	if _, err := io.ReadFull(f.conn, h[:]); err != nil {
		f.t.Fatal(err)
	}
	payload = make([]byte, int(h[0])<<16|int(h[1])<<8|int(h[2]))
	if _, err := io.ReadFull(f.conn, payload); err != nil {
		f.t.Fatal(err)
	}
	return h[3], h[4], payload
}

// message reads one that is a frame of its own.
func (f *far) message() *fleetbanv1.ConnectRequest {
	f.t.Helper()
	kind, _, b := f.frame()
	m := new(fleetbanv1.ConnectRequest)
	if kind != frameData || len(b) < grpcPrefix || int(binary.BigEndian.Uint32(b[1:])) != len(b)-grpcPrefix || proto.Unmarshal(b[grpcPrefix:], m) != nil {
		f.t.Fatalf("a frame %d of %d bytes is no message", kind, len(b))
	}
	return m
}

func answered() []byte {
	block := appendField(appendField(appendField(nil, ":status", "200"), "content-type", "application/grpc+proto"), "x-request-id", "r1")
	return append(appendFrame(nil, frameHeaders, flagEndHeaders, 1, len(block)), block...)
}

func ended(fields ...string) []byte {
	var block []byte
	for i := 0; i < len(fields); i += 2 {
		block = appendField(block, fields[i], fields[i+1])
	}
	return append(appendFrame(nil, frameHeaders, flagEndHeaders|flagEndStream, 1, len(block)), block...)
}

func beat(n int64) []byte {
	b, _ := proto.Marshal(fleetbanv1.ConnectResponse_builder{Heartbeat: fleetbanv1.ServerHeartbeat_builder{ServerUnixMs: n}.Build()}.Build())
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

func data(b []byte) []byte { return append(appendFrame(nil, frameData, 0, 1, len(b)), b...) }

// say writes while the link reads.
func (f *far) say(parts ...[]byte) {
	go func() { _, _ = f.conn.Write(bytes.Join(parts, nil)) }()
}

func TestLinkReceives(t *testing.T) {
	t.Parallel()
	l, f := linkTo(t)
	both := append(beat(1), beat(2)...)
	unknown := append(appendFrame(nil, 0x20, 0xff, 77, 3), 1, 2, 3)
	f.say(appendFrame(nil, frameSettings, 0, 0, 0), answered(), unknown, data(both), data(beat(3)[:4]), data(nil), data(beat(3)[4:]),
		append(appendFrame(nil, framePing, 0, 0, 8), "12345678"...), data(beat(4)))
	for want := int64(1); want <= 3; want++ {
		m, err := l.receive()
		if err != nil || m.GetHeartbeat().GetServerUnixMs() != want {
			t.Fatalf("%v, %v; want %d", m, err, want)
		}
	}
	if l.requestID() != "r1" {
		t.Errorf("the request's id is %q", l.requestID())
	}
	pong := make(chan []byte, 1)
	go func() {
		_, flags, p := f.frame()
		pong <- append([]byte{flags}, p...)
	}()
	if m, err := l.receive(); err != nil || m.GetHeartbeat().GetServerUnixMs() != 4 {
		t.Fatal(m, err)
	}
	if got := <-pong; string(got) != "\x0112345678" {
		t.Errorf("a PING was answered with %q", got)
	}
	f.say(ended("grpc-status", "0"))
	if _, err := l.receive(); !errors.Is(err, io.EOF) {
		t.Errorf("a good end is %v", err)
	}
	if err := l.send(hello()); err == nil {
		t.Error("something can be sent after the end")
	}
}

func TestLinkToldWhy(t *testing.T) {
	t.Parallel()
	info, _ := proto.Marshal(fleetbanv1.ErrorInfo_builder{Reason: fleetbanv1.Reason_REASON_HOST_DISABLED, Fix: "enrol again"}.Build())
	detail := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "type.googleapis.com/fleetban.v1.ErrorInfo")
	detail = protowire.AppendBytes(protowire.AppendTag(detail, 2, protowire.BytesType), info)
	status := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 7)
	status = protowire.AppendBytes(protowire.AppendTag(status, 3, protowire.BytesType), detail)
	l, f := linkTo(t)
	f.say(ended(":status", "200", "content-type", "application/grpc", "grpc-status", "7", "grpc-message", "100%25 disabled",
		"grpc-status-details-bin", base64.RawStdEncoding.EncodeToString(status)))
	_, err := l.receive()
	var known *connect.Error
	if !errors.As(err, &known) || known.Code() != connect.CodePermissionDenied || known.Message() != "100% disabled" || InfoOf(err).GetFix() != "enrol again" {
		t.Errorf("%v with %v", err, InfoOf(err))
	}
	if v, _ := judge(err); v != later {
		t.Error("it is tried again soon")
	}
}

// TestLinkWindow: no more is sent ahead than was agreed on, and the rest when the other end has read.
func TestLinkWindow(t *testing.T) {
	t.Parallel()
	l, f := linkTo(t)
	f.say(answered(), data(beat(1)))
	if _, err := l.receive(); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = l.receive() }()
	page := fleetbanv1.ConnectRequest_builder{Offer: fleetbanv1.RecordOffer_builder{Set: strings.Repeat("x", 700_000)}.Build()}.Build()
	sent := make(chan error, 2)
	go func() {
		sent <- l.send(page)
		sent <- l.send(page)
	}()
	first := len(mustMarshal(t, hello())) + grpcPrefix
	want := 2*(len(mustMarshal(t, page))+grpcPrefix) + first
	got := first
	for got < linkWindow {
		_, _, p := f.frame()
		got += len(p)
	}
	if got != linkWindow || len(sent) != 1 {
		t.Fatalf("%d bytes were sent ahead, %d messages", got, len(sent))
	}
	if _, err := f.conn.Write(appendWindow(nil, 1, got)); err != nil {
		t.Fatal(err)
	}
	for got < want {
		_, _, p := f.frame()
		got += len(p)
	}
	if err := errors.Join(<-sent, <-sent); err != nil || got != want {
		t.Error(got, want, err)
	}
}

func mustMarshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// badAnswers break what was agreed on.
func badAnswers() map[string][]byte {
	return map[string][]byte{
		"nothing":                          {},
		"a message before the header":      data(beat(1)),
		"a frame that is too large":        appendFrame(nil, frameData, 0, 1, maxFrame+1),
		"another stream's":                 append(answered(), appendFrame(nil, frameData, 0, 3, 0)...),
		"padding":                          append(answered(), append(appendFrame(nil, frameData, flagPadded, 1, 1), 0)...),
		"a header in pieces":               appendFrame(nil, frameHeaders, 0, 1, 0),
		"a header that is cut off":         append(appendFrame(nil, frameHeaders, flagEndHeaders, 1, 3), literal, 5, 'x'),
		"a length without end":             append(appendFrame(nil, frameHeaders, flagEndHeaders, 1, 13), literal, 127, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255),
		"a header by a table":              append(appendFrame(nil, frameHeaders, flagEndHeaders, 1, 1), 0x88),
		"a page of HTML":                   ended(":status", "200", "content-type", "text/html"),
		"a bad gateway":                    ended(":status", "502", "content-type", "application/grpc"),
		"an end without a status":          append(answered(), ended("x", "y")...),
		"a status that is no number":       append(answered(), ended("grpc-status", "x")...),
		"details that are no base64":       append(answered(), ended("grpc-status", "13", "grpc-status-details-bin", "!")...),
		"details that are no protobuf":     append(answered(), ended("grpc-status", "13", "grpc-status-details-bin", "////")...),
		"a compressed message":             append(answered(), data([]byte{1, 0, 0, 0, 0})...),
		"a message that is too large":      append(answered(), data([]byte{0, 0xff, 0xff, 0xff, 0xff})...),
		"a message that is no protobuf":    append(answered(), data([]byte{0, 0, 0, 0, 1, 0xff})...),
		"half a message":                   append(answered(), data(beat(1)[:3])...),
		"a reset":                          append(answered(), append(appendFrame(nil, frameReset, 0, 1, 4), 0, 0, 0, 8)...),
		"a window's update that is longer": append(answered(), append(appendFrame(nil, frameWindow, 0, 1, 5), 1, 2, 3, 4, 5)...),
		"a farewell":                       append(appendFrame(nil, frameGoAway, 0, 0, 11), 0, 0, 0, 1, 0, 0, 0, 1, 'w', 'h', 'y'),
		"a short farewell":                 appendFrame(nil, frameGoAway, 0, 0, 0),
	}
}

func TestLinkBadAnswers(t *testing.T) {
	t.Parallel()
	for name, b := range badAnswers() {
		l, f := linkTo(t)
		go func() {
			_, _ = f.conn.Write(b)
			_ = f.conn.Close()
		}()
		if m, err := l.receive(); err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: received %v, %v", name, m, err)
		} else if connect.CodeOf(err) == connect.CodeUnknown {
			t.Errorf("%s: no code: %v", name, err)
		}
	}
}

// reads is a connection that was written already.
type reads struct {
	net.Conn
	from io.Reader
}

func (r reads) Read(b []byte) (int, error)  { return r.from.Read(b) }
func (r reads) Write(b []byte) (int, error) { return len(b), nil }

// FuzzLink: whatever comes is a message or an error.
func FuzzLink(f *testing.F) {
	for _, b := range badAnswers() {
		f.Add(b)
	}
	f.Add(append(append(answered(), data(beat(5))...), ended("grpc-status", "0")...))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := newLink(reads{from: bytes.NewReader(b)}, &url.URL{Scheme: "https", Host: "fleet.test"}, nil, hello())
		if err != nil {
			t.Fatal(err)
		}
		for range len(b) + 1 {
			if _, err := l.receive(); err != nil {
				return
			}
		}
		t.Error("more messages than bytes")
	})
}

// TestLinkOrElse: what ends TLS and makes no links, a balancer or an older control plane, is spoken to by net/http, and isn't asked
// again for a while.
func TestLinkOrElse(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("a request by %s", r.Proto)
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer:Grpc-Status", "14")
		w.WriteHeader(http.StatusOK)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	u, _ := url.Parse(server.URL)
	dials := 0
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{URL: u, Patience: time.Minute, Key: key, TLS: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // of this test
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			dials++
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}}
	c := New(cfg)
	for want := 2; want <= 3; want++ { // once to ask, and once for each stream
		s := newSession(c)
		ctx, cancel := context.WithCancelCause(t.Context())
		s.ctx, s.cancel, s.conn = ctx, cancel, dial(s.cfg)
		p, err := s.open(hello())
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := p.(overHTTP); !ok {
			t.Fatalf("the stream is a %T", p)
		}
		if _, err := p.receive(); connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("the answer is %v", err)
		}
		s.conn.close()
		p.closeResponse()
		cancel(nil)
		if dials != want {
			t.Errorf("%d connections, want %d", dials, want)
		}
	}
}
