package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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

// TestKilledAtRandom kills the agent's halves on both hosts again and again while bans and unbans are made. Afterwards the
// fleet was told of each ban once, and each kernel holds what is desired and nothing else.
func TestKilledAtRandom(t *testing.T) {
	t.Parallel()
	f := newFleet(t, lab.Options{Name: "random", Hosts: 2})
	a, b := f.Node("a"), f.Node("b")
	ctx := limited(t, 6*limit)
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // any number does
	t.Logf("seed %d", seed)

	killing, stop := context.WithCancel(ctx)
	kills, killed, ended := 0, make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(ended)
		random := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // no secret
		for {
			select {
			case <-killing.Done():
				return
			case <-time.After(time.Duration(random.IntN(300)) * time.Millisecond):
			}
			host := []*lab.Node{a, b}[random.IntN(2)]
			service := []string{lab.ServiceAgent, lab.ServiceHelper}[random.IntN(2)]
			if host.Signal(killing, service, syscall.SIGKILL) == nil { // it may be down from the kill before
				kills++
				select {
				case killed <- struct{}{}:
				default:
				}
			}
		}
	}()

	// Fewer than a host's 30 promotions a minute, so that every ban is the fleet's.
	const rounds, each = 12, 2
	observed, desired := []netip.Addr{}, map[netip.Prefix]bool{}
	for i := range rounds {
		var own []netip.Addr
		for j := range each {
			own = append(own, netip.AddrFrom4([4]byte{198, 51, 100, byte(150 + each*i + j)}))
		}
		f.jailBan(ctx, a, own...)
		observed = append(observed, own...)
		for _, addr := range own {
			desired[single(addr)] = true
		}
		made, lifted := lab.SourceAddr6(500+2*i), lab.SourceAddr6(501+2*i)
		f.ban(ctx, time.Hour, made.String(), lifted.String())
		f.unban(ctx, lifted.String())
		desired[single(made)] = true
		// However fast the machine is: no round without a kill.
		select {
		case <-killed:
		case <-ctx.Done():
			t.Fatal("nothing could be killed")
		}
	}
	// A last one, with all up again, shows that what came before it was told.
	stop()
	<-ended
	last := source(t)
	f.jailBan(ctx, a, last)
	observed, desired[single(last)] = append(observed, last), true
	t.Logf("%d kills during %d bans", kills, len(observed)+2*rounds)

	for _, addr := range observed {
		err := await.Until(ctx, "the fleet to be told of "+addr.String(), func() error {
			if len(f.explain(ctx, addr.String()).GetEvents()) == 0 {
				return errors.New("no event of it")
			}
			return nil
		})
		if err != nil {
			t.Error(err)
			continue
		}
		f.observedOnce(ctx, addr, "a")
	}
	listed, err := f.api.Bans.ListBans(ctx, connect.NewRequest(operatorv1.ListBansRequest_builder{PageSize: 1000}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	if got := listed.Msg.GetTotal(); int(got) != len(desired) { //nolint:gosec // small
		t.Errorf("%d fleet bans are in force, want %d", got, len(desired))
	}
	f.holds(ctx, desired, a, b)
}

// holds waits until the kernels of hosts ban exactly these prefixes.
func (f *fleet) holds(ctx context.Context, want map[netip.Prefix]bool, hosts ...*lab.Node) {
	f.t.Helper()
	for _, h := range hosts {
		err := await.Until(ctx, "the kernel of "+h.Name+" to hold what is desired", func() error {
			kernel, err := h.Kernel(ctx)
			if err != nil {
				return err
			}
			for p := range want {
				if _, is := kernel[p]; !is {
					return fmt.Errorf("%s is missing, of %d", p, len(want))
				}
			}
			for p := range kernel {
				if !want[p] {
					return fmt.Errorf("%s is banned and should not be", p)
				}
			}
			return nil
		})
		if err != nil {
			f.t.Error(err)
		}
	}
}

// TestRedisEmptied loses everything that Redis holds: by a mistaken command under running replicas, and with its disk.
// No host drops a ban, and what hosts hold is what the fleet has again.
func TestRedisEmptied(t *testing.T) {
	t.Parallel()
	f := newFleet(t, lab.Options{Name: "emptied", Hosts: 2})
	cp, a, b := f.Node(lab.ControlPlane), f.Node("a"), f.Node("b")
	name := organisationOf(t, f)
	said := false
	for what, empty := range map[string]func(ctx context.Context) error{
		"by a command": func(ctx context.Context) error {
			_, err := cp.Exec(ctx, "redis-cli", "flushall")
			return err
		},
		"with its disk": func(ctx context.Context) error {
			if err := cp.Stop(ctx, lab.ServiceRedis, syscall.SIGKILL); err != nil {
				return err
			}
			if _, err := cp.Exec(ctx, "sh", "-c", "rm -rf /var/lib/redis/*"); err != nil {
				return err
			}
			return cp.StartAgain(ctx, lab.ServiceRedis)
		},
	} {
		t.Run(what, func(t *testing.T) {
			f := f.in(t)
			f.api = f.Operator()
			ctx := limited(t, 5*limit)
			byPerson, byJail, during := source(t), source(t), source(t)
			f.ban(ctx, time.Hour, byPerson.String())
			f.jailBan(ctx, a, byJail)
			standing := []netip.Addr{byPerson, byJail}
			for _, addr := range standing {
				f.enforced(ctx, addr, a, b)
			}
			check := f.mended(ctx, b, lab.ServiceAgent, "store-rebuilt", "the control plane's Redis lost bans")
			if err := empty(ctx); err != nil {
				t.Fatal(err)
			}
			f.jailBan(ctx, a, during)
			// The administrator's token was in Redis too.
			err := await.Until(ctx, "another administrator's token", func() error {
				attempt, cancel := context.WithTimeout(ctx, limit)
				defer cancel()
				err := f.RenewToken(attempt)
				if attempt.Err() != nil {
					t.Logf("`token create` didn't end within %s: %v", limit, err)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			f.api = f.Operator()
			err = await.Until(ctx, "the bans to be rebuilt from what hosts hold", func() error {
				for _, addr := range append(standing, during) {
					answer, err := f.api.Bans.Explain(ctx, connect.NewRequest(operatorv1.ExplainRequest_builder{Address: addr.String()}.Build()))
					if err != nil {
						return err
					}
					if !answer.Msg.GetBanned() {
						return fmt.Errorf("%s is not banned", addr)
					}
				}
				for _, h := range f.Hosts() {
					for _, addr := range standing {
						if !f.bans(ctx, h, addr) {
							t.Errorf("%s dropped %s", h.Name, addr)
						}
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			f.enforced(ctx, during, a, b)
			if err := f.AwaitOnline(ctx); err != nil {
				t.Error(err)
			}
			if got := organisationOf(t, f); got != name {
				t.Errorf("the organisation was %q and is %q now", name, got)
			}
			if !said {
				check()
			}
			said = true // a second loss while the first is being rebuilt is one more of the same
			// Unbanning what was rebuilt works as for any ban.
			f.unban(ctx, byPerson.String())
			f.lifted(ctx, byPerson, a, b)
		})
	}
}

func organisationOf(t *testing.T, f *fleet) string {
	t.Helper()
	answer, err := f.api.Fleet.GetFleet(limited(t, limit), connect.NewRequest(&operatorv1.GetFleetRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	return answer.Msg.GetOrganisationName()
}

// TestUnableToEnforce has a host whose kernel doesn't let its helper change nftables: it is in the fleet, says so, and is
// counted apart.
func TestUnableToEnforce(t *testing.T) {
	t.Parallel()
	f := newFleet(t, lab.Options{Name: "unable", Hosts: 2})
	a, b := f.Node("a"), f.Node("b")
	ctx := limited(t, 3*limit)
	// What is banned before an agent has looked for the first time stood there already, and stays on its host.
	looked := source(t)
	f.jailBan(ctx, b, looked)
	f.enforced(ctx, looked, a)
	if err := b.Stop(ctx, lab.ServiceHelper, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ear := listen(t, b, lab.ServiceHelper)
	if _, err := b.Exec(ctx, "nft", "flush", "ruleset"); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(ctx, node.Service{Name: lab.ServiceHelper, Restart: true, Argv: []string{
		"setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "--", "fleetban-agent", "helper",
	}}); err != nil {
		t.Fatal(err)
	}
	f.awaitHost(ctx, "b", "unable to enforce", func(h *operatorv1.Host) bool {
		return h.GetPresence() == operatorv1.Presence_PRESENCE_ONLINE && h.GetHealth().GetEnforcer().GetInert() == fleetbanv1.Inert_INERT_UNABLE
	})
	f.finds(ctx, b, "enforcer")
	from := source(t)
	made := f.ban(ctx, time.Hour, from.String())
	got := f.receipts(ctx, made.GetCursor(), from.String())
	if got.GetEnforced() != 1 || got.GetInert() != 1 || got.GetInScope() != 2 {
		t.Errorf("receipts: %v", got)
	}
	f.enforced(ctx, from, a)
	// What is observed there counts for the others all the same.
	theirs := source(t)
	f.jailBan(ctx, b, theirs)
	f.enforced(ctx, theirs, a)
	f.observedOnce(ctx, theirs, "b")
	ear.once(t, ctx, "can't be enforced")

	if err := b.Stop(ctx, lab.ServiceHelper, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := b.Start(ctx, node.Service{Name: lab.ServiceHelper, Restart: true, Argv: []string{"fleetban-agent", "helper"}}); err != nil {
		t.Fatal(err)
	}
	f.enforced(ctx, from, b)
	f.enforced(ctx, theirs, b)
	f.sound(ctx, b)
}

// TestClockAnHourOff runs both halves of the agent and fail2ban on hosts whose clock is an hour ahead or behind. The
// machine's own clock can't be shifted for one namespace, so the programs are told another time: the agent is built with a
// time package of another opinion, and fail2ban's Python likewise. All else is what it always is.
func TestClockAnHourOff(t *testing.T) {
	t.Parallel()
	for name, off := range map[string]time.Duration{"ahead": time.Hour, "behind": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			program := shiftedAgent(t, off)
			f := newFleet(t, lab.Options{Name: "clock-" + name, Hosts: 2})
			a, b := f.Node("a"), f.Node("b")
			ctx := limited(t, 5*limit)
			f.shift(ctx, a, program, off)
			f.awaitHost(ctx, "a", "online", func(h *operatorv1.Host) bool {
				return h.GetPresence() == operatorv1.Presence_PRESENCE_ONLINE
			})
			f.finds(ctx, a, "clock-skew")
			ear{a, lab.ServiceHelper, 0}.once(t, ctx, "this host's clock differs from the control plane's")

			// A ban of the fleet ends on time there, by no wrong clock.
			short := source(t)
			made := f.ban(ctx, 4*time.Second, short.String())
			f.enforced(ctx, short, a, b)
			f.lifted(ctx, short, a, b)
			if late := time.Since(time.UnixMilli(made.GetExpiresUnixMs())); late < -200*time.Millisecond || late > limit {
				t.Errorf("it was lifted %s after its end", late)
			}
			// A ban of that host's fail2ban lasts elsewhere as long as fail2ban means it to: 10 minutes.
			own := source(t)
			f.jailBan(ctx, a, own)
			f.enforced(ctx, own, a, b)
			f.observedOnce(ctx, own, "a")
			kernel, err := b.Kernel(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if left := kernel[single(own)]; left < 9*time.Minute || left > 10*time.Minute+2*time.Second {
				t.Errorf("b bans it for another %s, want a little less than 10 minutes", left)
			}
			if _, err := a.Fail2ban(ctx, "set", "sshd", "unbanip", own.String()); err != nil {
				t.Fatal(err)
			}
			f.lifted(ctx, own, a, b)
		})
	}
}

// shift starts fail2ban and the agent on a host anew with another clock.
func (f *fleet) shift(ctx context.Context, host *lab.Node, program string, off time.Duration) {
	f.t.Helper()
	const folder = "/run/shifted" // of this host alone
	seconds := int(off / time.Second)
	site := fmt.Sprintf(`import time
_now, _local, _utc, _format = time.time, time.localtime, time.gmtime, time.strftime
time.time = lambda: _now() + %d
time.localtime = lambda at=None: _local(time.time() if at is None else at)
time.gmtime = lambda at=None: _utc(time.time() if at is None else at)
time.strftime = lambda form, at=None: _format(form, time.localtime() if at is None else at)
`, seconds)
	content, err := os.ReadFile(program)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := os.MkdirAll(host.Path(folder), 0o755); err != nil {
		f.t.Fatal(err)
	}
	for name, content := range map[string][]byte{"sitecustomize.py": []byte(site), "fleetban-agent": content} {
		if err := os.WriteFile(filepath.Join(host.Path(folder), name), content, 0o755); err != nil {
			f.t.Fatal(err)
		}
	}
	for _, service := range []string{lab.ServiceAgent, lab.ServiceHelper, lab.ServiceFail2ban} {
		if err := host.Stop(ctx, service, syscall.SIGTERM); err != nil {
			f.t.Fatal(err)
		}
	}
	for _, service := range []node.Service{
		{
			Name: lab.ServiceFail2ban, Argv: []string{"/usr/bin/fail2ban-server", "-xf", "start"},
			Env: []string{"PYTHONPATH=" + folder}, Restart: true,
		},
		{Name: lab.ServiceHelper, Argv: []string{folder + "/fleetban-agent", "helper"}, Restart: true},
		{Name: lab.ServiceAgent, User: "fleetban", Argv: []string{folder + "/fleetban-agent", "run"}, Restart: true},
	} {
		if err := host.Start(ctx, service); err != nil {
			f.t.Fatal(err)
		}
	}
	err = await.Until(ctx, "fail2ban's sshd jail on "+host.Name, func() error {
		_, err := host.Fail2ban(ctx, "status", "sshd")
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// shiftedAgent builds the agent with a time package whose wall clock is off.
func shiftedAgent(t *testing.T, off time.Duration) string {
	t.Helper()
	root, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatalf("go builds an agent with another clock, and can't be run: %v", err)
	}
	source := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	code := read(t, source)
	const now = "sec, nsec, mono := runtimeNow()\n"
	if !strings.Contains(code, now) {
		t.Fatalf("the time package of %s is not what this test knows how to shift", runtime.Version())
	}
	dir := t.TempDir()
	shifted, overlay, program := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "fleetban-agent")
	code = strings.ReplaceAll(code, now, fmt.Sprintf("%s\tsec += %d\n", now, int(off/time.Second)))
	if err := os.WriteFile(shifted, []byte(code), 0o600); err != nil {
		t.Fatal(err)
	}
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {source: shifted}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(overlay, replace, 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-overlay", overlay, "-o", program, "./cmd/fleetban-agent")
	build.Dir = "../../../agent"
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build an agent with another clock: %v\n%s", err, output)
	}
	return program
}
