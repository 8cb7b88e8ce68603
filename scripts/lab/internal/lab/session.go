package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strings"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// Session is a person's SSH session on a host: authenticated, with a shell that waits.
type Session struct {
	cmd    *exec.Cmd
	cancel context.CancelFunc
	in     io.WriteCloser
	lines  chan string
}

// OpenSession logs in from a machine's address to a host. The session ends with Close or the context.
func (l *Lab) OpenSession(ctx context.Context, n *Node, from netip.Addr, host *Node) (*Session, error) {
	to := host.Addr
	if from.Is6() {
		to = host.Addr6
	}
	sessionCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	cmd := n.SSH(sessionCtx, from, to, SSHUser, Password, "cat")
	s := &Session{cmd: cmd, cancel: cancel, lines: make(chan string, 16)}
	var err error
	if s.in, err = cmd.StdinPipe(); err != nil {
		cancel()
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		cancel()
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	go func() {
		defer close(s.lines)
		scanner := bufio.NewScanner(out)
		for scanner.Scan() {
			s.lines <- scanner.Text()
		}
	}()
	if err := s.Answers(ctx); err != nil {
		s.Close()
		return nil, fmt.Errorf("log in on %s from %s: %w", host.Name, from, err)
	}
	return s, nil
}

// Answers says whether the session still works: what is typed comes back.
func (s *Session) Answers(ctx context.Context) error {
	const typed = "still here"
	if _, err := io.WriteString(s.in, typed+"\n"); err != nil {
		return fmt.Errorf("the session has ended: %w", err)
	}
	select {
	case line, open := <-s.lines:
		if !open {
			return errors.New("the session has ended")
		}
		if line != typed {
			return fmt.Errorf("the session answers %q to %q", line, typed)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the session doesn't answer: %w", ctx.Err())
	}
}

// Close ends the session.
func (s *Session) Close() {
	_ = s.in.Close()
	s.cancel()
	_ = s.cmd.Wait()
}

// HostState is what the control plane knows of a host.
func (l *Lab) HostState(ctx context.Context, name string) (*operatorv1.Host, error) {
	answer, err := l.Operator().Hosts.GetHost(ctx, connect.NewRequest(operatorv1.GetHostRequest_builder{Host: name}.Build()))
	if err != nil {
		return nil, fmt.Errorf("ask for host %s: %w", name, err)
	}
	return answer.Msg.GetHost(), nil
}

// ReplicaOf names the service that a replica is, by the name it goes by in the control plane.
func (l *Lab) ReplicaOf(replica string) (string, error) {
	for i := range l.options.Replicas {
		if name := ServiceReplica(i + 1); strings.HasPrefix(replica, name) {
			return name, nil
		}
	}
	return "", fmt.Errorf("the control plane calls a replica %q, which is none of the lab's", replica)
}
