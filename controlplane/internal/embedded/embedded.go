// Package embedded supervises a redis-server (or valkey-server) of the control plane's own: the default where no
// --redis-url is given. Same semantics as production: append-only file, fsync before each answer, nothing evicted.
//
//	Start ─▶ lock folder ─▶ child ─▶ answers ─▶ Server
//	                          ▲ │ dies
//	                  backoff └─┘             Stop ─▶ SIGTERM ─▶ waits ─▶ unlock
//
// The child listens on a Unix socket in its folder that only this user may open, and on nothing else. It dies with this
// process, however that ends: the kernel kills it (PDEATHSIG). The folder's lock is held by both, so a next start waits
// until the last child is gone.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// Options of Start.
type Options struct {
	// Dir holds the data and the socket; made 0700 if it is missing.
	Dir string
	// Binary is the server's path; "" looks for redis-server, then valkey-server, in PATH.
	Binary string
	// Logger gets what the server prints; default slog.Default().
	Logger *slog.Logger
	// LockWait is how long to wait for the folder. Default 10 s.
	LockWait time.Duration
}

// ErrInUse says that another process works on the folder.
var ErrInUse = errors.New("the data folder is in use by another process")

const socketName = "redis.sock"

// maxSocketPath is what a Unix socket's address can hold, less its terminator.
const maxSocketPath = 107

// Server is a running child.
type Server struct {
	options Options
	socket  string
	lock    *os.File
	folder  *os.File // open where the socket's path would be too long
	done    chan struct{}
	stop    chan struct{}

	mu       sync.Mutex
	stopping bool
	child    *os.Process
	starts   int
	lastErr  error
	said     map[string]bool // advice that was given
}

// Start starts a server and returns when it answers.
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.LockWait <= 0 {
		o.LockWait = 10 * time.Second
	}
	if o.Binary == "" {
		var err error
		if o.Binary, err = find(); err != nil {
			return nil, err
		}
	}
	if err := checkVersion(ctx, o.Binary); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("embedded Redis: %w", err)
	}
	o.Dir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("embedded Redis: make its folder: %w", err)
	}
	s := &Server{options: o, socket: filepath.Join(dir, socketName), done: make(chan struct{}), stop: make(chan struct{}), said: map[string]bool{}}
	if s.lock, err = lock(ctx, filepath.Join(dir, "lock"), o.LockWait); err != nil {
		return nil, err
	}
	if len(s.socket) > maxSocketPath {
		// Reached through the folder's descriptor.
		if s.folder, err = os.Open(dir); err != nil {
			return nil, errors.Join(fmt.Errorf("embedded Redis: %w", err), s.lock.Close())
		}
	}
	go s.supervise() //nolint:contextcheck // the child outlives the start
	if err := s.await(ctx); err != nil {
		return nil, errors.Join(err, s.Stop(context.WithoutCancel(ctx)))
	}
	return s, nil
}

// Running is the URL of the child that another process runs in dir; false where none answers.
func Running(ctx context.Context, dir string) (url string, ok bool) {
	path := filepath.Join(dir, socketName)
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path)
	if err != nil {
		return "", false
	}
	return "unix://" + path, conn.Close() == nil
}

// URL is what store.Open takes.
func (s *Server) URL() string {
	if s.folder != nil {
		return fmt.Sprintf("unix:///proc/self/fd/%d/%s", s.folder.Fd(), socketName)
	}
	return "unix://" + s.socket
}

// Stop ends the child, with SIGTERM and after 10 s with SIGKILL, and returns when it is gone.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	if !s.stopping {
		s.stopping = true
		close(s.stop)
	}
	if s.child != nil {
		_ = s.child.Signal(syscall.SIGTERM)
	}
	s.mu.Unlock()
	timer := time.NewTimer(10 * time.Second)
	defer timer.Stop()
	select {
	case <-s.done:
	case <-timer.C:
	case <-ctx.Done():
	}
	s.mu.Lock()
	if s.child != nil {
		_ = s.child.Kill()
	}
	s.mu.Unlock()
	<-s.done
	if s.folder != nil {
		_ = s.folder.Close()
	}
	if err := s.lock.Close(); err != nil {
		return fmt.Errorf("embedded Redis: unlock its folder: %w", err)
	}
	return nil
}

func find() (string, error) {
	for _, name := range []string{"redis-server", "valkey-server"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("neither redis-server nor valkey-server is installed: apt install redis-server (its service may stay disabled), or give --redis-url")
}

// lock takes the folder, and waits a while for the child of a process that was killed.
func lock(ctx context.Context, path string, wait time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("embedded Redis: lock its folder: %w", err)
	}
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("embedded Redis: lock %s: %w", path, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-deadline.C:
			return nil, errors.Join(fmt.Errorf("%w: %s; stop the other one, give this one another --data-dir, or give both the same --redis-url",
				ErrInUse, filepath.Dir(path)), f.Close())
		case <-tick.C:
		}
	}
}

// supervise keeps a child running until Stop.
func (s *Server) supervise() {
	defer close(s.done)
	// PDEATHSIG is sent when the thread that forked ends, not the process: this one stays as long as the supervision.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pause := 100 * time.Millisecond
	for {
		began := time.Now()
		err := s.runChild()
		s.mu.Lock()
		stopping := s.stopping
		s.lastErr = err
		s.mu.Unlock()
		if stopping {
			return
		}
		if time.Since(began) > time.Minute {
			pause = 100 * time.Millisecond
		}
		s.options.Logger.Error("redis-server ended, starting it again", slog.Any("error", err), slog.Duration("pause", pause))
		select {
		case <-s.stop:
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, 10*time.Second)
	}
}

func (s *Server) runChild() error {
	o := s.options
	cmd := exec.Command(o.Binary, //nolint:gosec,noctx // the administrator's or PATH's; ended by Stop
		"--port", "0", "--unixsocket", socketName, "--unixsocketperm", "700", "--dir", o.Dir, "--daemonize", "no", "--supervised", "no",
		"--appendonly", "yes", "--appendfsync", "always", "--save", "", "--maxmemory", "0", "--maxmemory-policy", "noeviction",
		// A prefix that several hosts ban has a value longer than the 64 bytes up to which Redis packs hashes by default.
		"--hash-max-listpack-value", "512", "--hash-max-listpack-entries", "512",
		"--logfile", "", "--always-show-logo", "no", "--protected-mode", "yes")
	cmd.Dir = o.Dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + o.Dir, "LANG=C", "TZ=UTC"}
	cmd.ExtraFiles = []*os.File{s.lock}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true} // a terminal's ^C is for us: it ends after us
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("run %s: %w", o.Binary, err)
	}
	cmd.Stderr = cmd.Stdout
	// A socket left by one that was killed.
	_ = os.Remove(s.socket)
	s.mu.Lock()
	if s.stopping {
		s.mu.Unlock()
		return nil
	}
	if err := cmd.Start(); err != nil {
		s.mu.Unlock()
		return fmt.Errorf("start %s: %w", o.Binary, err)
	}
	s.child = cmd.Process
	s.starts++
	s.mu.Unlock()
	last := s.logs(out)
	err = cmd.Wait()
	s.mu.Lock()
	s.child = nil
	s.mu.Unlock()
	if err != nil && last != "" {
		return fmt.Errorf("%w: %s", err, last)
	}
	return err
}

// await waits until the server answers: it may have much to load.
func (s *Server) await(ctx context.Context) error {
	st, err := store.Open(store.Options{URL: s.URL(), Timeout: time.Second, Logger: s.options.Logger})
	if err != nil {
		return fmt.Errorf("embedded Redis: %w", err)
	}
	defer func() { _ = st.Close() }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if err = st.Ping(ctx); err == nil {
			return nil
		}
		s.mu.Lock()
		starts, last := s.starts, s.lastErr
		s.mu.Unlock()
		if starts > 3 {
			return fmt.Errorf("embedded Redis doesn't start (%s): %w", s.options.Binary, last)
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("embedded Redis doesn't answer: %w", err), last)
		case <-tick.C:
		}
	}
}
