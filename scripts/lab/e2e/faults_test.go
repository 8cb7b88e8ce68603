package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/scripts/lab/internal/await"
	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
	"github.com/fleetban/fleetban/scripts/lab/internal/node"
)

// Faults: the agent says so, keeps enforcing, converges by itself, and the events of that time arrive once each.

func TestFail2banFaults(t *testing.T) {
	t.Parallel()
	f := newFleet(t, lab.Options{Name: "f2b", Hosts: 2})
	a, b := f.Node("a"), f.Node("b")

	// works checks that a ban made now on a is enforced on both and told once.
	works := func(t *testing.T, ctx context.Context) {
		t.Helper()
		f := f.in(t)
		from := source(t)
		f.jailBan(ctx, a, from)
		f.enforced(ctx, from, a, b)
		f.observedOnce(ctx, from, "a")
	}
	// stands checks that a ban from before is enforced on b, all the while, and that its claim is one.
	stands := func(t *testing.T, ctx context.Context, during func()) {
		t.Helper()
		f := f.in(t)
		from := source(t)
		f.jailBan(ctx, a, from)
		f.enforced(ctx, from, a, b)
		during()
		works(t, ctx)
		if !f.bans(ctx, b, from) {
			t.Errorf("b doesn't ban %s any more", from)
		}
		f.observedOnce(ctx, from, "a")
		answer := f.explain(ctx, from.String())
		if len(answer.GetBans()) != 1 || len(answer.GetBans()[0].GetClaims()) != 1 {
			t.Errorf("its claims are now: %v", answer.GetBans())
		}
	}
	restarted := func(t *testing.T, ctx context.Context) {
		t.Helper()
		// A socket that answers and the jail that is up: what reading the log can't tell twice.
		err := await.Until(ctx, "fail2ban's sshd jail to be up again", func() error {
			_, err := a.Fail2ban(ctx, "status", "sshd")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}

	t.Run("stopped and started", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 2*limit)
		stands(t, ctx, func() {
			ear := listen(t, a, lab.ServiceHelper)
			if err := a.Stop(ctx, lab.ServiceFail2ban, syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			f.awaitHost(ctx, "a", "fail2ban down", func(h *operatorv1.Host) bool {
				return h.GetHealth().GetFail2Ban().GetState() == fleetbanv1.Fail2BanHealth_STATE_DOWN
			})
			ear.once(t, ctx, "fail2ban can't be asked")
			f.finds(ctx, a, "fail2ban-socket-missing")
			if err := a.StartAgain(ctx, lab.ServiceFail2ban); err != nil {
				t.Fatal(err)
			}
			restarted(t, ctx)
		})
	})
	t.Run("killed", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 2*limit)
		stands(t, ctx, func() {
			check := f.mended(ctx, a, lab.ServiceHelper, "fail2ban-started", "fail2ban answers", "just_started=true")
			before, err := a.Service(ctx, lab.ServiceFail2ban)
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Signal(ctx, lab.ServiceFail2ban, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			awaitRestart(t, ctx, a, lab.ServiceFail2ban, before.Starts)
			restarted(t, ctx)
			check()
		})
	})
	t.Run("reloaded", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 2*limit)
		stands(t, ctx, func() {
			check := f.mended(ctx, a, lab.ServiceHelper, "fail2ban-reloaded", "fail2ban was reloaded")
			if _, err := a.Fail2ban(ctx, "reload"); err != nil {
				t.Fatal(err)
			}
			check()
		})
	})
	t.Run("restarted in place", func(t *testing.T) {
		ctx := limited(t, 2*limit)
		stands(t, ctx, func() {
			if _, err := a.Fail2ban(ctx, "reload", "--restart"); err != nil {
				t.Fatal(err)
			}
			restarted(t, ctx)
		})
	})
	t.Run("its socket answers garbage", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 2*limit)
		stands(t, ctx, func() {
			ear := listen(t, a, lab.ServiceHelper)
			if err := a.Stop(ctx, lab.ServiceFail2ban, syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := a.Start(ctx, node.Service{
				Name: "garbage", Path: "/proc/self/exe", Argv: []string{node.WebArg0, "garbage=/run/fail2ban/fail2ban.sock"},
			}); err != nil {
				t.Fatal(err)
			}
			f.awaitHost(ctx, "a", "fail2ban not up", func(h *operatorv1.Host) bool {
				health := h.GetHealth().GetFail2Ban()
				return health.GetState() == fleetbanv1.Fail2BanHealth_STATE_BROKEN && health.GetProblem() != ""
			})
			ear.once(t, ctx, "fail2ban can't be asked", "isn't fail2ban")
			f.finds(ctx, a, "fail2ban-broken")
			if err := a.Stop(ctx, "garbage", syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(a.Path("/run/fail2ban/fail2ban.sock")); err != nil {
				t.Fatal(err)
			}
			if err := a.StartAgain(ctx, lab.ServiceFail2ban); err != nil {
				t.Fatal(err)
			}
			restarted(t, ctx)
			f.sound(ctx, a)
		})
	})
	t.Run("its log is rotated", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 2*limit)
		stands(t, ctx, func() {
			check := f.mended(ctx, a, lab.ServiceHelper, "fail2ban-log-rotated", "fail2ban's log was rotated")
			if err := os.Rename(a.Fail2banLog(), a.Fail2banLog()+".1"); err != nil {
				t.Fatal(err)
			}
			works(t, ctx) // into the old file
			if _, err := a.Fail2ban(ctx, "flushlogs"); err != nil {
				t.Fatal(err)
			}
			works(t, ctx) // into the new one
			check()
		})
	})
	t.Run("its log is truncated", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 2*limit)
		stands(t, ctx, func() {
			check := f.mended(ctx, a, lab.ServiceHelper, "fail2ban-log-truncated", "fail2ban's log was truncated")
			if err := os.Truncate(a.Fail2banLog(), 0); err != nil {
				t.Fatal(err)
			}
			check()
		})
	})
	t.Run("a person unbans on the host", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 2*limit)
		// fail2ban has only just started: for some seconds it isn't known yet which of its bans come back.
		if err := a.Stop(ctx, lab.ServiceFail2ban, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := a.StartAgain(ctx, lab.ServiceFail2ban); err != nil {
			t.Fatal(err)
		}
		restarted(t, ctx)
		from := source(t)
		f.jailBan(ctx, a, from)
		f.enforced(ctx, from, a, b)
		if _, err := a.Fail2ban(ctx, "set", "sshd", "unbanip", from.String()); err != nil {
			t.Fatal(err)
		}
		f.lifted(ctx, from, a, b)
	})
}

func awaitRestart(t *testing.T, ctx context.Context, n *lab.Node, service string, starts int) {
	t.Helper()
	err := await.Until(ctx, fmt.Sprintf("%s on %s to be started again", service, n.Name), func() error {
		state, err := n.Service(ctx, service)
		if err == nil && (state.Starts <= starts || state.PID == 0) {
			err = fmt.Errorf("it is %+v", state)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAgentFaults(t *testing.T) {
	t.Parallel()
	f := newFleet(t, lab.Options{Name: "agent", Hosts: 2})
	a, b := f.Node("a"), f.Node("b")
	attacker := f.Node(lab.Attacker)

	t.Run("either half killed while bans are made", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 3*limit)
		var addrs []string
		for round := range 4 {
			victim := []string{lab.ServiceAgent, lab.ServiceHelper}[round%2]
			for _, host := range []*lab.Node{a, b} {
				if err := host.Signal(ctx, victim, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			from := source(t)
			f.jailBan(ctx, a, from)
			addrs = append(addrs, from.String())
			f.enforced(ctx, from, a, b)
			f.observedOnce(ctx, from, "a")
		}
		for _, addr := range addrs {
			if !f.explain(ctx, addr).GetBanned() {
				t.Errorf("the ban of %s was lost", addr)
			}
		}
	})

	t.Run("either half down is told by the other", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 2*limit)
		ear := listen(t, a, lab.ServiceAgent)
		if err := a.Stop(ctx, lab.ServiceHelper, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		ear.once(t, ctx, "the helper doesn't answer")
		f.finds(ctx, a, "helper-away")
		f.awaitHost(ctx, "a", "the helper away", func(h *operatorv1.Host) bool {
			for _, finding := range h.GetHealth().GetFindings() {
				if finding.GetCode() == "helper-away" {
					return true
				}
			}
			return false
		})
		// fail2ban bans meanwhile: it is found once the helper is back.
		from := source(t)
		f.jailBan(ctx, a, from)
		if err := a.StartAgain(ctx, lab.ServiceHelper); err != nil {
			t.Fatal(err)
		}
		f.enforced(ctx, from, a, b)
		f.observedOnce(ctx, from, "a")
		ear.stillOnce(t, "the helper doesn't answer")
		helperEar := listen(t, a, lab.ServiceHelper)
		if err := a.Stop(ctx, lab.ServiceAgent, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		f.finds(ctx, a, "agent-away")
		helperEar.once(t, ctx, "the unprivileged half left")
		if err := a.StartAgain(ctx, lab.ServiceAgent); err != nil {
			t.Fatal(err)
		}
		f.sound(ctx, a)
		helperEar.once(t, ctx, "the unprivileged half is back")
	})

	t.Run("both halves down: the kernel goes on", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 2*limit)
		from := source(t)
		f.ban(ctx, 5*time.Second, from.String())
		f.enforced(ctx, from, a, b)
		for _, service := range []string{lab.ServiceAgent, lab.ServiceHelper} {
			if err := b.Stop(ctx, service, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		if err := lab.Reach(ctx, attacker, from, f.Targets()[1]); !errors.Is(err, lab.ErrUnreachable) {
			t.Errorf("b with its agent dead: %v", err)
		}
		f.lifted(ctx, from, b) // its end comes with nobody there
		missed := source(t)
		f.ban(ctx, time.Hour, missed.String())
		for _, service := range []string{lab.ServiceHelper, lab.ServiceAgent} {
			if err := b.StartAgain(ctx, service); err != nil {
				t.Fatal(err)
			}
		}
		f.enforced(ctx, missed, b)
	})

	t.Run("a foreign flush of all rules", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, limit)
		from := source(t)
		f.ban(ctx, time.Hour, from.String())
		f.enforced(ctx, from, a, b)
		check := f.mended(ctx, b, lab.ServiceHelper, "nftables-changed", "nftables table", "it is put back")
		if _, err := b.Exec(ctx, "nft", "flush", "ruleset"); err != nil {
			t.Fatal(err)
		}
		f.enforced(ctx, from, b)
		check()
		if err := lab.AwaitUnreachable(ctx, attacker, from, f.Targets()[1]); err != nil {
			t.Error(err)
		}
	})

	t.Run("saved sets are enforced at start, before any network", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 2*limit)
		from := source(t)
		f.ban(ctx, time.Hour, from.String())
		f.enforced(ctx, from, a, b)
		for _, service := range []string{lab.ServiceAgent, lab.ServiceHelper} {
			if err := b.Stop(ctx, service, syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
		// A reboot leaves an empty kernel, and the network is not there yet.
		if _, err := b.Exec(ctx, "nft", "flush", "ruleset"); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Exec(ctx, "ip", "link", "set", "eth0", "down"); err != nil {
			t.Fatal(err)
		}
		if err := b.StartAgain(ctx, lab.ServiceHelper); err != nil {
			t.Fatal(err)
		}
		f.enforced(ctx, from, b)
		if _, err := b.Exec(ctx, "sh", "-c", "ip link set eth0 up && ip route add default via 203.0.113.1"); err != nil {
			t.Fatal(err)
		}
		if err := b.StartAgain(ctx, lab.ServiceAgent); err != nil {
			t.Fatal(err)
		}
		f.awaitHost(ctx, "b", "online", func(h *operatorv1.Host) bool {
			return h.GetPresence() == operatorv1.Presence_PRESENCE_ONLINE
		})
	})

	t.Run("its disk is full", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 3*limit)
		// Both halves are restarted so that they are on small disks; then those fill up.
		for _, half := range []struct{ service, dir, owner string }{
			{lab.ServiceHelper, lab.HelperState, "uid=0,gid=0"}, {lab.ServiceAgent, lab.AgentState, "uid=2002,gid=2002"},
		} {
			before, err := a.Service(ctx, half.service)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.Exec(ctx, "sh", "-c", `set -e
				mkdir -p /run/small && cp -a "$0" /run/small/`+half.service+`
				mount -t tmpfs -o size=1m,mode=700,`+half.owner+` small "$0"
				cp -a /run/small/`+half.service+`/. "$0/"`, half.dir); err != nil {
				t.Fatal(err)
			}
			if err := a.Signal(ctx, half.service, syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			awaitRestart(t, ctx, a, half.service, before.Starts)
		}
		f.awaitHost(ctx, "a", "online", func(h *operatorv1.Host) bool {
			return h.GetPresence() == operatorv1.Presence_PRESENCE_ONLINE
		})
		f.sound(ctx, a)
		agentEar, helperEar := listen(t, a, lab.ServiceAgent), listen(t, a, lab.ServiceHelper)
		_, _ = a.Exec(ctx, "dd", "if=/dev/zero", "of=/var/lib/fleetban-helper/fill", "bs=4k") // it fails when the disk is full
		_, _ = a.Exec(ctx, "dd", "if=/dev/zero", "of=/var/lib/fleetban-agent/fill", "bs=4k")  // it fails when the disk is full
		seen := source(t)
		many := []string{seen.String()}
		for i := range 250 {
			many = append(many, netip.AddrFrom4([4]byte{45, 2, 0, byte(i)}).String())
		}
		f.ban(ctx, time.Hour, many...)
		f.enforced(ctx, seen, a, b)
		// More bans than the page that the journal already has can hold.
		own := make([]netip.Addr, 100)
		for i := range own {
			own[i] = netip.AddrFrom4([4]byte{45, 1, 0, byte(i)})
		}
		f.jailBan(ctx, a, own...)
		f.finds(ctx, a, "spool")
		agentEar.once(t, ctx, "the spool of events")
		f.finds(ctx, a, "state-not-saved")
		helperEar.once(t, ctx, "can't be saved")
		if _, err := a.Exec(ctx, "rm", "/var/lib/fleetban-agent/fill", "/var/lib/fleetban-helper/fill"); err != nil {
			t.Fatal(err)
		}
		for _, addr := range own {
			err := await.Until(ctx, "the fleet to be told of "+addr.String(), func() error {
				if len(f.explain(ctx, addr.String()).GetEvents()) == 0 {
					return errors.New("no event of it")
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			f.observedOnce(ctx, addr, "a")
		}
		f.sound(ctx, a)
		agentEar.once(t, ctx, "events are written to the spool again")
		helperEar.once(t, ctx, "held sets are saved again")
		// What couldn't be saved is saved now: an empty kernel gets it back with no control plane to ask.
		for _, service := range []string{lab.ServiceAgent, lab.ServiceHelper} {
			if err := a.Stop(ctx, service, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := a.Exec(ctx, "nft", "flush", "ruleset"); err != nil {
			t.Fatal(err)
		}
		if err := a.StartAgain(ctx, lab.ServiceHelper); err != nil {
			t.Fatal(err)
		}
		f.enforced(ctx, seen, a)
	})
}

func TestControlPlaneFaults(t *testing.T) {
	t.Parallel()
	f := newFleet(t, lab.Options{Name: "cp", Hosts: 3})
	cp, a, b := f.Node(lab.ControlPlane), f.Node("a"), f.Node("b")
	attacker := f.Node(lab.Attacker)
	replicas := []string{lab.ServiceReplica(1), lab.ServiceReplica(2)}

	t.Run("the replica that holds a stream is killed", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 3*limit)
		for range 2 {
			before := f.awaitHost(ctx, "b", "online", online)
			victim, err := f.ReplicaOf(before.GetReplica())
			if err != nil {
				t.Fatal(err)
			}
			if err := cp.Stop(ctx, victim, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			from := source(t)
			f.jailBan(ctx, a, from)
			f.enforced(ctx, from, f.Hosts()...)
			f.observedOnce(ctx, from, "a")
			if err := cp.StartAgain(ctx, victim); err != nil {
				t.Fatal(err)
			}
		}
	})

	t.Run("a replica is drained", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 2*limit)
		if err := f.AwaitOnline(ctx); err != nil {
			t.Fatal(err)
		}
		state := f.awaitHost(ctx, "b", "online", online)
		victim, err := f.ReplicaOf(state.GetReplica())
		if err != nil {
			t.Fatal(err)
		}
		stopped := make(chan error, 1)
		go func() { stopped <- cp.Stop(ctx, victim, syscall.SIGTERM) }()
		// Make before break: at no moment is b offline.
		err = await.Until(ctx, "b on another replica", func() error {
			now, err := f.HostState(ctx, "b")
			if err != nil {
				return err
			}
			if now.GetPresence() != operatorv1.Presence_PRESENCE_ONLINE {
				t.Errorf("b is %s: %s", now.GetPresence(), now.GetCause())
			}
			if now.GetReplica() == state.GetReplica() {
				return fmt.Errorf("it is on %s", now.GetReplica())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-stopped; err != nil {
			t.Fatal(err)
		}
		if err := cp.StartAgain(ctx, victim); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("all of it away", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 3*limit)
		standing, during, lifted, withoutAgent := source(t), source(t), source(t), source(t)
		f.ban(ctx, time.Hour, standing.String())
		f.enforced(ctx, standing, f.Hosts()...)
		ear := listen(t, a, lab.ServiceAgent)
		for _, r := range replicas {
			if err := cp.Stop(ctx, r, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		// In that time: bans, one that a person lifts, and a restart of the agent with what waits in its spool.
		f.jailBan(ctx, a, during, lifted)
		f.finds(ctx, a, "not-connected")
		f.finds(ctx, b, "not-connected")
		ear.once(t, ctx, "no stream to the control plane")
		if _, err := a.Fail2ban(ctx, "set", "sshd", "unbanip", lifted.String()); err != nil {
			t.Fatal(err)
		}
		// What nobody saw a person do is not taken back: so the agent dies once it has noted it, two bans and an unban.
		f.awaitStatus(ctx, a, `"waiting": "3"`)
		if err := a.Stop(ctx, lab.ServiceAgent, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		f.jailBan(ctx, a, withoutAgent)
		if err := a.StartAgain(ctx, lab.ServiceAgent); err != nil {
			t.Fatal(err)
		}
		f.finds(ctx, a, "not-connected")
		if err := lab.Reach(ctx, attacker, standing, f.Targets()[1]); !errors.Is(err, lab.ErrUnreachable) {
			t.Errorf("b without a control plane: %v", err)
		}
		for _, r := range replicas {
			if err := cp.StartAgain(ctx, r); err != nil {
				t.Fatal(err)
			}
		}
		for _, addr := range []netip.Addr{during, withoutAgent} {
			f.enforced(ctx, addr, f.Hosts()...)
			f.observedOnce(ctx, addr, "a")
		}
		f.lifted(ctx, lifted, f.Hosts()...)
		if f.explain(ctx, lifted.String()).GetBanned() {
			t.Errorf("%s is banned though a person on a lifted it", lifted)
		}
		f.sound(ctx, a)
	})

	t.Run("Redis killed and started", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 3*limit)
		acknowledged, during := source(t), source(t)
		f.ban(ctx, time.Hour, acknowledged.String())
		if err := f.AwaitOnline(ctx); err != nil {
			t.Fatal(err)
		}
		away := f.mended(ctx, a, lab.ServiceAgent, "store-away", "the control plane can't reach its Redis")
		ear := listen(t, a, lab.ServiceAgent)
		if err := cp.Stop(ctx, lab.ServiceRedis, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		// The control plane is there and says so itself: another finding than of one that is away.
		f.finds(ctx, a, "store-away")
		f.jailBan(ctx, a, during)
		_, err := f.api.Bans.Ban(ctx, connect.NewRequest(operatorv1.BanRequest_builder{Prefixes: []string{source(t).String()}, DurationS: 60}.Build()))
		if err == nil {
			t.Error("a ban without Redis was acknowledged")
		}
		if lines := ear.heard(t, "no stream to the control plane"); len(lines) > 0 {
			t.Errorf("the control plane was there, and a says:\n%s", strings.Join(lines, ""))
		}
		if err := cp.StartAgain(ctx, lab.ServiceRedis); err != nil {
			t.Fatal(err)
		}
		f.enforced(ctx, acknowledged, f.Hosts()...)
		f.enforced(ctx, during, f.Hosts()...)
		f.observedOnce(ctx, during, "a")
		if !f.explain(ctx, acknowledged.String()).GetBanned() {
			t.Error("an acknowledged ban was lost")
		}
		f.sound(ctx, a)
		away()
		ear.once(t, ctx, "the control plane reaches its Redis again")
	})

	t.Run("Redis lost the latest bans", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 4*limit)
		kept, lost := source(t), source(t)
		f.ban(ctx, time.Hour, kept.String())
		f.enforced(ctx, kept, f.Hosts()...)
		copyRedis := func(from, to string) {
			t.Helper()
			if _, err := cp.Exec(ctx, "sh", "-c", fmt.Sprintf("rm -rf %s && cp -a %s %s", to, from, to)); err != nil {
				t.Fatal(err)
			}
		}
		if err := cp.Stop(ctx, lab.ServiceRedis, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		copyRedis("/var/lib/redis", "/var/lib/backup")
		if err := cp.StartAgain(ctx, lab.ServiceRedis); err != nil {
			t.Fatal(err)
		}
		err := await.Until(ctx, "a ban after Redis is back", func() error {
			_, err := f.api.Bans.Ban(ctx, connect.NewRequest(operatorv1.BanRequest_builder{Prefixes: []string{lost.String()}, DurationS: 3600}.Build()))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		f.enforced(ctx, lost, f.Hosts()...)
		if err := cp.Stop(ctx, lab.ServiceRedis, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		copyRedis("/var/lib/backup", "/var/lib/redis")
		if err := cp.StartAgain(ctx, lab.ServiceRedis); err != nil {
			t.Fatal(err)
		}
		// What only hosts hold any more is rebuilt from them, and meanwhile nothing is dropped.
		err = await.Until(ctx, "the lost ban to be rebuilt from what hosts hold", func() error {
			for _, addr := range []string{kept.String(), lost.String()} {
				answer, err := f.api.Bans.Explain(ctx, connect.NewRequest(operatorv1.ExplainRequest_builder{Address: addr}.Build()))
				if err != nil {
					return err
				}
				if !answer.Msg.GetBanned() {
					return fmt.Errorf("%s is not banned", addr)
				}
			}
			for _, h := range f.Hosts() {
				if !f.bans(ctx, h, lost) {
					t.Errorf("%s dropped %s", h.Name, lost)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		f.enforced(ctx, lost, f.Hosts()...)
		f.enforced(ctx, kept, f.Hosts()...)
	})

	t.Run("a host cut off from the network", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 4*limit)
		during := source(t)
		if _, err := f.Node(lab.Switch).Exec(ctx, "ip", "link", "set", "dev", "b", "down"); err != nil {
			t.Fatal(err)
		}
		f.ban(ctx, time.Hour, during.String())
		f.enforced(ctx, during, a)
		if f.bans(ctx, b, during) {
			t.Error("b has heard of a ban though it is cut off")
		}
		if _, err := f.Node(lab.Switch).Exec(ctx, "ip", "link", "set", "dev", "b", "up"); err != nil {
			t.Fatal(err)
		}
		f.enforced(ctx, during, b)
	})

	t.Run("no secrets in any log", func(t *testing.T) {
		f := f.in(t)
		token := strings.TrimPrefix(f.OperatorEnv()[1], "FLEETBAN_TOKEN=")
		for _, n := range f.Nodes() {
			services, err := n.Services(limited(t, limit))
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range services {
				if log := read(t, n.Path(node.LogDir+"/"+s.Name+".log")); strings.Contains(log, token) || strings.Contains(log, "fbj_") {
					t.Errorf("the log of %s on %s has a secret in it", s.Name, n.Name)
				}
			}
		}
	})
}

func online(h *operatorv1.Host) bool { return h.GetPresence() == operatorv1.Presence_PRESENCE_ONLINE }
