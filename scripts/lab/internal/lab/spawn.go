package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/fleetban/fleetban/scripts/lab/internal/node"
)

// spawn starts the machine's first process in namespaces of its own and waits until it says that its root is built.
func (n *Node) spawn(ctx context.Context, lease *os.File) error {
	report, reportWrite, err := os.Pipe()
	if err != nil {
		return err
	}
	defer report.Close()
	logFile, err := os.OpenFile(filepath.Join(n.dir, "node.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer logFile.Close()
	// The machine stands longer than the call that makes it.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/proc/self/exe")
	cmd.Args = []string{node.Arg0, n.dir}
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{reportWrite}
	if lease != nil {
		cmd.Args = append(cmd.Args, "leased")
		cmd.ExtraFiles = append(cmd.ExtraFiles, lease)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWPID,
	}
	err = cmd.Start()
	_ = reportWrite.Close()
	if err != nil {
		return fmt.Errorf("start machine %s in namespaces of its own: %w", n.Name, err)
	}
	n.cmd, n.PID = cmd, cmd.Process.Pid
	line, err := bufio.NewReader(report).ReadString('\n')
	line = strings.TrimSpace(line)
	switch {
	case line == "ok":
		return nil
	case errors.Is(err, io.EOF) && line == "":
		content, _ := os.ReadFile(logFile.Name())
		return fmt.Errorf("machine %s ended while it was being made: %s", n.Name, lastLines(string(content), 20))
	default:
		return errors.New(line)
	}
}

// request asks the machine's first process for something.
func (n *Node) request(ctx context.Context, request node.Request) ([]node.State, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", filepath.Join(n.dir, node.ControlName))
	if err != nil {
		return nil, fmt.Errorf("machine %s doesn't answer: %w", n.Name, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := json.NewEncoder(conn).Encode(request); err != nil {
		return nil, err
	}
	var response node.Response
	if err := json.NewDecoder(conn).Decode(&response); err != nil {
		return nil, fmt.Errorf("machine %s broke off: %w", n.Name, errors.Join(ctx.Err(), err))
	}
	if response.Error != "" {
		return nil, fmt.Errorf("%s: %s", n.Name, response.Error)
	}
	return response.Services, nil
}

// Start starts a service, or one that was stopped again if only its name is given.
func (n *Node) Start(ctx context.Context, service node.Service) error {
	_, err := n.request(ctx, node.Request{Op: node.OpStart, Service: service})
	return err
}

// StartAgain starts a service that was stopped.
func (n *Node) StartAgain(ctx context.Context, name string) error {
	return n.Start(ctx, node.Service{Name: name})
}

// Stop ends a service with a signal and returns when it has ended. It stays down until StartAgain.
func (n *Node) Stop(ctx context.Context, name string, signal syscall.Signal) error {
	_, err := n.request(ctx, node.Request{Op: node.OpStop, Name: name, Signal: int(signal)})
	return err
}

// Signal sends a service a signal. If it ends by it, it is started again as systemd would.
func (n *Node) Signal(ctx context.Context, name string, signal syscall.Signal) error {
	_, err := n.request(ctx, node.Request{Op: node.OpSignal, Name: name, Signal: int(signal)})
	return err
}

// Services lists the machine's services as they are now.
func (n *Node) Services(ctx context.Context) ([]node.State, error) {
	return n.request(ctx, node.Request{Op: node.OpList})
}

// Service returns one service as it is now.
func (n *Node) Service(ctx context.Context, name string) (node.State, error) {
	states, err := n.Services(ctx)
	if err != nil {
		return node.State{}, err
	}
	for _, s := range states {
		if s.Name == name {
			return s, nil
		}
	}
	return node.State{}, fmt.Errorf("%s has no service %q", n.Name, name)
}

// Path is where a file of the machine is seen from outside it.
func (n *Node) Path(path string) string { return fmt.Sprintf("/proc/%d/root%s", n.PID, path) }

// explain adds what a service printed to an error about it.
func (n *Node) explain(err error, service string) error {
	if err == nil {
		return nil
	}
	content, readErr := os.ReadFile(n.Path(node.LogDir + "/" + service + ".log"))
	if readErr != nil || len(content) == 0 {
		return err
	}
	return fmt.Errorf("%w\n%s", err, lastLines(string(content), 15))
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
