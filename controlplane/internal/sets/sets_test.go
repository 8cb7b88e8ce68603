package sets_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

const org = "01TESTORGANISATION00000000"

// fixture is a Sets on a real Redis with a clock that the test moves.
type fixture struct {
	*sets.Sets
	t     testing.TB
	redis *redistest.Server
	store *store.Store
	clock atomic.Int64
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	f := &fixture{t: t, redis: redistest.Start(t)}
	f.clock.Store(1_800_000_000_000)
	f.store = f.redis.Open()
	f.Sets = f.replica()
	return f
}

// replica is another control plane on the same Redis.
func (f *fixture) replica() *sets.Sets {
	s := sets.New(f.store, sets.Options{})
	s.SetClock(f.clock.Load)
	f.t.Cleanup(s.Close)
	return s
}

// advance moves the clock, which stands still between calls.
func (f *fixture) advance(d time.Duration) { f.clock.Add(d.Milliseconds()) }

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func must[T any](v T, err error) func(fataler) T {
	return func(t fataler) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// settle sweeps until nothing is due, and checks that every set's log, snapshot and digest agree.
func (f *fixture) settle(t testing.TB) sets.States {
	t.Helper()
	for {
		swept := must(f.Sweep(context.Background(), org))(t)
		if !swept.More {
			break
		}
	}
	return f.check(t)
}

func (f *fixture) check(t testing.TB) sets.States { return f.checkOrg(t, org) }

func (f *fixture) checkOrg(t fataler, org string) sets.States {
	t.Helper()
	ctx := context.Background()
	states := must(f.States(ctx, org))(t)
	for _, state := range states.Sets {
		set := state.Cursor.Set
		snap := must(f.Snapshot(ctx, org, set))(t)
		if snap.State.Cursor != state.Cursor {
			t.Fatalf("snapshot of %s at %+v, want %+v", set, snap.State.Cursor, state.Cursor)
		}
		present := map[netip.Prefix]int64{}
		for _, r := range snap.Records {
			if r.Kind == fleetbanv1.RecordKind_RECORD_KIND_PRESENT {
				present[r.Prefix] = r.Expires
			}
		}
		if uint64(len(present)) != state.Records {
			t.Fatalf("%s counts %d records, its snapshot has %d", set, state.Records, len(present))
		}
		deltas, err := f.Log(ctx, org, set, 0, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		held := map[netip.Prefix]int64{}
		for _, d := range deltas {
			for _, r := range d.Records {
				if r.Kind == fleetbanv1.RecordKind_RECORD_KIND_PRESENT {
					held[r.Prefix] = r.Expires
				} else {
					delete(held, r.Prefix)
				}
			}
			if got := digest(held); got != d.Digest {
				t.Fatalf("%s at version %d: digest %x, the log says %x", set, d.Version, got, d.Digest)
			}
		}
		if len(deltas) == 0 || deltas[len(deltas)-1].Version != state.Cursor.Version || digest(held) != digest(present) {
			t.Fatalf("%s: its log ends elsewhere than its state %+v", set, state)
		}
	}
	return states
}

func digest(held map[netip.Prefix]int64) uint64 {
	records := make([]sets.Record, 0, len(held))
	for p, expires := range held {
		records = append(records, sets.Record{Prefix: p, Kind: fleetbanv1.RecordKind_RECORD_KIND_PRESENT, Expires: expires})
	}
	return sets.DigestOf(records)
}

func (f *fixture) ban(t testing.TB, d time.Duration, prefixes ...string) sets.BanResult {
	t.Helper()
	in := sets.BanInput{Set: banset.All, Duration: d, Actor: "alice", Reason: "because"}
	for _, p := range prefixes {
		in.Prefixes = append(in.Prefixes, pfx(p))
	}
	return must(f.Ban(context.Background(), org, in))(t)
}

func jailBan(seq uint64, jail, p string, d time.Duration) sets.Event {
	return sets.Event{Seq: seq, Kind: sets.EventBan, Jail: jail, Prefix: pfx(p), Duration: d, Failures: 5, Set: banset.All, Cap: 24 * time.Hour}
}

func (f *fixture) events(t testing.TB, host string, events ...sets.Event) sets.EventsResult {
	t.Helper()
	return must(f.RecordEvents(context.Background(), org, sets.EventsInput{HostID: host, Fence: 1, Spool: "s1", Events: events}))(t)
}

// TestRates takes both rates of promotion to their ends, from two hosts.
func TestRates(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	seq := map[string]uint64{}
	record := func(host string, first, n int) sets.EventsResult {
		t.Helper()
		in := sets.EventsInput{HostID: host, Fence: 1, Spool: "s1", HostRate: 30, OrganisationRate: 50}
		for i := range n {
			in.Events = append(in.Events, jailBan(seq[host]+uint64(i)+1, "sshd", fmt.Sprintf("203.0.113.%d/32", first+i), time.Hour))
		}
		r := must(f.RecordEvents(t.Context(), org, in))(t)
		// What is sent again takes nothing of the rates.
		if again := must(f.RecordEvents(t.Context(), org, in))(t); again.Skipped != n || again.OverHostRate+again.OverOrganisationRate > 0 {
			t.Fatalf("sent again: %+v", again)
		}
		seq[host] += uint64(n)
		return r
	}
	want := func(r sets.EventsResult, promoted, overHost, overAll int) {
		t.Helper()
		if r.Promoted != promoted || r.OverHostRate != overHost || r.OverOrganisationRate != overAll {
			t.Fatalf("%+v, want %d promoted, %d over the host's rate, %d over that of all", r, promoted, overHost, overAll)
		}
	}
	want(record("H1", 1, 31), 30, 1, 0)
	want(record("H2", 41, 25), 20, 0, 5)
	if why := f.explain(t, "203.0.113.31/32").Entries[0].Claims[0].Unpromoted; why != operatorv1.Unpromoted_UNPROMOTED_HOST_RATE {
		t.Errorf("the ban beyond the host's rate: %v", why)
	}
	// All hosts get one back every 1.2 s, a host every 2 s.
	f.advance(1200 * time.Millisecond)
	want(record("H1", 71, 1), 0, 1, 0)
	want(record("H2", 72, 2), 1, 0, 1)
	f.advance(time.Minute)
	want(record("H1", 81, 30), 30, 0, 0)
	f.check(t)
}

func (f *fixture) explain(t testing.TB, p string) sets.Explanation {
	t.Helper()
	return must(f.Explain(context.Background(), org, pfx(p)))(t)
}

func TestBanUnban(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := context.Background()
	first := f.ban(t, time.Hour, "203.0.113.9/32", "2001:db8::/64")
	if first.Cursor.Version != 1 || first.Prefixes[0].Effect != operatorv1.BannedPrefix_EFFECT_BANNED || len(first.Prefixes) != 2 {
		t.Fatalf("%+v", first)
	}
	if again := f.ban(t, time.Minute, "203.0.113.9/32"); again.Cursor != first.Cursor || again.Prefixes[0].Effect != operatorv1.BannedPrefix_EFFECT_UNCHANGED {
		t.Fatalf("a shorter ban changed something: %+v", again)
	}
	if longer := f.ban(t, 2*time.Hour, "203.0.113.9/32"); longer.Cursor.Version != 2 || longer.Prefixes[0].Effect != operatorv1.BannedPrefix_EFFECT_EXTENDED {
		t.Fatalf("%+v", longer)
	}
	f.events(t, "H1", jailBan(1, "sshd", "203.0.113.9/32", 10*time.Minute))
	f.ban(t, time.Hour, "203.0.113.0/24")
	e := f.explain(t, "203.0.113.9/32")
	if len(e.Entries) != 2 || len(e.Entries[0].Claims) != 2 || e.Entries[1].Prefix != pfx("203.0.113.0/24") {
		t.Fatalf("%+v", e)
	}
	f.check(t)
	u := must(f.Unban(ctx, org, sets.UnbanInput{Prefixes: []netip.Prefix{pfx("203.0.113.9/32")}, Actor: "bob", Reason: "mistake"}))(t)
	if len(u.Prefixes) != 1 || len(u.Prefixes[0].Retracted) != 2 || len(u.Prefixes[0].StillCoveredBy) != 1 || len(u.Cursors) != 1 {
		t.Fatalf("%+v", u)
	}
	for _, c := range u.Prefixes[0].Retracted {
		if c.Set != banset.All || c.Actor == "" && (c.HostID != "H1" || c.Jail != "sshd" || c.Failures != 5) || c.Actor != "" && (c.Actor != "alice" || c.Reason != "because") {
			t.Errorf("retracted %+v", c)
		}
	}
	// Begun before the unban, told after it.
	late := jailBan(2, "sshd", "203.0.113.9/32", time.Hour)
	late.Age = time.Minute
	if r := f.events(t, "H1", late); r.Refused != 1 || r.Promoted != 0 || r.Through != 2 {
		t.Fatalf("%+v", r)
	}
	f.ban(t, time.Hour, "203.0.113.9/32")
	f.check(t)
	f.advance(3 * time.Hour)
	if e := f.explain(t, "203.0.113.9/32"); len(e.Entries) != 0 {
		t.Fatalf("what ran out is told still: %+v", e)
	}
	states := f.settle(t)
	if s := states.Set(banset.All); s.Records != 0 || s.Cursor.Digest != 0 {
		t.Fatalf("%+v", s)
	}
	keys := must(f.store.Client().Keys(ctx, store.Key(org, "c", "*")).Result())(t)
	if len(keys) != 0 {
		t.Fatalf("buckets are left: %v", keys)
	}
	if n := must(f.store.Client().HLen(ctx, store.Key(org, "refs")).Result())(t); n != 0 {
		t.Fatalf("%d reasons are left", n)
	}
}

func TestAllowAndProtect(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := context.Background()
	f.ban(t, time.Hour, "203.0.113.9/32", "198.51.100.0/24")
	a := must(f.Allow(ctx, org, sets.AllowInput{Prefixes: []netip.Prefix{pfx("203.0.113.0/24")}, Actor: "alice"}))(t)
	if a.Expires != banset.Never || !slices.Equal(a.Suppresses, []netip.Prefix{pfx("203.0.113.9/32")}) || a.Cursor.Set != banset.Allow || a.Cursor.Version != 1 {
		t.Fatalf("%+v", a)
	}
	if b := f.ban(t, time.Hour, "203.0.113.10/32"); b.Prefixes[0].Effect != operatorv1.BannedPrefix_EFFECT_SUPPRESSED || b.Prefixes[0].SuppressedBy != pfx("203.0.113.0/24") {
		t.Fatalf("%+v", b)
	}
	if r := f.events(t, "H1", jailBan(1, "sshd", "203.0.113.11/32", time.Hour)); r.Promoted != 0 {
		t.Fatalf("%+v", r)
	}
	if e := f.explain(t, "203.0.113.11/32"); e.Entries[0].Claims[0].Unpromoted != operatorv1.Unpromoted_UNPROMOTED_ALLOWED || len(e.AllowedBy) != 1 {
		t.Fatalf("%+v", e)
	}
	l := must(f.List(ctx, org, sets.ListInput{}))(t)
	if len(l.Entries) != 3 || l.Total != 3 || l.NextPageToken != "" {
		t.Fatalf("%+v", l)
	}
	for _, e := range l.Entries {
		if e.SuppressedBy.IsValid() != (e.Prefix != pfx("198.51.100.0/24")) {
			t.Errorf("%+v", e)
		}
	}
	d := must(f.Disallow(ctx, org, sets.DisallowInput{Prefixes: []netip.Prefix{pfx("203.0.113.0/24"), pfx("192.0.2.0/24")}, Actor: "alice"}))(t)
	if len(d.Reinstates) != 2 || d.Cursor.Version != 2 {
		t.Fatalf("%+v", d)
	}

	if err := f.PutHostAddresses(ctx, org, "H1", []netip.Prefix{pfx("192.0.2.1/32"), pfx("2001:db8::1/128")}); err != nil {
		t.Fatal(err)
	}
	var protected *sets.ProtectedError
	for _, p := range []string{"192.0.2.1/32", "192.0.2.0/24", "2001:db8::/32", "0.0.0.0/0"} {
		_, err := f.Ban(ctx, org, sets.BanInput{Prefixes: []netip.Prefix{pfx("192.0.2.77/32"), pfx(p)}, Set: banset.All, Duration: time.Hour})
		if !errors.As(err, &protected) || protected.Prefix != pfx(p) {
			t.Errorf("ban %s: %v", p, err)
		}
	}
	if e := f.explain(t, "192.0.2.0/24"); len(e.Entries) != 0 || e.Protected != pfx("192.0.2.1/32") {
		t.Fatalf("%+v", e)
	}
	if r := f.events(t, "H2", jailBan(1, "sshd", "192.0.2.1/32", time.Hour)); r.Promoted != 0 {
		t.Fatalf("%+v", r)
	}
	if epoch := must(f.Arrive(ctx, org, "H1", []netip.Prefix{pfx("192.0.2.2/32")}))(t); epoch == 0 || epoch != must(f.States(ctx, org))(t).Epoch {
		t.Errorf("a host that arrives is told the epoch %d", epoch)
	}
	f.ban(t, time.Hour, "192.0.2.1/32")
	f.check(t)
}

func TestTwoHosts(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	web := func(seq uint64, p string, age time.Duration) sets.Event {
		e := jailBan(seq, "nginx-botsearch", p, time.Hour)
		e.Unpromoted, e.Window, e.Age = operatorv1.Unpromoted_UNPROMOTED_AWAITS_SECOND_HOST, 10*time.Minute, age
		return e
	}
	const p = "203.0.113.9/32"
	if r := f.events(t, "H1", web(1, p, 0), web(2, p, 0)); r.Promoted != 0 {
		t.Fatalf("one host twice: %+v", r)
	}
	f.advance(11 * time.Minute)
	if r := f.events(t, "H2", web(1, p, 0)); r.Promoted != 0 {
		t.Fatalf("eleven minutes later: %+v", r)
	}
	f.advance(9 * time.Minute)
	if r := f.events(t, "H3", web(1, p, 0)); r.Promoted != 1 {
		t.Fatalf("nine minutes later: %+v", r)
	}
	counted := 0
	for _, c := range f.explain(t, p).Entries[0].Claims {
		if c.Counts() {
			counted++
		}
	}
	if counted != 2 {
		t.Fatalf("%d claims count, want those of H2 and H3", counted)
	}
	f.check(t)
}

func TestEvents(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := context.Background()
	const p = "203.0.113.9/32"
	day := jailBan(1, "sshd", p, 48*time.Hour)
	first := f.events(t, "H1", day)
	if first != (sets.EventsResult{Through: 1, Promoted: 1}) {
		t.Fatalf("%+v", first)
	}
	if again := f.events(t, "H1", day); again != (sets.EventsResult{Through: 1, Skipped: 1}) {
		t.Fatalf("replayed: %+v", again)
	}
	states := f.check(t)
	expires := f.explain(t, p).Entries[0].Expires
	if left := expires - states.Now; left > 24*3600_000 || left < 24*3600_000-5000 {
		t.Fatalf("%d ms left, want the cap of a day", left)
	}
	f.events(t, "H1", sets.Event{Seq: 2, Kind: sets.EventExtension, Jail: "sshd", Prefix: pfx(p), Duration: 2 * time.Hour, Cap: 24 * time.Hour})
	if got := f.explain(t, p).Entries[0].Expires; got >= expires {
		t.Fatalf("corrected to %d, was %d", got, expires)
	}
	f.events(t, "H2", jailBan(1, "dovecot", p, time.Hour))
	f.events(t, "H1", sets.Event{Seq: 3, Kind: sets.EventUnban, Jail: "sshd", Prefix: pfx(p), Cause: fleetbanv1.UnbanCause_UNBAN_CAUSE_JAIL_STOPPED})
	if claims := f.explain(t, p).Entries[0].Claims; len(claims) != 2 {
		t.Fatalf("%+v", claims)
	}
	f.events(t, "H1", sets.Event{Seq: 4, Kind: sets.EventUnban, Jail: "sshd", Prefix: pfx(p), Cause: fleetbanv1.UnbanCause_UNBAN_CAUSE_PERSON})
	if claims := f.explain(t, p).Entries[0].Claims; len(claims) != 1 || claims[0].HostID != "H2" {
		t.Fatalf("%+v", claims)
	}
	// What H1 says of a ban before its unban is refused; H2's stands.
	day.Seq, day.Age = 5, time.Minute
	if r := f.events(t, "H1", day); r.Refused != 1 {
		t.Fatalf("%+v", r)
	}
	f.events(t, "H2", sets.Event{Seq: 2, Kind: sets.EventUnban, Jail: "dovecot", Prefix: pfx(p), Cause: fleetbanv1.UnbanCause_UNBAN_CAUSE_PERSON})
	log := must(f.Log(ctx, org, banset.All, 0, 100))(t)
	if last := log[len(log)-1].Records[0]; last.Kind != fleetbanv1.RecordKind_RECORD_KIND_RETRACTED {
		t.Fatalf("%+v", last)
	}
	f.check(t)

	if err := f.store.Client().HSet(ctx, store.Key(org, "h", "H1"), "fence", 7).Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.RecordEvents(ctx, org, sets.EventsInput{HostID: "H1", Fence: 6, Spool: "s1", Events: []sets.Event{jailBan(6, "sshd", p, time.Hour)}}); !errors.Is(err, sets.ErrStaleFence) {
		t.Fatalf("stale fence: %v", err)
	}
	if _, err := f.RecordEvents(ctx, org, sets.EventsInput{HostID: "H1", Fence: 7, Spool: "s1", PolicyVersion: 3, Events: []sets.Event{jailBan(6, "sshd", p, time.Hour)}}); !errors.Is(err, sets.ErrPolicyChanged) {
		t.Fatalf("policy: %v", err)
	}
	if through := must(f.EventsThroughAll(ctx, org, []sets.Spool{{HostID: "H1", ID: "s1"}}))(t); through[0] != 5 {
		t.Fatalf("through %d, want 5", through)
	}
	kinds := map[operatorv1.FleetEventKind]int{}
	events, gap, err := f.Events(ctx, org, "", 100)
	if err != nil || gap {
		t.Fatal(gap, err)
	}
	for _, e := range events {
		kinds[e.Kind]++
		if e.Prefix != pfx(p) || e.HostID == "" || e.At == 0 {
			t.Errorf("%+v", e)
		}
	}
	want := map[operatorv1.FleetEventKind]int{
		operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED: 3, operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED_EXTENSION: 1,
		operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED_UNBAN: 3, operatorv1.FleetEventKind_FLEET_EVENT_KIND_BANNED: 1, operatorv1.FleetEventKind_FLEET_EVENT_KIND_UNBANNED: 1,
	}
	if fmt.Sprint(kinds) != fmt.Sprint(want) {
		t.Errorf("events %v, want %v", kinds, want)
	}
}

// TestListPages: every entry is listed once, whatever the page size, while others come and go.
func TestListPages(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := context.Background()
	const stable = 300
	var prefixes []netip.Prefix
	for n := range stable {
		prefixes = append(prefixes, address(n))
	}
	must(f.Ban(ctx, org, sets.BanInput{Prefixes: prefixes, Set: banset.All, Duration: time.Hour, Actor: "alice"}))(t)
	f.events(t, "H1", jailBan(1, "sshd", address(1).String(), time.Hour))
	local := jailBan(2, "named", address(9999).String(), time.Hour)
	local.Set, local.Unpromoted = "", operatorv1.Unpromoted_UNPROMOTED_LOCAL_JAIL
	f.events(t, "H1", local)
	for _, size := range []int{1, 7, 100, 5000} {
		seen := map[netip.Prefix]int{}
		token, pages := "", 0
		for {
			page := must(f.List(ctx, org, sets.ListInput{PageSize: size, PageToken: token}))(t)
			if len(page.Entries) > size {
				t.Fatalf("%d entries on a page of %d", len(page.Entries), size)
			}
			for _, e := range page.Entries {
				seen[e.Prefix]++
			}
			if token = page.NextPageToken; token == "" {
				break
			}
			if pages++; pages%50 == 1 {
				f.ban(t, time.Hour, fmt.Sprintf("203.0.113.%d/32", pages%250))
			}
		}
		for _, p := range prefixes {
			if seen[p] != 1 {
				t.Fatalf("pages of %d: %s listed %d times", size, p, seen[p])
			}
		}
		if seen[address(9999)] != 0 {
			t.Fatal("an observation was listed as a ban")
		}
	}
	if got := must(f.List(ctx, org, sets.ListInput{HostID: "H1", IncludeUnpromoted: true, PageSize: 5000}))(t); len(got.Entries) != 2 {
		t.Fatalf("%+v", got.Entries)
	}
	if got := must(f.List(ctx, org, sets.ListInput{Jail: "sshd", PageSize: 5000}))(t); len(got.Entries) != 1 || got.Entries[0].Prefix != address(1) {
		t.Fatalf("%+v", got.Entries)
	}
	for _, bad := range []string{"x", "1", "-1.", "4096.", "1.zz", "1.00112233445566778899aabbccddeeff0011223344"} {
		if _, err := f.List(ctx, org, sets.ListInput{PageToken: bad}); !errors.Is(err, sets.ErrPageToken) {
			t.Errorf("token %q: %v", bad, err)
		}
	}
}

// TestThroughOf: a host's mark counts for the spool that it names only, and one that is damaged for none.
func TestThroughOf(t *testing.T) {
	t.Parallel()
	spool := sets.Spool{HostID: "H1", ID: "s1"}
	for mark, want := range map[string]uint64{"": 0, "s1 7": 7, "s2 7": 0, "s1 18446744073709551615": 1<<64 - 1} {
		if got, err := sets.ThroughOf(mark, spool); got != want || err != nil {
			t.Errorf("%q: %d, %v, want %d", mark, got, err, want)
		}
	}
	for _, mark := range []string{"s1", "s1 ", "s1 -1", "s1 7 8", "s1 x"} {
		if got, err := sets.ThroughOf(mark, spool); err == nil {
			t.Errorf("%q: %d", mark, got)
		}
	}
	if got, err := sets.ThroughOf("", sets.Spool{HostID: "H1"}); got != 0 || err != nil {
		t.Errorf("a host that named no spool: %d, %v", got, err)
	}
}
