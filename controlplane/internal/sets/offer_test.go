package sets_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// A failover loses a host's ban; the host tells it again, and that a person lifted it since, before another host, which heard of
// the ban only, offers it. It stays lifted, unless somebody else had it banned for longer.
func TestOfferOfWhatItsHostLifted(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := context.Background()
	prefixes := []netip.Prefix{pfx("203.0.113.9/32"), pfx("203.0.113.10/32")}
	events := func(seq uint64, event func(seq uint64, p netip.Prefix) sets.Event) {
		t.Helper()
		for i, p := range prefixes {
			must(f.RecordEvents(ctx, org, sets.EventsInput{HostID: "H1", Fence: 1, Spool: "s", Events: []sets.Event{event(seq+uint64(i), p)}}))(t)
		}
	}
	ban := func(seq uint64, p netip.Prefix) sets.Event { return jailBan(seq, "sshd", p.String(), time.Hour) }
	must(f.States(ctx, org))(t)
	restore := f.redis.Backup()
	events(1, ban)
	must(f.Ban(ctx, org, sets.BanInput{Prefixes: prefixes[1:], Set: banset.All, Duration: 5 * time.Hour, Actor: "alice"}))(t)
	lagging := &host{}
	lagging.follow(t, f)
	restore()
	f.advance(time.Second)
	again := func(seq uint64, p netip.Prefix) sets.Event {
		e := ban(seq, p)
		e.Age += time.Second
		return e
	}
	events(1, again)
	events(3, func(seq uint64, p netip.Prefix) sets.Event {
		return sets.Event{Seq: seq, Kind: sets.EventUnban, Jail: "sshd", Prefix: p, Cause: fleetbanv1.UnbanCause_UNBAN_CAUSE_PERSON}
	})
	if taken := must(f.Offer(ctx, org, banset.All, lagging.above(0)))(t); taken.Recovered != 1 {
		t.Errorf("%d records were taken, want alice's alone", taken.Recovered)
	}
	banned := map[netip.Prefix]bool{}
	for _, r := range must(f.Snapshot(ctx, org, banset.All))(t).Records {
		banned[r.Prefix] = r.Kind == fleetbanv1.RecordKind_RECORD_KIND_PRESENT
	}
	if banned[prefixes[0]] || !banned[prefixes[1]] {
		t.Errorf("banned: %v, want alice's alone", banned)
	}
	f.check(t)
}

// What an offer is refused for is lifted by the host that offered it at once, not when the rebuild ends: however its snapshot comes
// about, and once, whoever else offers the same.
func TestRefusedOfferIsLifted(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	p, stays := pfx("203.0.113.9/32"), pfx("203.0.113.10/32")
	retracted := func(t *testing.T, f *fixture, set string) []sets.Record {
		t.Helper()
		must(f.Allow(ctx, org, sets.AllowInput{Prefixes: []netip.Prefix{p}, Duration: time.Hour, Actor: "alice"}))(t)
		must(f.Disallow(ctx, org, sets.DisallowInput{Prefixes: []netip.Prefix{p}, Actor: "alice"}))(t)
		knows := &host{set: set}
		knows.follow(t, f)
		return knows.above(0)
	}
	for name, c := range map[string]struct {
		set string
		// lose makes what lagging hosts hold, and lets it be lost; known is called once it is: somebody tells what became of it.
		lose, known func(*testing.T, *fixture)
	}{
		"lifted by a person on its host": {
			set: banset.All,
			lose: func(t *testing.T, f *fixture) {
				t.Helper()
				must(f.RecordEvents(ctx, org, sets.EventsInput{HostID: "H1", Fence: 1, Spool: "s", Events: []sets.Event{jailBan(1, "sshd", p.String(), time.Hour)}}))(t)
				must(f.Ban(ctx, org, sets.BanInput{Prefixes: []netip.Prefix{stays}, Set: banset.All, Duration: time.Hour, Actor: "alice"}))(t)
			},
			known: func(t *testing.T, f *fixture) {
				t.Helper()
				again := jailBan(1, "sshd", p.String(), time.Hour)
				again.Age += time.Second
				must(f.RecordEvents(ctx, org, sets.EventsInput{HostID: "H1", Fence: 1, Spool: "s", Events: []sets.Event{
					again, {Seq: 2, Kind: sets.EventUnban, Jail: "sshd", Prefix: p, Cause: fleetbanv1.UnbanCause_UNBAN_CAUSE_PERSON},
				}}))(t)
			},
		},
		"unbanned anew": {
			set: banset.All,
			lose: func(t *testing.T, f *fixture) {
				t.Helper()
				must(f.Ban(ctx, org, sets.BanInput{Prefixes: []netip.Prefix{p, stays}, Set: banset.All, Duration: time.Hour, Actor: "alice"}))(t)
			},
			known: func(t *testing.T, f *fixture) {
				t.Helper()
				must(f.Unban(ctx, org, sets.UnbanInput{Prefixes: []netip.Prefix{p}, Actor: "alice"}))(t)
			},
		},
		"no longer allowed": {
			set: banset.Allow,
			lose: func(t *testing.T, f *fixture) {
				t.Helper()
				must(f.Allow(ctx, org, sets.AllowInput{Prefixes: []netip.Prefix{p, stays}, Duration: time.Hour, Actor: "alice"}))(t)
			},
			known: func(t *testing.T, f *fixture) {
				t.Helper()
				other := newFixture(t) // where it came to be known
				other.clock.Store(f.clock.Load())
				must(f.Offer(ctx, org, banset.Allow, retracted(t, other, banset.Allow)))(t)
			},
		},
	} {
		// slow: a host offers before anybody knows, which is taken, and gets its snapshot when it is known.
		run := func(t *testing.T, slow bool) {
			t.Parallel()
			f := newFixture(t)
			must(f.Allow(ctx, org, sets.AllowInput{Prefixes: []netip.Prefix{pfx("198.51.100.0/24")}, Duration: time.Hour, Actor: "alice"}))(t)
			must(f.Ban(ctx, org, sets.BanInput{Prefixes: []netip.Prefix{pfx("192.0.2.1/32")}, Set: banset.All, Duration: time.Hour, Actor: "alice"}))(t)
			restore := f.redis.Backup()
			c.lose(t, f)
			hosts := [3]host{{set: c.set}, {set: c.set}, {set: c.set}}
			for i := range hosts {
				hosts[i].follow(t, f)
			}
			restore()
			f.advance(time.Second)
			early := must(f.Snapshot(ctx, org, c.set))(t) // as replicas keep one for those that come at about the same time
			if slow {
				must(f.Offer(ctx, org, c.set, hosts[0].above(0)))(t)
				c.known(t, f)
				hosts[0].merge(must(f.Snapshot(ctx, org, c.set))(t))
				if h := &hosts[0]; h.holds(p) || !h.holds(stays) {
					t.Errorf("it holds %v and %v, want the second alone", h.held[p], h.held[stays])
				}
				f.check(t)
				return
			}
			c.known(t, f)

			var told uint64
			for i := range hosts {
				h := &hosts[i]
				resume := must(f.Resume(ctx, org, h.cursor))(t)
				if resume.Action != sets.ResumeOffer {
					t.Fatalf("host %d goes on with %v", i, resume.Action)
				}
				must(f.Offer(ctx, org, c.set, h.above(resume.After)))(t)
				now := must(f.States(ctx, org))(t).Set(c.set).Cursor.Version
				if told = max(told, now); now != told || told <= early.State.Cursor.Version {
					t.Errorf("after offer %d the set is at version %d, told at %d", i, now, told)
				}
				if i == 0 {
					h.merge(early)
				} else {
					h.merge(must(f.Snapshot(ctx, org, c.set))(t))
				}
			}
			for i := range hosts {
				h := &hosts[i]
				h.follow(t, f)
				if h.holds(p) || !h.holds(stays) {
					t.Errorf("host %d holds %v and %v, want the second alone", i, h.held[p], h.held[stays])
				}
			}
			if states := must(f.States(ctx, org))(t); states.RebuildUntil <= states.Now {
				t.Error("the rebuild is over, which lifts anything")
			}
			f.check(t)
		}
		t.Run(name, func(t *testing.T) { run(t, false) })
		t.Run(name+" while its offer was taken", func(t *testing.T) { run(t, true) })
	}
}

// Two servers that take themselves for the master each begin an epoch from the same state, while the fleet's clock stands still: what
// hosts hold of the one must not pass for what the other has.
func TestEpochsOfTwoMastersDiffer(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := context.Background()
	ban := func(p netip.Prefix) {
		t.Helper()
		must(f.Ban(ctx, org, sets.BanInput{Prefixes: []netip.Prefix{p}, Set: banset.All, Duration: time.Hour, Actor: "alice"}))(t)
	}
	ban(pfx("203.0.113.1/32"))
	restore := f.redis.Backup()
	restore()
	ban(pfx("203.0.113.2/32"))
	there := &host{}
	there.follow(t, f)
	restore() // the other server
	ban(pfx("203.0.113.3/32"))
	here := must(f.States(ctx, org))(t).Set(banset.All).Cursor
	if there.cursor.Epoch == here.Epoch || there.cursor.Version != here.Version {
		t.Fatalf("a host of the one is at %+v, the other server at %+v", there.cursor, here)
	}
	resume := must(f.Resume(ctx, org, there.cursor))(t)
	if resume.Action != sets.ResumeOffer || resume.After != 0 {
		t.Fatalf("a host of the one goes on with the other by %+v", resume)
	}
	if taken := must(f.Offer(ctx, org, banset.All, there.above(resume.After)))(t); taken.Recovered != 1 {
		t.Errorf("%d of what it holds was taken, want what the other lacks", taken.Recovered)
	}
	f.check(t)
}
