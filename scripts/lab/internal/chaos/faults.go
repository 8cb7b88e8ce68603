package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// fault is one thing that goes wrong for a while.
type fault struct {
	name string
	// host is whose it is; empty: the control plane's.
	host string
	// for how long it lasts; 0: it is over at once.
	lasts time.Duration
	begin func(context.Context) error
	mend  func(context.Context) error // nil: nothing is to be mended
	// flushes says that the host's kernel loses its bans for a moment.
	flushes bool
	// way is what only one fault at a time can be done to: a proxy, the master, the clock.
	way string
	// loses says that Redis may lose what it acknowledged last.
	loses bool
	// steps is how far Redis' clock is set ahead meanwhile; less than 0: back.
	steps time.Duration
	// shakes says that the host's fail2ban may forget what it has just banned or lifted.
	shakes bool
}

func (f fault) String() string {
	if f.lasts > 0 {
		return fmt.Sprintf("%s for %s", f.name, f.lasts.Round(100*time.Millisecond))
	}
	return f.name
}

type kind func(*lab.Lab, *rand.Rand) fault

// kinds are the faults that every fleet has, each made for a lab by chance.
var kinds = map[string]kind{
	"replica-killed":      func(l *lab.Lab, r *rand.Rand) fault { return signal(l, replica(l, r), "", syscall.SIGKILL) },
	"replica-terminated":  func(l *lab.Lab, r *rand.Rand) fault { return signal(l, replica(l, r), "", syscall.SIGTERM) },
	"replica-paused":      func(l *lab.Lab, r *rand.Rand) fault { return pause(l, r, replica(l, r), "") },
	"run-killed":          func(l *lab.Lab, r *rand.Rand) fault { return signal(l, lab.ServiceAgent, host(l, r), syscall.SIGKILL) },
	"run-terminated":      func(l *lab.Lab, r *rand.Rand) fault { return signal(l, lab.ServiceAgent, host(l, r), syscall.SIGTERM) },
	"run-paused":          func(l *lab.Lab, r *rand.Rand) fault { return pause(l, r, lab.ServiceAgent, host(l, r)) },
	"helper-killed":       func(l *lab.Lab, r *rand.Rand) fault { return signal(l, lab.ServiceHelper, host(l, r), syscall.SIGKILL) },
	"helper-terminated":   func(l *lab.Lab, r *rand.Rand) fault { return signal(l, lab.ServiceHelper, host(l, r), syscall.SIGTERM) },
	"helper-paused":       func(l *lab.Lab, r *rand.Rand) fault { return pause(l, r, lab.ServiceHelper, host(l, r)) },
	"agent-down":          agentDown,
	"fail2ban-killed":     func(l *lab.Lab, r *rand.Rand) fault { return endFail2ban(l, r, syscall.SIGKILL) },
	"fail2ban-terminated": func(l *lab.Lab, r *rand.Rand) fault { return endFail2ban(l, r, syscall.SIGTERM) },
	"kernel-flushed": func(l *lab.Lab, r *rand.Rand) fault {
		h := host(l, r)
		return fault{name: "nft flush ruleset on " + h, host: h, flushes: true, begin: func(ctx context.Context) error {
			_, err := l.Node(h).Exec(ctx, "nft", "flush", "ruleset")
			return err
		}}
	},
	"replica-slow":  func(l *lab.Lab, r *rand.Rand) fault { return slow(l, r, replica(l, r), 500) },
	"replica-cut":   func(l *lab.Lab, r *rand.Rand) fault { return unplug(l, r, replica(l, r)) },
	"partition":     func(l *lab.Lab, r *rand.Rand) fault { return cut(l, r, true, true) },
	"deaf-host":     func(l *lab.Lab, r *rand.Rand) fault { return cut(l, r, false, true) },
	"silent-host":   func(l *lab.Lab, r *rand.Rand) fault { return cut(l, r, true, false) },
	"disk-full":     fillDisk,
	"clock-forward": func(l *lab.Lab, r *rand.Rand) fault { return setClock(l, r, 2*time.Minute) },
	"clock-back":    func(l *lab.Lab, r *rand.Rand) fault { return setClock(l, r, -10*time.Minute) },
}

// oneServer are the faults of a fleet whose Redis is one server, withSentinels those of one with Sentinels.
var (
	oneServer = map[string]kind{
		"redis-killed": func(l *lab.Lab, _ *rand.Rand) fault { return signal(l, lab.ServiceRedis, "", syscall.SIGKILL) },
		"redis-paused": func(l *lab.Lab, r *rand.Rand) fault { return pause(l, r, lab.ServiceRedis, "") },
		"redis-slow":   func(l *lab.Lab, r *rand.Rand) fault { return slow(l, r, lab.ServiceRedis, 200) },
		"redis-cut":    func(l *lab.Lab, r *rand.Rand) fault { return unplug(l, r, lab.ServiceRedis) },
		"redis-mute":   func(l *lab.Lab, r *rand.Rand) fault { return swallow(l, r, lab.ServiceRedis) },
	}
	withSentinels = map[string]kind{
		"master-killed":  killMaster,
		"master-paused":  pauseMaster,
		"failover":       func(l *lab.Lab, r *rand.Rand) fault { return failover(l, r, syscall.SIGKILL) },
		"master-deposed": func(l *lab.Lab, r *rand.Rand) fault { return failover(l, r, syscall.SIGSTOP) },
	}
)

func replica(l *lab.Lab, r *rand.Rand) string { return lab.ServiceReplica(1 + r.IntN(l.Replicas())) }

func host(l *lab.Lab, r *rand.Rand) string {
	hosts := l.Hosts()
	return hosts[r.IntN(len(hosts))].Name
}

func machine(l *lab.Lab, host string) *lab.Node {
	if host == "" {
		return l.Node(lab.ControlPlane)
	}
	return l.Node(host)
}

func at(service, host string) string {
	if host == "" {
		return service
	}
	return service + " on " + host
}

// signal ends a service, which is started again as systemd would.
func signal(l *lab.Lab, service, host string, sig syscall.Signal) fault {
	what := map[syscall.Signal]string{syscall.SIGKILL: "kill -9 ", syscall.SIGTERM: "kill "}[sig]
	return fault{name: what + at(service, host), host: host, begin: func(ctx context.Context) error {
		err := machine(l, host).Signal(ctx, service, sig)
		if err != nil && strings.Contains(err.Error(), "doesn't run") {
			return nil // down from the fault before
		}
		return err
	}}
}

// endFail2ban ends a host's fail2ban. What it was told just before may not be in its database.
func endFail2ban(l *lab.Lab, r *rand.Rand, sig syscall.Signal) fault {
	f := signal(l, lab.ServiceFail2ban, host(l, r), sig)
	f.shakes = true
	return f
}

// pause stops a service's processes where they are, as a machine does that swaps or is snapshotted.
func pause(l *lab.Lab, r *rand.Rand, service, host string) fault {
	return fault{
		name: "pause " + at(service, host), host: host, lasts: time.Duration(300+r.IntN(2700)) * time.Millisecond,
		begin: func(ctx context.Context) error { return quiet(machine(l, host).Signal(ctx, service, syscall.SIGSTOP)) },
		mend:  func(ctx context.Context) error { return quiet(machine(l, host).Signal(ctx, service, syscall.SIGCONT)) },
	}
}

// quiet lets a signal go to a service that another fault has taken down.
func quiet(err error) error {
	if err != nil && strings.Contains(err.Error(), "doesn't run") {
		return nil
	}
	return err
}

// agentDown keeps both halves of an agent down for a while.
func agentDown(l *lab.Lab, r *rand.Rand) fault {
	h := host(l, r)
	services := []string{lab.ServiceAgent, lab.ServiceHelper}
	return fault{
		name: "agent down on " + h, host: h, lasts: time.Duration(500+r.IntN(2000)) * time.Millisecond,
		begin: func(ctx context.Context) error {
			for _, s := range services {
				if err := l.Node(h).Stop(ctx, s, syscall.SIGKILL); err != nil {
					return err
				}
			}
			return nil
		},
		mend: func(ctx context.Context) error {
			for _, s := range services {
				if err := l.Node(h).StartAgain(ctx, s); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
