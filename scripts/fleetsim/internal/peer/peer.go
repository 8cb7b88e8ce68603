// Package peer measures what something simpler takes for what a fleet does: one message to many TCP connections. What it
// measures is the least that a comparison is fair with: no versions, nothing kept, and in the clear; and beside that the same with TLS and with
// an answer of each subscriber, as streams have it.
package peer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/fleetban/fleetban/scripts/fleetsim/internal/host"
	"github.com/fleetban/fleetban/scripts/fleetsim/internal/plane"
)

// Peer is a program that passes messages on.
type Peer struct {
	Name      string
	command   func(dir, port string) *exec.Cmd
	subscribe string
	// secure, where it isn't nil, prepares the command in dir to serve with a certificate and its key. Connections begin with a line in
	// the clear then, and are TLS from there.
	secure func(dir, certificate, key string) error
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
	// Suite is what TLS uses on all connections; empty where they are in the clear.
	Suite string
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

// NATS is the name of the peer that a fleet is held against, and SecureNATS of the same with connections of TLS, as a fleet's are.
const (
	NATS       = "NATS"
	SecureNATS = "NATS over TLS"
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
		out = append(out, nats(NATS, false), nats(SecureNATS, true))
	}
	return out
}

func nats(name string, secure bool) Peer {
	p := Peer{
		Name: name,
		command: func(_, port string) *exec.Cmd {
			return exec.Command("nats-server", "-a", "127.0.0.1", "-p", port) //nolint:noctx // Measure ends it
		},
		subscribe: "CONNECT {\"verbose\":false}\r\nSUB " + channel + " 1\r\nPING\r\n", subscribed: "PONG",
		publish: func(body string) string { return fmt.Sprintf("PUB %s %d\r\n%s\r\n", channel, len(body), body) },
		join:    "CONNECT {\"verbose\":false}\r\nSUB " + inbox + " 1\r\nPING\r\n",
		answer:  fmt.Sprintf("PUB %s %d\r\n%s\r\n", inbox, answerSize, strings.Repeat("a", answerSize)),
	}
	if secure {
		const file = "nats.conf"
		p.command = func(dir, port string) *exec.Cmd {
			return exec.Command("nats-server", "-a", "127.0.0.1", "-p", port, "-c", filepath.Join(dir, file)) //nolint:noctx // Measure ends it
		}
		p.secure = func(dir, certificate, key string) error {
			// A file, for no flag says how many seconds a handshake may take: a busy machine needs more than two.
			text := fmt.Sprintf("tls {\n  cert_file: %q\n  key_file: %q\n  timeout: 20\n}\n", certificate, key)
			return os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600)
		}
	}
	return p
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
	d := dialler{address: address}
	if p.secure != nil {
		crt, key := filepath.Join(dir, "peer.crt"), filepath.Join(dir, "peer.key")
		if d.tls, err = plane.Certificate(server, crt, key); err != nil {
			return Measured{}, fmt.Errorf("make a certificate: %w", err)
		}
		if err := p.secure(dir, crt, key); err != nil {
			return Measured{}, err
		}
	}
	cmd := p.command(dir, strconv.Itoa(l.Addr().(*net.TCPAddr).Port)) //nolint:forcetypeassert // a TCP listener's
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return Measured{}, err
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	publisher, err := d.dial(ctx)
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
		c, err := d.dial(ctx)
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
	m := Measured{Last: host.Histogram(), Answered: host.Histogram(), Suite: suite(publisher)}
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

// server is what a peer's certificate calls it.
const server = "peer.test"

// dialler connects to a peer.
type dialler struct {
	address string
	tls     *tls.Config // nil where connections are in the clear
}

// dial connects as soon as the server listens.
func (d dialler) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.address)
		if err == nil {
			return d.secure(ctx, c)
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// secure makes the connection what the peer's are.
func (d dialler) secure(ctx context.Context, c net.Conn) (net.Conn, error) {
	if d.tls == nil {
		return c, nil
	}
	secured := tls.Client(c, d.tls)
	err := skipLine(ctx, c)
	if err == nil {
		err = secured.HandshakeContext(ctx)
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("secure a connection: %w", err)
	}
	return secured, nil
}

// suite is a connection's; empty where it is in the clear.
func suite(c net.Conn) string {
	if secured, ok := c.(*tls.Conn); ok {
		return tls.CipherSuiteName(secured.ConnectionState().CipherSuite)
	}
	return ""
}

// skipLine reads a line, after which the other end waits for TLS to begin.
func skipLine(ctx context.Context, c net.Conn) error {
	if until, ok := ctx.Deadline(); ok {
		_ = c.SetReadDeadline(until)
		defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	}
	var b [1 << 10]byte
	for {
		n, err := c.Read(b[:])
		if err != nil {
			return err
		}
		if bytes.HasSuffix(b[:n], []byte("\n")) {
			return nil
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
