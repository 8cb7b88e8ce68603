package fail2ban

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxReply       = 64 << 20
	defaultTimeout = 10 * time.Second
	// The server's backlog is one: while it is busy, dials fail at once.
	busyFirst, busyMost = 2 * time.Millisecond, 50 * time.Millisecond
)

// Peer identifies a running server. Two that differ are two runs of fail2ban.
type Peer struct {
	// PID is the server's process, 0 where it is in a process namespace of its own.
	PID int32
	// Inode, Device and ChangedNs are those of the socket file, made anew by each start.
	Inode, Device uint64
	ChangedNs     int64
}

// Client is a connection to one server's socket. Its methods may be called from several goroutines; one call is on its way
// at a time. The zero value isn't usable: see New.
type Client struct {
	path string
	busy chan struct{} // holds one token while a call is on its way
	conn *net.UnixConn // under busy
	peer Peer          // under busy, of the last connection
	in   []byte        // under busy: what was read and not consumed

	// Learned by asking: versions differ.
	noBannedQuery, noTimes atomic.Bool
}

// New makes a Client for the socket at path. It doesn't dial.
func New(path string) *Client {
	return &Client{path: path, busy: make(chan struct{}, 1)}
}

// Path returns the socket's path.
func (c *Client) Path() string { return c.path }

// Close closes the connection. The next call dials again.
func (c *Client) Close() error {
	c.busy <- struct{}{}
	defer func() { <-c.busy }()
	c.drop()
	return nil
}

// Peer dials if necessary and tells which server is at the other end.
func (c *Client) Peer(ctx context.Context) (Peer, error) {
	if err := c.acquire(ctx); err != nil {
		return Peer{}, err
	}
	defer c.release()
	if c.conn == nil {
		ctx, cancel := withDefault(ctx)
		defer cancel()
		if err := c.dial(ctx); err != nil {
			return Peer{}, err
		}
	}
	return c.peer, nil
}

func (c *Client) acquire(ctx context.Context) error {
	select {
	case c.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrBusy, context.Cause(ctx))
	}
}

func (c *Client) release() { <-c.busy }

func withDefault(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, defaultTimeout)
}

// call sends one command, which may be repeated, and returns the payload of its reply. It is sent again on a new connection
// where the connection was an old one, which a restart of the server breaks.
func (c *Client) call(ctx context.Context, args ...string) (any, error) {
	request, err := encode(args)
	if err != nil {
		return nil, err
	}
	if err := c.acquire(ctx); err != nil {
		return nil, err
	}
	defer c.release()
	return c.exchange(ctx, request)
}

func (c *Client) exchange(ctx context.Context, request []byte) (any, error) {
	ctx, cancel := withDefault(ctx)
	defer cancel()
	for {
		reused := c.conn != nil
		if !reused {
			if err := c.dial(ctx); err != nil {
				return nil, err
			}
		}
		reply, err := c.roundTrip(ctx, request)
		if err == nil {
			return c.interpret(reply)
		}
		c.drop()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			cause := context.Cause(ctx)
			if cause == nil {
				cause = context.DeadlineExceeded // the socket's clock was a moment ahead
			}
			return nil, fmt.Errorf("fail2ban doesn't answer: %w", cause)
		}
		if !reused || errors.Is(err, ErrGarbage) {
			return nil, err
		}
	}
}

func (c *Client) drop() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
	c.in = nil
}

func (c *Client) dial(ctx context.Context) error {
	var dialer net.Dialer
	wait := busyFirst
	for {
		conn, err := dialer.DialContext(ctx, "unix", c.path)
		if err == nil {
			c.conn = conn.(*net.UnixConn)
			c.in = nil
			c.peer = identify(c.conn, c.path)
			c.noBannedQuery.Store(false)
			c.noTimes.Store(false)
			return nil
		}
		if !errors.Is(err, syscall.EAGAIN) {
			return dialError(c.path, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("fail2ban at %s is busy: %w", c.path, context.Cause(ctx))
		case <-time.After(wait):
		}
		wait = min(2*wait, busyMost)
	}
}

func dialError(path string, err error) error {
	kind := ErrLost
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = ErrNoSocket
	case errors.Is(err, syscall.ECONNREFUSED):
		kind = ErrRefused
	case errors.Is(err, fs.ErrPermission):
		kind = ErrDenied
	case errors.Is(err, syscall.EPROTOTYPE), errors.Is(err, syscall.ENOTSOCK):
		kind = ErrGarbage
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		kind = context.DeadlineExceeded
	}
	return fmt.Errorf("%w (%s): %w", kind, path, err)
}

// identify asks the kernel who listens. What can't be learned stays zero.
func identify(conn *net.UnixConn, path string) Peer {
	var peer Peer
	if raw, err := conn.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				peer.PID = cred.Pid
			}
		})
	}
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil {
		peer.Inode, peer.Device = st.Ino, st.Dev
		peer.ChangedNs = st.Ctim.Nano()
	}
	return peer
}

// roundTrip writes a request and reads its reply.
func (c *Client) roundTrip(ctx context.Context, request []byte) ([]byte, error) {
	deadline, _ := ctx.Deadline()
	if err := c.conn.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLost, err)
	}
	// A context may end before its deadline, and while this returns: the connection is its own copy, for c.conn may be
	// dropped by then, and is waited for, for else it would cut the next request short.
	conn, cut := c.conn, make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = conn.SetDeadline(time.Unix(1, 0))
		close(cut)
	})
	defer func() {
		if !stop() {
			<-cut
		}
	}()

	if len(c.in) != 0 {
		return nil, fmt.Errorf("%w: it speaks unasked", ErrGarbage)
	}
	if _, err := c.conn.Write(request); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLost, err)
	}
	return c.read()
}

func (c *Client) read() ([]byte, error) {
	buf := make([]byte, 0, 4<<10)
	seen := 0 // bytes in which no marker begins
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, make([]byte, min(max(len(buf), 4<<10), 8<<20))...)[:len(buf)]
		}
		n, err := c.conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if i := bytes.Index(buf[seen:], []byte(endMarker)); i >= 0 {
			end := seen + i
			c.in = buf[end+len(endMarker):]
			return buf[:end], nil
		}
		if len(buf) > 0 && buf[0] != 0x80 {
			// Every pickle of protocol 2 and up begins so. Saying so at once beats waiting for a marker that never comes.
			return nil, fmt.Errorf("%w: its reply begins with %q", ErrGarbage, buf[:min(len(buf), 32)])
		}
		if len(buf) > maxReply {
			return nil, fmt.Errorf("%w: its reply is longer than %d bytes", ErrGarbage, maxReply)
		}
		seen = max(0, len(buf)-len(endMarker)+1)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil, fmt.Errorf("%w: closed before the reply was complete", ErrLost)
			}
			return nil, fmt.Errorf("%w: %w", ErrLost, err)
		}
	}
}

// interpret takes (code, payload) apart. The connection stays usable after a *ServerError.
func (c *Client) interpret(reply []byte) (any, error) {
	v, err := decode(reply)
	if err != nil {
		c.drop()
		return nil, fmt.Errorf("%w: %w", ErrGarbage, err)
	}
	switch v := v.(type) {
	case string:
		return nil, newServerError(v) // "ERROR: …": the request or its result couldn't be pickled
	case *list:
		if len(v.items) == 1 && v.items[0] == "SHUTDOWN" {
			c.drop()
			return nil, ErrStopping
		}
	case tuple:
		if len(v) != 2 {
			break
		}
		code, ok := v[0].(int64)
		if !ok {
			break
		}
		if code == 0 {
			return v[1], nil
		}
		return nil, newServerError(v[1])
	}
	c.drop()
	return nil, fmt.Errorf("%w: its reply isn't a result", ErrGarbage)
}
