package stream

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

// linkAgreed is agreed on in the TLS handshake with a control plane that serves a connection for one stream and nothing else. What is
// spoken then is so much of HTTP/2 and gRPC as one stream needs, without its freedoms: headers are literals that no table
// shortens, each in one frame, and either side may send linkWindow ahead from the first byte. Who didn't agree is
// spoken to by net/http.
const linkAgreed = "fleetban-link"

// The parts of HTTP/2 that are used, RFC 9113 section 6.
const (
	frameData, frameHeaders, frameReset, frameSettings, framePing, frameGoAway, frameWindow = 0, 1, 3, 4, 6, 7, 8

	flagEndStream, flagAck, flagEndHeaders, flagPadded = 0x1, 0x1, 0x4, 0x8

	frameHeader = 9
	maxFrame    = 16 << 10
	grpcPrefix  = 5
	// linkWindow is what the control plane takes ahead, and linkRoom what this side does, bytes.
	linkWindow, linkRoom = 1<<20 + 64<<10, 512 << 10
	// fits is how long a message may be that an empty socket takes at once, bytes.
	fits = 4 << 10
)

// link is the stream of a connection that has nothing else. The goroutine that receives reads the connection itself, and who sends
// writes to it: a message is a record of TLS and a system call.
type link struct {
	conn net.Conn
	// decode reads a message.
	decode func([]byte) (*fleetbanv1.ConnectResponse, error)
	// raw is the TCP connection, nil where there is none; look sets waits to how many bytes the other end hasn't confirmed.
	raw   syscall.RawConn
	look  func(fd uintptr)
	waits int

	// The receiver's.
	in      *bufio.Reader
	left    int // of a DATA frame
	eaten   int // of which the other end wasn't told
	header  map[string]string
	message []byte

	mu      sync.Mutex
	out     []byte
	room    int // what the other end takes now, bytes
	widened sync.Cond
	err     error // nothing can be sent any more
}

// newLink begins the stream. Its first message goes with the request.
func newLink(conn net.Conn, u *url.URL, header http.Header, first *fleetbanv1.ConnectRequest) (*link, error) {
	l := &link{conn: conn, in: bufio.NewReaderSize(conn, 1<<10), room: linkWindow, decode: decode}
	l.widened.L = &l.mu
	if secure, ok := conn.(*tls.Conn); ok {
		if tcp, ok := secure.NetConn().(syscall.Conn); ok {
			l.raw, _ = tcp.SyscallConn()
			l.look = func(fd uintptr) { l.waits, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }
		}
	}
	b := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	b = appendFrame(b, frameSettings, 0, 0, 6)
	b = binary.BigEndian.AppendUint32(append(b, 0, 4), linkRoom)
	b = appendWindow(b, 0, linkRoom-65535)
	var block []byte
	path := strings.TrimSuffix(u.Path, "/") + fleetbanv1connect.AgentServiceConnectProcedure
	for _, f := range [][2]string{
		{":method", http.MethodPost},
		{":scheme", u.Scheme},
		{":authority", u.Host},
		{":path", path},
		{"content-type", "application/grpc+proto"},
		{"te", "trailers"},
	} {
		block = appendField(block, f[0], f[1])
	}
	for name, values := range header {
		block = appendField(block, strings.ToLower(name), values[0])
	}
	if len(block) > maxFrame {
		return nil, fmt.Errorf("%w: the request's header has %d bytes", errProtocol, len(block))
	}
	l.out = append(appendFrame(b, frameHeaders, flagEndHeaders, 1, len(block)), block...)
	return l, l.send(first)
}

// send implements pipe.
func (l *link) send(m *fleetbanv1.ConnectRequest) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := len(l.out) // 0, or what goes before the first message
	b, err := proto.MarshalOptions{}.MarshalAppend(append(l.out, make([]byte, frameHeader+grpcPrefix)...), m)
	next := at + frameHeader
	n := len(b) - next - grpcPrefix
	if err == nil && n > maxMessage {
		err = connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("a message of %d bytes", n))
	}
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint32(b[next+1:], uint32(n)) //nolint:gosec // at most maxMessage
	if l.out = b[:0]; cap(b) > 64<<10 {
		l.out = nil // what a burst needed isn't kept
	}
	for from := 0; next < len(b); from = next - frameHeader {
		for l.room <= 0 && l.err == nil {
			l.widened.Wait()
		}
		n := min(len(b)-next, maxFrame, l.room)
		if l.err != nil {
			return l.err
		}
		// A head is written over the end of the frame before, which is sent.
		appendFrame(b[:next-frameHeader], frameData, 0, 1, n)
		l.room -= n
		if err := l.write(b[from : next+n]); err != nil {
			return err
		}
		next += n
	}
	return nil
}

// free implements pipe: nothing that was written waits in the socket, and the window is open.
func (l *link) free() bool {
	if l.raw == nil || !l.mu.TryLock() {
		return false
	}
	l.waits = -1
	free := l.room >= fits && l.err == nil && l.raw.Control(l.look) == nil && l.waits == 0
	l.mu.Unlock()
	return free
}

// ready implements pipe.
func (l *link) ready() bool {
	p, _ := l.in.Peek(l.in.Buffered())
	n := l.left
	if n == 0 {
		if len(p) < frameHeader || p[3] != frameData {
			return false
		}
		n = int(p[0])<<16 | int(p[1])<<8 | int(p[2])
		p = p[frameHeader:]
	}
	p = p[:min(len(p), n)]
	return len(p) >= grpcPrefix && len(p)-grpcPrefix >= int(binary.BigEndian.Uint32(p[1:]))
}

// write writes what is framed. The caller holds the lock.
func (l *link) write(b []byte) error {
	if l.err != nil {
		return l.err
	}
	if _, err := l.conn.Write(b); err != nil {
		l.err = err
	}
	return l.err
}

// control sends frames that aren't the stream's.
func (l *link) control(b []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.write(b)
}

// closeRequest implements pipe. Who sends may hang in it; the connection is cut next.
func (l *link) closeRequest() {
	if !l.mu.TryLock() {
		return
	}
	defer l.mu.Unlock()
	_ = l.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_ = l.write(appendFrame(nil, frameData, flagEndStream, 1, 0))
	l.fail(net.ErrClosed)
}

// closeResponse implements pipe.
func (*link) closeResponse() {}

// fail ends sending. The caller holds the lock.
func (l *link) fail(err error) {
	if l.err == nil {
		l.err = err
	}
	l.widened.Broadcast()
}

// requestID implements pipe.
func (l *link) requestID() string { return l.header["x-request-id"] }

// receive implements pipe.
func (l *link) receive() (*fleetbanv1.ConnectResponse, error) {
	m, err := l.next()
	if err != nil {
		l.mu.Lock()
		l.fail(err)
		l.mu.Unlock()
		var known *connect.Error
		if !errors.As(err, &known) && !errors.Is(err, io.EOF) {
			err = connect.NewError(connect.CodeUnavailable, err)
		}
		return nil, err
	}
	return m, nil
}

func (l *link) next() (*fleetbanv1.ConnectResponse, error) {
	var prefix [grpcPrefix]byte
	if err := l.take(prefix[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(prefix[1:])
	if prefix[0] != 0 || n > maxMessage {
		return nil, fmt.Errorf("%w: a message of kind %d and %d bytes", errProtocol, prefix[0], n)
	}
	b := l.message
	if cap(b) < int(n) {
		b = make([]byte, n)
	}
	if b = b[:n]; n <= 16<<10 {
		l.message = b // what a snapshot needed isn't kept
	}
	if err := l.take(b); err != nil {
		return nil, err
	}
	m, err := l.decode(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errProtocol, err)
	}
	return m, nil
}

func decode(b []byte) (*fleetbanv1.ConnectResponse, error) {
	m := new(fleetbanv1.ConnectResponse)
	return m, proto.Unmarshal(b, m)
}

// take fills b from DATA frames.
func (l *link) take(b []byte) error {
	for len(b) > 0 {
		if l.left == 0 {
			if err := l.frame(); err != nil {
				return err
			}
			continue
		}
		n := min(l.left, len(b))
		if _, err := io.ReadFull(l.in, b[:n]); err != nil {
			return cut(err)
		}
		b = b[n:]
		l.left -= n
		if l.eaten += n; l.eaten >= linkRoom/2 {
			if err := l.control(appendWindow(appendWindow(nil, 0, l.eaten), 1, l.eaten)); err != nil {
				return err
			}
			l.eaten = 0
		}
	}
	return nil
}

// cut is the error of a connection that ended before its stream did.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// frame reads one frame; of DATA its head.
func (l *link) frame() error {
	var h [frameHeader]byte
	if _, err := io.ReadFull(l.in, h[:]); err != nil {
		return cut(err)
	}
	n := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
	kind, flags, id := h[3], h[4], binary.BigEndian.Uint32(h[5:])&(1<<31-1)
	if n > maxFrame {
		return fmt.Errorf("%w: a frame of %d bytes", errProtocol, n)
	}
	if kind == frameData {
		if id != 1 || l.header == nil || flags != 0 {
			return fmt.Errorf("%w: DATA with flags %d of stream %d", errProtocol, flags, id)
		}
		l.left = n
		return nil
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(l.in, p); err != nil {
		return cut(err)
	}
	switch kind {
	case frameHeaders:
		return l.answer(p, flags, id)
	case frameReset:
		return fmt.Errorf("%w: it reset the stream", errProtocol)
	case framePing:
		if flags&flagAck == 0 && n == 8 {
			return l.control(append(appendFrame(nil, framePing, flagAck, 0, n), p...))
		}
	case frameWindow:
		if n != 4 {
			return fmt.Errorf("%w: a WINDOW_UPDATE of %d bytes", errProtocol, n)
		}
		// The connection's comes with each of the stream's.
		if more := int(binary.BigEndian.Uint32(p) & (1<<31 - 1)); id == 1 {
			l.mu.Lock()
			l.room = min(l.room+more, linkWindow)
			l.mu.Unlock()
			l.widened.Broadcast()
		}
	case frameGoAway:
		if l.header == nil || n >= 8 && binary.BigEndian.Uint32(p[4:]) != 0 {
			return fmt.Errorf("%w: it ended the connection: %q", errProtocol, p[min(8, n):min(108, n)])
		}
	default: // SETTINGS say nothing that isn't agreed on
	}
	return nil
}

// answer takes the header of the answer, or its end.
func (l *link) answer(block []byte, flags byte, id uint32) error {
	if id != 1 || flags&^flagEndStream != flagEndHeaders {
		return fmt.Errorf("%w: HEADERS with flags %d of stream %d", errProtocol, flags, id)
	}
	fields, err := fieldsOf(block)
	if err != nil {
		return err
	}
	if l.header == nil {
		if fields[":status"] != "200" || !strings.HasPrefix(fields["content-type"], "application/grpc") {
			return connect.NewError(connect.CodeUnimplemented, fmt.Errorf("the answer is %.20q, of type %.80q", fields[":status"], fields["content-type"]))
		}
		l.header = fields
	}
	if flags&flagEndStream == 0 {
		return nil
	}
	code, err := strconv.ParseUint(fields["grpc-status"], 10, 8)
	if err != nil {
		return fmt.Errorf("%w: the stream ended without a status", errProtocol)
	}
	if code == 0 {
		return io.EOF
	}
	return statusOf(connect.Code(code), fields["grpc-message"], fields["grpc-status-details-bin"])
}

// statusOf is gRPC's error. Its details are a google.rpc.Status, whose third field are Anys.
func statusOf(code connect.Code, message, details string) error {
	if text, err := url.PathUnescape(message); err == nil {
		message = text
	}
	e := connect.NewWireError(code, errors.New(message))
	b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(details, "="))
	for err == nil && len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			break
		}
		value := b[n:]
		if n = protowire.ConsumeFieldValue(number, kind, value); n < 0 {
			break
		}
		b = value[n:]
		if number != 3 || kind != protowire.BytesType {
			continue
		}
		raw, _ := protowire.ConsumeBytes(value)
		detail := new(anypb.Any)
		if proto.Unmarshal(raw, detail) == nil {
			if d, err := connect.NewErrorDetail(detail); err == nil {
				e.AddDetail(d)
			}
		}
	}
	return e
}

func appendFrame(b []byte, kind, flags byte, id uint32, length int) []byte {
	b = append(b, byte(length>>16), byte(length>>8), byte(length), kind, flags)
	return binary.BigEndian.AppendUint32(b, id)
}

func appendWindow(b []byte, id uint32, n int) []byte {
	return binary.BigEndian.AppendUint32(appendFrame(b, frameWindow, 0, id, 4), uint32(n)) //nolint:gosec // a window
}

// literal is HPACK's field that no table has and none is to keep: RFC 7541 section 6.2.3.
const literal = 0x10

func appendField(b []byte, name, value string) []byte {
	return appendText(appendText(append(b, literal), name), value)
}

// appendText is HPACK's string as it is: its length in seven bits and as many further bytes as it needs.
func appendText(b []byte, s string) []byte {
	n := len(s)
	if n < 127 {
		return append(append(b, byte(n)), s...)
	}
	b = append(b, 127)
	return append(binary.AppendUvarint(b, uint64(n-127)), s...)
}

// fieldsOf reads a block of such fields; the last of a name counts.
func fieldsOf(block []byte) (map[string]string, error) {
	fields := map[string]string{}
	for len(block) > 0 {
		var text [2]string
		if block[0] != literal {
			return nil, fmt.Errorf("%w: a header that is shortened", errProtocol)
		}
		block = block[1:]
		for i := range text {
			if len(block) == 0 {
				return nil, errHeader
			}
			n := uint64(block[0])
			block = block[1:]
			if n == 127 {
				more, size := binary.Uvarint(block)
				if size <= 0 || more > maxFrame {
					return nil, errHeader
				}
				n, block = n+more, block[size:]
			}
			if n > uint64(len(block)) {
				return nil, errHeader
			}
			text[i], block = string(block[:n]), block[n:]
		}
		fields[text[0]] = text[1]
	}
	return fields, nil
}

var errHeader = fmt.Errorf("%w: a header that is cut off", errProtocol)
