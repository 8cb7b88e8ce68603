// Package fail2bantest runs private fail2ban servers for tests: a real server with its own configuration, socket, database
// and logs in a temporary folder. It touches nothing of the machine's fail2ban and, unless a jail asks for actions, no
// firewall. The server ends with the test.
package fail2bantest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fleetban/fleetban/agent/internal/fail2ban"
)

// patience is how long a server may take to start or to end, on a machine that runs many tests at once.
const patience = time.Minute

// Jail is one jail of the configuration. Its filter bans on lines of the form "<time> failure from ADDR" (see Attack).
type Jail struct {
	Name string
	// BanTime in seconds, 600 if zero.
	BanTime int
	// MaxRetry is 1 if zero.
	MaxRetry int
	// Lines are added to the jail's section as they are.
	Lines []string
}

// Options of Start. The zero value is one jail "sshd", logging to a file at level INFO.
type Options struct {
	Jails []Jail
	// LogTarget is "file" if empty, else as fail2ban takes it: STDOUT, SYSLOG.
	LogTarget string
	LogLevel  string
	// NoDatabase forgets bans at a stop.
	NoDatabase bool
	// Env is added to the server's environment, as "TZ=Asia/Kathmandu".
	Env []string
	// Wrap is put before the server's command, as "ip netns exec NAME".
	Wrap []string
	// Stopped doesn't start the server: call Launch.
	Stopped bool
}

// RootVariable names a folder into which another version's package was unpacked, to be run instead of the system's.
const RootVariable = "FLEETBAN_TEST_FAIL2BAN"

// program is one of fail2ban's and what its environment needs.
func program(name string) (string, []string) {
	root := os.Getenv(RootVariable)
	if root == "" {
		return name, nil
	}
	return filepath.Join(root, "usr/bin", name), []string{"PYTHONPATH=" + filepath.Join(root, "usr/lib/python3/dist-packages")}
}

// Server is one private fail2ban.
type Server struct {
	Dir, Socket, LogPath, ConfigDir, Database string

	tb   testing.TB
	opts Options

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
}

// Start configures a server and waits until all its jails are up.
func Start(tb testing.TB, opts Options) *Server {
	tb.Helper()
	if len(opts.Jails) == 0 {
		opts.Jails = []Jail{{Name: "sshd"}}
	}
	// Sockets' paths are short: t.TempDir carries the test's whole name.
	dir, err := os.MkdirTemp("", "f2b")
	if err != nil {
		tb.Fatal(err)
	}
	s := &Server{
		Dir: dir, Socket: filepath.Join(dir, "f2b.sock"), LogPath: filepath.Join(dir, "fail2ban.log"),
		ConfigDir: filepath.Join(dir, "etc"), Database: filepath.Join(dir, "f2b.sqlite3"), tb: tb, opts: opts,
	}
	tb.Cleanup(func() {
		s.Kill()
		if tb.Failed() {
			if b, err := os.ReadFile(s.LogPath); err == nil {
				tb.Logf("fail2ban's log:\n%s", b[max(0, len(b)-8000):])
			}
		}
		_ = os.RemoveAll(dir)
	})
	for _, sub := range []string{"filter.d", "action.d", "jail.d", "fail2ban.d"} {
		if err := os.MkdirAll(filepath.Join(s.ConfigDir, sub), 0o755); err != nil {
			tb.Fatal(err)
		}
	}
	s.write("filter.d/plain.conf", "[Definition]\nfailregex = failure from <HOST>\ndatepattern = ^EPOCH\n")
	s.write("action.d/none.conf", "[Definition]\nactionban =\nactionunban =\n")
	s.WriteConfig(opts)
	if !opts.Stopped {
		s.Launch()
	}
	return s
}

func (s *Server) write(name, text string) {
	s.tb.Helper()
	if err := os.WriteFile(filepath.Join(s.ConfigDir, name), []byte(text), 0o644); err != nil {
		s.tb.Fatal(err)
	}
}

// WriteConfig replaces the configuration. It takes effect at the next Reload or Launch.
func (s *Server) WriteConfig(opts Options) {
	s.tb.Helper()
	s.opts = opts
	target, level, db := opts.LogTarget, opts.LogLevel, s.Database
	if target == "" {
		target = s.LogPath
	}
	if level == "" {
		level = "INFO"
	}
	if opts.NoDatabase {
		db = "None"
	}
	s.write("fail2ban.conf", fmt.Sprintf("[Definition]\nloglevel = %s\nlogtarget = %s\nsyslogsocket = auto\nsocket = %s\n"+
		"pidfile = %s\ndbfile = %s\ndbpurgeage = 1d\ndbmaxmatches = 10\nallowipv6 = yes\n", level, target, s.Socket, s.Dir+"/f2b.pid", db))
	var b strings.Builder
	b.WriteString("[DEFAULT]\nbackend = polling\nusedns = no\nignoreself = false\nfindtime = 600\nlogencoding = utf-8\n")
	for _, j := range opts.Jails {
		if err := appendFile(s.JailLog(j.Name), ""); err != nil {
			s.tb.Fatal(err)
		}
		ban, retry := j.BanTime, j.MaxRetry
		if ban == 0 {
			ban = 600
		}
		if retry == 0 {
			retry = 1
		}
		fmt.Fprintf(&b, "[%s]\nenabled = true\nfilter = plain\nlogpath = %s\naction =\nbantime = %d\nmaxretry = %d\n%s\n",
			j.Name, s.JailLog(j.Name), ban, retry, strings.Join(j.Lines, "\n"))
	}
	s.write("jail.conf", b.String())
}

// JailLog is the log that a jail reads.
func (s *Server) JailLog(jail string) string { return filepath.Join(s.Dir, jail+".log") }

// Attack writes one failure of addr, now, to a jail's log.
func (s *Server) Attack(jail, addr string) {
	s.tb.Helper()
	s.AttackAt(jail, addr, time.Now())
}

// AttackAt is Attack at another time: a ban begins when the last failure was.
func (s *Server) AttackAt(jail, addr string, at time.Time) {
	s.tb.Helper()
	if err := appendFile(s.JailLog(jail), fmt.Sprintf("%d failure from %s\n", at.Unix(), addr)); err != nil {
		s.tb.Fatal(err)
	}
}

// AppendLog writes to fail2ban's own log, as a forger would.
func (s *Server) AppendLog(text string) {
	s.tb.Helper()
	if err := appendFile(s.LogPath, text); err != nil {
		s.tb.Fatal(err)
	}
}

func appendFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// Launch starts the server and waits until all its jails are up and it has read all its configuration: asked to
// end before that, fail2ban waits half a minute for the rest of it.
func (s *Server) Launch() {
	s.tb.Helper()
	server, env := program("fail2ban-server")
	args := append(append([]string{}, s.opts.Wrap...), server, "-c", s.ConfigDir, "-s", s.Socket,
		"-p", filepath.Join(s.Dir, "f2b.pid"), "-x", "-f", "start")
	cmd := exec.Command(args[0], args[1:]...) //nolint:gosec // a test's own words
	cmd.Env = append(append(append(os.Environ(), "PYTHONUNBUFFERED=1"), env...), s.opts.Env...)
	stdout := filepath.Join(s.Dir, "stdout")
	out, err := os.OpenFile(stdout, os.O_TRUNC|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		s.tb.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.tb.Fatalf("start fail2ban-server (apt-get install fail2ban): %v", err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	s.mu.Lock()
	s.cmd, s.exited = cmd, exited
	s.mu.Unlock()

	client := fail2ban.New(s.Socket)
	defer client.Close()
	Eventually(s.tb, patience, "fail2ban has all its jails up", func() bool {
		select {
		case <-exited:
			b, _ := os.ReadFile(stdout)
			s.tb.Fatalf("fail2ban-server ended at its start: %s", b)
		default:
		}
		jails, err := client.Jails(context.Background())
		said, _ := os.ReadFile(stdout)
		return err == nil && len(jails) == len(s.opts.Jails) && strings.Contains(string(said), "Server ready")
	})
}

// Stop ends the server as `systemctl stop fail2ban` does and waits for it.
func (s *Server) Stop() { s.signal(syscall.SIGTERM) }

// Kill ends the server as `kill -9` does and waits for it.
func (s *Server) Kill() { s.signal(syscall.SIGKILL) }

func (s *Server) signal(sig syscall.Signal) {
	s.mu.Lock()
	cmd, exited := s.cmd, s.exited
	s.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(sig)
	select {
	case <-exited:
	case <-time.After(patience):
		_ = cmd.Process.Kill()
		<-exited
		s.tb.Errorf("fail2ban-server didn't end within %s of %v", patience, sig)
	}
}

// PID is the server's process.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd.Process.Pid
}

// Command runs fail2ban-client against the server, as a person would, and returns what it prints.
func (s *Server) Command(args ...string) string {
	s.tb.Helper()
	all := append([]string{"-c", s.ConfigDir, "-s", s.Socket, "-p", filepath.Join(s.Dir, "f2b.pid")}, args...)
	client, env := program("fail2ban-client")
	cmd := exec.Command(client, all...) //nolint:gosec // a test's own words
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		s.tb.Fatalf("fail2ban-client %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// Client makes a client of the server that closes with the test.
func (s *Server) Client() *fail2ban.Client {
	c := fail2ban.New(s.Socket)
	s.tb.Cleanup(func() { _ = c.Close() })
	return c
}

// Eventually waits until cond holds, asking every 5 ms, and fails the test after limit.
func Eventually(tb testing.TB, limit time.Duration, what string, cond func() bool) {
	tb.Helper()
	deadline := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(deadline) {
			tb.Fatalf("within %s it never came to this: %s", limit, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
