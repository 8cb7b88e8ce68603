package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/await"
)

const (
	// probePause is how often a probe asks: the precision of when it was cut.
	probePause = time.Millisecond
	// probeSilence is how long an answer may take before the connection counts as cut, on a busy machine.
	probeSilence = 400 * time.Millisecond
	// connectLimit is how long a connection may take before it counts as refused. A SYN is repeated after a second.
	connectLimit = 700 * time.Millisecond
)

// Target is something the attacker can try to reach.
type Target struct {
	// Name says what it is to a reader.
	Name string
	Addr string
}

// Targets are the echo servers of the hosts, and of the box behind the last one.
func (l *Lab) Targets() (targets []Target) {
	for _, h := range l.Hosts() {
		targets = append(targets, Target{h.Name, addrPort(h.Addr, EchoPort)})
	}
	if l.options.Box {
		targets = append(targets, Target{Box, addrPort(l.boxHost().Addr, BoxEchoPort)})
	}
	return targets
}

// Targets6 are Targets in IPv6.
func (l *Lab) Targets6() (targets []Target) {
	for _, h := range l.Hosts() {
		targets = append(targets, Target{h.Name, addrPort(h.Addr6, EchoPort)})
	}
	if l.options.Box {
		targets = append(targets, Target{Box, addrPort(l.boxHost().Addr6, BoxEchoPort)})
	}
	return targets
}

// Probe is a connection that stands and asks all the time whether it still does.
type Probe struct {
	Target Target
	conn   net.Conn
	done   chan struct{}

	mu      sync.Mutex
	answers int
	cutAt   time.Time
	err     error
}

// NewProbe opens a connection from an address of n and keeps asking on it until Close.
func NewProbe(ctx context.Context, n *Node, from netip.Addr, target Target) (*Probe, error) {
	conn, err := n.Dial(ctx, "tcp", target.Addr, from)
	if err != nil {
		return nil, fmt.Errorf("%s can't connect to %s: %w", from, target.Name, err)
	}
	p := &Probe{Target: target, conn: conn, done: make(chan struct{})}
	go p.ask()
	return p, nil
}

func (p *Probe) ask() {
	defer close(p.done)
	lines := bufio.NewReader(p.conn)
	pause := time.NewTicker(probePause)
	defer pause.Stop()
	for {
		sent := time.Now()
		if err := p.conn.SetDeadline(sent.Add(probeSilence)); err != nil {
			return
		}
		_, err := p.conn.Write([]byte("still there?\n"))
		if err == nil {
			_, err = lines.ReadSlice('\n')
		}
		p.mu.Lock()
		if err != nil {
			p.cutAt, p.err = sent, err
			p.mu.Unlock()
			return
		}
		p.answers++
		p.mu.Unlock()
		<-pause.C
	}
}

// Cut waits until the connection is cut, and returns when the first question went out that was never answered.
func (p *Probe) Cut(ctx context.Context) (time.Time, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		p.mu.Lock()
		defer p.mu.Unlock()
		return time.Time{}, fmt.Errorf("the connection to %s still stands, after %d answers: %w", p.Target.Name, p.answers, ctx.Err())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answers == 0 {
		return time.Time{}, fmt.Errorf("the connection to %s never worked: %w", p.Target.Name, p.err)
	}
	return p.cutAt, nil
}

// Stands says whether the connection has been answered all the time.
func (p *Probe) Stands() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Close ends the connection.
func (p *Probe) Close() {
	_ = p.conn.Close()
	<-p.done
}

// ErrUnreachable is what Reach returns for a target that doesn't answer.
var ErrUnreachable = errors.New("doesn't answer")

// Reach connects once from an address of n and asks for one answer.
func Reach(ctx context.Context, n *Node, from netip.Addr, target Target) error {
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	conn, err := n.Dial(ctx, "tcp", target.Addr, from)
	if err != nil {
		return fmt.Errorf("%s from %s %w: %w", target.Name, from, ErrUnreachable, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(connectLimit)); err != nil {
		return err
	}
	if _, err = conn.Write([]byte("hello\n")); err == nil {
		_, err = bufio.NewReader(conn).ReadString('\n')
	}
	if err != nil {
		return fmt.Errorf("%s from %s %w: %w", target.Name, from, ErrUnreachable, err)
	}
	return nil
}

// AwaitReach waits until a target answers and returns when it did.
func AwaitReach(ctx context.Context, n *Node, from netip.Addr, target Target) (time.Time, error) {
	err := await.Until(ctx, target.Name+" to answer "+from.String(), func() error {
		// A first packet that was still dropped is repeated after a second only: better try again soon.
		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		return Reach(short, n, from, target)
	})
	return time.Now(), err
}

// AwaitUnreachable waits until a target answers no more.
func AwaitUnreachable(ctx context.Context, n *Node, from netip.Addr, target Target) error {
	return await.Until(ctx, target.Name+" to refuse "+from.String(), func() error {
		switch err := Reach(ctx, n, from, target); {
		case errors.Is(err, ErrUnreachable):
			return nil
		case err != nil:
			return err
		default:
			return errors.New("it answers")
		}
	})
}
