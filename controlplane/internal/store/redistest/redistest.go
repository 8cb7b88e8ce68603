// Package redistest runs a real redis-server for a test.
package redistest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// Server is a redis-server of its own, on a Unix socket in a temporary folder, with an append-only file.
type Server struct {
	t      testing.TB
	dir    string
	fsync  string
	socket string
	cmd    *exec.Cmd
}

// quiet drops what go-redis says of servers that tests kill.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

func init() { redis.SetLogger(quiet{}) }

// Start starts a server that fsyncs always and stops it when the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	// Not t.TempDir: its path may be longer than a socket's may be.
	dir, err := os.MkdirTemp("", "fbredis")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, dir: dir, fsync: "always", socket: filepath.Join(dir, "redis.sock")}
	t.Cleanup(func() {
		s.Kill()
		_ = os.RemoveAll(dir)
	})
	s.Start()
	return s
}

// URL is what store.Open takes.
func (s *Server) URL() string { return "unix://" + s.socket }

// Open opens a store on the server and closes it when the test ends.
func (s *Server) Open() *store.Store {
	s.t.Helper()
	st, err := store.Open(store.Options{URL: s.URL()})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = st.Close() })
	return st
}

// Start starts the server (again, with the data it had) and waits until it answers.
func (s *Server) Start() {
	s.t.Helper()
	s.cmd = exec.Command("redis-server", "--port", "0", "--unixsocket", s.socket, "--dir", s.dir, "--save", "", "--appendonly", "yes",
		"--appendfsync", s.fsync, "--maxmemory-policy", "noeviction", "--daemonize", "no", "--logfile", filepath.Join(s.dir, "log"))
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatalf("start redis-server (make setup installs it): %v", err)
	}
	st, err := store.Open(store.Options{URL: s.URL()})
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for st.Ping(ctx) != nil {
		select {
		case <-ctx.Done():
			s.t.Fatal("redis-server doesn't answer within 20 s")
		case <-tick.C:
		}
	}
}

// Kill kills the server as a power cut would.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
}

// Pause stops the server from answering; Resume lets it go on.
func (s *Server) Pause() { _ = s.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume ends Pause.
func (s *Server) Resume() { _ = s.cmd.Process.Signal(syscall.SIGCONT) }

// Backup copies the server's data as a disk snapshot would: Restore goes back to it.
func (s *Server) Backup() (restore func()) {
	s.t.Helper()
	s.Pause()
	kept := filepath.Join(s.dir, "backup")
	if err := errors.Join(os.RemoveAll(kept), os.CopyFS(kept, os.DirFS(filepath.Join(s.dir, "appendonlydir")))); err != nil {
		s.t.Fatal(err)
	}
	s.Resume()
	return func() {
		s.t.Helper()
		s.Kill()
		live := filepath.Join(s.dir, "appendonlydir")
		if err := errors.Join(os.RemoveAll(live), os.CopyFS(live, os.DirFS(kept))); err != nil {
			s.t.Fatal(err)
		}
		s.Start()
	}
}

// Empty throws all data away and restarts, as a restore of an empty disk would.
func (s *Server) Empty() {
	s.t.Helper()
	s.Kill()
	if err := os.RemoveAll(filepath.Join(s.dir, "appendonlydir")); err != nil {
		s.t.Fatal(err)
	}
	s.Start()
}
