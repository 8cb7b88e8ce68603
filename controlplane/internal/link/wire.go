package link

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// maxRest bounds what is kept of writes that the socket didn't take, bytes. Who writes stops long before; a peer that has
// itself answered and doesn't read is cut off.
const maxRest = 1 << 20

var errUnread = errors.New("the peer doesn't read what it has itself answered")

// Wire is a connection below TLS. Once it carries a Stream, writes never block.
type Wire struct {
	net.Conn

	// Asked, where it isn't nil, is called once when the request has come: from then on its peer waits for us, and not we for it.
	Asked func()
	// Welcomed, where it isn't nil, is called once when the stream's first answer is sent, or there will be none.
	Welcomed func()

	raw     syscall.RawConn // nil where the connection has none: another goroutine writes then
	async   atomic.Bool
	blocked atomic.Int64 // Unix nanoseconds; 0 where nothing is kept

	mu       sync.Mutex
	rest     []byte
	flushing chan struct{} // closed when what is kept is written, or can't be; nil where nothing is kept
	err      error
	drained  func()
}

// NewWire wraps a connection.
func NewWire(conn net.Conn) *Wire {
	w := &Wire{Conn: conn}
	below := conn
	for {
		if wraps, ok := below.(interface{ NetConn() net.Conn }); ok {
			below = wraps.NetConn()
			continue
		}
		// A connection that begins with a header of the PROXY protocol: what is written is the connection's below.
		wraps, ok := below.(interface{ Raw() net.Conn })
		if !ok {
			break
		}
		below = wraps.Raw()
	}
	if c, ok := below.(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			w.raw = raw
		}
	}
	return w
}

// setAsync makes writes never block. drained is called, by a goroutine of its own, when what was kept is written, or can't be.
func (w *Wire) setAsync(drained func()) {
	w.mu.Lock()
	w.drained = drained
	w.mu.Unlock()
	w.async.Store(true)
}

// Blocked is since when something is kept that the socket didn't take; the zero time where nothing is.
func (w *Wire) Blocked() time.Time {
	if at := w.blocked.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}

// settle returns when nothing is kept: when the peer has taken it, or at the latest when the write deadline is over.
func (w *Wire) settle() {
	w.mu.Lock()
	flushing := w.flushing
	w.mu.Unlock()
	if flushing != nil {
		<-flushing
	}
}

// Write implements net.Conn.
func (w *Wire) Write(b []byte) (int, error) {
	if !w.async.Load() {
		return w.Conn.Write(b)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return 0, w.err
	}
	if w.flushing != nil {
		return w.keep(b, len(b))
	}
	n, err := w.try(b)
	switch {
	case n == len(b):
		return n, nil
	case errors.Is(err, syscall.EAGAIN):
		w.flushing = make(chan struct{})
		w.blocked.Store(time.Now().UnixNano())
		if _, err := w.keep(b[n:], len(b)); err != nil {
			return n, err
		}
		go w.flush()
		return len(b), nil
	default:
		w.err = &net.OpError{Op: "write", Net: "tcp", Source: w.LocalAddr(), Addr: w.RemoteAddr(), Err: os.NewSyscallError("write", err)}
		return n, w.err
	}
}

// try writes what the socket takes now.
func (w *Wire) try(b []byte) (n int, err error) {
	if w.raw == nil {
		return 0, syscall.EAGAIN
	}
	// Not raw.Write, which prepares to wait: whoever does wait writes to Conn.
	rawErr := w.raw.Control(func(fd uintptr) {
		for n < len(b) {
			var k int
			k, err = syscall.Write(int(fd), b[n:])
			switch {
			case err == nil && k > 0:
				n += k
			case !errors.Is(err, syscall.EINTR):
				return
			}
		}
	})
	if rawErr != nil {
		err = rawErr
	}
	return n, err
}

// keep adds to what is kept. The caller holds the lock.
func (w *Wire) keep(b []byte, whole int) (int, error) {
	if len(w.rest)+len(b) > maxRest {
		w.err = errUnread
		return 0, w.err
	}
	w.rest = append(w.rest, b...)
	return whole, nil
}

// flush writes what is kept, as slowly as the peer takes it.
func (w *Wire) flush() {
	for {
		w.mu.Lock()
		if len(w.rest) == 0 || w.err != nil {
			close(w.flushing)
			w.rest, w.flushing = nil, nil
			w.blocked.Store(0)
			drained := w.drained
			w.mu.Unlock()
			drained()
			return
		}
		b := w.rest
		w.rest = nil
		w.mu.Unlock()
		if _, err := w.Conn.Write(b); err != nil {
			w.mu.Lock()
			w.err = err
			w.mu.Unlock()
		}
	}
}
