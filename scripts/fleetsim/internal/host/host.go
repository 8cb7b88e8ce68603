package host

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/agent/stream"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// Sabotage is a fault of a host that a check must find.
type Sabotage int

// The faults.
const (
	None Sabotage = iota
	// DropDelta drops the records of one delta and says that it applied them.
	DropDelta
	// KeepRetracted goes on banning what was unbanned.
	KeepRetracted
)

// Options of New.
type Options struct {
	World *World
	// Number is the host's, from 0; Name what people see.
	Number int
	Name   string
	// Address is the host's own, which the rest of the fleet must never ban; zero for none.
	Address netip.Addr
	// Where the control plane is, what to trust, and how to get there.
	URL  *url.URL
	TLS  *tls.Config
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Host is one simulated host.
type Host struct {
	Options
	ID string

	key             ed25519.PrivateKey
	grant, audience string
	kernel          *kernel
	spool           *spool
	slow            atomic.Int64 // nanoseconds that applying an update takes
	wasSlow         atomic.Bool
	up              atomic.Bool
	client          atomic.Pointer[stream.Client] // nil while it is stopped

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	stop   context.CancelFunc
	done   chan struct{}
	banned map[jailed]*fleetbanv1.ObservedBan
	total  uint64
	starts int
}

type jailed struct {
	jail   string
	prefix netip.Prefix
}

// New makes a host that isn't enrolled.
func New(o Options) *Host {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		panic(err) // crypto/rand doesn't fail
	}
	h := &Host{Options: o, key: key, conns: map[net.Conn]struct{}{}, banned: map[jailed]*fleetbanv1.ObservedBan{}}
	h.kernel = newKernel(o.World, h)
	h.spool = newSpool(randomName())
	return h
}

func randomName() string {
	var b [12]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Enrol makes the host a member of the fleet, by the same call as the agent's.
func (h *Host) Enrol(ctx context.Context, agents fleetbanv1connect.AgentServiceClient, token string) error {
	request := fleetbanv1.EnrollRequest_builder{
		JoinToken: token, PublicKey: h.key.Public().(ed25519.PublicKey), Name: h.Name, Facts: h.facts(), //nolint:forcetypeassert // an ed25519 key's
	}.Build()
	// Sending the same key again gives the same host.
	for attempt := 0; ; attempt++ {
		answer, err := agents.Enroll(ctx, connect.NewRequest(request))
		if err == nil {
			m := answer.Msg
			h.ID, h.grant, h.audience = m.GetHostId(), m.GetGrant(), m.GetAudience()
			return nil
		}
		if attempt == 5 || ctx.Err() != nil || connect.CodeOf(err) == connect.CodeUnauthenticated {
			return fmt.Errorf("enrol %s: %w", h.Name, err)
		}
		pause(ctx, 200*time.Millisecond<<attempt)
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

func (h *Host) facts() *fleetbanv1.HostFacts {
	machine := sha256.Sum256([]byte(h.Name))
	f := fleetbanv1.HostFacts_builder{
		Hostname: h.Name, Os: "Simulated GNU/Linux 12", Kernel: "6.1.0", Arch: "amd64", AgentVersion: "fleetsim",
		Machine: hex.EncodeToString(machine[:]), Boot: "boot-of-" + h.Name,
	}
	if h.Address.IsValid() {
		f.Addresses = [][]byte{h.Address.AsSlice()}
	}
	return f.Build()
}

// Start begins the host's stream; only Stop ends it.
func (h *Host) Start(ctx context.Context) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	h.mu.Lock()
	defer h.mu.Unlock()
	h.starts++
	client := stream.New(stream.Config{
		URL: h.URL, TLS: h.TLS, Dial: h.dial, Key: h.key, HostID: h.ID, Audience: h.audience, Grant: h.grant,
		Instance: randomName(), Facts: h.facts, Health: h.health, Sink: h.kernel, Source: h.spool, Changed: h.statusChanged,
		Decode: h.World.shared.decode,
	})
	done := make(chan struct{})
	h.stop, h.done = cancel, done
	h.client.Store(client)
	go func() {
		defer close(done)
		_ = client.Run(ctx)
	}()
}

// Stop ends the stream as an agent does that is killed: without a word.
func (h *Host) Stop() {
	h.mu.Lock()
	stop, done := h.stop, h.done
	h.stop = nil
	h.mu.Unlock()
	if stop == nil {
		return
	}
	stop()
	<-done
	h.client.Store(nil)
	h.setUp(false)
}

// Wipe forgets what the host holds, as if its disk were new. The stream must be stopped.
func (h *Host) Wipe() { h.kernel.wipe() }

// Cut cuts the host's connections, as a network does.
func (h *Host) Cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.conns {
		_ = c.Close()
	}
}

// SetSlow makes applying an update take so long; 0 ends it.
func (h *Host) SetSlow(d time.Duration) {
	h.slow.Store(int64(d))
	if d > 0 {
		h.wasSlow.Store(true)
	}
}

// ForgetSlow makes the host one of the others again, for what is measured from now on.
func (h *Host) ForgetSlow() {
	h.SetSlow(0)
	h.wasSlow.Store(false)
}

// SetSabotage makes the host faulty.
func (h *Host) SetSabotage(s Sabotage) {
	h.kernel.mu.Lock()
	defer h.kernel.mu.Unlock()
	h.kernel.sabotage = s
}

func (h *Host) class() Class {
	if h.wasSlow.Load() {
		return Slow
	}
	return Ordinary
}

func (h *Host) delay(ctx context.Context) {
	if d := h.slow.Load(); d > 0 {
		pause(ctx, time.Duration(d))
	}
}

func (h *Host) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := h.Dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	t := &tracked{Conn: c, host: h}
	h.mu.Lock()
	h.conns[t] = struct{}{}
	h.mu.Unlock()
	return t, nil
}

// tracked is a connection that Cut finds.
type tracked struct {
	net.Conn
	host *Host
}

// SyscallConn implements syscall.Conn: the stream looks whether the socket has room.
func (t *tracked) SyscallConn() (syscall.RawConn, error) {
	if s, ok := t.Conn.(syscall.Conn); ok {
		return s.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

func (t *tracked) Close() error {
	err := t.Conn.Close()
	// Cut holds the lock.
	go func() {
		t.host.mu.Lock()
		defer t.host.mu.Unlock()
		delete(t.host.conns, t)
	}()
	return err
}

func (h *Host) statusChanged() {
	if c := h.client.Load(); c != nil {
		h.setUp(c.Status().Connected)
	}
}

func (h *Host) setUp(up bool) {
	if h.up.Swap(up) != up {
		if up {
			h.World.connected.Add(1)
		} else {
			h.World.connected.Add(-1)
		}
	}
}

// Up reports whether the host has a stream.
func (h *Host) Up() bool { return h.up.Load() }

// Status is the stream's.
func (h *Host) Status() stream.Status {
	if c := h.client.Load(); c != nil {
		return c.Status()
	}
	return stream.Status{Problem: "stopped"}
}

// Waiting is how many events aren't acknowledged.
func (h *Host) Waiting() int { return h.spool.left() }

// Ban is a decision of the host's fail2ban. stored is called when the control plane has acknowledged it; it may be nil.
func (h *Host) Ban(jail string, p netip.Prefix, d time.Duration, stored func(at time.Time)) (made time.Time) {
	ban := fleetbanv1.ObservedBan_builder{DurationMs: d.Milliseconds(), Failures: 5}.Build()
	h.mu.Lock()
	h.banned[jailed{jail, p}] = ban
	h.total++
	h.mu.Unlock()
	made = time.Now()
	h.spool.append(&event{jail: jail, prefix: p, made: made, ban: ban, stored: stored})
	h.changed()
	return made
}

// errNotBanned says that a prefix isn't banned in a jail.
var errNotBanned = errors.New("not banned")

// Unban ends a ban of the host's fail2ban: by a person, or since it ran out.
func (h *Host) Unban(jail string, p netip.Prefix, cause fleetbanv1.UnbanCause, stored func(at time.Time)) error {
	h.mu.Lock()
	_, ok := h.banned[jailed{jail, p}]
	delete(h.banned, jailed{jail, p})
	h.mu.Unlock()
	if !ok {
		return errNotBanned
	}
	h.spool.append(&event{
		jail: jail, prefix: p, made: time.Now(), unban: fleetbanv1.ObservedUnban_builder{Cause: cause}.Build(), stored: stored,
	})
	h.changed()
	return nil
}

// Repeat sends an event of the host's past again as a new one: a fault of a spool that a check must find.
func (h *Host) Repeat(jail string, p netip.Prefix) {
	h.spool.append(&event{jail: jail, prefix: p, made: time.Now(), ban: fleetbanv1.ObservedBan_builder{DurationMs: 3_600_000, Failures: 5}.Build()})
}

// unbanned is fail2ban's answer to an order of the fleet. OnCommand hears of it.
func (h *Host) unbanned(prefixes [][]byte, command string) {
	for _, raw := range prefixes {
		p, err := prefix.Unpack(raw)
		if err != nil {
			continue
		}
		h.mu.Lock()
		var jails []string
		for j := range h.banned {
			if j.prefix == p {
				jails = append(jails, j.jail)
				delete(h.banned, j)
			}
		}
		h.mu.Unlock()
		for _, jail := range jails {
			h.World.unbannedBy(h, jail, p)
			h.spool.append(&event{jail: jail, prefix: p, made: time.Now(), unban: fleetbanv1.ObservedUnban_builder{
				Cause: fleetbanv1.UnbanCause_UNBAN_CAUSE_COMMAND, CommandId: command,
			}.Build()})
		}
	}
	h.changed()
}

// changed has the host's health told when that is due: what it enforces is counted in it, and that is all that ever changes here.
func (h *Host) changed() {
	if c := h.client.Load(); c != nil {
		c.CountsChanged()
	}
}

func (h *Host) health() *fleetbanv1.Health {
	h.mu.Lock()
	banned, total := uint64(len(h.banned)), h.total
	h.mu.Unlock()
	return fleetbanv1.Health_builder{
		PolicyLevel: "ban",
		Fail2Ban: fleetbanv1.Fail2BanHealth_builder{
			State: fleetbanv1.Fail2BanHealth_STATE_UP, Version: "1.0.2", Source: fleetbanv1.EventSource_EVENT_SOURCE_LOG, DelayMs: 1,
			Jails: []*fleetbanv1.JailHealth{fleetbanv1.JailHealth_builder{
				Name: "sshd", Banned: banned, BannedTotal: total, Failed: 5 * banned, FailedTotal: 5 * total, BantimeS: 600, FindtimeS: 600, Maxretry: 5,
			}.Build()},
		}.Build(),
		Enforcer: fleetbanv1.EnforcerHealth_builder{Backend: "nftables", Enforced: h.kernel.enforced()}.Build(),
		Spool:    fleetbanv1.SpoolHealth_builder{Waiting: uint64(h.spool.left())}.Build(),
	}.Build()
}
