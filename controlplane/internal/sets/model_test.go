package sets_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// The model keeps claims as the design says them, one by one, with no views, versions, buckets or packing.

const (
	awaits  = operatorv1.Unpromoted_UNPROMOTED_AWAITS_SECOND_HOST
	allowed = operatorv1.Unpromoted_UNPROMOTED_ALLOWED
	local   = operatorv1.Unpromoted_UNPROMOTED_LOCAL_JAIL
)

type modelClaim struct {
	who, jail string // host and jail; or actor and ""
	set       string
	why       operatorv1.Unpromoted
	since     int64
	expires   int64
}

func (c *modelClaim) counts() bool { return c.set != "" && c.why == 0 }

type modelTomb struct {
	who, jail   string // of one host's jail; empty: all
	set         string // of the allowlist; empty: bans
	at, expires int64
}

type model struct {
	now    int64
	claims map[netip.Prefix][]*modelClaim
	tombs  map[netip.Prefix][]modelTomb
}

func (m *model) live(p netip.Prefix) []*modelClaim {
	return slices.DeleteFunc(slices.Clone(m.claims[p]), func(c *modelClaim) bool { return c.expires <= m.now })
}

func (m *model) view(p netip.Prefix, set string) (expires int64) {
	for _, c := range m.live(p) {
		if c.counts() && c.set == set {
			expires = max(expires, c.expires)
		}
	}
	return expires
}

func (m *model) covered(p netip.Prefix) bool {
	for q := range m.claims {
		if prefix.Covers(q, p) && m.view(q, banset.Allow) > 0 {
			return true
		}
	}
	return false
}

func (m *model) person(p netip.Prefix, actor, set string, d int64) {
	expires := m.now + d
	for _, c := range m.live(p) {
		if c.who == actor && c.jail == "" && c.set == set {
			c.expires = max(c.expires, expires)
			return
		}
	}
	m.claims[p] = append(m.claims[p], &modelClaim{who: actor, set: set, since: m.now, expires: expires})
}

func (m *model) retract(p netip.Prefix, set string) {
	ban := set != banset.Allow
	at := m.now
	for _, c := range m.claims[p] {
		if (c.set != banset.Allow) == ban {
			at = max(at, c.since+1)
		}
	}
	m.claims[p] = slices.DeleteFunc(m.claims[p], func(c *modelClaim) bool { return (c.set != banset.Allow) == ban })
	t := modelTomb{at: at, expires: banset.Never}
	if !ban {
		t.set = banset.Allow
	}
	m.tombs[p] = append(m.tombs[p], t)
}

func (m *model) find(p netip.Prefix, host, jail string) *modelClaim {
	for _, c := range m.claims[p] {
		if c.who == host && c.jail == jail {
			return c
		}
	}
	return nil
}

func (m *model) observe(host string, e sets.Event) {
	p := e.Prefix
	c := &modelClaim{who: host, jail: e.Jail, set: e.Set, why: e.Unpromoted, since: m.now - e.Age.Milliseconds()}
	c.expires = c.since + e.Duration.Milliseconds()
	if c.set != "" {
		c.expires = min(c.expires, m.now+e.Cap.Milliseconds())
	}
	for _, t := range m.tombs[p] {
		if t.set == "" && c.since < t.at && (t.who == "" || t.who == host && t.jail == e.Jail) {
			return
		}
	}
	if c.set != "" && m.covered(p) {
		c.why = allowed
	}
	old := m.find(p, host, e.Jail)
	if old != nil && old.counts() && old.expires > m.now {
		if c.why == awaits {
			c.why = 0
		}
		if c.why != 0 {
			return // a ban that counts isn't taken back by being told again
		}
	}
	if c.expires <= m.now && c.why != awaits {
		return
	}
	if old != nil {
		m.claims[p] = slices.DeleteFunc(m.claims[p], func(o *modelClaim) bool { return o == old })
	}
	if c.why == awaits {
		for _, o := range m.claims[p] {
			near := o.since-c.since <= 600_000 && c.since-o.since <= 600_000
			if o.jail != "" && o.who != host && o.set == c.set && near && (o.why == awaits || o.why == 0 && o.expires > m.now) {
				if c.expires > m.now {
					c.why = 0
				}
				if o.why == awaits && o.expires > m.now {
					o.why = 0
				}
			}
		}
	}
	m.claims[p] = append(m.claims[p], c)
}

// forget drops what the control plane need not remember: claims that ran out, but for those that await a second host.
func (m *model) forget(p netip.Prefix) {
	m.claims[p] = slices.DeleteFunc(m.claims[p], func(c *modelClaim) bool {
		return c.expires <= m.now && (c.why != awaits || c.since+600_000 <= m.now)
	})
}

func (m *model) extend(host string, e sets.Event) {
	if c := m.find(e.Prefix, host, e.Jail); c != nil {
		c.expires = c.since + e.Duration.Milliseconds()
		if c.set != "" {
			c.expires = min(c.expires, m.now+e.Cap.Milliseconds())
		}
	}
}

func (m *model) unban(host string, e sets.Event) {
	if e.Cause != fleetbanv1.UnbanCause_UNBAN_CAUSE_PERSON {
		return
	}
	c := m.find(e.Prefix, host, e.Jail)
	if c == nil {
		return
	}
	m.claims[e.Prefix] = slices.DeleteFunc(m.claims[e.Prefix], func(o *modelClaim) bool { return o == c })
	m.tombs[e.Prefix] = append(m.tombs[e.Prefix], modelTomb{who: host, jail: e.Jail, at: max(m.now-e.Age.Milliseconds(), c.since+1), expires: c.expires})
}

var (
	universe = []netip.Prefix{
		pfx("203.0.113.1/32"), pfx("203.0.113.2/32"), pfx("198.51.100.7/32"), pfx("203.0.113.0/24"), pfx("2001:db8::1/128"), pfx("2001:db8::/64"),
	}
	hosts = []string{"H1", "H2", "H3"}
)

func drawEvent(t *rapid.T) sets.Event {
	e := sets.Event{
		Prefix: rapid.SampledFrom(universe).Draw(t, "prefix"), Age: time.Duration(rapid.IntRange(0, 2000).Draw(t, "age")) * time.Millisecond,
		Duration: time.Duration(rapid.IntRange(1, 40).Draw(t, "minutes")) * time.Minute, Cap: 30 * time.Minute,
		Jail: rapid.SampledFrom([]string{"sshd", "nginx", "named"}).Draw(t, "jail"),
		Kind: rapid.SampledFrom([]sets.EventKind{sets.EventBan, sets.EventBan, sets.EventBan, sets.EventExtension, sets.EventUnban}).Draw(t, "kind"),
		Cause: rapid.SampledFrom([]fleetbanv1.UnbanCause{
			fleetbanv1.UnbanCause_UNBAN_CAUSE_PERSON, fleetbanv1.UnbanCause_UNBAN_CAUSE_EXPIRED, fleetbanv1.UnbanCause_UNBAN_CAUSE_JAIL_STOPPED, fleetbanv1.UnbanCause_UNBAN_CAUSE_COMMAND,
		}).Draw(t, "cause"),
	}
	switch e.Jail {
	case "sshd":
		e.Set = banset.All
	case "nginx":
		e.Set, e.Unpromoted, e.Window = banset.All, awaits, 10*time.Minute
	default:
		e.Unpromoted = local
	}
	return e
}

// TestModel compares the sets with the model after each of some dozens of random mutations.
func TestModel(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	other := f.replica()
	ctx := context.Background()
	organisation := 0
	rapid.Check(t, func(t *rapid.T) {
		organisation++
		org := "ORG" + strconv.Itoa(organisation)
		m := &model{now: f.clock.Load(), claims: map[netip.Prefix][]*modelClaim{}, tombs: map[netip.Prefix][]modelTomb{}}
		seq := map[string]uint64{}
		var last sets.EventsInput
		fail := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		some := rapid.SliceOfNDistinct(rapid.SampledFrom(universe), 1, 3, rapid.ID)
		for range rapid.IntRange(5, 40).Draw(t, "steps") {
			for _, p := range universe {
				m.forget(p)
			}
			s := rapid.SampledFrom([]*sets.Sets{f.Sets, other}).Draw(t, "replica")
			switch op := rapid.IntRange(0, 11).Draw(t, "op"); op {
			case 0, 1:
				in := sets.BanInput{
					Prefixes: some.Draw(t, "prefixes"), Set: rapid.SampledFrom([]string{banset.All, "tag:team=web"}).Draw(t, "set"),
					Duration: time.Duration(rapid.IntRange(1, 60).Draw(t, "minutes")) * time.Minute, Actor: rapid.SampledFrom([]string{"alice", "bob"}).Draw(t, "actor"),
					Reason: rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "reason"),
				}
				_, err := s.Ban(ctx, org, in)
				fail(err)
				for _, p := range in.Prefixes {
					m.person(p, in.Actor, in.Set, in.Duration.Milliseconds())
				}
			case 2:
				in := some.Draw(t, "prefixes")
				_, err := s.Unban(ctx, org, sets.UnbanInput{Prefixes: in, Actor: "alice"})
				fail(err)
				for _, p := range in {
					m.retract(p, "")
				}
				// A tombstone is a millisecond after what it cancels where both fall into the same one.
				f.advance(time.Millisecond)
				m.now++
			case 3:
				in := some.Draw(t, "prefixes")
				d := time.Duration(rapid.IntRange(1, 30).Draw(t, "minutes")) * time.Minute
				_, err := s.Allow(ctx, org, sets.AllowInput{Prefixes: in, Duration: d, Actor: "alice"})
				fail(err)
				for _, p := range in {
					m.person(p, "alice", banset.Allow, d.Milliseconds())
				}
			case 4:
				in := some.Draw(t, "prefixes")
				_, err := s.Disallow(ctx, org, sets.DisallowInput{Prefixes: in, Actor: "bob"})
				fail(err)
				for _, p := range in {
					m.retract(p, banset.Allow)
				}
				f.advance(time.Millisecond)
				m.now++
			case 5:
				d := time.Duration(rapid.IntRange(1, 20).Draw(t, "minutes")) * time.Minute
				f.advance(d)
				m.now += d.Milliseconds()
			case 6:
				_, err := s.Sweep(ctx, org)
				fail(err)
			case 7:
				if last.HostID != "" { // sent again: nothing may change
					r, err := s.RecordEvents(ctx, org, last)
					fail(err)
					if r.Skipped != len(last.Events) {
						t.Fatalf("replayed: %+v", r)
					}
				}
			default:
				host := rapid.SampledFrom(hosts).Draw(t, "host")
				last = sets.EventsInput{HostID: host, Fence: 1, Spool: "s"}
				for range rapid.IntRange(1, 4).Draw(t, "events") {
					e := drawEvent(t)
					seq[host]++
					e.Seq = seq[host]
					last.Events = append(last.Events, e)
					m.forget(e.Prefix)
					switch e.Kind {
					case sets.EventBan:
						m.observe(host, e)
					case sets.EventExtension:
						m.extend(host, e)
					case sets.EventUnban:
						m.unban(host, e)
					}
				}
				_, err := s.RecordEvents(ctx, org, last)
				fail(err)
			}
			m.compare(t, f, org)
		}
		f.checkOrg(t, org)
	})
}

type fataler interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func (m *model) compare(t fataler, f *fixture, org string) {
	t.Helper()
	ctx := context.Background()
	for _, p := range universe {
		got, err := f.Explain(ctx, org, p)
		if err != nil {
			t.Fatal(err)
		}
		var have, want []string
		for _, e := range got.Entries {
			if e.Prefix == p {
				if w := max(m.view(p, banset.All), m.view(p, "tag:team=web")); w != e.Expires {
					t.Fatalf("%s: banned until %d, want %d", p, e.Expires, w)
				}
				for _, c := range e.Claims {
					have = append(have, fmt.Sprint(c.HostID, c.Actor, c.Jail, c.Set, c.Since, c.Expires, c.Unpromoted))
				}
			}
		}
		for _, e := range got.AllowedBy {
			if e.Prefix == p {
				for _, c := range e.Claims {
					have = append(have, fmt.Sprint(c.HostID, c.Actor, c.Jail, c.Set, c.Since, c.Expires, c.Unpromoted))
				}
			}
		}
		for _, c := range m.live(p) {
			host, actor := c.who, ""
			if c.jail == "" {
				host, actor = "", c.who
			}
			want = append(want, fmt.Sprint(host, actor, c.jail, c.set, c.since, c.expires, c.why))
		}
		slices.Sort(have)
		slices.Sort(want)
		if !slices.Equal(have, want) {
			t.Fatalf("%s:\nhave %q\nwant %q", p, have, want)
		}
	}
}
