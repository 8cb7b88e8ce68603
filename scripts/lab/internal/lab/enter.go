package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command prepares a program to be run in the machine as root, with a small clean environment. Cancelling the context kills
// it with everything it started.
func (n *Node) Command(ctx context.Context, argv ...string) *exec.Cmd {
	args := append([]string{"-t", strconv.Itoa(n.PID), "-m", "-u", "-i", "-n", "-p", "--"}, argv...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "TERM=" + os.Getenv("TERM"),
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd
}

// ExitError says that a program ended with another status than 0, and what it wrote.
type ExitError struct {
	Machine        string
	Argv           []string
	Status         int
	Stdout, Stderr string
}

func (e *ExitError) Error() string {
	said := e.Stderr
	if said == "" {
		said = e.Stdout
	}
	return fmt.Sprintf("%s: `%s` ended with status %d: %s", e.Machine, strings.Join(e.Argv, " "), e.Status, strings.TrimSpace(said))
}

// Exec runs a program in the machine as root and returns its standard output.
func (n *Node) Exec(ctx context.Context, argv ...string) (string, error) {
	return n.ExecEnv(ctx, nil, argv...)
}

// ExecEnv is Exec with more environment.
func (n *Node) ExecEnv(ctx context.Context, env []string, argv ...string) (string, error) {
	cmd := n.Command(ctx, argv...)
	cmd.Env = append(cmd.Env, env...)
	var stdout, stderr bytes.Buffer
	err := n.run(cmd, argv, &stdout, &stderr)
	return stdout.String(), err
}

// ExecInput is Exec with a standard input.
func (n *Node) ExecInput(ctx context.Context, input string, argv ...string) (string, error) {
	cmd := n.Command(ctx, argv...)
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	err := n.run(cmd, argv, &stdout, &stderr)
	return stdout.String(), err
}

func (n *Node) run(cmd *exec.Cmd, argv []string, stdout, stderr *bytes.Buffer) error {
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &ExitError{n.Name, argv, exit.ExitCode(), stdout.String(), stderr.String()}
	}
	if err != nil {
		return fmt.Errorf("%s: `%s`: %w", n.Name, strings.Join(argv, " "), err)
	}
	return nil
}

// Dial connects from within the machine, from the given local address if it is valid. addr is an address and a port, not
// a name. The connection stays in the machine's network wherever it is used.
func (n *Node) Dial(ctx context.Context, network, addr string, from netip.Addr) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return nil, err
	}
	dialer := net.Dialer{}
	if from.IsValid() {
		dialer.LocalAddr = &net.TCPAddr{IP: from.AsSlice()}
	}
	err = n.within(func() error {
		conn, err = dialer.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// within runs f on a thread that is in the machine's network namespace. f must create its sockets itself, on this thread.
func (n *Node) within(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// The thread is not given back if it can't return to where it came from.
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		there, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.PID))
		if err != nil {
			done <- fmt.Errorf("machine %s is gone: %w", n.Name, err)
			return
		}
		defer there.Close()
		if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network of %s: %w", n.Name, err)
			return
		}
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// Interactive is Command for a person at a terminal: in the caller's process group, so that the terminal is theirs, and
// knowing how to reach the control plane.
func (n *Node) Interactive(ctx context.Context, l *Lab, argv ...string) *exec.Cmd {
	cmd := n.Command(ctx, argv...)
	cmd.SysProcAttr, cmd.Cancel = nil, func() error { return nil }
	cmd.Env = append(cmd.Env, `PS1=\h:\w# `)
	cmd.Env = append(cmd.Env, l.OperatorEnv()...)
	return cmd
}
