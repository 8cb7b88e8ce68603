package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2/hpack"
)

// Frames of HTTP/2, RFC 9113 section 6, and what is used of their flags, settings and codes.
const (
	frameData, frameHeaders, framePriority, frameReset, frameSettings = 0, 1, 2, 3, 4
	framePush, framePing, frameGoAway, frameWindow, frameContinuation = 5, 6, 7, 8, 9

	flagEndStream, flagAck, flagEndHeaders, flagPadded, flagPriority = 0x1, 0x1, 0x4, 0x8, 0x20

	settingStreams, settingWindow, settingHeaders = 3, 4, 6

	codeNone, codeProtocol, codeRefused, codeCalm = 0, 1, 7, 11

	preface      = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	headerLength = 9
	// theOne is the client's first stream.
	theOne = 1
)

const (
	// window is what the peer may send ahead, bytes: a message of the greatest size. What comes is read when it is asked for, and
	// else waits in the socket: the window holds no memory.
	window = MaxMessage + 64<<10
	// maxPayload is the greatest frame either side sends: what HTTP/2 takes for granted.
	maxPayload = 16 << 10
	// maxHeaders bounds the request's header, bytes.
	maxHeaders = 32 << 10
	// maxIdleFrames is how many frames may come that bring no message on.
	maxIdleFrames = 1000
	// updateEach is how much the peer is sent for each WINDOW_UPDATE that brings something on, bytes. Clients send one for each 4 KiB
	// that they read, on the stream and on the connection.
	updateEach = 1 << 10
	// writeAtOnce bounds what one write gives to TLS, bytes.
	writeAtOnce = 64 << 10
)

// Errors of a stream.
var (
	errProtocol = errors.New("the peer broke HTTP/2")
	errReset    = errors.New("the peer reset the stream")
	// ErrTooLarge says that a message is larger than MaxMessage.
	ErrTooLarge = errors.New("the message is too large")
	errFinished = errors.New("the stream has ended")
)

// Stream is the one stream of a connection. What reads is called from one goroutine; what writes from any.
type Stream struct {
	// Path and Header are the request's. The header's names are canonical.
	Path   string
	Header http.Header

	conn    net.Conn // TLS over wire, or wire
	wire    *Wire
	drained func()

	// The reader's.
	buf   [256]byte
	r, w  int // of buf
	left  int // of a DATA frame's payload
	pad   int // that follows it
	ended bool
	eaten int // that the peer wasn't told of
	idle  int // frames without a message

	mu          sync.Mutex
	connWindow  int64
	peerWindow  int64 // of the stream
	firstWindow int64
	untold      int64       // bytes sent that no WINDOW_UPDATE has counted for
	taken       uint64      // bytes sent
	queue       [][]byte    // messages that wait for the window or the wire; never changed, they may be shared
	waits       atomic.Bool // whether something is in the queue: for who looks at all streams every second
	answered    bool
	over        bool
	err         error
}

// Accept reads a request. Its context bounds how long that may take. It must be called once, and the Stream be closed.
//
// drained is called when what couldn't be written has been: by the goroutine that reads, or one of its own. It must not block.
func Accept(ctx context.Context, conn net.Conn, wire *Wire, drained func()) (*Stream, error) {
	s := &Stream{conn: conn, wire: wire, drained: drained, connWindow: 65535, peerWindow: 65535, firstWindow: 65535}
	if until, ok := ctx.Deadline(); ok {
		_ = conn.SetReadDeadline(until)
	}
	defer func() { _ = conn.SetReadDeadline(time.Time{}) }()
	var first [len(preface)]byte
	if err := s.read(first[:]); err != nil {
		return s, err
	}
	if string(first[:]) != preface {
		return s, fmt.Errorf("%w: no preface", errProtocol)
	}
	s.wire.setAsync(s.opened)
	hello := appendFrame(nil, frameSettings, 0, 0, 18)
	hello = appendSetting(hello, settingStreams, 1)
	hello = appendSetting(hello, settingWindow, window)
	hello = appendSetting(hello, settingHeaders, maxHeaders)
	hello = appendWindow(hello, 0, window-65535)
	if err := s.control(hello); err != nil {
		return s, err
	}
	for s.Header == nil {
		if err := s.frame(); err != nil {
			return s, err
		}
	}
	return s, nil
}

// read fills b.
func (s *Stream) read(b []byte) error {
	for n := 0; n < len(b); {
		if s.r < s.w {
			k := copy(b[n:], s.buf[s.r:s.w])
			s.r += k
			n += k
			continue
		}
		if len(b)-n >= len(s.buf) {
			k, err := io.ReadFull(s.conn, b[n:])
			if err != nil {
				return unexpected(err, n+k)
			}
			return nil
		}
		k, err := s.conn.Read(s.buf[:])
		if k == 0 && err != nil {
			return unexpected(err, n)
		}
		s.r, s.w = 0, k
	}
	return nil
}

func unexpected(err error, n int) error {
	if errors.Is(err, io.EOF) && n == 0 {
		return io.ErrUnexpectedEOF // a stream ends with a word
	}
	return err
}

// frame reads one frame and does what it asks for. Of a DATA frame it leaves the payload to be read.
func (s *Stream) frame() error {
	if s.idle++; s.idle > maxIdleFrames {
		return s.goAway(codeCalm, "frames without a message")
	}
	var h [headerLength]byte
	if err := s.read(h[:]); err != nil {
		return err
	}
	length := int(h[0])<<16 | int(h[1])<<8 | int(h[2])
	kind, flags, id := h[3], h[4], binary.BigEndian.Uint32(h[5:])&(1<<31-1)
	if length > maxPayload {
		return s.goAway(codeProtocol, "a frame is too large")
	}
	if kind == frameData {
		return s.data(length, flags, id)
	}
	payload := make([]byte, 0, 64)
	payload = append(payload[:0], make([]byte, length)...)
	if err := s.read(payload); err != nil {
		return err
	}
	switch kind {
	case frameHeaders:
		return s.headers(payload, flags, id)
	case frameSettings:
		return s.settings(payload, flags)
	case framePing:
		if length != 8 {
			return s.goAway(codeProtocol, "a PING of another length than 8")
		}
		if flags&flagAck == 0 {
			return s.control(append(appendFrame(nil, framePing, flagAck, 0, 8), payload...))
		}
	case frameWindow:
		return s.widen(payload, id)
	case frameReset:
		if id == theOne && s.Header != nil {
			return errReset
		}
	case frameGoAway:
		// It will open no other stream; the one goes on.
	case frameContinuation, framePush:
		return s.goAway(codeProtocol, "a frame that can't come here")
	case framePriority:
	}
	return nil
}

func (s *Stream) data(length int, flags byte, id uint32) error {
	if id != theOne || s.Header == nil || s.ended {
		return s.goAway(codeProtocol, "DATA of a stream that isn't open")
	}
	s.eaten += length
	s.left, s.pad = length, 0
	if flags&flagPadded != 0 {
		var pad [1]byte
		if length == 0 {
			return s.goAway(codeProtocol, "no padding")
		}
		if err := s.read(pad[:]); err != nil {
			return err
		}
		s.left, s.pad = length-1-int(pad[0]), int(pad[0])
		if s.left < 0 {
			return s.goAway(codeProtocol, "more padding than frame")
		}
	}
	if flags&flagEndStream != 0 {
		s.ended = true
	}
	if s.left == 0 {
		return s.endOfData()
	}
	return nil
}

// endOfData is called when a DATA frame's payload has been read.
func (s *Stream) endOfData() error {
	if s.pad > 0 {
		var skip [256]byte
		if err := s.read(skip[:s.pad]); err != nil {
			return err
		}
		s.pad = 0
	}
	if s.eaten < window/2 || s.ended {
		return nil
	}
	n := s.eaten
	s.eaten = 0
	return s.control(appendWindow(appendWindow(nil, 0, n), theOne, n))
}

// headers takes the request; a second one is refused, trailers are skipped. What isn't the one's isn't decoded: nothing that
// is decoded follows.
func (s *Stream) headers(block []byte, flags byte, id uint32) error {
	if s.Header != nil {
		if id == theOne {
			s.ended = true
			return nil
		}
		refused := appendFrame(nil, frameReset, 0, id, 4)
		return s.control(binary.BigEndian.AppendUint32(refused, codeRefused))
	}
	if id != theOne || flags&flagEndHeaders == 0 {
		return s.goAway(codeProtocol, "the request isn't the first stream, or its header isn't whole")
	}
	pad := 0
	if flags&flagPadded != 0 {
		if len(block) == 0 {
			return s.goAway(codeProtocol, "no padding")
		}
		pad, block = int(block[0]), block[1:]
	}
	if flags&flagPriority != 0 {
		if len(block) < 5 {
			return s.goAway(codeProtocol, "no priority")
		}
		block = block[5:]
	}
	if len(block) < pad {
		return s.goAway(codeProtocol, "more padding than frame")
	}
	header, size, method := http.Header{}, 0, ""
	decoder := hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		if size += int(f.Size()); size > maxHeaders {
			return
		}
		switch {
		case f.Name == ":method":
			method = f.Value
		case f.Name == ":path":
			s.Path = f.Value
		case strings.HasPrefix(f.Name, ":"):
		default:
			header.Add(f.Name, f.Value)
		}
	})
	decoder.SetMaxStringLength(maxHeaders)
	if _, err := decoder.Write(block[:len(block)-pad]); err != nil {
		return s.goAway(codeProtocol, "the header can't be decoded")
	}
	if err := decoder.Close(); err != nil || size > maxHeaders || method != http.MethodPost {
		return s.goAway(codeProtocol, "the request isn't a POST with a header of usual size")
	}
	s.ended = flags&flagEndStream != 0
	s.Header = header
	return nil
}

func (s *Stream) settings(payload []byte, flags byte) error {
	if flags&flagAck != 0 {
		return nil
	}
	if len(payload)%6 != 0 {
		return s.goAway(codeProtocol, "settings of a strange length")
	}
	for ; len(payload) > 0; payload = payload[6:] {
		id, value := binary.BigEndian.Uint16(payload), int64(binary.BigEndian.Uint32(payload[2:]))
		if id == settingWindow {
			if value > 1<<31-1 {
				return s.goAway(codeProtocol, "a window is too large")
			}
			s.mu.Lock()
			s.peerWindow += value - s.firstWindow
			s.firstWindow = value
			s.mu.Unlock()
		}
	}
	if err := s.control(appendFrame(nil, frameSettings, flagAck, 0, 0)); err != nil {
		return err
	}
	s.opened()
	return nil
}

// widen takes a WINDOW_UPDATE.
func (s *Stream) widen(payload []byte, id uint32) error {
	if len(payload) != 4 {
		return s.goAway(codeProtocol, "a WINDOW_UPDATE of another length than 4")
	}
	n := int64(binary.BigEndian.Uint32(payload) & (1<<31 - 1))
	s.mu.Lock()
	switch id {
	case 0:
		s.connWindow += n
	case theOne:
		s.peerWindow += n
	}
	tooWide := s.connWindow > 1<<31-1 || s.peerWindow > 1<<31-1
	due := s.untold >= updateEach
	if due {
		s.untold -= updateEach
	}
	s.mu.Unlock()
	if due {
		s.idle--
	}
	if tooWide || n == 0 {
		return s.goAway(codeProtocol, "a window is too large, or its update is nothing")
	}
	s.opened()
	return nil
}

// goAway says why the connection ends.
func (s *Stream) goAway(code uint32, why string) error {
	b := appendFrame(nil, frameGoAway, 0, 0, 8+len(why))
	b = binary.BigEndian.AppendUint32(b, theOne)
	b = binary.BigEndian.AppendUint32(b, code)
	_ = s.control(append(b, why...))
	return fmt.Errorf("%w: %s", errProtocol, why)
}

// messages are buffers for those that are larger than most.
var messages = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// Receive gives the next message to decode, which must not keep it. The end of the peer's messages is io.EOF.
func (s *Stream) Receive(decode func([]byte) error) error {
	var prefix [5]byte
	if err := s.take(prefix[:], true); err != nil {
		return err
	}
	if prefix[0] != 0 {
		return fmt.Errorf("%w: a compressed message, which was not agreed on", errProtocol)
	}
	n := binary.BigEndian.Uint32(prefix[1:])
	if n > MaxMessage {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, n, MaxMessage)
	}
	buffer := messages.Get().(*[]byte) //nolint:forcetypeassert // the pool's
	defer func() {
		if cap(*buffer) <= 64<<10 {
			messages.Put(buffer)
		}
	}()
	if cap(*buffer) < int(n) {
		*buffer = make([]byte, n)
	}
	b := (*buffer)[:n]
	if err := s.take(b, false); err != nil {
		return err
	}
	s.idle = 0
	return decode(b)
}

// take fills b from DATA frames. Their end is io.EOF before a message, and else an error.
func (s *Stream) take(b []byte, begins bool) error {
	for n := 0; n < len(b); {
		if s.left == 0 {
			if s.ended {
				if begins && n == 0 {
					return io.EOF
				}
				return io.ErrUnexpectedEOF
			}
			if err := s.frame(); err != nil {
				return err
			}
			continue
		}
		k := min(s.left, len(b)-n)
		if err := s.read(b[n : n+k]); err != nil {
			return err
		}
		n += k
		if s.left -= k; s.left == 0 {
			if err := s.endOfData(); err != nil {
				return err
			}
		}
	}
	return nil
}

func appendFrame(b []byte, kind, flags byte, id uint32, length int) []byte {
	b = append(b, byte(length>>16), byte(length>>8), byte(length), kind, flags)
	return binary.BigEndian.AppendUint32(b, id)
}

func appendSetting(b []byte, id uint16, value uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(b, id), value)
}

func appendWindow(b []byte, id uint32, n int) []byte {
	return binary.BigEndian.AppendUint32(appendFrame(b, frameWindow, 0, id, 4), uint32(n)) //nolint:gosec // a window
}
