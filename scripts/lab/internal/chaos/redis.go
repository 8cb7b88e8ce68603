package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// failoverLimit is how long Sentinels may take to promote a replica, and a deposed master to follow it: it is told so after
// eight seconds, later where Sentinels had no processor for a while and distrust their clocks.
const failoverLimit = 90 * time.Second

// masters is the way of what happens to Redis' master.
const masters = "Redis' master"

// killMaster ends the master, which is back before Sentinels miss it.
func killMaster(l *lab.Lab, _ *rand.Rand) fault {
	return fault{name: "kill -9 the master", way: masters, begin: func(ctx context.Context) error {
		master, err := l.RedisMaster(ctx)
		if err != nil {
			return err
		}
		return quiet(l.Node(lab.ControlPlane).Signal(ctx, master, syscall.SIGKILL))
	}}
}

// pauseMaster stops the master for some time, which may or may not be enough for a failover.
func pauseMaster(l *lab.Lab, r *rand.Rand) fault {
	cp, master := l.Node(lab.ControlPlane), ""
	return fault{
		name: "pause the master", way: masters, loses: true, lasts: time.Duration(300+r.IntN(2700)) * time.Millisecond,
		begin: func(ctx context.Context) (err error) {
			if master, err = l.RedisMaster(ctx); err != nil {
				return err
			}
			return quiet(cp.Signal(ctx, master, syscall.SIGSTOP))
		},
		mend: func(ctx context.Context) error {
			if err := quiet(cp.Signal(ctx, master, syscall.SIGCONT)); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, failoverLimit)
			defer cancel()
			return l.AwaitReplicated(ctx)
		},
	}
}

// failover has a master acknowledge for a while what its replica isn't told, and then has that replica promoted: the master is
// killed, or stopped and then let go on believing that it is the master.
func failover(l *lab.Lab, r *rand.Rand, sig syscall.Signal) fault {
	cp, master := l.Node(lab.ControlPlane), ""
	name := map[syscall.Signal]string{syscall.SIGKILL: "lose the tail and the master", syscall.SIGSTOP: "lose the tail and depose the master"}[sig]
	return fault{
		name: name, way: masters, loses: true, lasts: time.Duration(500+r.IntN(2000)) * time.Millisecond,
		begin: func(ctx context.Context) (err error) {
			if master, err = l.RedisMaster(ctx); err != nil {
				return err
			}
			return l.LoseTail(ctx, master)
		},
		mend: func(whole context.Context) error {
			ctx, cancel := context.WithTimeout(whole, failoverLimit)
			defer cancel()
			gone, back := cp.Stop, cp.StartAgain
			if sig == syscall.SIGSTOP {
				gone = cp.Signal
				back = func(ctx context.Context, name string) error { return cp.Signal(ctx, name, syscall.SIGCONT) }
			}
			err := gone(ctx, master, sig)
			if err == nil {
				err = l.AwaitFailover(ctx, master)
			}
			if err = errors.Join(err, l.KeepTail(whole), back(whole, master)); err != nil {
				return err
			}
			return l.AwaitReplicated(ctx)
		},
	}
}

// setClock sets Redis' clock up to so far ahead, or back, and right again.
func setClock(l *lab.Lab, r *rand.Rand, most time.Duration) fault {
	by := time.Second + time.Duration(r.Int64N(int64(most.Abs())))
	if r.IntN(3) == 0 { // with so little, replicas stay ready
		by = time.Second + time.Duration(r.Int64N(int64(3*time.Second)))
	}
	by = by.Round(time.Millisecond)
	if most < 0 {
		by = -by
	}
	return fault{
		name: fmt.Sprintf("set Redis' clock by %s", by), way: "Redis' clock", steps: by, lasts: time.Duration(500+r.IntN(3000)) * time.Millisecond,
		begin: func(context.Context) error { return l.SetRedisClock(by) },
		mend:  func(context.Context) error { return l.SetRedisClock(0) },
	}
}

// fillDisk leaves an agent's halves, or one of them, no room for what they keep.
func fillDisk(l *lab.Lab, r *rand.Rand) fault {
	h := host(l, r)
	folders := [][]string{{lab.AgentState}, {lab.HelperState}, {lab.AgentState, lab.HelperState}}[r.IntN(3)]
	all := func(ctx context.Context, script string) error {
		_, err := l.Node(h).Exec(ctx, append([]string{"sh", "-c", script, "sh"}, folders...)...)
		return err
	}
	return fault{
		name: fmt.Sprintf("fill %s on %s", folders, h), host: h, lasts: time.Duration(500+r.IntN(3500)) * time.Millisecond,
		begin: func(ctx context.Context) error {
			return all(ctx, `for d; do cat /dev/zero >"$d/ballast" 2>/dev/null; done; true`)
		},
		mend: func(ctx context.Context) error { return all(ctx, `for d; do rm -f "$d/ballast"; done`) },
	}
}
