// Package redistest runs real Redis servers for a test: one, a cluster, or a master with replicas and Sentinels.
package redistest

import (
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// Variable, set to "cluster", makes Start start a cluster of three masters: so that every test that needs a Redis can be
// run against one (`make test-cluster`).
const Variable = "FLEETBAN_TEST_REDIS"

// patience is the longest that anything here may take.
const patience = time.Minute

// Server is a Redis of its own: a redis-server on a Unix socket in a temporary folder, with an append-only file; or a cluster.
type Server struct {
	t     testing.TB
	url   string
	nodes []*Node
	// settled waits until the servers, which answer, work together; nil: there is one.
	settled func()
	backups int
}

// Node is one redis-server.
type Node struct {
	t      testing.TB
	dir    string
	args   []string
	socket string // "" for one on a port
	port   int
	secure *Secure
	cmd    *exec.Cmd
}

// quiet drops what go-redis says of servers that tests kill.
type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

func init() { redis.SetLogger(quiet{}) }

// Start starts a server that fsyncs always and stops it when the test ends. See Variable.
func Start(t testing.TB) *Server {
	t.Helper()
	if os.Getenv(Variable) == "cluster" {
		return &StartCluster(t).Server
	}
	return StartOne(t)
}

// StartOne starts one server, whatever Variable says.
func StartOne(t testing.TB) *Server {
	t.Helper()
	n := newNode(t)
	n.socket = filepath.Join(n.dir, "redis.sock")
	n.args = append([]string{"--port", "0", "--unixsocket", n.socket}, durable...)
	s := &Server{t: t, url: "unix://" + n.socket, nodes: []*Node{n}}
	s.Start()
	return s
}

// durable is how the control plane wants Redis to be.
var durable = []string{"--save", "", "--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"}

// newNode makes a server, not yet started, that is gone when the test ends.
func newNode(t testing.TB) *Node {
	t.Helper()
	// Not t.TempDir: its path may be longer than a socket's may be.
	dir, err := os.MkdirTemp("", "fbredis")
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{t: t, dir: dir}
	t.Cleanup(func() {
		n.Kill()
		_ = os.RemoveAll(dir)
	})
	return n
}

// URL is what store.Open takes.
func (s *Server) URL() string { return s.url }

// Open opens a store on the server and closes it when the test ends.
func (s *Server) Open() *store.Store {
	s.t.Helper()
	return s.open(nil)
}

// OpenCounted is Open of a store whose calls to Redis are counted: a command, a script or a pipeline is one each.
func (s *Server) OpenCounted() (st *store.Store, calls func() int64) {
	s.t.Helper()
	var n atomic.Int64
	return s.open(func(string, time.Duration, error) { n.Add(1) }), n.Load
}

func (s *Server) open(observe func(operation string, took time.Duration, err error)) *store.Store {
	s.t.Helper()
	st, err := store.Open(store.Options{URL: s.URL(), Observe: observe})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = st.Close() })
	return st
}

// Start starts the server (again, with the data it had) and waits until it answers.
func (s *Server) Start() {
	s.t.Helper()
	for _, n := range s.nodes {
		n.Start()
	}
	if s.settled != nil {
		s.settled()
	}
}

// Kill kills the server as a power cut would.
func (s *Server) Kill() { s.each((*Node).Kill) }

// Pause stops the server from answering; Resume lets it go on.
func (s *Server) Pause() { s.each((*Node).Pause) }

// Resume ends Pause.
func (s *Server) Resume() { s.each((*Node).Resume) }

func (s *Server) each(do func(*Node)) {
	for _, n := range s.nodes {
		do(n)
	}
}

// Set sets what CONFIG SET can, on every server.
func (s *Server) Set(name, value string) {
	s.t.Helper()
	s.each(func(n *Node) { n.Set(name, value) })
}

// Backup copies the server's data as a disk snapshot would: restore goes back to it.
func (s *Server) Backup() (restore func()) {
	s.t.Helper()
	s.Pause()
	s.backups++
	backup := "backup-" + strconv.Itoa(s.backups)
	for _, n := range s.nodes {
		if err := os.CopyFS(n.path(backup), os.DirFS(n.path(aofDir))); err != nil {
			s.t.Fatal(err)
		}
	}
	s.Resume()
	return func() {
		s.t.Helper()
		s.Kill()
		for _, n := range s.nodes {
			if err := errors.Join(os.RemoveAll(n.path(aofDir)), os.CopyFS(n.path(aofDir), os.DirFS(n.path(backup)))); err != nil {
				s.t.Fatal(err)
			}
		}
		s.Start()
	}
}

// Empty throws all data away and restarts, as a restore of an empty disk would.
func (s *Server) Empty() {
	s.t.Helper()
	s.Kill()
	for _, n := range s.nodes {
		if err := os.RemoveAll(n.path(aofDir)); err != nil {
			s.t.Fatal(err)
		}
	}
	s.Start()
}

const aofDir = "appendonlydir"

func (n *Node) path(name string) string { return filepath.Join(n.dir, name) }

// Addr is its address, for one on a port.
func (n *Node) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(n.port)) }

// Client is a connection to this server alone.
func (n *Node) Client() *redis.Client {
	o := &redis.Options{Network: "tcp", Addr: n.Addr(), MaxRetries: -1, DisableIdentity: true, Protocol: 2, DialerRetries: 1}
	if n.socket != "" {
		o.Network, o.Addr = "unix", n.socket
	}
	if n.secure != nil {
		o.TLSConfig, o.Password = n.secure.config, n.secure.Password
	}
	c := redis.NewClient(o)
	n.t.Cleanup(func() { _ = c.Close() })
	return c
}

// Start starts the server (again, with the data it had) and waits until it answers.
func (n *Node) Start() {
	n.t.Helper()
	n.launch()
	c := n.Client()
	n.poll("redis-server answers", func(ctx context.Context) error { return c.Ping(ctx).Err() })
	_ = c.Close()
}

func (n *Node) launch() {
	n.t.Helper()
	n.cmd = exec.Command("redis-server", append(n.args, "--dir", n.dir, "--daemonize", "no", "--logfile", n.path("log"))...)
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.cmd.Start(); err != nil {
		n.t.Fatalf("start redis-server (make setup installs it): %v", err)
	}
}

// Kill kills the server as a power cut would.
func (n *Node) Kill() {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait()
	n.cmd = nil
}

// Pause stops the server from answering, and returns when it has stopped; Resume lets it go on.
func (n *Node) Pause() {
	n.t.Helper()
	_ = n.cmd.Process.Signal(syscall.SIGSTOP)
	n.poll("redis-server has stopped", func(context.Context) error {
		// All of its threads, for it answers in any: a signal stops each where it is next looked at.
		states, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", n.cmd.Process.Pid))
		if err != nil {
			return err
		}
		for _, path := range states {
			state, err := os.ReadFile(path) //nolint:gosec // of /proc
			if err != nil {
				return err
			}
			if !strings.Contains(string(state), ") T ") {
				return fmt.Errorf("a thread goes on: %s", state)
			}
		}
		return nil
	})
}

// Resume ends Pause.
func (n *Node) Resume() { _ = n.cmd.Process.Signal(syscall.SIGCONT) }

// poll waits until do succeeds.
func (n *Node) poll(what string, do func(context.Context) error) { poll(n.t, what, n.path("log"), do) }

func poll(t testing.TB, what, log string, do func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := do(ctx)
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			text, _ := os.ReadFile(log)
			t.Fatalf("not within %s: %s: %v\n%s", patience, what, last, text)
		case <-tick.C:
		}
	}
}

var taken atomic.Int32

// FreePort finds a port that nobody listens on now, below those that the kernel gives to clients. Until the test ends no other test
// is given it, in whatever process: who has it listens on an abstract socket of its number.
func FreePort(t testing.TB) int {
	t.Helper()
	const first, last = 18000, 32000
	taken.CompareAndSwap(0, mathrand.Int32N(last-first)) //nolint:gosec // a place to begin
	for range 1000 {
		port := first + int(taken.Add(1))%(last-first)
		ours, err := net.Listen("unix", fmt.Sprintf("@fleetban-test-port-%d", port))
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = l.Close()
			t.Cleanup(func() { _ = ours.Close() })
			return port
		}
		_ = ours.Close()
	}
	t.Fatal("no free port")
	return 0
}
