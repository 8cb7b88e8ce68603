package e2e

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// What the other tests and the demo believe, a probe and Reach say: so they must see a cut, and must not see one that isn't.
func TestProbesTellTheTruth(t *testing.T) {
	l := up(t, lab.Options{Name: "probe", Hosts: 2, Box: true})
	ctx := limited(t, 30*time.Second)
	attacker, host := l.Node(lab.Attacker), l.Node("b")
	var probes []*lab.Probe
	for _, target := range l.Targets() {
		if err := lab.Reach(ctx, attacker, lab.AttackerAddr, target); err != nil {
			t.Fatal(err)
		}
		p, err := lab.NewProbe(ctx, attacker, lab.AttackerAddr, target)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		probes = append(probes, p)
	}
	rules := "table inet test { chain pre { type filter hook prerouting priority -150; ip saddr " + lab.AttackerAddr.String() + " drop; }; }"
	begin := time.Now()
	if _, err := host.ExecInput(ctx, rules, "nft", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	end := time.Now()
	for _, p := range probes {
		if p.Target.Name == "a" {
			if !p.Stands() {
				t.Error("a connection to a was cut by a rule on b")
			}
			continue
		}
		at, err := p.Cut(ctx)
		if err != nil {
			t.Error(err)
			continue
		}
		// The answer before the cut one may have been on its way, and a busy machine is late.
		const late = 250 * time.Millisecond
		if at.Before(begin.Add(-late)) || at.After(end.Add(late)) {
			t.Errorf("%s was cut %s after the rule was on its way, which took %s", p.Target.Name, at.Sub(begin), end.Sub(begin))
		}
		if err := lab.Reach(ctx, attacker, lab.AttackerAddr, p.Target); !errors.Is(err, lab.ErrUnreachable) {
			t.Errorf("reaching %s behind the rule: %v, want ErrUnreachable", p.Target.Name, err)
		}
	}
	if _, err := host.Exec(ctx, "nft", "delete", "table", "inet", "test"); err != nil {
		t.Fatal(err)
	}
	for _, target := range l.Targets() {
		if _, err := lab.AwaitReach(ctx, attacker, lab.AttackerAddr, target); err != nil {
			t.Error(err)
		}
	}
}

// What the benchmark measures with: fail2ban's line and the kernel's element, seen as they come.
func TestWatchesSeeBansAsTheyCome(t *testing.T) {
	l := up(t, lab.Options{Name: "watch", Hosts: 1, Fail2ban: map[string]lab.Fail2ban{"a": {MaxRetry: 1}}})
	ctx := limited(t, 30*time.Second)
	host := l.Node("a")
	kernel, err := host.WatchKernel()
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	lines, err := host.WatchBanLines()
	if err != nil {
		t.Fatal(err)
	}
	defer lines.Close()
	socket, err := host.DialFail2ban(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := socket.Command("set", "nosuchjail", "attempt", "192.0.2.1"); err == nil {
		t.Error("fail2ban takes an order for a jail it doesn't have")
	}
	for _, addr := range []netip.Addr{lab.SourceAddr(0), lab.SourceAddr(1), lab.SourceAddr6(0)} {
		kernel.Expect(addr)
		if err := socket.Command("set", "sshd", "attempt", addr.String()); err != nil {
			t.Fatal(err)
		}
		// fail2ban's own action puts it into the kernel of its own host.
		arrived, err := kernel.Await(ctx, addr)
		if err != nil {
			t.Fatal(err)
		}
		line, ok := lines.At(addr)
		if !ok {
			t.Fatalf("%s is in the kernel and its line in the log was not seen", addr)
		}
		if took := arrived.Sub(line); took <= 0 || took > limit {
			t.Errorf("fail2ban's action for %s took %s after its line", addr, took)
		} else {
			t.Logf("fail2ban's action for %s: %s after its line", addr, took)
		}
	}
}
