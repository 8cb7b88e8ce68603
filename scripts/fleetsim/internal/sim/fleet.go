package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/scripts/fleetsim/internal/host"
	"github.com/fleetban/fleetban/scripts/fleetsim/internal/plane"
)

// fleet is the hosts and the control plane of a run.
type fleet struct {
	o       Options
	plane   *plane.Plane
	api     *plane.API
	world   *host.World
	ledger  *ledger
	budget  *budget
	watcher *watcher

	mu     sync.Mutex
	rng    *rand.Rand
	hosts  []*host.Host // that are members now
	all    []*host.Host // by number
	joined int
	gone   map[string]bool // ids of those that left
	next   int             // prefixes given out
	token  string

	timers sync.WaitGroup
}

// atOnce is how many hosts enrol at a time.
const atOnce = 64

// enrol adds hosts to the fleet. They are not started.
func (f *fleet) enrol(ctx context.Context, n int) ([]*host.Host, error) {
	f.mu.Lock()
	var added []*host.Host
	for range n {
		o := host.Options{
			World: f.world, Number: f.joined, Name: fmt.Sprintf("h%05d", f.joined), URL: f.plane.URL(), TLS: f.plane.TLS(), Dial: f.plane.Dial,
		}
		if f.joined < f.o.Addressed {
			o.Address = netip.AddrFrom4([4]byte{198, 18, byte(f.joined >> 8), byte(f.joined)})
		}
		f.joined++
		added = append(added, host.New(o))
	}
	f.all = append(f.all, added...)
	f.mu.Unlock()
	var wg sync.WaitGroup
	var next atomic.Int64
	errs := make(chan error, atOnce)
	for range min(atOnce, n) {
		wg.Go(func() {
			for i := next.Add(1) - 1; int(i) < n; i = next.Add(1) - 1 {
				if err := added[i].Enrol(ctx, f.api.Agents, f.token); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return nil, err
	default:
	}
	f.mu.Lock()
	f.hosts = append(f.hosts, added...)
	f.mu.Unlock()
	return added, nil
}

// members are the hosts of the fleet now.
func (f *fleet) members() []*host.Host {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*host.Host(nil), f.hosts...)
}

// remove takes a host out of the fleet, by the operator's call.
func (f *fleet) remove(ctx context.Context, h *host.Host) error {
	f.mu.Lock()
	f.gone[h.ID] = true
	for i, other := range f.hosts {
		if other == h {
			f.hosts = append(f.hosts[:i:i], f.hosts[i+1:]...)
			break
		}
	}
	f.mu.Unlock()
	return f.retry(ctx, "delete a host", func() error {
		_, err := f.api.Hosts.DeleteHost(ctx, connect.NewRequest(operatorv1.DeleteHostRequest_builder{Host: h.ID}.Build()))
		if connect.CodeOf(err) == connect.CodeNotFound {
			return nil // an earlier try had succeeded
		}
		return err
	})
}

func (f *fleet) random(n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rng.IntN(n)
}

// any is a host by chance.
func (f *fleet) any() *host.Host {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hosts[f.rng.IntN(len(f.hosts))]
}

// prefix is an address that nobody has been banned by yet; every eighth is of IPv6.
func (f *fleet) prefix() netip.Prefix {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.next
	f.next++
	if i%8 == 7 {
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 12: byte(i >> 24), 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}), 128)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{45, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
}

// observe has a host's fail2ban ban.
func (f *fleet) observe(h *host.Host, jail string, p netip.Prefix, d time.Duration, then func()) {
	acked := f.ledger.observed(p, h.Number, jail, d)
	f.ledger.event(eventKey{h.ID, operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED, p, jail})
	sent := time.Now()
	h.Ban(jail, p, d, func(at time.Time) {
		acked(at)
		f.o.report.observe(f.o.report.Acked, at.Sub(sent))
		if then != nil {
			f.timers.Go(then)
		}
	})
}

// unban has a host's fail2ban end a ban.
func (f *fleet) unban(h *host.Host, jail string, p netip.Prefix, cause fleetbanv1.UnbanCause) {
	key := eventKey{h.ID, operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED_UNBAN, p, jail}
	if h.Unban(jail, p, cause, nil) != nil {
		return
	}
	f.ledger.event(key)
	if cause == fleetbanv1.UnbanCause_UNBAN_CAUSE_PERSON {
		f.ledger.retract(p, h.Number, jail)
	}
}

// order bans in the operator's name, and returns where the set is then.
func (f *fleet) order(ctx context.Context, d time.Duration, prefixes ...netip.Prefix) (*fleetbanv1.SetCursor, error) {
	var cursor *fleetbanv1.SetCursor
	err := f.retry(ctx, "ban", func() error {
		answer, err := f.api.Bans.Ban(ctx, connect.NewRequest(operatorv1.BanRequest_builder{
			Prefixes: texts(prefixes), DurationS: int64(d / time.Second), Reason: "simulation",
		}.Build()))
		if err != nil {
			return err
		}
		cursor = answer.Msg.GetCursor()
		for _, p := range prefixes {
			f.ledger.ordered(p, answer.Msg.GetExpiresUnixMs())
		}
		return nil
	})
	return cursor, err
}

// lift unbans in the operator's name.
func (f *fleet) lift(ctx context.Context, prefixes ...netip.Prefix) error {
	return f.retry(ctx, "unban", func() error {
		_, err := f.api.Bans.Unban(ctx, connect.NewRequest(operatorv1.UnbanRequest_builder{Prefixes: texts(prefixes)}.Build()))
		if err != nil {
			return err
		}
		for _, p := range prefixes {
			f.ledger.lift(p)
		}
		return nil
	})
}

func texts(prefixes []netip.Prefix) []string {
	out := make([]string, len(prefixes))
	for i, p := range prefixes {
		out[i] = p.String()
	}
	return out
}

// retryFor is how long a call of the operator is tried again while replicas come and go.
const retryFor = 30 * time.Second

func (f *fleet) retry(ctx context.Context, what string, call func() error) error {
	began := time.Now()
	for {
		err := call()
		if err == nil || ctx.Err() != nil {
			return err
		}
		switch connect.CodeOf(err) {
		case connect.CodeInvalidArgument, connect.CodeUnauthenticated, connect.CodePermissionDenied, connect.CodeFailedPrecondition:
			return fmt.Errorf("%s: %w", what, err)
		default:
		}
		f.o.report.Retried.Add(1)
		if time.Since(began) > retryFor {
			return fmt.Errorf("%s, tried for %s: %w", what, retryFor, err)
		}
		sleep(ctx, 50*time.Millisecond)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// current is where the control plane's sets are.
func (f *fleet) current(ctx context.Context) (*operatorv1.GetFleetResponse, error) {
	var out *operatorv1.GetFleetResponse
	err := f.retry(ctx, "look at the fleet", func() error {
		answer, err := f.api.Fleet.GetFleet(ctx, connect.NewRequest(&operatorv1.GetFleetRequest{}))
		if err == nil {
			out = answer.Msg
		}
		return err
	})
	return out, err
}

// behind is how many hosts are not where the control plane's sets are, and one of them.
func (f *fleet) behind(state *operatorv1.GetFleetResponse) (n int, example string) {
	for _, h := range f.members() {
		for _, s := range state.GetSets() {
			c := s.GetCursor()
			if c.GetSet() != banset.All && c.GetSet() != banset.Allow && c.GetSet() != banset.Hosts {
				continue
			}
			epoch, version, digest := h.At(c.GetSet())
			if h.Up() && epoch == c.GetEpoch() && version == c.GetVersion() && digest == c.GetDigest() {
				continue
			}
			n++
			if example == "" {
				example = fmt.Sprintf("%s holds %s at %d/%d with digest %016x, the control plane has %d/%d with %016x; its stream: %s",
					h.Name, c.GetSet(), epoch, version, digest, c.GetEpoch(), c.GetVersion(), c.GetDigest(), describe(h))
			}
			break
		}
	}
	return n, example
}

// reached is how many hosts are not yet where the control plane's set of bans was when state was read, and one of them.
func (f *fleet) reached(state *operatorv1.GetFleetResponse) (n int, example string) {
	for _, s := range state.GetSets() {
		c := s.GetCursor()
		if c.GetSet() != banset.All {
			continue
		}
		for _, h := range f.members() {
			if epoch, version, _ := h.At(banset.All); !h.Up() || epoch != c.GetEpoch() || version < c.GetVersion() {
				n++
				example = fmt.Sprintf("%s is at %d/%d and not at %d/%d; its stream: %s", h.Name, epoch, version, c.GetEpoch(), c.GetVersion(), describe(h))
			}
		}
	}
	return n, example
}

func describe(h *host.Host) string {
	s := h.Status()
	if s.Connected {
		return "up, on " + s.Replica
	}
	return "down: " + s.Problem
}

var errNotSettled = errors.New("hosts are not in sync")

// settle waits until every host has what the control plane has.
func (f *fleet) settle(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	example, n := "", 0
	for {
		state, err := f.current(ctx)
		if err == nil {
			waiting := 0
			for _, h := range f.members() {
				waiting += h.Waiting()
			}
			if n, example = f.behind(state); n == 0 && waiting == 0 {
				return nil
			}
			if n == 0 {
				example = fmt.Sprintf("%d events aren't acknowledged", waiting)
			}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w after %s: %d are behind: %s", errNotSettled, within, n, example)
		}
		sleep(ctx, 10*time.Millisecond)
	}
}

// receipts waits until every connected host has said that it enforces a cursor.
func (f *fleet) receipts(ctx context.Context, cursor *fleetbanv1.SetCursor) (*operatorv1.WatchReceiptsResponse, error) {
	stream, err := f.api.Bans.WatchReceipts(ctx, connect.NewRequest(operatorv1.WatchReceiptsRequest_builder{Cursor: cursor}.Build()))
	if err != nil {
		return nil, err
	}
	defer func() { _ = stream.Close() }()
	var last *operatorv1.WatchReceiptsResponse
	for stream.Receive() {
		last = stream.Msg()
		if last.GetComplete() {
			return last, nil
		}
	}
	if err := stream.Err(); err != nil {
		return last, err
	}
	return last, errors.New("the watch ended before it was complete")
}
