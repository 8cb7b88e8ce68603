package e2e

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// The main job, on hosts whose fail2ban differ in all that the agent must cope with.
func TestBans(t *testing.T) {
	t.Parallel()
	f := newFleet(t, lab.Options{Name: "bans", Box: true, Fail2ban: map[string]lab.Fail2ban{
		"b": {Action: "iptables", Backend: "polling"},
		"c": {Contained: true, Log: "stdout", TZ: "Asia/Tokyo"},
	}})
	attacker := f.Node(lab.Attacker)

	t.Run("an attack on any host is shut out of all", func(t *testing.T) {
		f := f.in(t)
		for _, host := range f.Hosts() {
			for _, from := range []netip.Addr{source(t), source6(t)} {
				ctx := limited(t, 2*limit)
				targets := f.Targets()
				if from.Is6() {
					targets = f.Targets6()
				}
				var probes []*lab.Probe
				for _, target := range targets {
					if target.Name == host.Name {
						continue
					}
					p, err := lab.NewProbe(ctx, attacker, from, target)
					if err != nil {
						t.Fatal(err)
					}
					defer p.Close()
					probes = append(probes, p)
				}
				ban, err := f.Attack(ctx, host, from)
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range probes {
					at, err := p.Cut(ctx)
					if err != nil {
						t.Errorf("after the ban on %s: %v", host.Name, err)
						continue
					}
					t.Logf("%s banned on %s: %s cut after %s", from, host.Name, p.Target.Name, at.Sub(ban.At))
				}
				for _, target := range targets {
					if err := lab.Reach(ctx, attacker, from, target); !errors.Is(err, lab.ErrUnreachable) {
						t.Errorf("%s reaches %s: %v", from, target.Name, err)
					}
				}
				f.observedOnce(ctx, from, host.Name)
			}
		}
	})

	t.Run("unban restores access everywhere and stays", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 2*limit)
		from, host := source(t), f.Node("a")
		f.jailBan(ctx, host, from)
		f.enforced(ctx, from, f.Hosts()...)
		answer := f.unban(ctx, from.String())
		if got := answer.GetPrefixes()[0].GetOrderedHosts(); len(got) != 1 || got[0] != host.Name {
			t.Errorf("hosts ordered to unban it: %v, want a", got)
		}
		for _, target := range f.Targets() {
			if _, err := lab.AwaitReach(ctx, attacker, from, target); err != nil {
				t.Error(err)
			}
		}
		if output, err := host.Fail2ban(ctx, "get", "sshd", "banip"); err != nil || strings.Contains(output, from.String()) {
			// The order is carried out after the answer: wait for the result of the last command.
			f.awaitHost(ctx, host.Name, "its unban", func(*operatorv1.Host) bool {
				output, err := host.Fail2ban(ctx, "get", "sshd", "banip")
				return err == nil && !strings.Contains(output, from.String())
			})
		}
		if got := f.explain(ctx, from.String()); got.GetBanned() || len(got.GetTombstones()) != 1 {
			t.Errorf("explain after the unban: %v", got)
		}
	})

	t.Run("a ban ends on time without a control plane", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 2*limit)
		from := source(t)
		made := f.ban(ctx, 3*time.Second, from.String())
		f.enforced(ctx, from, f.Hosts()...)
		f.lifted(ctx, from, f.Hosts()...)
		late := time.Since(time.UnixMilli(made.GetExpiresUnixMs()))
		if late < -100*time.Millisecond || late > limit {
			t.Errorf("it was lifted %s after its end", late)
		}
	})

	t.Run("receipts count every host", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, limit)
		from := source(t)
		begin := time.Now()
		made := f.ban(ctx, time.Hour, from.String())
		got := f.receipts(ctx, made.GetCursor(), from.String())
		t.Logf("enforced on all hosts after %s", time.Since(begin))
		if got.GetEnforced() != 3 || got.GetInScope() != 3 || got.GetRefused() != 0 || got.GetOffline() != 0 {
			t.Errorf("receipts: %v", got)
		}
		for _, h := range f.Hosts() {
			if !f.bans(ctx, h, from) {
				t.Errorf("%s has sent a receipt for %s and its kernel doesn't ban it", h.Name, from)
			}
		}
	})

	t.Run("the allowlist beats every ban", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, limit)
		from := source(t)
		f.ban(ctx, time.Hour, from.String())
		f.enforced(ctx, from, f.Hosts()...)
		_, err := f.api.Allowlist.Allow(ctx, connect.NewRequest(operatorv1.AllowRequest_builder{Prefixes: []string{from.String()}}.Build()))
		if err != nil {
			t.Fatal(err)
		}
		for _, target := range f.Targets() {
			if _, err := lab.AwaitReach(ctx, attacker, from, target); err != nil {
				t.Error(err)
			}
		}
		_, err = f.api.Allowlist.Disallow(ctx, connect.NewRequest(operatorv1.DisallowRequest_builder{Prefixes: []string{from.String()}}.Build()))
		if err != nil {
			t.Fatal(err)
		}
		for _, target := range f.Targets() {
			if err := lab.AwaitUnreachable(ctx, attacker, from, target); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("pause stops enforcement and resume brings it back", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, limit)
		from := source(t)
		f.ban(ctx, time.Hour, from.String())
		f.enforced(ctx, from, f.Hosts()...)
		if _, err := f.api.Fleet.Pause(ctx, connect.NewRequest(operatorv1.PauseRequest_builder{DurationS: 600}.Build())); err != nil {
			t.Fatal(err)
		}
		for _, target := range f.Targets() {
			if _, err := lab.AwaitReach(ctx, attacker, from, target); err != nil {
				t.Error(err)
			}
		}
		if _, err := f.api.Fleet.Resume(ctx, connect.NewRequest(operatorv1.ResumeRequest_builder{}.Build())); err != nil {
			t.Fatal(err)
		}
		for _, target := range f.Targets() {
			if err := lab.AwaitUnreachable(ctx, attacker, from, target); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("a person on the host can turn it off and allow an address", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, limit)
		from, host := source(t), f.Node("b")
		target := f.Targets()[1]
		f.ban(ctx, time.Hour, from.String())
		f.enforced(ctx, from, f.Hosts()...)
		for _, verbs := range [][2][]string{
			{{"fleetban-agent", "off"}, {"fleetban-agent", "on"}},
			{{"fleetban-agent", "allow", from.String()}, {"fleetban-agent", "allow", "--remove", from.String()}},
		} {
			if _, err := host.Exec(ctx, verbs[0]...); err != nil {
				t.Fatal(err)
			}
			if _, err := lab.AwaitReach(ctx, attacker, from, target); err != nil {
				t.Errorf("after %v: %v", verbs[0], err)
			}
			if err := lab.Reach(ctx, attacker, from, f.Targets()[0]); !errors.Is(err, lab.ErrUnreachable) {
				t.Errorf("%v on b changed host a: %v", verbs[0], err)
			}
			if _, err := host.Exec(ctx, verbs[1]...); err != nil {
				t.Fatal(err)
			}
			if err := lab.AwaitUnreachable(ctx, attacker, from, target); err != nil {
				t.Errorf("after %v: %v", verbs[1], err)
			}
		}
	})

	t.Run("a host's own outbound connections to a banned address go on", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, limit)
		from := source(t)
		f.ban(ctx, time.Hour, from.String())
		f.enforced(ctx, from, f.Hosts()...)
		if output, err := f.Node("a").Exec(ctx, "ping", "-c", "1", "-W", "2", from.String()); err != nil {
			t.Errorf("%v\n%s", err, output)
		}
	})

	t.Run("nobody is locked out", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 2*limit)
		host := f.Node("b")
		session, err := f.OpenSession(ctx, f.Node(lab.Admin), lab.AdminAddr, host)
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		made := f.ban(ctx, time.Hour, lab.AdminAddr.String())
		defer f.unban(ctx, lab.AdminAddr.String())
		f.receipts(ctx, made.GetCursor(), lab.AdminAddr.String())
		if got := state(f.explain(ctx, lab.AdminAddr.String()), host.Name).GetRefusal(); got != fleetbanv1.Refusal_REFUSAL_SSH_PEER {
			t.Errorf("b, where the address has a session, says %s", got)
		}
		if err := session.Answers(ctx); err != nil {
			t.Error(err)
		}
		if f.bans(ctx, host, lab.AdminAddr) {
			t.Error("b's kernel bans the peer of a live session")
		}
	})

	t.Run("what is protected is refused", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 2*limit)
		for _, addr := range []netip.Addr{f.Node("a").Addr, f.Node(lab.ControlPlane).Addr, netip.MustParseAddr("203.0.113.1")} {
			made, err := f.api.Bans.Ban(ctx, connect.NewRequest(operatorv1.BanRequest_builder{Prefixes: []string{addr.String()}, DurationS: 60}.Build()))
			if err != nil {
				if got := reason(t, err); got != fleetbanv1.Reason_REASON_PREFIX_PROTECTED {
					t.Errorf("%s: %s", addr, got)
				}
				continue
			}
			f.receipts(ctx, made.Msg.GetCursor(), addr.String())
			for _, h := range f.Hosts() {
				if f.bans(ctx, h, addr) {
					t.Errorf("%s bans %s: %v", h.Name, addr, state(f.explain(ctx, addr.String()), h.Name))
				}
			}
			f.unban(ctx, addr.String())
		}
	})
}
