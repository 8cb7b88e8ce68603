package observe

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/fleetban/fleetban/agent/internal/fail2ban"
	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// answers is what fail2ban said about the addresses that lines named.
type answers struct {
	banned    map[expectKey]bool
	confirmed time.Time
	skip      map[string]bool // jails that were read in full, are gone, or are no business of ours
	restarted map[string]bool // jails that began anew since they were last looked at
}

// confirm asks fail2ban about what lines say, and tells what turns out true.
func (o *Observer) confirm(lines []line) {
	if o.state == stateDown || o.state == stateBroken {
		o.keep(lines)
		return
	}
	defer o.readGrown() // after the bans that grew
	lines = o.announcements(lines)
	if len(lines) == 0 {
		return
	}
	a, err := o.ask(lines)
	if err == nil {
		ctx, cancel := o.call()
		defer cancel()
		var peer fail2ban.Peer
		if peer, err = o.client.Peer(ctx); err == nil && peer != o.peer {
			// Another server answered, and knows nothing of what the one before lifted.
			o.keep(lines)
			o.begin(peer)
			return
		}
	}
	if err != nil {
		o.keep(lines)
		o.fail(err)
		return
	}
	for _, l := range lines {
		if a.skip[l.jail] {
			continue
		}
		if l.kind == kindBan {
			o.banLine(l, a)
		} else {
			o.unbanLine(l, a)
		}
	}
}

// readGrown reads the real lengths of bans that were made longer.
func (o *Observer) readGrown() {
	for _, j := range o.jails {
		if !j.grown || o.state != stateUp || j.settling {
			continue
		}
		j.grown = false
		if err := o.read(j, false, false); isDown(err) {
			o.fail(err)
			return
		}
	}
}

// keep remembers new bans until fail2ban can be asked. More than fit are found by the full read then, as old ones.
func (o *Observer) keep(lines []line) {
	for _, l := range lines {
		if l.kind == kindBan && len(o.pending) < maxPending {
			o.pending = append(o.pending, l)
		}
		if l.kind == kindShutdown {
			o.sawDown = true
		}
	}
}

// announcements acts on lines that are about no single ban, and returns those that are.
func (o *Observer) announcements(lines []line) []line {
	out := lines[:0]
	now := o.now()
	for _, l := range lines {
		j := o.jails[l.jail]
		switch l.kind {
		case kindOther:
		case kindShutdown:
			o.stop()
		case kindReloaded:
			o.cfg.Lately.Note("fail2ban-reloaded", "fail2ban was reloaded; its jails and their settings are read again")
			fallthrough
		case kindReload:
			o.metaAt = time.Time{}
			for _, j := range o.jails {
				j.lifted = nil // a jail that stops lifts its bans
				j.inexact, j.settingsAt = true, time.Time{}
			}
		case kindRestore:
			switch {
			case j == nil:
			case o.state == stateUp && !j.settling:
				j.settle(now, now)
			default:
				j.stillSince = now
			}
		case kindIncrease, kindAgain:
			if j != nil {
				j.inexact = true
				j.grown = j.grown || l.kind == kindIncrease
			}
		case kindBan:
			if !reserved(l.jail) {
				out = append(out, l)
			}
		case kindUnban:
			switch {
			case j == nil:
			case o.state == stateUp && !j.settling:
				out = append(out, l)
			case o.state == stateStarting:
				o.liftedEarly(j, l)
			}
		}
	}
	return out
}

// ask asks each jail once about all of its addresses.
func (o *Observer) ask(lines []line) (answers, error) {
	a := answers{banned: map[expectKey]bool{}, skip: map[string]bool{}, restarted: map[string]bool{}}
	questions := map[string][]netip.Prefix{}
	early := map[string]bool{} // jails with bans lifted before their end
	for _, l := range lines {
		if j := o.jails[l.jail]; j != nil && l.kind == kindUnban {
			if b, ok := j.bans[l.prefix]; ok && !b.over(o.now()) {
				early[l.jail] = true
			}
		}
		key := expectKey{l.jail, l.prefix}
		if _, ok := a.banned[key]; !ok {
			a.banned[key] = false
			questions[l.jail] = append(questions[l.jail], l.prefix)
		}
	}
	for name, prefixes := range questions {
		j := o.jails[name]
		if early[name] {
			if err := o.askRestarted(j, &a); err != nil {
				return a, err
			}
		}
		if len(prefixes) > confirmAtMost && j != nil && o.state == stateUp && !j.settling {
			a.skip[name] = true
			if err := o.read(j, true, false); isDown(err) {
				return a, err
			}
			continue
		}
		for len(prefixes) > 0 {
			batch := prefixes[:min(len(prefixes), confirmAtMost)]
			prefixes = prefixes[len(batch):]
			ctx, cancel := o.call()
			yes, err := o.client.Banned(ctx, name, batch...)
			cancel()
			if errors.Is(err, fail2ban.ErrUnknownJail) {
				a.skip[name] = true
				if j != nil && o.state == stateUp {
					o.drop(j)
				}
				break
			}
			if err != nil {
				if isDown(err) {
					return a, err
				}
				o.log.Warn("fail2ban refuses to tell whether an address is banned", slog.String("jail", name), slog.String("error", err.Error()))
				a.skip[name] = true
				break
			}
			for i, p := range batch {
				a.banned[expectKey{name, p}] = yes[i]
			}
		}
	}
	a.confirmed = o.now()
	return a, nil
}

// written returns when a line was written, if its clock can be true: read at once, or at most some minutes later.
func (o *Observer) written(l line) (time.Time, bool) {
	at := o.clock.utc(l.at)
	late := l.read.Sub(at)
	return at, late > -slack && late < 10*time.Minute
}

func (o *Observer) banLine(l line, a answers) {
	if !a.banned[expectKey{l.jail, l.prefix}] {
		return
	}
	j := o.jails[l.jail]
	if j == nil {
		j = o.add(l.jail)
	}
	o.blind = 0
	if _, ok := j.bans[l.prefix]; !ok {
		// It happened, and just now: its time teaches the zone.
		o.relearn(o.clock.learn(l.at, l.read, liveLine))
	}
	now := o.now()
	at, usable := o.written(l)
	since := now
	if usable {
		since = at
	}
	if old, ok := j.bans[l.prefix]; ok && (!usable || !at.After(old.seen)) {
		j.inexact = true
		return
	}
	if j.settingsAt.IsZero() {
		_ = o.readSettings(j) // a provisional duration is better than none
	}
	j.bans[l.prefix] = ban{since: since, duration: j.banTime, seen: now}
	j.told++
	j.inexact = true
	c := change(j.name, l.prefix)
	c.SetBan(hostv1.Ban_builder{DurationMs: durationMs(j.banTime), CommandId: o.ordered(j.name, l.prefix)}.Build())
	o.stamp(c, l, a, usable)
	o.emit(c, since)
}

func (o *Observer) unbanLine(l line, a answers) {
	j := o.jails[l.jail]
	if j == nil || a.banned[expectKey{l.jail, l.prefix}] {
		return
	}
	b, ok := j.bans[l.prefix]
	if !ok {
		return
	}
	at, usable := o.written(l)
	if !usable {
		at = o.now()
	}
	if a.restarted[j.name] {
		return // found out when it has settled
	}
	delete(j.bans, l.prefix)
	c := change(j.name, l.prefix)
	c.SetUnban(o.unban(j, l.prefix, b, at, false))
	o.stamp(c, l, a, usable)
	o.emit(c, at)
}

// askRestarted finds out whether a jail still is the one that was looked at last: a restart lifts its bans and reads them
// back. It must be asked before the bans are: a jail that has read all of them back between the two looks would seem to be
// the old one that bans no more. fail2ban restarts a jail within one command, so no answer comes from in between.
func (o *Observer) askRestarted(j *jail, a *answers) error {
	ctx, cancel := o.call()
	defer cancel()
	counts, err := o.client.JailCounts(ctx, j.name)
	switch {
	case errors.Is(err, fail2ban.ErrUnknownJail):
		return nil // the next question finds out, and drops it
	case isDown(err):
		return err
	case err != nil:
		a.restarted[j.name] = true
	case counts.TotalBanned < max(j.told, j.counts.TotalBanned):
		a.restarted[j.name] = true
		o.restarted(j, counts)
	}
	return nil
}

// unban finds out why a ban went, at a moment. settled: its jail was restarted in between.
func (o *Observer) unban(j *jail, p netip.Prefix, b ban, at time.Time, settled bool) *hostv1.Unban {
	u := hostv1.Unban_builder{Cause: fleetbanv1.UnbanCause_UNBAN_CAUSE_PERSON, CommandId: o.ordered("", p)}.Build()
	switch {
	case u.GetCommandId() != "":
		u.SetCause(fleetbanv1.UnbanCause_UNBAN_CAUSE_COMMAND)
	case b.over(at):
		u.SetCause(fleetbanv1.UnbanCause_UNBAN_CAUSE_EXPIRED)
	case settled && (!j.lifted[p] || len(j.lifted) > mostLifted):
		u.SetCause(fleetbanv1.UnbanCause_UNBAN_CAUSE_JAIL_STOPPED)
	default:
		// A shorter ban time, set while the ban ran, ends it too.
		if o.readSettings(j) == nil && j.cutShort(b, at) {
			u.SetCause(fleetbanv1.UnbanCause_UNBAN_CAUSE_EXPIRED)
		}
	}
	return u
}

// mostLifted is how many bans of a jail a person is believed to lift while it starts. More than that is a jail that stops.
const mostLifted = 8

// liftedEarly remembers that the server that starts has lifted a ban. Where it still is lifted when all bans were read
// back, a person did it: a jail's stop takes nothing out of fail2ban's database, and its lines say that it stopped.
func (o *Observer) liftedEarly(j *jail, l line) {
	if at, usable := o.written(l); !usable || !at.After(o.born()) || len(j.lifted) > mostLifted {
		return // a line of the server before, which stopped
	}
	if j.lifted == nil {
		j.lifted = map[netip.Prefix]bool{}
	}
	j.lifted[l.prefix] = true
}

func change(jail string, p netip.Prefix) *hostv1.Change {
	return hostv1.Change_builder{Jail: jail, Prefix: prefix.Pack(p)}.Build()
}

func (o *Observer) stamp(c *hostv1.Change, l line, a answers, usable bool) {
	if usable {
		c.SetLoggedUnixMs(unixMs(o.clock.utc(l.at)))
	}
	c.SetReadUnixMs(unixMs(l.read))
	c.SetConfirmedUnixMs(unixMs(a.confirmed))
}

func unixMs(t time.Time) float64 { return float64(t.UnixMicro()) / 1000 }

func (o *Observer) emit(c *hostv1.Change, at time.Time) {
	if o.synced || o.state == stateStarting { // before the first look at a server that runs, nothing is known to be new
		o.feed.change(c, at)
	}
}

// readSettings reads what the jail is set to.
func (o *Observer) readSettings(j *jail) (err error) {
	ctx, cancel := o.call()
	defer cancel()
	before := j.banTime
	if j.banTime, err = o.client.BanTime(ctx, j.name); err != nil {
		j.banTime = before
		return err
	}
	if j.banTime != before && j.banTimeKnown {
		j.inexact = true // it changes running bans too
		if j.former = append(j.former, before); len(j.former) > maxFormer {
			j.former = j.former[1:]
		}
	}
	j.banTimeKnown = true
	return o.readFilter(ctx, j)
}

func (o *Observer) readFilter(ctx context.Context, j *jail) (err error) {
	if j.findTime, err = o.client.FindTime(ctx, j.name); err != nil {
		return err
	}
	if j.maxRetry, err = o.client.MaxRetry(ctx, j.name); err != nil {
		return err
	}
	j.settingsAt = o.now()
	return nil
}
