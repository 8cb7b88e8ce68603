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
