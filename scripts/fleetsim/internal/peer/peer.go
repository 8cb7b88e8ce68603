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
	// join is what the publisher subscribes to all answers with, and answer what a subscriber writes to give one; empty where one that
	// subscribes can't.
	join, answer string
}

// Measured is what a peer took.
type Measured struct {
	// Last is from a message until the last subscriber has it.
	Last *hdrhistogram.Histogram
	// Answered is from a message until the publisher has an answer of each subscriber to it; empty where they can't give one.
	Answered *hdrhistogram.Histogram
	// PerSecond is deliveries a second of many messages at once.
	PerSecond float64
}

const (
	channel = "fleetsim"
	inbox   = "fleetsim.answers"
	// size of a message, bytes: about a ban; and of an answer: about its acknowledgement.
	size, answerSize = 100, 40
	// longest is how long a peer may take for all of it.
	longest = 5 * time.Minute
	// Rounds is how many messages are measured, one after the other.
	Rounds = 30
)

// NATS is the name of the peer that a fleet is held against.
const NATS = "NATS"

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
			Name: NATS,
			command: func(_, port string) *exec.Cmd {
				return exec.Command("nats-server", "-a", "127.0.0.1", "-p", port) //nolint:noctx // Measure ends it
			},
			subscribe: "CONNECT {\"verbose\":false}\r\nSUB " + channel + " 1\r\nPING\r\n", subscribed: "PONG",
			publish: func(body string) string { return fmt.Sprintf("PUB %s %d\r\n%s\r\n", channel, len(body), body) },
			join:    "CONNECT {\"verbose\":false}\r\nSUB " + inbox + " 1\r\nPING\r\n",
			answer:  fmt.Sprintf("PUB %s %d\r\n%s\r\n", inbox, answerSize, strings.Repeat("a", answerSize)),
		})
	}
	return out
}

// Measure starts the peer, subscribes so many connections and publishes to them.
func (p Peer) Measure(ctx context.Context, dir string, subscribers, burst int) (Measured, error) {
	ctx, cancel := context.WithTimeout(ctx, longest)
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
	back := bufio.NewReaderSize(publisher, 64<<10)
	if p.join != "" {
		if err := p.subscribeWith(p.join, publisher, back); err != nil {
			return Measured{}, err
		}
	}
	var (
		answers atomic.Bool
		got     = counter{done: make(chan struct{}, 1)}
		wg      sync.WaitGroup
		conns   []net.Conn
	)
	defer func() {
		_ = publisher.Close()
		for _, c := range conns {
			_ = c.Close()
		}
		wg.Wait()
	}()
	mark, answer := []byte(strings.Repeat("x", size)), []byte(strings.Repeat("a", answerSize))
	wg.Go(func() {
		_ = each(back, answer, func() error {
			got.add()
			return nil
		})
	})
	for range subscribers {
		c, err := dial(ctx, address)
		if err != nil {
			return Measured{}, err
		}
		conns = append(conns, c)
		r := bufio.NewReaderSize(c, 1024)
		if err := p.subscribeWith(p.subscribe, c, r); err != nil {
			return Measured{}, err
		}
		wg.Go(func() {
			_ = each(r, mark, func() error {
				if answers.Load() {
					_, err := io.WriteString(c, p.answer)
					return err
				}
				got.add()
				return nil
			})
		})
	}
	send := func(n int) (time.Duration, error) {
		got.await(int64(n * subscribers))
		began := time.Now()
		if _, err := io.WriteString(publisher, strings.Repeat(p.publish(string(mark)), n)); err != nil {
			return 0, err
		}
		select {
		case <-got.done:
			return time.Since(began), nil
		case <-ctx.Done():
			return 0, fmt.Errorf("%d of %d came: %w", got.n.Load(), n*subscribers, ctx.Err())
		}
	}
	m := Measured{Last: host.Histogram(), Answered: host.Histogram()}
	measure := func(h *hdrhistogram.Histogram) error {
		for range Rounds {
			took, err := send(1)
			if err != nil {
				return err
			}
			host.Observe(h, took)
		}
		return nil
	}
	if err := measure(m.Last); err != nil {
		return m, err
	}
	took, err := send(burst)
	if err != nil {
		return m, err
	}
	m.PerSecond = float64(burst*subscribers) / took.Seconds()
	if p.answer == "" {
		return m, nil
	}
	answers.Store(true)
	return m, measure(m.Answered)
}

// counter tells when so many have come.
type counter struct {
	n, want atomic.Int64
	done    chan struct{}
}

// await counts anew, up to n.
func (c *counter) await(n int64) {
	c.n.Store(0)
	c.want.Store(n)
}

func (c *counter) add() {
	if c.n.Add(1) == c.want.Load() {
		c.done <- struct{}{}
	}
}

// each calls f for each message of that body, until either fails.
func each(r *bufio.Reader, body []byte, f func() error) error {
	for {
		line, err := r.ReadSlice('\n')
		if err == nil && bytes.HasPrefix(line, body) {
			err = f()
		}
		if err != nil {
			return err
		}
	}
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

func (p Peer) subscribeWith(words string, c net.Conn, r *bufio.Reader) error {
	if _, err := io.WriteString(c, words); err != nil {
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
