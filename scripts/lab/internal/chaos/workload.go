package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

const (
	// callLimit bounds one call of the API: a caller gives up and doesn't know what became of it. hostLimit bounds what a
	// person does on a host with fail2ban's own client, which takes its time to start.
	callLimit, hostLimit = 3 * time.Second, 15 * time.Second
	// unknownFor is how long after its caller gave up a call may still be carried out: Redis may be paused meanwhile.
	unknownFor = 10 * time.Second
	// jailBanTime is how long the lab's sshd jail bans.
	jailBanTime = 10 * time.Minute
	// jailEvery is the least time between two observed bans of a host: the fleet promotes one every 2 s.
	jailEvery = 2500 * time.Millisecond
)

// workload makes and lifts bans, as people, hosts and their owners do.
type workload struct {
	lab     *lab.Lab
	journal *journal
	random  *rand.Rand
	round   int

	mu     sync.Mutex
	counts map[string]int
}

// step is one thing that a caller does, with all chance in it decided beforehand.
type step struct {
	after time.Duration
	name  string
	do    func(context.Context)
}

// plan decides what is done within a round of that length.
func (w *workload) plan(length time.Duration) (steps []step) {
	moment := func() time.Duration { return time.Duration(w.random.Int64N(int64(length))) }
	for range 4 + w.random.IntN(6) {
		steps = append(steps, w.person(moment()))
	}
	if w.random.IntN(4) == 0 {
		steps = append(steps, w.forbidden(moment()))
	}
	for _, h := range w.lab.Hosts() {
		for at := moment(); at < length; at += jailEvery {
			steps = append(steps, w.jail(h, at))
		}
	}
	return steps
}

// person bans some prefixes through the API, and may lift them again.
func (w *workload) person(at time.Duration) step {
	length := []time.Duration{3 * time.Second, 30 * time.Second, 5 * time.Minute}[w.random.IntN(3)]
	n, lift := 1+w.random.IntN(4), w.random.IntN(2) == 0
	pause := time.Duration(w.random.IntN(1500)) * time.Millisecond
	return step{at, "ban", func(ctx context.Context) {
		var facts []*fact
		var prefixes []string
		for range n {
			p := w.journal.fresh()
			facts = append(facts, w.journal.note(fact{prefix: p, round: w.round, ends: time.Now().Add(length + unknownFor), earliest: time.Now()}))
			prefixes = append(prefixes, p.String())
		}
		begun := time.Now()
		acknowledged := w.call(ctx, callLimit, "ban", func(ctx context.Context) error {
			_, err := w.lab.Operator().Bans.Ban(ctx, connect.NewRequest(operatorv1.BanRequest_builder{
				Prefixes: prefixes, DurationS: int64(length / time.Second), Reason: "chaos",
			}.Build()))
			return err
		})
		answered := time.Now()
		for _, f := range facts {
			w.journal.change(f, func(f *fact) {
				if f.acknowledged = acknowledged; acknowledged {
					f.ends, f.earliest = answered.Add(length), begun.Add(length)
				}
			})
		}
		if !lift || !wait(ctx, pause) {
			return
		}
		for _, f := range facts {
			w.journal.change(f, func(f *fact) { f.lifting = true })
		}
		if w.call(ctx, callLimit, "unban", func(ctx context.Context) error {
			_, err := w.lab.Operator().Bans.Unban(ctx, connect.NewRequest(operatorv1.UnbanRequest_builder{Prefixes: prefixes}.Build()))
			return err
		}) {
			for _, f := range facts {
				// A ban whose outcome isn't known may have come after its unban.
				w.journal.change(f, func(f *fact) { f.lifted = f.acknowledged })
			}
		}
	}}
}

// forbidden puts a prefix on the allowlist and has a host's fail2ban ban it.
func (w *workload) forbidden(at time.Duration) step {
	host := w.lab.Hosts()[w.random.IntN(len(w.lab.Hosts()))]
	return step{at, "allow", func(ctx context.Context) {
		p := w.journal.fresh()
		for !p.Addr().Is4() {
			p = w.journal.fresh()
		}
		if !w.call(ctx, callLimit, "allow", func(ctx context.Context) error {
			_, err := w.lab.Operator().Allowlist.Allow(ctx, connect.NewRequest(operatorv1.AllowRequest_builder{
				Prefixes: []string{p.String()}, Reason: "chaos",
			}.Build()))
			return err
		}) {
			return
		}
		// Where the entry is lost with a tail, the ban counts, until the jail ends it.
		ends := time.Now().Add(jailBanTime + hostLimit)
		w.journal.note(fact{prefix: p, round: w.round, allowed: true, ends: ends, earliest: ends})
		_, _ = host.Fail2ban(ctx, "set", "sshd", "banip", p.Addr().String()) // its own affair
	}}
}

// jail has a host's fail2ban ban an address; its owner may lift that again.
func (w *workload) jail(host *lab.Node, at time.Duration) step {
	lift := w.random.IntN(4) == 0
	pause := time.Duration(500+w.random.IntN(1500)) * time.Millisecond
	return step{at, "jail ban", func(ctx context.Context) {
		p := w.journal.fresh()
		for !p.Addr().Is4() {
			p = w.journal.fresh()
		}
		begun := time.Now()
		f := w.journal.note(fact{
			prefix: p, host: host.Name, round: w.round, ends: begun.Add(jailBanTime + hostLimit), earliest: begun.Add(jailBanTime),
		})
		// fail2ban bans a moment after it has answered; the ban is acknowledged once it shows it.
		if !w.call(ctx, hostLimit, "jail ban", func(ctx context.Context) error {
			if _, err := host.Fail2ban(ctx, "set", "sshd", "banip", p.Addr().String()); err != nil {
				return err
			}
			return shows(ctx, host, p.Addr(), true)
		}) {
			return
		}
		w.journal.change(f, func(f *fact) { f.acknowledged = true })
		if !lift || !wait(ctx, pause) {
			return
		}
		w.journal.change(f, func(f *fact) { f.lifting = true })
		if w.call(ctx, hostLimit, "local unban", func(ctx context.Context) error {
			_, err := host.Fail2ban(ctx, "set", "sshd", "unbanip", p.Addr().String())
			return err
		}) {
			w.journal.change(f, func(f *fact) { f.lifted = true })
		}
	}}
}

// shows waits until a host's fail2ban says that it bans an address, or that it doesn't.
func shows(ctx context.Context, host *lab.Node, addr netip.Addr, want bool) error {
	for {
		out, err := host.Fail2ban(ctx, "get", "sshd", "banned", addr.String())
		if err != nil {
			return err
		}
		if (strings.TrimSpace(out) == "1") == want {
			return nil
		}
		if !wait(ctx, 20*time.Millisecond) {
			return fmt.Errorf("fail2ban on %s says %q of %s", host.Name, out, addr)
		}
	}
}

// call makes a call and counts how it ended. It returns whether it was acknowledged.
func (w *workload) call(ctx context.Context, limit time.Duration, name string, f func(context.Context) error) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := f(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		name += ", not acknowledged"
	}
	w.counts[name]++
	return err == nil
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
