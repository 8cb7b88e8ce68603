// Package plane runs a control plane for a simulation: a redis-server that syncs each write, and replicas of the real
// program, as processes of their own on loopback ports in a folder that goes with them.
package plane

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// program is the control plane's, in Options.BinDir.
const program = "fleetban-controlplane"

// name is how hosts and people call the control plane; only this process knows where it is.
const name = "fleet.test"

// startWithin bounds how long a process may take until it serves.
const startWithin = 60 * time.Second

// Options of Start.
type Options struct {
	// BinDir has fleetban-controlplane.
	BinDir string
	// Dir is where everything is kept; it must exist and be empty.
	Dir string
	// Replicas is how many are started, at least 1.
	Replicas int
	// TLS makes streams use TLS; without it they are h2c.
	TLS bool
	// Drain is how long a replica that is asked to end spreads the departure of its streams over.
	Drain time.Duration
}

// Plane is a running control plane.
type Plane struct {
	o        Options
	tls      *tls.Config
	token    string
	redis    *process
	replicas []*Replica
	next     atomic.Uint64
	prefer   atomic.Pointer[Replica]
}

// Replica is one process of the control plane. Its methods are called from one goroutine at a time.
type Replica struct {
	plane   *Plane
	Name    string
	address string
	metrics string
	starts  int

	mu      sync.Mutex
	process *process
}

// apiToken is how the administrator's token looks in what set-up prints.
var apiToken = regexp.MustCompile(`\bfbt_[0-9A-Za-z]+\b`)

// Start starts Redis, sets an organisation up that enforces, and starts the replicas. Stop must be called, also after an
// error.
func Start(ctx context.Context, o Options) (*Plane, error) {
	p := &Plane{o: o}
	if err := os.WriteFile(p.path("secret"), random(32), 0o600); err != nil {
		return p, err
	}
	if o.TLS {
		var err error
		if p.tls, err = Certificate(name, p.path("tls.crt"), p.path("tls.key")); err != nil {
			return p, fmt.Errorf("make a certificate: %w", err)
		}
	}
	if err := p.startRedis(ctx); err != nil {
		return p, err
	}
	args := append([]string{"setup", "--organisation", "Simulation", "--mode", "enforce"}, p.backend("setup")...)
	printed, err := exec.CommandContext(ctx, filepath.Join(o.BinDir, program), args...).CombinedOutput()
	if err != nil {
		return p, fmt.Errorf("set up the control plane: %w\n%s", err, printed)
	}
	if p.token = apiToken.FindString(string(printed)); p.token == "" {
		return p, errors.New("set-up printed no administrator's token")
	}
	for i := range o.Replicas {
		r := &Replica{plane: p, Name: fmt.Sprintf("replica-%d", i+1)}
		if r.address, err = freeAddress(ctx); err != nil {
			return p, err
		}
		if r.metrics, err = freeAddress(ctx); err != nil {
			return p, err
		}
		p.replicas = append(p.replicas, r)
		if err := r.Start(ctx); err != nil {
			return p, err
		}
	}
	return p, nil
}

// Stop ends all processes.
func (p *Plane) Stop() {
	for _, r := range p.replicas {
		r.Kill()
	}
	if p.redis != nil {
		p.redis.kill()
	}
}

func (p *Plane) path(name string) string { return filepath.Join(p.o.Dir, name) }

func (p *Plane) backend(data string) []string {
	return []string{
		"--redis-url", "unix://" + p.path("redis.sock"), "--secret-file", p.path("secret"), "--data-dir", p.path(data),
		"--public-url", p.URL().String(), "--log-format", "json", "--log-level", "warn",
	}
}

// Socket is Redis' Unix socket.
func (p *Plane) Socket() string { return p.path("redis.sock") }

// Replicas are the replicas, also those that don't run.
func (p *Plane) Replicas() []*Replica { return p.replicas }

// URL is the control plane's, for hosts and people. Only Dial finds it.
func (p *Plane) URL() *url.URL {
	if p.o.TLS {
		return &url.URL{Scheme: "https", Host: name}
	}
	return &url.URL{Scheme: "http", Host: name}
}

// TLS is what hosts and people trust; nil for h2c.
func (p *Plane) TLS() *tls.Config { return p.tls }

// Prefer has Dial connect to one replica as long as it runs; nil ends that.
func (p *Plane) Prefer(r *Replica) { p.prefer.Store(r) }

// Dial connects to a replica, each in its turn, as a balancer would that passes TCP on: one that refuses is passed over,
// one that drains isn't known to.
func (p *Plane) Dial(ctx context.Context, network, _ string) (conn net.Conn, err error) {
	d := net.Dialer{KeepAlive: 30 * time.Second}
	if r := p.prefer.Load(); r != nil && r.Running() {
		if conn, err = d.DialContext(ctx, network, r.address); err == nil {
			return conn, nil
		}
	}
	first := p.next.Add(1)
	for i := range p.replicas {
		r := p.replicas[(first+uint64(i))%uint64(len(p.replicas))]
		if !r.Running() {
			err = fmt.Errorf("%s doesn't run", r.Name)
			continue
		}
		if conn, err = d.DialContext(ctx, network, r.address); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

func (p *Plane) startRedis(ctx context.Context) error {
	cmd := exec.Command("redis-server", "--port", "0", "--unixsocket", p.Socket(), "--dir", p.o.Dir, "--save", "", //nolint:noctx // it is ended by Stop
		"--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction", "--daemonize", "no",
		// What is rewritten meanwhile would be measured with the rest.
		"--auto-aof-rewrite-percentage", "0")
	var err error
	if p.redis, err = start(cmd, p.path("redis.log")); err != nil {
		return fmt.Errorf("start redis-server (make setup installs it): %w", err)
	}
	return await(ctx, "redis-server", p.redis, func() error {
		info, err := p.RedisInfo(ctx, "server")
		if err == nil && info["redis_version"] == "" {
			err = errors.New("it says no version")
		}
		return err
	})
}

// Instance is what the process calls itself that was started last.
func (r *Replica) Instance() string { return fmt.Sprintf("%s-%d", r.Name, r.starts) }

// Running reports whether the process was started and not ended since.
func (r *Replica) Running() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.process != nil
}

// Start starts the process and waits until it is ready.
func (r *Replica) Start(ctx context.Context) error {
	p := r.plane
	r.starts++
	// Its name is new with each start, for streams are fenced by it.
	args := append([]string{
		"serve", "--listen", r.address, "--metrics-listen", r.metrics, "--replica", r.Instance(),
		"--drain-window", p.o.Drain.String(),
	}, p.backend(r.Name)...)
	if p.o.TLS {
		args = append(args, "--tls-cert", p.path("tls.crt"), "--tls-key", p.path("tls.key"))
	} else {
		args = append(args, "--tls-off")
	}
	started, err := start(exec.Command(filepath.Join(p.o.BinDir, program), args...), p.path(r.Name+".log")) //nolint:noctx // it is ended by Stop
	if err != nil {
		return fmt.Errorf("start %s (make build makes it): %w", program, err)
	}
	transport := p.transport(func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, r.address)
	})
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 5 * time.Second}
	err = await(ctx, r.Name, started, func() error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL().String()+"/readyz", nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz says %s: %s", response.Status, body)
		}
		return nil
	})
	if err != nil {
		started.kill()
		return err
	}
	r.mu.Lock()
	r.process = started
	r.mu.Unlock()
	return nil
}

// Kill ends the process at once, as a machine does that dies.
func (r *Replica) Kill() {
	if p := r.take(); p != nil {
		p.kill()
	}
}

// Term asks the process to end and waits until it has drained.
func (r *Replica) Term() error {
	p := r.take()
	if p == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.kill()
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(startWithin):
		p.kill()
		return fmt.Errorf("%s didn't end within %s of SIGTERM", r.Name, startWithin)
	}
}

// take is the process, which the balancer leaves from now on.
func (r *Replica) take() *process {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.process
	r.process = nil
	return p
}

// freeAddress is a loopback address that nobody listened on a moment ago.
// handed are the addresses that freeAddress gave: the kernel may offer one again before its process listens there, and two
// fleets of one program would want it.
var handed sync.Map

func freeAddress(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	for {
		l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		address := l.Addr().String()
		_ = l.Close()
		if _, before := handed.LoadOrStore(address, true); !before {
			return address, nil
		}
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}
