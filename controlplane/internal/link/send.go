package link

import (
	"encoding/base64"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"
)

// PrefixLength is what stands before each message in gRPC, bytes.
const PrefixLength = 5

// PutPrefix writes what stands before a message into its first bytes: message[PrefixLength:] is the message.
func PutPrefix(message []byte) {
	n := len(message) - PrefixLength
	message[0], message[1], message[2], message[3], message[4] = 0, byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
}

var scratch = sync.Pool{New: func() any { b := make([]byte, 0, 2<<10); return &b }}

// Send sends messages, each with its prefix. They must not be changed afterwards. It never blocks: what can't be sent now is
// kept and sent when it can be. Who doesn't want that waits while Blocked.
func (s *Stream) Send(messages ...[]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.err != nil:
		return s.err
	case s.over:
		return errFinished
	}
	s.queue = append(s.queue, messages...)
	return s.flush()
}

// Blocked reports whether the peer, or the network, doesn't take what was sent.
func (s *Stream) Blocked() bool { return s.waits.Load() || s.wire.blocked.Load() != 0 }

// Taken is how much the peer and the network took of what was sent, bytes: what is Blocked and grows is slow, not stuck.
func (s *Stream) Taken() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}

// Respond begins the answer, where it hasn't begun: with this header.
func (s *Stream) Respond(header http.Header) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answered || s.over || s.err != nil {
		return s.err
	}
	s.answered = true
	return s.write(s.fields(true, header, flagEndHeaders))
}

// Finish ends the stream with a status; nil is a good one. What was sent and not taken is given a moment.
func (s *Stream) Finish(header http.Header, status *connect.Error) {
	deadline := time.Now().Add(2 * time.Second)
	_ = s.conn.SetReadDeadline(deadline)
	_ = s.wire.SetWriteDeadline(deadline)
	s.mu.Lock()
	if !s.over && s.err == nil {
		trailer := http.Header{"Grpc-Status": {"0"}}
		if status != nil {
			trailer = trailerOf(status)
		}
		first := !s.answered
		if first {
			for name, values := range header {
				trailer[name] = values
			}
		}
		s.answered = true
		b := s.fields(first, trailer, flagEndHeaders|flagEndStream)
		if !s.ended {
			b = append(appendFrame(b, frameReset, 0, theOne, 4), 0, 0, 0, codeNone)
		}
		b = append(appendFrame(b, frameGoAway, 0, 0, 8), 0, 0, 0, theOne, 0, 0, 0, codeNone)
		_ = s.write(b)
	}
	s.over, s.queue = true, nil
	s.mu.Unlock()
	// The end of TLS lets nothing be written after it, not even what is kept.
	s.wire.settle()
	// The peer is to read the end before it learns that the connection is gone: it closes first.
	if c, ok := s.conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
	if s.wire.Blocked().IsZero() {
		if c, ok := s.wire.Conn.(*net.TCPConn); ok {
			_ = c.CloseWrite()
		}
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(s.conn, window))
}

// Close closes the connection at once.
func (s *Stream) Close() {
	s.mu.Lock()
	s.over, s.queue = true, nil
	s.mu.Unlock()
	_ = s.wire.Close()
}

// SetReadDeadline ends a Receive that waits.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.conn.SetReadDeadline(t) }

// SetWriteDeadline bounds how long what the network doesn't take is kept.
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.wire.SetWriteDeadline(t) }

// RemoteAddr is the peer's.
func (s *Stream) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }

// opened goes on sending what waits, and says so where all is sent.
func (s *Stream) opened() {
	s.mu.Lock()
	waited := len(s.queue) > 0 || s.wire.async.Load()
	err := s.flush()
	free := err != nil || len(s.queue) == 0 && s.wire.blocked.Load() == 0
	s.mu.Unlock()
	if waited && free {
		s.drained()
	}
}

// control sends frames that aren't the stream's.
func (s *Stream) control(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.write(b)
}

// write gives bytes to the connection. The caller holds the lock.
func (s *Stream) write(b []byte) error {
	if s.err != nil {
		return s.err
	}
	if _, err := s.conn.Write(b); err != nil {
		s.err = err
	}
	return s.err
}

// flush sends what the peer's window and the wire take. The caller holds the lock.
func (s *Stream) flush() error {
	if len(s.queue) == 0 || s.err != nil {
		return s.err
	}
	buffer := scratch.Get().(*[]byte) //nolint:forcetypeassert // the pool's
	b := (*buffer)[:0]
	for len(s.queue) > 0 && s.wire.blocked.Load() == 0 {
		room := min(s.connWindow, s.peerWindow)
		if room <= 0 {
			break
		}
		// Messages share frames: a frame is as long as what there is.
		at := len(b)
		b = appendFrame(b, frameData, 0, theOne, 0)
		n := 0
		for len(s.queue) > 0 && n < maxPayload && int64(n) < room {
			first := s.queue[0]
			k := min(len(first), maxPayload-n, int(room)-n)
			b = append(b, first[:k]...)
			n += k
			if k == len(first) {
				s.queue[0] = nil
				s.queue = s.queue[1:]
			} else {
				s.queue[0] = first[k:]
			}
		}
		b[at], b[at+1], b[at+2] = byte(n>>16), byte(n>>8), byte(n)
		s.connWindow -= int64(n)
		s.peerWindow -= int64(n)
		s.untold += int64(n)
		s.taken += uint64(n) //nolint:gosec // not negative
		if len(b) >= writeAtOnce {
			if s.write(b) != nil {
				break
			}
			b = b[:0]
		}
	}
	if len(b) > 0 {
		_ = s.write(b)
	}
	if len(s.queue) == 0 {
		s.queue = nil
	}
	if waits := s.queue != nil; waits != s.waits.Load() {
		s.waits.Store(waits)
	}
	if cap(b) <= 2*writeAtOnce {
		*buffer = b
		scratch.Put(buffer)
	}
	return s.err
}

// fields is a HEADERS frame. Its fields are literals that no table has and none is to keep (RFC 7541 section 6.2.3), their text as it
// is: this side needs no table for them, and an agent's link reads nothing else.
func (s *Stream) fields(first bool, header http.Header, flags byte) []byte {
	b := appendFrame(make([]byte, 0, 256), frameHeaders, flags, theOne, 0)
	put := func(name, value string) {
		b = appendText(appendText(append(b, literal), name), value)
	}
	if first {
		put(":status", "200")
		kind := s.Header.Get("Content-Type")
		if !strings.HasPrefix(kind, "application/grpc") {
			kind = "application/grpc"
		}
		put("content-type", kind)
	}
	for name, values := range header {
		for _, v := range values {
			// A header is one frame. What wouldn't fit is of no use to an agent: details of an error.
			if len(b)+len(name)+len(v)+16 <= headerLength+maxPayload {
				put(strings.ToLower(name), v)
			}
		}
	}
	n := len(b) - headerLength
	b[0], b[1], b[2] = byte(n>>16), byte(n>>8), byte(n)
	return b
}

// literal begins such a field.
const literal = 0x10

// appendText is HPACK's string as it is: its length in seven bits and as many further bytes as it needs.
func appendText(b []byte, s string) []byte {
	n := len(s)
	if n < 127 {
		return append(append(b, byte(n)), s...)
	}
	return append(binary.AppendUvarint(append(b, 127), uint64(n-127)), s...)
}

// trailerOf is how gRPC says an error. Its details are a google.rpc.Status: code, message, and Anys of a URL and bytes.
func trailerOf(err *connect.Error) http.Header {
	var status []byte
	status = protowire.AppendVarint(protowire.AppendTag(status, 1, protowire.VarintType), uint64(err.Code()))
	status = protowire.AppendString(protowire.AppendTag(status, 2, protowire.BytesType), err.Message())
	for _, d := range err.Details() {
		var detail []byte
		detail = protowire.AppendString(protowire.AppendTag(detail, 1, protowire.BytesType), "type.googleapis.com/"+d.Type())
		detail = protowire.AppendBytes(protowire.AppendTag(detail, 2, protowire.BytesType), d.Bytes())
		status = protowire.AppendBytes(protowire.AppendTag(status, 3, protowire.BytesType), detail)
	}
	out := http.Header{}
	for name, values := range err.Meta() {
		if n := strings.ToLower(name); !strings.HasPrefix(n, "grpc-") && n != "content-type" {
			out[http.CanonicalHeaderKey(name)] = values
		}
	}
	out["Grpc-Status"] = []string{strconv.Itoa(int(err.Code()))}
	out["Grpc-Message"] = []string{percent(err.Message())}
	out["Grpc-Status-Details-Bin"] = []string{base64.RawStdEncoding.EncodeToString(status)}
	return out
}

// percent encodes what may not stand in a header.
func percent(s string) string {
	const digits = "0123456789ABCDEF"
	var out strings.Builder
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '%' {
			_, _ = out.Write([]byte{'%', digits[c>>4], digits[c&15]})
		} else {
			_ = out.WriteByte(c)
		}
	}
	return out.String()
}
