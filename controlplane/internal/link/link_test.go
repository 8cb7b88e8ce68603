package link_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/fleetban/fleetban/controlplane/internal/link"
)

// within is the longest that anything here may take, on a machine that runs many tests at once.
const within = time.Minute

// peer is a client that may do what clients don't.
type peer struct {
	t      *testing.T
	conn   net.Conn
	framer *http2.Framer
	header bytes.Buffer
	encode *hpack.Encoder
}

// pair is a connection with a stream on it that was accepted.
func pair(t *testing.T, drained func()) (*peer, *link.Stream) {
	t.Helper()
	p, accepted := open(t, drained)
	p.request("/service/method")
	got := <-accepted
	if got.err != nil {
		t.Fatal(got.err)
	}
	t.Cleanup(got.stream.Close)
	return p, got.stream
}

type accepted struct {
	stream *link.Stream
	err    error
}

// open connects; what Accept returned comes by the channel.
func open(t *testing.T, drained func()) (*peer, <-chan accepted) {
	t.Helper()
	return openOver(t, drained, nil)
}

// openOver is open with TLS, where the server's configuration is given.
func openOver(t *testing.T, drained func(), config *tls.Config) (*peer, <-chan accepted) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if drained == nil {
		drained = func() {}
	}
	out := make(chan accepted, 1)
	go func() {
		conn, err := l.Accept()
		// Not before: a connection that nobody has accepted yet is reset by the end of its listener.
		_ = l.Close()
		if err != nil {
			out <- accepted{nil, err}
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		_ = conn.(*net.TCPConn).SetWriteBuffer(64 << 10)
		wire := link.NewWire(conn)
		conn = wire
		if config != nil {
			conn = tls.Server(wire, config)
		}
		s, err := link.Accept(ctx, conn, wire, drained)
		out <- accepted{s, err}
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		_ = l.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.(*net.TCPConn).SetReadBuffer(64 << 10)
	if config != nil {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // of this test
	}
	_ = conn.SetDeadline(time.Now().Add(within))
	p := &peer{t: t, conn: conn, framer: http2.NewFramer(conn, conn)}
	p.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.encode = hpack.NewEncoder(&p.header)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	p.must(p.framer.WriteSettings())
	return p, out
}

func (p *peer) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) block(fields ...string) []byte {
	p.header.Reset()
	for i := 0; i < len(fields); i += 2 {
		p.must(p.encode.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}))
	}
	return p.header.Bytes()
}

func (p *peer) request(path string) { p.requestOn(1, path) }

func (p *peer) requestOn(id uint32, path string) {
	p.t.Helper()
	p.must(p.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, EndHeaders: true,
		BlockFragment: p.block(":method", "POST", ":scheme", "http", ":path", path, ":authority", "test", "content-type", "application/grpc+proto", "x-one", "1"),
	}))
}

// next reads frames until one that want takes.
func (p *peer) next(what string, want func(http2.Frame) bool) http2.Frame {
	p.t.Helper()
	for {
		f, err := p.framer.ReadFrame()
		if err != nil {
			p.t.Fatalf("while waiting for %s: %v", what, err)
		}
		if want(f) {
			return f
		}
	}
}

func message(text string) []byte {
	b := append(make([]byte, link.PrefixLength), text...)
	link.PutPrefix(b)
	return b
}

func receive(s *link.Stream) (text string, err error) {
	err = s.Receive(func(b []byte) error {
		text = string(b)
		return nil
	})
	return text, err
}

// TestMessages: messages come whole however the peer cuts them into frames, and go out in order.
func TestMessages(t *testing.T) {
	p, s := pair(t, nil)
	if s.Path != "/service/method" || s.Header.Get("X-One") != "1" {
		t.Fatalf("the request is %s with %v", s.Path, s.Header)
	}
	large := strings.Repeat("large ", 4000)
	all := append(append(message("one"), message("")...), message(large)...)
	for len(all) > 0 {
		n := min(len(all), 1+len(all)/3)
		if n > 16<<10 {
			n = 16 << 10
		}
		p.must(p.framer.WriteDataPadded(1, false, all[:n], []byte{0, 0, 0}))
		all = all[n:]
	}
	p.must(p.framer.WriteData(1, true, nil))
	for _, want := range []string{"one", "", large} {
		if got, err := receive(s); err != nil || got != want {
			t.Fatalf("got %d bytes and %v, want %d", len(got), err, len(want))
		}
	}
	if _, err := receive(s); !errors.Is(err, io.EOF) {
		t.Errorf("after the last message: %v", err)
	}
	p.must(s.Respond(http.Header{"X-Two": {"2"}}))
	p.must(s.Send(message("a"), message("b")))
	f := p.next("the answer's header", func(f http2.Frame) bool { return f.Header().Type == http2.FrameHeaders }).(*http2.MetaHeadersFrame)
	if f.PseudoValue("status") != "200" || f.RegularFields()[1].Name != "x-two" {
		t.Errorf("the answer's header is %v", f.Fields)
	}
	d := p.next("both messages in one frame", func(f http2.Frame) bool { return f.Header().Type == http2.FrameData }).(*http2.DataFrame)
	if got := string(d.Data()); got != string(message("a"))+string(message("b")) {
		t.Errorf("the frame holds %q", got)
	}
	go s.Finish(nil, connect.NewError(connect.CodeAborted, errors.New("über")))
	f = p.next("the end", func(f http2.Frame) bool { return f.Header().Type == http2.FrameHeaders }).(*http2.MetaHeadersFrame)
	if !f.StreamEnded() || f.RegularFields()[0].Value == "" {
		t.Errorf("the end is %v", f.Fields)
	}
	for _, field := range f.RegularFields() {
		if want := map[string]string{"grpc-status": "10", "grpc-message": "%C3%BCber"}[field.Name]; want != "" && field.Value != want {
			t.Errorf("%s is %q, want %q", field.Name, field.Value, want)
		}
	}
}

// TestSecondRequest: another request on the connection is refused in the way that clients send it again elsewhere, and the stream goes
// on.
func TestSecondRequest(t *testing.T) {
	p, s := pair(t, nil)
	p.requestOn(3, "/other")
	p.must(p.framer.WriteData(1, false, message("still here")))
	if got, err := receive(s); err != nil || got != "still here" {
		t.Fatalf("got %q and %v", got, err)
	}
	f := p.next("a refusal", func(f http2.Frame) bool { return f.Header().Type == http2.FrameRSTStream }).(*http2.RSTStreamFrame)
	if f.StreamID != 3 || f.ErrCode != http2.ErrCodeRefusedStream {
		t.Errorf("refused with %v", f)
	}
}

// TestSlowPeer: a peer that doesn't read never blocks who sends, what is kept for it is told, and it gets all of it once it reads.
func TestSlowPeer(t *testing.T) {
	drained := make(chan struct{}, 1)
	p, s := pair(t, func() {
		select {
		case drained <- struct{}{}:
		default:
		}
	})
	// The windows are as wide as they go: what blocks is the network.
	p.must(p.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30}))
	p.must(p.framer.WriteWindowUpdate(0, 1<<30))
	p.must(p.framer.WriteData(1, false, message("go")))
	if _, err := receive(s); err != nil {
		t.Fatal(err)
	}
	p.must(s.Respond(nil))
	one, sent := message(strings.Repeat("x", 8<<10)), 0
	began := time.Now()
	for !s.Blocked() {
		if time.Since(began) > within {
			t.Fatal("a peer that doesn't read is never found to be slow")
		}
		p.must(s.Send(one))
		sent++
	}
	select {
	case <-drained:
	default:
	}
	for got := 0; got < sent*len(one); {
		d := p.next("what was kept", func(f http2.Frame) bool { return f.Header().Type == http2.FrameData }).(*http2.DataFrame)
		got += len(d.Data())
	}
	select {
	case <-drained:
	case <-time.After(within):
		t.Fatal("drained was never called")
	}
	if s.Blocked() {
		t.Error("it is still blocked")
	}
}

// TestEndForSlowPeer: why the stream ended reaches a peer that was behind when it did.
func TestEndForSlowPeer(t *testing.T) {
	server := httptest.NewTLSServer(nil)
	server.Close()
	p, got := openOver(t, nil, &tls.Config{Certificates: server.TLS.Certificates}) //nolint:gosec // of this test
	p.must(p.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30}))
	p.must(p.framer.WriteWindowUpdate(0, 1<<30))
	p.request("/service/method")
	a := <-got
	p.must(a.err)
	t.Cleanup(a.stream.Close)
	p.must(a.stream.Respond(nil))
	one := message(strings.Repeat("x", 8<<10))
	for began := time.Now(); !a.stream.Blocked(); {
		if time.Since(began) > within {
			t.Fatal("a peer that doesn't read is never found to be slow")
		}
		p.must(a.stream.Send(one))
	}
	if a.stream.Taken() == 0 {
		t.Error("nothing was taken")
	}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		a.stream.Finish(nil, connect.NewError(connect.CodeAborted, errors.New("displaced")))
	}()
	f := p.next("the end", func(f http2.Frame) bool {
		return f.Header().Type == http2.FrameHeaders && f.(*http2.MetaHeadersFrame).StreamEnded()
	}).(*http2.MetaHeadersFrame)
	for _, field := range f.RegularFields() {
		if field.Name == "grpc-status" && field.Value != "10" {
			t.Errorf("the status is %q", field.Value)
		}
	}
	_ = p.conn.Close()
	<-finished
}

// TestWindow: no more is sent than the peer's window takes, and the rest when it opens.
func TestWindow(t *testing.T) {
	p, s := pair(t, nil)
	p.must(s.Respond(nil))
	const first = 65535
	whole := message(strings.Repeat("y", 100_000))
	p.must(s.Send(whole))
	if !s.Blocked() {
		t.Fatal("all was sent into a window that is smaller")
	}
	got := 0
	take := func(until int) {
		for got < until {
			got += len(p.next("data", func(f http2.Frame) bool { return f.Header().Type == http2.FrameData }).(*http2.DataFrame).Data())
		}
	}
	take(first)
	if got != first {
		t.Fatalf("%d bytes were sent into a window of %d", got, first)
	}
	go func() { _, _ = receive(s) }() // reads the updates
	p.must(p.framer.WriteWindowUpdate(1, 1<<20))
	p.must(p.framer.WriteWindowUpdate(0, 1<<20))
	take(len(whole))
}

// TestReaderOfMuch: a peer that is sent much and says nothing but that it read it, as often as clients do, isn't idle.
func TestReaderOfMuch(t *testing.T) {
	p, s := pair(t, nil)
	p.must(s.Respond(nil))
	const total = 16 << 20
	one := message(strings.Repeat("z", 64<<10-link.PrefixLength))
	for range total / len(one) {
		p.must(s.Send(one))
	}
	type result struct {
		text string
		err  error
	}
	received := make(chan result, 1)
	go func() {
		text, err := receive(s)
		received <- result{text, err}
	}()
	// Go's client tells of each 4 KiB, on the connection and on the stream.
	const told = 4 << 10
	for got, owed := 0, 0; got < total; {
		n := len(p.next("what was sent", func(f http2.Frame) bool { return f.Header().Type == http2.FrameData }).(*http2.DataFrame).Data())
		for got, owed = got+n, owed+n; owed >= told; owed -= told {
			p.must(p.framer.WriteWindowUpdate(0, told))
			p.must(p.framer.WriteWindowUpdate(1, told))
		}
	}
	p.must(p.framer.WriteData(1, false, message("read")))
	if got := <-received; got.err != nil || got.text != "read" {
		t.Errorf("got %q and %v", got.text, got.err)
	}
}

// TestUnreadAnswers: a peer that makes its server answer and doesn't read is cut off, and costs bounded memory until then.
func TestUnreadAnswers(t *testing.T) {
	p, s := pair(t, nil)
	ended := make(chan error, 1)
	go func() {
		_, err := receive(s)
		s.Close()
		ended <- err
	}()
	for i := 0; ; i++ {
		if err := p.framer.WritePing(false, [8]byte{byte(i)}); err != nil {
			break
		}
		if i > 1_000_000 {
			t.Fatal("a million PINGs were taken")
		}
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the stream ended without an error")
		}
	case <-time.After(within):
		t.Fatal("the stream goes on")
	}
}

// TestFloods: a peer that has its server work and brings no message on is cut off soon, though it reads every answer.
func TestFloods(t *testing.T) {
	for name, one := range map[string]func(p *peer, i uint32) error{
		"PINGs":    func(p *peer, i uint32) error { return p.framer.WritePing(false, [8]byte{byte(i)}) },
		"settings": func(p *peer, _ uint32) error { return p.framer.WriteSettings() },
		"windows":  func(p *peer, _ uint32) error { return p.framer.WriteWindowUpdate(1, 1) },
		"resets":   func(p *peer, i uint32) error { return p.framer.WriteRSTStream(3+2*i, http2.ErrCodeCancel) },
		"requests": func(p *peer, i uint32) error {
			return p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 3 + 2*i, EndHeaders: true, EndStream: true, BlockFragment: p.block(":method", "POST", ":path", "/")})
		},
		"empty data":    func(p *peer, _ uint32) error { return p.framer.WriteData(1, false, nil) },
		"padding":       func(p *peer, _ uint32) error { return p.framer.WriteDataPadded(1, false, nil, make([]byte, 255)) },
		"unknown kinds": func(p *peer, _ uint32) error { return p.framer.WriteRawFrame(0xfa, 0, 0, make([]byte, 100)) },
	} {
		t.Run(name, func(t *testing.T) {
			p, s := pair(t, nil)
			ended := make(chan error, 1)
			go func() {
				_, err := receive(s)
				s.Close()
				ended <- err
			}()
			go func() { _, _ = io.Copy(io.Discard, p.conn) }()
			for i := range uint32(1_000_000) {
				if one(p, i) != nil {
					break
				}
			}
			select {
			case err := <-ended:
				if err == nil || errors.Is(err, io.EOF) {
					t.Errorf("it ended with %v", err)
				}
			case <-time.After(within):
				t.Error("a million were taken")
			}
		})
	}
}

// TestViolations: what breaks HTTP/2 ends the connection, with an error on this side.
func TestViolations(t *testing.T) {
	for name, violate := range map[string]func(p *peer){
		"a message that is too large": func(p *peer) { p.must(p.framer.WriteData(1, false, []byte{0, 0xff, 0, 0, 0, 0})) },
		"a compressed message":        func(p *peer) { p.must(p.framer.WriteData(1, false, []byte{1, 0, 0, 0, 1, 0})) },
		"the end within a message":    func(p *peer) { p.must(p.framer.WriteData(1, true, []byte{0, 0, 0, 0, 9, 1})) },
		"data of no stream":           func(p *peer) { p.must(p.framer.WriteData(5, false, []byte{0})) },
		// On top of the 65,535 that it begins with.
		"a window beyond its bound": func(p *peer) { p.must(p.framer.WriteWindowUpdate(1, 1<<31-1)) },
		"a continuation of nothing": func(p *peer) { p.must(p.framer.WriteContinuation(1, true, nil)) },
		// Of the long ones the peer may end the connection before all is written.
		"a frame that is too large": func(p *peer) { _ = p.framer.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 17<<10)) },
		"a short PING":              func(p *peer) { p.must(p.framer.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 3))) },
		"strange settings":          func(p *peer) { p.must(p.framer.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 5))) },
		"a reset":                   func(p *peer) { p.must(p.framer.WriteRSTStream(1, http2.ErrCodeCancel)) },
	} {
		t.Run(name, func(t *testing.T) {
			p, s := pair(t, nil)
			violate(p)
			for {
				_, err := receive(s)
				if errors.Is(err, io.EOF) {
					t.Fatal("it counts as a good end")
				}
				if err != nil {
					return
				}
			}
		})
	}
}

// TestBadRequest: what isn't the request of an agent is refused.
func TestBadRequest(t *testing.T) {
	for name, ask := range map[string]func(p *peer){
		"another method": func(p *peer) {
			p.must(p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: p.block(":method", "GET", ":path", "/")}))
		},
		"a header without end": func(p *peer) {
			p.must(p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(":method", "POST", ":path", "/")}))
		},
		"another stream": func(p *peer) { p.requestOn(3, "/") },
		"a huge header": func(p *peer) {
			_ = p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: p.block(
				":method", "POST", "a", strings.Repeat("~", 9000), "b", strings.Repeat("b", 9000), "c", strings.Repeat("c", 9000), "d", strings.Repeat("d", 9000))})
		},
		"garbage": func(p *peer) {
			p.must(p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff}}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, got := open(t, nil)
			ask(p)
			a := <-got
			if a.stream != nil {
				defer a.stream.Close()
			}
			if a.err == nil {
				t.Fatalf("accepted: %s", a.stream.Path)
			}
		})
	}
}

// TestBusy: a client of crypto/tls can tell the delay from the alert.
func TestBusy(t *testing.T) {
	for after, want := range map[time.Duration]string{0: "201", 4100 * time.Millisecond: "205", time.Hour: "255"} {
		mine, theirs := net.Pipe()
		go func() {
			hello := make([]byte, 4096)
			_, _ = mine.Read(hello)
			_, _ = mine.Write(link.Busy(after))
			_ = mine.Close()
		}()
		err := tls.Client(theirs, &tls.Config{ServerName: "test", MinVersion: tls.VersionTLS12}).HandshakeContext(t.Context())
		var op *net.OpError
		if !errors.As(err, &op) || op.Op != "remote error" || op.Err.Error() != "tls: alert("+want+")" {
			t.Errorf("%s: %v", after, err)
		}
	}
}
