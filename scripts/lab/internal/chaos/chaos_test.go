package chaos

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
	"github.com/fleetban/fleetban/scripts/lab/internal/node"
)

func TestMain(m *testing.M) {
	node.Main()
	os.Exit(m.Run())
}

// TestSeedsHold plays fixed seeds, chosen for having every fault there is within a few rounds: one of a fleet with one Redis
// server, one of a fleet with Sentinels. More of them: make chaos SEED=… ROUNDS=….
func TestSeedsHold(t *testing.T) {
	const rounds = 9
	for _, seed := range []uint64{156, 2345} {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			done, err := Run(t.Context(), Options{
				Lab: lab.Options{Name: "seed-" + strconv.FormatUint(seed, 10) + "-" + strconv.Itoa(os.Getpid())}, Seed: seed, Rounds: rounds, Out: t.Output(),
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, call := range []string{"ban", "unban", "jail ban"} {
				if done[call] == 0 {
					t.Errorf("no %s was acknowledged", call)
				}
			}
			for kind := range kindsOf(seed) {
				if done["fault: "+kind] == 0 {
					t.Errorf("in %d rounds there was no %s: choose another seed", rounds, kind)
				}
			}
		})
	}
}

// TestCheckerSees breaks what nobody mends, and forges the journal: each must be seen.
func TestCheckerSees(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l, err := lab.Up(ctx, lab.Options{Name: "sees-" + strconv.Itoa(os.Getpid()), Hosts: 2, Fleetban: true, Leased: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Down(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	})
	r := &run{lab: l, journal: newJournal(), counts: Summary{}}
	r.checker = newChecker(l, r.journal)
	w := &workload{lab: l, journal: r.journal, random: rand.New(rand.NewPCG(1, 1)), counts: r.counts} //nolint:gosec // no secret
	a, b := l.Node("a"), l.Node("b")
	w.jail(a, 0).do(ctx)
	for range 4 {
		w.person(0).do(ctx)
	}
	if wrong, err := r.settle(ctx); err != nil || len(wrong) > 0 {
		t.Fatalf("a sound fleet: %v, %v", err, wrong)
	}
	if wrong, err := r.checker.told(ctx, 0); err != nil || len(wrong) > 0 {
		t.Fatalf("a sound fleet: %v, %v", err, wrong)
	}
	standing := map[netip.Prefix]bool{}
	for _, f := range r.journal.all() {
		standing[f.prefix] = f.verdict(time.Now()) == banned
	}
	sees := func(words string, wrong []string, err error) {
		t.Helper()
		if err != nil || !strings.Contains(strings.Join(wrong, "\n"), words) {
			t.Errorf("want %q seen, got %v, %v", words, wrong, err)
		}
	}

	never := r.journal.note(fact{prefix: netip.MustParsePrefix("45.9.9.9/32"), host: "a", acknowledged: true, ends: time.Now().Add(time.Hour), earliest: time.Now().Add(time.Hour)})
	wrong, err := r.checker.told(ctx, 0)
	sees("told 0 times of 45.9.9.9", wrong, err)
	wrong, err = r.checker.settled(ctx)
	sees("the API doesn't list 45.9.9.9", wrong, err)
	r.journal.change(never, func(f *fact) { f.host, f.tail = "", true })
	wrong, err = r.checker.told(ctx, 0)
	sees("nothing shows the loss of 45.9.9.9", wrong, err)
	r.journal.change(never, func(f *fact) { f.ends = time.Now().Add(-time.Hour); f.earliest = f.ends })

	// One observed ban is told again as restored, which is right only if somebody had lifted it.
	const again = `local key = redis.call('KEYS', 'fb:*:events')[1]
		for _, entry in ipairs(redis.call('XRANGE', key, '-', '+')) do
			local fields, observed = {}, false
			for i = 1, #entry[2], 2 do
				local name, value = entry[2][i], entry[2][i + 1]
				observed = observed or name == 'k' and value == '1'
				if name ~= 'u' then
					fields[#fields + 1] = name
					fields[#fields + 1] = value
				end
			end
			if observed then return redis.call('XADD', key, '*', 'u', '4', unpack(fields)) end
		end`
	if _, err := l.Node(lab.ControlPlane).Exec(ctx, "redis-cli", "EVAL", again, "0"); err != nil {
		t.Fatal(err)
	}
	events, err := r.checker.history(ctx)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(events, func(e event) bool { return e.Unpromoted == restored })
	if i < 0 {
		t.Fatalf("nothing is told as restored: %+v", events)
	}
	told := events[i]
	f := r.journal.find(netip.MustParsePrefix(told.Prefix + "/32"))
	if f == nil {
		t.Fatalf("nobody remembers %+v", told)
	}
	before := *f
	r.journal.change(f, func(f *fact) { f.lifting = false })
	wrong, err = r.checker.told(ctx, 0)
	sees("on "+told.HostName+" 2 times", wrong, err)
	r.journal.change(f, func(f *fact) { f.lifting = true })
	if wrong, err = r.checker.told(ctx, 0); err != nil || strings.Contains(strings.Join(wrong, "\n"), "times") {
		t.Errorf("a lifted ban stands again: %v, %v", wrong, err)
	}
	r.journal.change(f, func(f *fact) { *f = before })

	const twice = `local key = redis.call('KEYS', 'fb:*:events')[1]
		for _, entry in ipairs(redis.call('XRANGE', key, '-', '+')) do
			for i = 1, #entry[2], 2 do
				if entry[2][i] == 'k' and entry[2][i + 1] == '1' then redis.call('XADD', key, '*', unpack(entry[2])) end
			end
		end`
	if _, err := l.Node(lab.ControlPlane).Exec(ctx, "redis-cli", "EVAL", twice, "0"); err != nil {
		t.Fatal(err)
	}
	wrong, err = r.checker.told(ctx, 0)
	sees("on a 2 times", wrong, err)

	for p, stands := range standing {
		if !stands {
			continue
		}
		f := r.journal.find(p)
		before := *f
		r.journal.change(f, func(f *fact) { f.lifted = true })
		wrong, err = r.checker.settled(ctx)
		sees("left over: a bans "+p.String(), wrong, err)
		r.journal.change(f, func(f *fact) { *f = before; f.allowed = true })
		sees("allowed: b bans "+p.String(), r.checker.during(ctx, standing, nil), nil)
		r.journal.change(f, func(f *fact) { *f = before; f.ends = time.Now().Add(-time.Minute); f.earliest = f.ends })
		sees("outlived: a bans "+p.String(), r.checker.during(ctx, standing, nil), nil)
		r.journal.change(f, func(f *fact) { *f = before })
		break
	}

	for _, service := range []string{lab.ServiceAgent, lab.ServiceHelper} {
		if err := b.Stop(ctx, service, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Exec(ctx, "nft", "flush", "ruleset"); err != nil {
		t.Fatal(err)
	}
	sees("dropped: b no longer bans", r.checker.during(ctx, standing, nil), nil)
	wrong, err = r.checker.settled(ctx)
	sees("lost: b doesn't ban", wrong, err)
	sees("and b doesn't", wrong, err)
	// A stranger's element, which the agent would take out: it is stopped first.
	for _, service := range []string{lab.ServiceAgent, lab.ServiceHelper} {
		if err := a.Stop(ctx, service, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Exec(ctx, "nft", "add table inet fleetban; add set inet fleetban ban4_32 { type ipv4_addr; flags timeout; }; "+
		"add element inet fleetban ban4_32 { 45.8.8.8 timeout 1h }"); err != nil {
		t.Fatal(err)
	}
	wrong, err = r.checker.settled(ctx)
	sees("foreign: a bans 45.8.8.8", wrong, err)
}

// TestDeal: a round's faults follow from the seed and its number alone, and none is left out for long.
func TestDeal(t *testing.T) {
	for seed := range uint64(20) {
		seen := map[string]bool{}
		for round := range 2 * len(kindsOf(seed)) {
			kinds := deal(seed, round)
			if again := deal(seed, round); !slices.Equal(kinds, again) || len(kinds) < 1 || len(kinds) > 3 {
				t.Fatalf("round %d of seed %d: %v, then %v", round, seed, kinds, again)
			}
			for _, kind := range kinds {
				seen[kind] = true
			}
		}
		if len(seen) != len(kindsOf(seed)) {
			t.Errorf("seed %d has %d kinds of %d", seed, len(seen), len(kindsOf(seed)))
		}
	}
}

func TestVerdict(t *testing.T) {
	now := time.Now()
	in := now.Add
	for name, c := range map[string]struct {
		f    fact
		want verdict
	}{
		"acknowledged":         {fact{acknowledged: true, ends: in(time.Minute), earliest: in(time.Minute)}, banned},
		"outcome unknown":      {fact{ends: in(time.Minute), earliest: now}, either},
		"unknown, long over":   {fact{ends: in(-time.Minute), earliest: in(-2 * time.Minute)}, free},
		"about to end":         {fact{acknowledged: true, ends: in(early / 2), earliest: in(early / 2)}, either},
		"just over":            {fact{acknowledged: true, ends: in(-late / 2), earliest: in(-late / 2)}, either},
		"over":                 {fact{acknowledged: true, ends: in(-late - time.Second), earliest: in(-late - time.Second)}, free},
		"being lifted":         {fact{acknowledged: true, lifting: true, ends: in(time.Minute), earliest: in(time.Minute)}, either},
		"lifted":               {fact{acknowledged: true, lifting: true, lifted: true, ends: in(time.Minute), earliest: in(time.Minute)}, free},
		"fail2ban was killed":  {fact{acknowledged: true, shaken: true, ends: in(time.Minute), earliest: in(time.Minute)}, either},
		"lifted where it died": {fact{acknowledged: true, lifting: true, lifted: true, shaken: true, ends: in(time.Minute), earliest: in(time.Minute)}, either},
		"on the allowlist":     {fact{allowed: true}, free},

		"allowed in a tail":                {fact{allowed: true, tail: true, ends: in(time.Minute), earliest: in(time.Minute)}, either},
		"lost with a tail":                 {fact{acknowledged: true, tail: true, ends: in(time.Minute), earliest: in(time.Minute)}, either},
		"of a tail, but a host had it":     {fact{acknowledged: true, tail: true, held: map[string]bool{"a": true}, ends: in(time.Minute), earliest: in(time.Minute)}, banned},
		"of a tail, but a host kept it":    {fact{host: "a", acknowledged: true, tail: true, ends: in(time.Minute), earliest: in(time.Minute)}, banned},
		"lifted in a tail":                 {fact{acknowledged: true, tail: true, lifting: true, lifted: true, ends: in(time.Minute), earliest: in(time.Minute)}, either},
		"lifted in a tail and seen so":     {fact{acknowledged: true, tail: true, lifting: true, lifted: true, gone: true, held: map[string]bool{"a": true}, ends: in(time.Minute), earliest: in(time.Minute)}, free},
		"the clock was set forward":        {fact{acknowledged: true, early: time.Hour, ends: in(time.Minute), earliest: in(time.Minute)}, either},
		"the clock stood still":            {fact{acknowledged: true, late: time.Hour, ends: in(-time.Minute), earliest: in(-time.Minute)}, either},
		"the clock stood still, long over": {fact{acknowledged: true, late: time.Minute, ends: in(-time.Hour), earliest: in(-time.Hour)}, free},
	} {
		if got := c.f.verdict(now); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
