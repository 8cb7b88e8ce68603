package localrpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// SocketOptions says who may open a socket's file.
type SocketOptions struct {
	// Mode of the socket file; 0 means 0600.
	Mode os.FileMode
	// UID and GID that own it; -1 leaves the creator's.
	UID, GID int
}

// ErrInUse is wrapped by listenUnix where another process serves the socket.
var ErrInUse = errors.New("another process serves this socket")

// socket is a listener that holds the lock beside its file until it is closed.
type socket struct {
	*net.UnixListener
	path string
	lock *os.File
	made unix.Stat_t

	mu    sync.Mutex
	conns map[uint32]int // by user
}

// listenUnix makes a socket file with its final mode and owner from the first moment that its name exists: it is bound
// under another name, mode 0600 before bind, and renamed. A lock file beside it (left in place: removing one races)
// tells a stale socket from a live one.
func listenUnix(ctx context.Context, path string, o SocketOptions) (*socket, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // others reach the socket through it; the socket has its own mode
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	temp := filepath.Join(dir, ".s"+strconv.Itoa(os.Getpid()))
	if longest := max(len(path), len(temp)); longest > 107 {
		return nil, fmt.Errorf("listen on %s: the path has %d bytes and Unix sockets take 107; use a shorter --state-dir or --socket", path, longest)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600) //nolint:gosec // our own path
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	s := &socket{path: path, lock: lock}
	if err := s.bind(ctx, temp, o); err != nil {
		_ = os.Remove(temp)
		_ = lock.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return s, nil
}

func (s *socket) bind(ctx context.Context, temp string, o SocketOptions) error {
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil { //nolint:gosec // a descriptor fits
		if errors.Is(err, unix.EWOULDBLOCK) {
			return ErrInUse
		}
		return fmt.Errorf("lock: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(s.path, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return errors.New("there is a file of that name that is not a socket; remove it or choose another path")
	}
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var modeErr error
		err := raw.Control(func(fd uintptr) { modeErr = unix.Fchmod(int(fd), 0o600) }) //nolint:gosec // a descriptor fits
		return errors.Join(err, modeErr)
	}}
	l, err := lc.Listen(ctx, "unix", temp)
	if err != nil {
		return err
	}
	s.UnixListener = l.(*net.UnixListener) //nolint:forcetypeassert // "unix" gives no other
	s.SetUnlinkOnClose(false)
	mode := o.Mode
	if mode == 0 {
		mode = 0o600
	}
	if o.UID != -1 || o.GID != -1 {
		err = os.Lchown(temp, o.UID, o.GID)
	}
	if err == nil {
		err = os.Chmod(temp, mode)
	}
	if err == nil {
		err = unix.Lstat(temp, &s.made)
	}
	if err == nil {
		err = os.Rename(temp, s.path)
	}
	if err != nil {
		return errors.Join(err, l.Close())
	}
	return nil
}

// maxConns is how many connections one user may have at a time. Root's aren't counted: whatever became of the other half,
// a person on the host can always turn it off.
const maxConns = 32

// Accept turns away users that have too many connections, and whom the kernel doesn't know.
func (s *socket) Accept() (net.Conn, error) {
	for {
		c, err := s.AcceptUnix()
		if err != nil {
			return nil, err
		}
		p, err := peerOf(c)
		if err == nil && s.take(p.UID) {
			return &counted{UnixConn: c, release: sync.OnceFunc(func() { s.give(p.UID) })}, nil
		}
		_ = c.Close()
	}
}

func (s *socket) take(uid uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if uid == 0 {
		return true
	}
	if s.conns[uid] >= maxConns {
		return false
	}
	if s.conns == nil {
		s.conns = map[uint32]int{}
	}
	s.conns[uid]++
	return true
}

func (s *socket) give(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if uid == 0 {
		return
	}
	if s.conns[uid]--; s.conns[uid] <= 0 {
		delete(s.conns, uid)
	}
}

// counted is a connection that counts until it is closed.
type counted struct {
	*net.UnixConn
	release func()
}

func (c *counted) Close() error {
	c.release()
	return c.UnixConn.Close()
}

// Close stops listening and removes the file, if it is still this listener's.
func (s *socket) Close() error {
	err := s.UnixListener.Close()
	var st unix.Stat_t
	if unix.Lstat(s.path, &st) == nil && st.Ino == s.made.Ino && st.Dev == s.made.Dev {
		_ = os.Remove(s.path)
	}
	// Closing alone would leave the lock to a child that is between its fork and its exec.
	_ = unix.Flock(int(s.lock.Fd()), unix.LOCK_UN) //nolint:gosec // a descriptor fits
	_ = s.lock.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
