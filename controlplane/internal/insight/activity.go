package insight

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

const (
	// buckets is how many a window is divided into.
	buckets = 60
	// mostTallied is how many of each kind are told.
	mostTallied = 10
	// mostEvents is more than Redis keeps of an organisation's events.
	mostEvents = 20_000
	eventsPage = 1000
)

// tape is the events that Redis keeps of one organisation.
type tape struct {
	lease lease

	mu     sync.Mutex
	events []sets.FleetEvent
	after  string
}

// Tally is how often something occurred.
type Tally struct {
	Name  string
	Count uint64
}

// Bucket is what happened in one step of a window.
type Bucket struct{ Observed, Banned, Unbanned uint32 }

// Activity is what happened lately. Times are Unix milliseconds.
type Activity struct {
	From, Step int64
	Buckets    []Bucket
	// KeptSince is the oldest event that is kept, where that is later than From; else 0.
	KeptSince int64
	// Jails and Hosts (ids) by the bans of hosts, Addresses by how often hosts banned them; most first.
	Jails, Addresses, Hosts []Tally
}

// Activity counts what happened in the last window, until now (Redis' clock). See leaves out what the caller doesn't see.
func (i *Insight) Activity(ctx context.Context, org string, window time.Duration, now int64, see func(sets.FleetEvent) bool) (Activity, error) {
	t := held(i, i.tapes, org, func() *tape { return &tape{} }, func(t *tape) *lease { return &t.lease })
	t.mu.Lock()
	err := t.wind(ctx, i.sets, org)
	events := t.events
	t.mu.Unlock()
	if err != nil {
		return Activity{}, fmt.Errorf("count what happened: %w", err)
	}
	return count(events, window, now, see), nil
}

// wind reads what came since. The lock is held. Events are only ever appended to a slice that answers may hold.
func (t *tape) wind(ctx context.Context, s *sets.Sets, org string) error {
	for {
		more, gap, err := s.Events(ctx, org, t.after, eventsPage)
		if err != nil {
			return err
		}
		if gap {
			t.events = nil // what is between is lost to everybody
		}
		t.events = append(t.events, more...)
		if len(more) > 0 {
			t.after = more[len(more)-1].ID
		}
		if len(t.events) > mostEvents {
			t.events = slices.Clone(t.events[len(t.events)-mostEvents:])
		}
		if len(more) < eventsPage {
			return nil
		}
	}
}

func count(events []sets.FleetEvent, window time.Duration, now int64, see func(sets.FleetEvent) bool) Activity {
	step := window.Milliseconds() / buckets
	// Whole steps, so that a bucket counts the same however often it is asked for; the last one is under way.
	from := (now/step - buckets + 1) * step
	out := Activity{From: from, Step: step, Buckets: make([]Bucket, buckets)}
	if len(events) > 0 && events[0].At > from && len(events) >= eventsPage {
		out.KeptSince = events[0].At
	}
	jails, hosts, addresses := map[string]uint64{}, map[string]uint64{}, map[netip.Prefix]uint64{}
	first, _ := slices.BinarySearchFunc(events, from, func(e sets.FleetEvent, at int64) int { return cmp.Compare(e.At, at) })
	for _, e := range events[first:] {
		if see != nil && !see(e) {
			continue
		}
		b := &out.Buckets[min(max((e.At-from)/step, 0), buckets-1)]
		switch e.Kind {
		case operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED:
			b.Observed++
			jails[e.Jail]++
			hosts[e.HostID]++
			addresses[e.Prefix]++
		case operatorv1.FleetEventKind_FLEET_EVENT_KIND_BANNED:
			// One that a host's ban was promoted to follows the host's own event.
			b.Banned++
			if e.HostID == "" {
				addresses[e.Prefix]++
			}
		case operatorv1.FleetEventKind_FLEET_EVENT_KIND_UNBANNED:
			b.Unbanned++
		default:
		}
	}
	out.Jails, out.Hosts = top(jails, func(s string) string { return s }), top(hosts, func(s string) string { return s })
	out.Addresses = top(addresses, prefix.Format)
	return out
}

func top[K comparable](counts map[K]uint64, name func(K) string) []Tally {
	out := make([]Tally, 0, len(counts))
	for k, n := range counts {
		if text := name(k); text != "" {
			out = append(out, Tally{text, n})
		}
	}
	slices.SortFunc(out, func(a, b Tally) int { return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Name, b.Name)) })
	return out[:min(len(out), mostTallied)]
}
