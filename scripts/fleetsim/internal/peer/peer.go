// Package peer measures what something simpler takes for what a fleet does: one message to many TCP connections. What it
// measures is the least that a comparison is fair with: no TLS, no versions, no acknowledgement, nothing kept.
package peer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/fleetban/fleetban/scripts/fleetsim/internal/host"
)

// Peer is a program that passes messages on.
type Peer struct {
	Name      string
	command   func(dir, port string) *exec.Cmd
	subscribe string
	// subscribed begins the line that says that a subscription stands.
	subscribed string
	publish    func(body string) string
}

// Measured is what a peer took.
type Measured struct {
	// Last is from a message until the last subscriber has it.
	Last *hdrhistogram.Histogram
	// PerSecond is deliveries a second of many messages at once.
	PerSecond float64
}

const (
	channel = "fleetsim"
	// size of a message, bytes: about a ban.
	size   = 100
	rounds = 30
)

// All are the peers that this machine has.
func All() (out []Peer) {
	out = append(out, Peer{
		Name: "a bare Redis PUBLISH",
		command: func(dir, port string) *exec.Cmd {
			return exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", dir, "--save", "", "--appendonly", "no", "--maxclients", "19900", //nolint:noctx // Measure ends it
				"--client-output-buffer-limit", "pubsub 0 0 0")
		},
		subscribe: "*2\r\n$9\r\nSUBSCRIBE\r\n$8\r\n" + channel + "\r\n", subscribed: ":1",
		publish: func(body string) string {
			return fmt.Sprintf("*3\r\n$7\r\nPUBLISH\r\n$8\r\n%s\r\n$%d\r\n%s\r\n", channel, len(body), body)
		},
	})
	if _, err := exec.LookPath("nats-server"); err == nil {
		out = append(out, Peer{
			Name: "NATS",
			command: func(_, port string) *exec.Cmd {
				return exec.Command("nats-server", "-a", "127.0.0.1", "-p", port) //nolint:noctx // Measure ends it
			},
			subscribe: "CONNECT {\"verbose\":false}\r\nSUB " + channel + " 1\r\nPING\r\n", subscribed: "PONG",
			publish: func(body string) string { return fmt.Sprintf("PUB %s %d\r\n%s\r\n", channel, len(body), body) },
		})
	}
	return out
}

// Measure starts the peer, subscribes so many connections and publishes to them.
func (p Peer) Measure(ctx context.Context, dir string, subscribers, burst int) (Measured, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return Measured{}, err
	}
	address := l.Addr().String()
	_ = l.Close()
	cmd := p.command(dir, strconv.Itoa(l.Addr().(*net.TCPAddr).Port)) //nolint:forcetypeassert // a TCP listener's
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return Measured{}, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	publisher, err := dial(ctx, address)
	if err != nil {
		return Measured{}, err
	}
	defer publisher.Close()
	go func() { _, _ = io.Copy(io.Discard, publisher) }()
	var (
		got   atomic.Int64 // messages, over all subscribers
		want  atomic.Int64
		done  = make(chan struct{}, 1)
		wg    sync.WaitGroup
		conns []net.Conn
	)
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
		wg.Wait()
	}()
	mark := []byte(strings.Repeat("x", size))
	for range subscribers {
		c, err := dial(ctx, address)
		if err != nil {
			return Measured{}, err
		}
		conns = append(conns, c)
		r := bufio.NewReaderSize(c, 1024)
		if err := p.join(c, r); err != nil {
			return Measured{}, err
		}
		wg.Go(func() {
			for {
				line, err := r.ReadSlice('\n')
				if err != nil {
					return
				}
				if bytes.HasPrefix(line, mark) && got.Add(1) == want.Load() {
					select {
					case done <- struct{}{}:
					default:
					}
				}
			}
		})
	}
	send := func(n int) (time.Duration, error) {
		got.Store(0)
		want.Store(int64(n * subscribers))
		began := time.Now()
		if _, err := io.WriteString(publisher, strings.Repeat(p.publish(string(mark)), n)); err != nil {
			return 0, err
		}
		select {
		case <-done:
			return time.Since(began), nil
		case <-ctx.Done():
			return 0, fmt.Errorf("%d of %d were delivered: %w", got.Load(), want.Load(), ctx.Err())
		}
	}
	m := Measured{Last: host.Histogram()}
	for range rounds {
		took, err := send(1)
		if err != nil {
			return m, err
		}
		host.Observe(m.Last, took)
	}
	took, err := send(burst)
	if err != nil {
		return m, err
	}
	m.PerSecond = float64(burst*subscribers) / took.Seconds()
	return m, nil
}

// dial connects as soon as the server listens.
func dial(ctx context.Context, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (p Peer) join(c net.Conn, r *bufio.Reader) error {
	if _, err := io.WriteString(c, p.subscribe); err != nil {
		return err
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		if strings.HasPrefix(line, "-") {
			return errors.New(strings.TrimSpace(line))
		}
		if strings.HasPrefix(line, p.subscribed) {
			return nil
		}
	}
}
