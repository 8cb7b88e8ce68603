package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/scripts/lab/internal/await"
	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// TestUnbannedWhileDead kills one half of a host's agent, or both, and has a person on the host lift a ban meanwhile: the
// fleet lifts it everywhere once the half is back. A ban that runs out on that host meanwhile lifts no other host's, nor
// does a fail2ban that is started anew. Each is told once.
func TestUnbannedWhileDead(t *testing.T) {
	t.Parallel()
	const short = "dropbear"
	f := newFleet(t, lab.Options{Name: "dead", Hosts: 2, Fail2ban: map[string]lab.Fail2ban{
		"a": {Jails: "[" + short + "]\nenabled = true\nbackend = polling\nlogpath = /var/log/auth.log\nbantime = 5\n"},
	}})
	a, b := f.Node("a"), f.Node("b")
	ctx := limited(t, 6*limit)
	err := await.Until(ctx, "the helper to have saved how far it read fail2ban's log", func() error {
		_, err := os.Stat(a.Path(lab.HelperState + "/observed"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, dead := range [][]string{{lab.ServiceAgent}, {lab.ServiceHelper}, {lab.ServiceAgent, lab.ServiceHelper}} {
		t.Run(strings.Join(dead, " and "), func(t *testing.T) {
			f := f.in(t)
			byPerson, byBoth, meanwhile := source(t), source(t), source(t)
			f.jailBan(ctx, b, byBoth)
			f.enforced(ctx, byBoth, a, b)
			f.jailBan(ctx, a, byPerson)
			if _, err := a.Fail2ban(ctx, "set", short, "banip", byBoth.String()); err != nil {
				t.Fatal(err)
			}
			f.enforced(ctx, byPerson, a, b)
			f.told(ctx, byBoth, "a", short, 1, 0)
			for _, service := range dead {
				if err := a.Stop(ctx, service, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := a.Fail2ban(ctx, "set", "sshd", "unbanip", byPerson.String()); err != nil {
				t.Fatal(err)
			}
			f.jailBan(ctx, a, meanwhile)
			f.logged(ctx, a, fmt.Sprintf("[%s] Unban %s", short, byBoth))
			for _, service := range dead {
				if err := a.StartAgain(ctx, service); err != nil {
					t.Fatal(err)
				}
			}
			f.lifted(ctx, byPerson, a, b)
			f.enforced(ctx, meanwhile, a, b)
			f.told(ctx, byPerson, "a", "sshd", 1, 1)
			f.told(ctx, byBoth, "a", short, 1, 1)
			f.told(ctx, meanwhile, "a", "sshd", 1, 0)
			for _, h := range []*lab.Node{a, b} {
				if !f.bans(ctx, h, byBoth) {
					t.Errorf("%s doesn't ban %s any more, which b's fail2ban does", h.Name, byBoth)
				}
			}
		})
	}
	t.Run("fail2ban is started anew meanwhile", func(t *testing.T) {
		f := f.in(t)
		stays, gone, after := source(t), source(t), source(t)
		f.jailBan(ctx, a, stays, gone)
		f.enforced(ctx, stays, a, b)
		f.enforced(ctx, gone, a, b)
		for _, service := range []string{lab.ServiceAgent, lab.ServiceHelper} {
			if err := a.Stop(ctx, service, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.Stop(ctx, lab.ServiceFail2ban, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		for _, service := range []string{lab.ServiceFail2ban, lab.ServiceHelper, lab.ServiceAgent} { // as a machine that starts
			if err := a.StartAgain(ctx, service); err != nil {
				t.Fatal(err)
			}
		}
		err := await.Until(ctx, "fail2ban's sshd jail on a", func() error {
			_, err := a.Fail2ban(ctx, "status", "sshd")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		f.jailBan(ctx, a, after)
		f.enforced(ctx, after, a, b) // what happened before it was told before it
		for _, addr := range []netip.Addr{stays, gone} {
			f.told(ctx, addr, "a", "sshd", 1, 0)
			for _, h := range []*lab.Node{a, b} {
				if !f.bans(ctx, h, addr) {
					t.Errorf("%s doesn't ban %s any more", h.Name, addr)
				}
			}
		}
	})
}

// told waits until the fleet was told so many times that a jail of a host banned and unbanned an address, and fails as soon
// as it was told more often.
func (f *fleet) told(ctx context.Context, addr netip.Addr, host, jail string, bans, unbans int) {
	f.t.Helper()
	err := await.Until(ctx, "the fleet to be told of "+addr.String()+" by "+host, func() error {
		banned, unbanned := 0, 0
		for _, e := range f.explain(ctx, addr.String()).GetEvents() {
			if e.GetHostName() != host || e.GetJail() != jail {
				continue
			}
			switch e.GetKind() {
			case operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED:
				banned++
			case operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED_UNBAN:
				unbanned++
			default:
			}
		}
		if banned > bans || unbanned > unbans {
			f.t.Errorf("told %d times that %s was banned by %s of %s and %d times that it was unbanned, want %d and %d", banned, addr, jail, host, unbanned, bans, unbans)
			return nil
		}
		if banned < bans || unbanned < unbans {
			return fmt.Errorf("told of %d bans and %d unbans", banned, unbanned)
		}
		return nil
	})
	if err != nil {
		f.t.Error(err)
	}
}

// logged waits until a host's fail2ban has logged something.
func (f *fleet) logged(ctx context.Context, host *lab.Node, text string) {
	f.t.Helper()
	err := await.Until(ctx, "fail2ban of "+host.Name+" to log "+text, func() error {
		b, err := os.ReadFile(host.Fail2banLog())
		if err == nil && !strings.Contains(string(b), text) {
			err = fmt.Errorf("not in its %d bytes", len(b))
		}
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
}
