package observe

import (
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/fleetban/fleetban/agent/internal/fail2ban"
	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
)

const (
	metaEvery   = 10 * time.Second
	startAtMost = 5 * time.Minute
)

// compareCounters looks at the jails that are up and at their counters, and reads in full what doesn't add up.
func (o *Observer) compareCounters() error {
	ctx, cancel := o.call()
	defer cancel()
	names, err := o.client.Jails(ctx)
	if err != nil {
		return err
	}
	peer, err := o.client.Peer(ctx)
	if err != nil {
		return err
	}
	if peer != o.peer {
		o.begin(peer)
		o.metaAt = time.Time{}
	}
	if o.state == stateStopping {
		return nil // a last answer before it goes
	}
	// A server that starts answers before it has read where it is to log.
	if o.state == stateStarting || o.now().Sub(o.metaAt) > metaEvery {
		if err := o.readMeta(ctx); err != nil {
			return err
		}
	}
	o.noteJails(names)

	type look struct {
		counts fail2ban.Counts
		told   uint64
		banned uint64
	}
	looked := map[*jail]look{}
	for _, j := range o.jails {
		ctx, cancel := o.call()
		counts, err := o.client.JailCounts(ctx, j.name)
		cancel()
		if errors.Is(err, fail2ban.ErrUnknownJail) {
			continue // the next look drops it
		}
		if err != nil {
			return err
		}
		looked[j] = look{counts, j.told, j.banned()}
		if o.now().Sub(j.settingsAt) > settingsEvery {
			if err := o.readSettings(j); isDown(err) {
				return err
			}
		}
	}
	// What was counted may have been logged in the meantime.
	o.drain()
	for j, l := range looked {
		if o.state != stateUp && o.state != stateStarting {
			return nil
		}
		if o.jails[j.name] != j {
			continue
		}
		if err := o.check(j, l.counts, l.told, l.banned); err != nil && !errors.Is(err, fail2ban.ErrUnknownJail) {
			return err
		}
	}
	return nil
}

// noteJails takes up jails that appeared and drops those that went.
func (o *Observer) noteJails(names []string) {
	up := map[string]bool{}
	for _, name := range names {
		if reserved(name) {
			continue
		}
		up[name] = true
		if o.jails[name] == nil {
			o.add(name)
		}
	}
	if o.state != stateUp {
		return // they come back, or finishStart drops them
	}
	for name, j := range o.jails {
		if !up[name] {
			o.drop(j)
		}
	}
}

// add takes a jail up. One that appears while fail2ban runs reads its bans back first.
func (o *Observer) add(name string) *jail {
	j := &jail{name: name, bans: map[netip.Prefix]ban{}}
	o.jails[name] = j
	now := o.now()
	switch {
	case o.state == stateStarting:
		j.settle(now, o.born())
	case o.synced:
		// What was banned since the last look is new.
		j.settle(now, now.Add(-o.cfg.PollInterval-time.Second))
	}
	return j
}

// drop lets go of a jail that isn't up any more.
func (o *Observer) drop(j *jail) {
	delete(o.jails, j.name)
	j.lifted = nil
	now := o.now()
	for p, b := range j.bans {
		c := change(j.name, p)
		c.SetUnban(o.unban(j, p, b, now, true))
		o.emit(c, now)
	}
	o.log.Info("a jail was stopped", slog.String("jail", j.name), slog.Int("bans", len(j.bans)))
}

// restarted notes that a jail's counters began anew.
func (o *Observer) restarted(j *jail, counts fail2ban.Counts) {
	now := o.now()
	j.settle(now, now.Add(-o.cfg.PollInterval-time.Second))
	j.counts, j.told, j.lifted = counts, counts.TotalBanned, nil
	j.settingsAt = time.Time{}
}

// check compares a jail's counters with what is known of it. told and banned are what was known just before they were
// read: since then, the log may have told more.
func (o *Observer) check(j *jail, counts fail2ban.Counts, told, banned uint64) error {
	now := o.now()
	before := j.counts
	if counts.TotalBanned < max(told, before.TotalBanned) {
		o.restarted(j, counts)
		return nil
	}
	j.counts = counts
	if j.settling {
		if counts.Banned != before.Banned || counts.TotalBanned != before.TotalBanned {
			j.stillSince = now
		}
		if o.state == stateUp && j.still(now) {
			j.settling = false
			return o.read(j, true, true)
		}
		return nil
	}
	if !o.synced || o.resync || o.state != stateUp {
		return nil // all is read in a moment
	}
	unequal := !between(counts.Banned, banned, j.banned()) || !between(counts.TotalBanned, told, j.told)
	if !unequal {
		j.unequal = 0
		if j.inexact || !j.known {
			return o.read(j, false, false)
		}
		return nil
	}
	// Lines may be on their way: only what lasts for two looks was missed. Without lines there is nothing to wait for.
	if j.unequal++; j.unequal > 1 || o.source == sourcePoll {
		return o.read(j, false, false)
	}
	return nil
}

func between(n, a, b uint64) bool { return n >= min(a, b) && n <= max(a, b) }

// still reports whether a jail that started has read its bans back.
func (j *jail) still(now time.Time) bool {
	still := now.Sub(j.stillSince)
	return still >= settleMissing || (still >= settleStill && j.counts.Banned >= j.expected(now)) || now.Sub(j.settlingSince) > startAtMost
}

// finishStart ends a start when every jail has read its bans back, with a baseline.
func (o *Observer) finishStart() {
	now := o.now()
	if len(o.jails) == 0 && now.Sub(o.begunAt) < settleNoJails {
		return
	}
	ctx, cancel := o.call()
	defer cancel()
	names, err := o.client.Jails(ctx)
	if err != nil {
		o.fail(err)
		return
	}
	up := map[string]bool{}
	for _, name := range names {
		up[name] = true
	}
	if len(up) == 0 && now.Sub(o.begunAt) < settleNoJails {
		return
	}
	for name, j := range o.jails {
		if up[name] && !j.still(now) {
			return
		}
	}
	for name, j := range o.jails {
		if !up[name] {
			o.drop(j)
			continue
		}
		j.settling = false
		if err := o.read(j, true, true); isDown(err) {
			o.fail(err)
			return
		}
	}
	o.state, o.resync, o.synced = stateUp, false, true
	o.nextAll = o.now().Add(o.cfg.ReconcileEvery)
	o.tellMissed()
	o.offer(true)
	o.log.Info("fail2ban has started", slog.Int("jails", len(o.jails)))
}

// readAll reads every jail in full. After anything that broke continuity a baseline follows.
func (o *Observer) readAll() error {
	if o.restarting() {
		return nil // at the next look
	}
	broken := o.resync || !o.synced
	o.resync = false
	for _, j := range o.jails {
		if j.settling && o.synced {
			continue
		}
		j.settling = false
		if err := o.read(j, true, false); err != nil && !errors.Is(err, fail2ban.ErrUnknownJail) {
			o.resync = broken
			return err
		}
	}
	if o.resync {
		return nil // the zone was learned meanwhile: once more
	}
	if o.missed != nil {
		o.drain() // a jail's stop is told after its bans are lifted
		if o.state != stateUp || o.resync {
			o.resync = true
			return nil
		}
	}
	o.synced = true
	o.nextAll = o.now().Add(o.cfg.ReconcileEvery)
	o.tellMissed()
	if broken {
		o.offer(false)
	}
	return nil
}

// read reads a jail in full and tells what that changes. Unless it must be now, not more often than fail2ban can bear.
// settled: the jail was restarted since it was last read.
func (o *Observer) read(j *jail, now, settled bool) error {
	start := o.now()
	if !now && start.Before(j.nextRead) {
		return nil
	}
	if j.settingsAt.IsZero() {
		if err := o.readSettings(j); err != nil {
			return err
		}
	}
	ctx, cancel := o.call()
	defer cancel()
	counts, err := o.client.JailCounts(ctx, j.name)
	if err != nil {
		return err
	}
	if counts.TotalBanned < max(j.told, j.counts.TotalBanned) && !settled {
		o.restarted(j, counts)
		return nil
	}
	began := o.now()
	listing, err := o.client.BannedWithTime(ctx, j.name)
	if err != nil {
		return err
	}
	end := o.now()
	j.readCost = end.Sub(began)
	j.nextRead = end.Add(j.readCost * readsLog)
	if o.source == sourcePoll {
		j.nextRead = end.Add(j.readCost * readsPoll)
	}
	first := !j.known
	if !o.clock.known && !first {
		for _, e := range listing.Entries {
			if _, ok := j.bans[e.Addr]; !ok && listing.Times {
				o.relearn(o.clock.learn(e.BannedAt, end, freshlyPrinted))
			}
		}
	}
	if listing.Unparsable != j.unparsable {
		j.unparsable = listing.Unparsable
		o.log.Warn("a jail bans what is no address; the fleet can't", slog.String("jail", j.name), slog.Int("entries", j.unparsable))
	}
	missed := j.unequal > 1 && o.source == sourceLog && !settled
	j.counts, j.told, j.unequal = counts, counts.TotalBanned, 0
	d := j.compare(listing, &o.clock, end)
	if missed && len(d.news) > 0 {
		if o.blind++; o.blind == blindAfter {
			o.log.Warn("fail2ban bans and its log doesn't tell: polling from now on", slog.String("log", o.tail.path))
		}
	}
	if o.source == sourcePoll && len(d.news) > 0 {
		j.inexact = true // an extension may follow, and no line tells
	}
	o.tell(j, d, end, settled)
	return nil
}

// tell emits what a full read found.
func (o *Observer) tell(j *jail, d difference, now time.Time, settled bool) {
	for _, f := range d.news {
		restored := settled && f.ban.since.Before(j.bornAt.Truncate(time.Second))
		if restored && o.state == stateStarting {
			continue // the baseline after the start tells
		}
		c := change(j.name, f.prefix)
		c.SetBan(hostv1.Ban_builder{
			DurationMs: durationMs(f.ban.duration), Restored: restored, CommandId: o.ordered(j.name, f.prefix),
		}.Build())
		c.SetReadUnixMs(unixMs(now))
		c.SetConfirmedUnixMs(unixMs(now))
		o.emit(c, f.ban.since)
	}
	for _, f := range d.changed {
		c := change(j.name, f.prefix)
		c.SetExtension(hostv1.Extension_builder{DurationMs: durationMs(f.ban.duration)}.Build())
		c.SetReadUnixMs(unixMs(now))
		c.SetConfirmedUnixMs(unixMs(now))
		o.emit(c, now)
	}
	for _, p := range d.gone {
		b := j.bans[p]
		delete(j.bans, p)
		c := change(j.name, p)
		c.SetUnban(o.unban(j, p, b, now, settled))
		c.SetReadUnixMs(unixMs(now))
		c.SetConfirmedUnixMs(unixMs(now))
		o.emit(c, now)
	}
	if settled {
		j.lifted = nil
	}
}
