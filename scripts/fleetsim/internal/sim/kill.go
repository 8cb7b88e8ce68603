package sim

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// missed is how many bans are made while hosts have no stream, which they then catch up on.
const missed = 10

// kill has every host on one of two replicas, and kills that: all of them come to the other in one moment.
func kill(ctx context.Context, f *fleet, p *Part) error {
	m := &made{}
	replicas := f.plane.Replicas()
	if len(replicas) < 2 {
		f.o.Progress("kill: left out, for it takes two replicas")
		return nil
	}
	victim, survivor := replicas[0], replicas[1]
	f.plane.Prefer(victim)
	defer f.plane.Prefer(nil)
	if err := f.gather(ctx, victim.Instance()); err != nil {
		return err
	}
	// What is left of the streams that moved isn't counted.
	sleep(ctx, f.o.Duration/4)
	whole := victim.Usage().RSS
	hosts := len(f.members())
	survivor.ResetPeak()
	snapshots, scripts, connects, before := f.world.Snapshots.Load(), f.scripts(ctx), f.world.Connects.Load(), f.cpu()
	own := survivor.Usage().CPU
	began := time.Now()
	victim.Kill()
	var prefixes []netip.Prefix
	for range missed {
		a := f.prefix()
		f.world.Made(a, -1)
		prefixes = append(prefixes, a)
	}
	m.prefixes = prefixes
	var ordered time.Duration
	ordering := make(chan error, 1)
	go func() {
		_, err := f.order(ctx, long, prefixes...)
		ordered = time.Since(began)
		ordering <- err
	}()
	up, _, err := f.back(ctx, began, connects+int64(hosts))
	if err := errors.Join(err, <-ordering); err != nil {
		return err
	}
	// Now the current version has what was ordered meanwhile.
	_, inSync, err := f.back(ctx, began, connects+int64(hosts))
	if err != nil {
		return err
	}
	spent := f.cpu().since(before)
	spent.replicas = survivor.Usage().CPU - own // what the other had used is gone with it
	p.row("a replica with every host killed: all have a stream after", milliseconds(up), "ms")
	p.row("... times what they took to connect when the run began", milliseconds(up)/max(f.o.report.Connected.TookMS, 1), "")
	p.row("... all are at the current version after", milliseconds(inSync), "ms")
	p.row("... bans ordered meanwhile were taken after", milliseconds(ordered), "ms")
	p.row("... snapshots sent", float64(f.world.Snapshots.Load()-snapshots), "")
	p.row("... scripts that Redis ran a stream that moved", (f.scripts(ctx)-scripts)/float64(hosts), "")
	for _, part := range []struct {
		name string
		cpu  time.Duration
	}{{"the survivor", spent.replicas}, {"Redis", spent.redis}, {"the simulator", spent.self}} {
		p.row("... CPU of "+part.name+" a stream that moved", float64(part.cpu.Microseconds())/float64(hosts), "µs")
	}
	err = f.finish(ctx, p, m)
	sleep(ctx, max(f.o.Duration/4, 500*time.Millisecond))
	rest := survivor.Usage()
	p.row("... the survivor's peak RSS, times its RSS at rest with all of them", float64(rest.Peak)/float64(max(rest.RSS, 1)), "")
	p.row("... the survivor's peak RSS, times that of the one that was killed, at rest", float64(rest.Peak)/float64(max(whole, 1)), "")
	if err != nil {
		return err
	}
	if err := victim.Start(ctx); err != nil {
		return err
	}
	// As it was: half of them on each.
	for i, h := range f.members() {
		if i%2 == 0 {
			h.Cut()
		}
	}
	return f.settle(ctx, f.o.SettleWithin)
}

// gather has every host on one replica, which is the one that is preferred.
func (f *fleet) gather(ctx context.Context, replica string) error {
	ctx, cancel := context.WithTimeout(ctx, f.o.SettleWithin)
	defer cancel()
	for cut := true; ; cut = false {
		elsewhere := 0
		for _, h := range f.members() {
			if s := h.Status(); !s.Connected || s.Replica != replica {
				elsewhere++
				if cut {
					h.Cut()
				}
			}
		}
		if elsewhere == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %d hosts didn't move to %s", errNotSettled, elsewhere, replica)
		}
		sleep(ctx, 20*time.Millisecond)
	}
}
