package nft_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fleetban/fleetban/agent/internal/nft"
)

// TestPackets bans the attacker in every shape and looks at what still passes.
func TestPackets(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLab(t)
	echo(t, l.host, "203.0.113.1:22")
	echo(t, l.host, "[2001:db8:1::1]:22")
	echo(t, l.container, "10.77.0.2:80")
	echo(t, l.attacker, "203.0.113.9:443")
	echo(t, l.attacker, "[2001:db8:1::9]:443")
	e := open(t, l.host)
	if err := e.Probe(ctx); err != nil {
		t.Fatal(err)
	}
	if out := run(t, "ip", "netns", "exec", l.host, "nft", "list", "ruleset"); strings.Contains(out, "fleetban") {
		t.Fatalf("the probe left something:\n%s", out)
	}
	if err := e.Replace(ctx, nft.Desired{}); err != nil {
		t.Fatal(err)
	}
	type target struct{ addr, ban string }
	for _, tc := range []target{
		{"203.0.113.1:22", "203.0.113.9/32"},
		{"203.0.113.1:22", "203.0.113.0/24"},
		{"203.0.113.1:22", "203.0.0.0/17"},
		{"203.0.113.1:8080", "203.0.113.9/32"},
		{"[2001:db8:1::1]:22", "2001:db8:1::9/128"},
		{"[2001:db8:1::1]:22", "2001:db8:1::/64"},
		{"[2001:db8:1::1]:22", "2001:db8::/32"},
	} {
		t.Run(strings.NewReplacer("/", "_", ":", "-").Replace(tc.addr+" "+tc.ban), func(t *testing.T) {
			stands := mustDial(t, l.attacker, tc.addr)
			own := "203.0.113.9:443"
			if strings.HasPrefix(tc.addr, "[") {
				own = "[2001:db8:1::9]:443"
			}
			out := mustDial(t, l.host, own)
			prefix := netip.MustParsePrefix(tc.ban)
			if err := e.Update(ctx, nft.Update{Add: []nft.Element{{Prefix: prefix, Remaining: time.Hour}}}); err != nil {
				t.Fatal(err)
			}
			if ping(stands, silence) == nil {
				t.Error("a connection that stood still works")
			}
			mustNotDial(t, l.attacker, tc.addr)
			if err := ping(out, patience); err != nil {
				t.Errorf("the host's own connection to the banned address is cut: %v", err)
			}
			mustDial(t, l.host, own)
			// An allowed prefix beats it, and stops doing so.
			allow := nft.Element{Prefix: netip.PrefixFrom(prefix.Addr(), prefix.Bits()-1).Masked(), Remaining: nft.Forever}
			if err := e.Update(ctx, nft.Update{Allow: []nft.Element{allow}}); err != nil {
				t.Fatal(err)
			}
			mustDial(t, l.attacker, tc.addr)
			if err := e.Update(ctx, nft.Update{Disallow: []netip.Prefix{allow.Prefix}}); err != nil {
				t.Fatal(err)
			}
			mustNotDial(t, l.attacker, tc.addr)
			if err := e.Update(ctx, nft.Update{Remove: []netip.Prefix{prefix}}); err != nil {
				t.Fatal(err)
			}
			mustDial(t, l.attacker, tc.addr)
		})
	}
	c, err := e.Counters(ctx)
	if err != nil || c.Packets == 0 || c.Bytes == 0 {
		t.Errorf("counters: %+v, %v", c, err)
	}
	if err := e.Replace(ctx, nft.Desired{}); err != nil {
		t.Fatal(err)
	}
	if after, err := e.Counters(ctx); err != nil || after.Packets < c.Packets {
		t.Errorf("counters after a replacement: %+v, %v; before %+v", after, err, c)
	}
	if out := run(t, "ip", "netns", "exec", l.host, "nft", "list", "table", "inet", "f2b-table"); !strings.Contains(out, "198.51.100.7") {
		t.Errorf("fail2ban's table was touched:\n%s", out)
	}
	if err := e.Off(ctx); err != nil {
		t.Fatal(err)
	}
	if out := run(t, "ip", "netns", "exec", l.host, "nft", "list", "ruleset"); strings.Contains(out, "inet fleetban") || !strings.Contains(out, "f2b-table") {
		t.Errorf("after Off:\n%s", out)
	}
}

func TestUpdateIsExact(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLab(t)
	e := open(t, l.host)
	if err := e.Replace(ctx, nft.Desired{Bans: elements(el("203.0.113.9/32", time.Hour), el("198.51.100.0/24", nft.Forever)), Allows: elements(el("192.0.2.0/24", time.Hour))}); err != nil {
		t.Fatal(err)
	}
	want := func(step string, list ...nft.Element) {
		t.Helper()
		got := listed(t, e)
		if len(got) != len(list) {
			t.Fatalf("%s: the kernel has %v, want %v", step, got, list)
		}
		for _, w := range list {
			r, ok := got[w.Prefix.String()]
			if !ok {
				r, ok = got["allow "+w.Prefix.String()]
			}
			if !ok || (w.Remaining == nft.Forever) != (r == nft.Forever) || r > w.Remaining || r < w.Remaining-time.Minute {
				t.Errorf("%s: %s has %s, want %s (%v)", step, w.Prefix, r, w.Remaining, ok)
			}
		}
	}
	want("replace", el("203.0.113.9/32", time.Hour), el("198.51.100.0/24", nft.Forever), el("192.0.2.0/24", time.Hour))
	for _, u := range []nft.Update{
		{Add: []nft.Element{el("203.0.113.9/32", 5*time.Hour), el("198.51.100.0/24", 2*time.Hour), el("2001:db8::/64", time.Hour)}},
		// Twice, and what isn't there.
		{Add: []nft.Element{el("203.0.113.9/32", 5*time.Hour), el("203.0.113.9/32", 5*time.Hour)}, Remove: []netip.Prefix{netip.MustParsePrefix("203.0.113.10/32"), netip.MustParsePrefix("192.0.0.0/9")}},
		// What is over by now is not added; nor does it stay for ever.
		{Add: []nft.Element{el("203.0.113.77/32", 0), el("203.0.113.78/32", time.Millisecond), el("203.0.113.79/32", -time.Hour)}},
	} {
		if err := e.Update(ctx, u); err != nil {
			t.Fatal(err)
		}
		want("update", el("203.0.113.9/32", 5*time.Hour), el("198.51.100.0/24", 2*time.Hour), el("2001:db8::/64", time.Hour), el("192.0.2.0/24", time.Hour))
	}
	if err := e.Update(ctx, nft.Update{Add: []nft.Element{el("203.0.113.9/32", nft.Forever)}, Remove: []netip.Prefix{netip.MustParsePrefix("2001:db8::/64")}, Disallow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}); err != nil {
		t.Fatal(err)
	}
	want("for ever", el("203.0.113.9/32", nft.Forever), el("198.51.100.0/24", 2*time.Hour))
	// A second enforcer finds and replaces what the first left: the helper restarted.
	again := open(t, l.host)
	if err := again.Replace(ctx, nft.Desired{Bans: elements(el("203.0.113.1/32", time.Hour))}); err != nil {
		t.Fatal(err)
	}
	want("restart", el("203.0.113.1/32", time.Hour))
}

func TestKernelExpires(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLab(t)
	echo(t, l.host, "203.0.113.1:22")
	e := open(t, l.host)
	const brief = 100 * time.Millisecond
	// On a machine that is busy a short ban may be over before it is tried.
	for lasts := 3 * brief; ; lasts *= 3 {
		begin := time.Now()
		if err := e.Replace(ctx, nft.Desired{Bans: elements(el("203.0.113.9/32", lasts), el("198.51.100.1/32", nft.Forever))}); err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil { // no agent
			t.Fatal(err)
		}
		c, err := dial(t, l.attacker, "203.0.113.1:22", brief)
		if err != nil {
			break
		}
		_ = c.Close()
		if time.Since(begin) < lasts {
			t.Fatal("the ban doesn't hold")
		}
		e = open(t, l.host)
	}
	mustDial(t, l.attacker, "203.0.113.1:22") // its SYN is sent again until the ban is over
	e = open(t, l.host)
	if got := listed(t, e); len(got) != 1 {
		t.Errorf("left: %v", got)
	}
	// An extension outlives the first end.
	for _, d := range []time.Duration{200 * time.Millisecond, 700 * time.Millisecond} {
		if err := e.Replace(ctx, nft.Desired{}); err != nil {
			t.Fatal(err)
		}
		var begin time.Time
		for _, step := range []time.Duration{100 * time.Millisecond, d} {
			begin = time.Now()
			if err := e.Update(ctx, nft.Update{Add: []nft.Element{el("203.0.113.9/32", step)}}); err != nil {
				t.Fatal(err)
			}
		}
		until(t, "the extended ban ends", func() bool { return len(listed(t, e)) == 0 })
		if took := time.Since(begin); took < d-50*time.Millisecond {
			t.Errorf("a ban extended to %s was over after %s", d, took)
		}
	}
}

func TestForeignChanges(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l := newLab(t)
	echo(t, l.host, "203.0.113.1:22")
	e := open(t, l.host)
	desired := nft.Desired{Bans: elements(el("203.0.113.9/32", time.Hour))}
	if err := e.Replace(ctx, desired); err != nil {
		t.Fatal(err)
	}
	events, err := e.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	quiet := func() {
		t.Helper()
		select {
		case <-events:
			t.Fatal("woken by our own change or another's table")
		default:
		}
	}
	if err := e.Update(ctx, nft.Update{Add: []nft.Element{el("203.0.113.10/32", time.Hour)}}); err != nil {
		t.Fatal(err)
	}
	if err := e.Replace(ctx, desired); err != nil {
		t.Fatal(err)
	}
	nftCommand(t, l.host, "add element inet f2b-table addr-set-sshd { 198.51.100.8 }")
	quiet()
	for _, harm := range []string{
		"flush ruleset",
		"delete table inet fleetban",
		"flush chain inet fleetban banned",
		"flush set inet fleetban ban4_32",
		"delete element inet fleetban ban4_32 { 203.0.113.9 }",
		"insert rule inet fleetban prerouting accept",
	} {
		nftCommand(t, l.host, harm)
		select {
		case <-events:
		case <-time.After(patience):
			t.Fatalf("%s: not noticed", harm)
		}
		// Whoever is woken compares; flushes of a set and the like show as missing elements.
		missing := 1
		err := e.List(ctx, func(nft.Element, bool) error { missing--; return nil })
		if err == nil && missing == 0 {
			t.Fatalf("%s: the table looks whole", harm)
		}
		if err != nil && !errors.Is(err, nft.ErrGone) {
			t.Fatalf("%s: %v", harm, err)
		}
		if harm == "flush ruleset" {
			if err := e.Update(ctx, nft.Update{Add: []nft.Element{el("203.0.113.10/32", time.Hour)}}); !errors.Is(err, nft.ErrGone) {
				t.Fatalf("an update of a table that is gone: %v", err)
			}
		}
		if err := e.Replace(ctx, desired); err != nil {
			t.Fatal(err)
		}
		mustNotDial(t, l.attacker, "203.0.113.1:22")
		for len(events) > 0 {
			<-events
		}
	}
	cancel()
	for range events { // closed
	}
}

// TestRefusedElementsLoseNoOthers fills sets that are too small.
func TestRefusedElementsLoseNoOthers(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	l := newLab(t)
	e := open(t, l.host, func(c *nft.Config) { c.MaxElements = 50 })
	var all []nft.Element
	for i := range 60 {
		all = append(all, nft.Element{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 32), Remaining: time.Hour})
	}
	all = append(all, el("2001:db8::/64", time.Hour), el("203.0.113.0/24", time.Hour))
	check := func(step string, err error) {
		t.Helper()
		var refused *nft.RefusedError
		if !errors.As(err, &refused) || !errors.Is(err, unix.ENFILE) {
			t.Fatalf("%s: %v, want a *RefusedError of ENFILE", step, err)
		}
		got := listed(t, e)
		if len(got)+len(refused.Prefixes) != len(all) || len(refused.Prefixes) < 10 {
			t.Errorf("%s: %d in the kernel, %d refused, of %d", step, len(got), len(refused.Prefixes), len(all))
		}
		for _, p := range refused.Prefixes {
			if _, there := got[p.String()]; there {
				t.Errorf("%s: %s is called refused and is there", step, p)
			}
		}
		if _, ok := got["2001:db8::/64"]; !ok {
			t.Errorf("%s: an element of another set is lost", step)
		}
	}
	check("replace", e.Replace(ctx, nft.Desired{Bans: elements(all...)}))
	if err := e.Replace(ctx, nft.Desired{}); err != nil {
		t.Fatal(err)
	}
	check("update", e.Update(ctx, nft.Update{Add: all}))
}

func TestProbeSaysWhatToDo(t *testing.T) {
	t.Parallel()
	if _, err := nft.Open(nft.Config{NetNS: "/run/netns/fbnft-nowhere"}); err == nil {
		t.Error("opened in a namespace that isn't there")
	}
}
