package observe

import (
	"net/netip"
	"strings"
	"time"

	"github.com/fleetban/fleetban/agent/internal/fail2ban"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// ban is what is known of one ban.
type ban struct {
	// since is when it began, as the subscriber was told: at first when its line was written. duration counts from there, or
	// is fail2ban.Forever.
	since    time.Time
	duration time.Duration
	// start is when it began by fail2ban's own record, zero until that was read: the last failure, which may be older than
	// the line.
	start time.Time
	// seen is when it was taken down here.
	seen time.Time
}

// rebase makes fail2ban's record the beginning. Only where the subscriber is told so.
func (b ban) rebase() ban {
	if !b.start.IsZero() {
		if b.duration >= 0 {
			b.duration += b.since.Sub(b.start)
		}
		b.since = b.start
	}
	return b
}

func (b ban) end() (end time.Time, forever bool) {
	if b.duration < 0 {
		return time.Time{}, true
	}
	return b.since.Add(b.duration), false
}

// over reports whether at is the ban's end or later. fail2ban counts in whole seconds and looks for ends once a second at
// best, so an unban a little early is still one.
func (b ban) over(at time.Time) bool {
	end, forever := b.end()
	// Both by the wall clock, as fail2ban goes: set forward, it ends bans.
	return !forever && !at.Round(0).Before(end.Round(0).Add(-slack))
}

const slack = 2 * time.Second

// jail is what is known of one jail. All of it belongs to the observer's own goroutine.
type jail struct {
	name string
	bans map[netip.Prefix]ban
	// extra counts what fail2ban bans and the table can't hold: entries that are no address, and the same one twice.
	extra      uint64
	unparsable int
	counts     fail2ban.Counts
	// told is what TotalBanned should be by what was seen.
	told uint64
	// unequal counts the looks in a row at which the counters weren't what they should be.
	unequal int
	// inexact: some ban's times are provisional, or may have changed.
	inexact bool
	grown   bool // a line told that a ban was made longer
	known   bool // bans were read in full since the jail was first seen

	banTime, findTime time.Duration
	maxRetry          int64
	settingsAt        time.Time
	// former are the ban times before banTime, the last ones only.
	former       []time.Duration
	banTimeKnown bool

	// Settling: the jail has just started and reads its bans back. Ends when its counters stand still.
	settling      bool
	settlingSince time.Time
	stillSince    time.Time
	bornAt        time.Time // bans from before this moment are restored ones
	// lifted are the bans that the server lifted since it started, while it starts.
	lifted map[netip.Prefix]bool

	// A full read blocks fail2ban: how long the last took, and when the next may be.
	readCost time.Duration
	nextRead time.Time
}

// banned is what fail2ban should count as banned.
func (j *jail) banned() uint64 { return uint64(len(j.bans)) + j.extra }

func (j *jail) settle(now, born time.Time) {
	if !j.settling {
		j.settling, j.settlingSince = true, now
	}
	j.stillSince, j.bornAt = now, born
}

// expected counts the bans that should come back after a start.
func (j *jail) expected(now time.Time) (n uint64) {
	for _, b := range j.bans {
		if !b.over(now) {
			n++
		}
	}
	return n
}

// maxFormer is how many earlier ban times are remembered.
const maxFormer = 8

// cutShort reports whether b, which had the jail's ban time of then, is over at a moment by the ban time of now. fail2ban
// goes by the latter for every ban that has no length of its own.
func (j *jail) cutShort(b ban, at time.Time) bool {
	b = b.rebase()
	for _, d := range j.former {
		if d == b.duration || (d >= 0 && b.duration >= 0 && (d-b.duration).Abs() <= slack) {
			b.duration = j.banTime
			return b.over(at)
		}
	}
	return false
}

// reserved jails are the fleet's own: what they ban came from the fleet.
func reserved(name string) bool { return strings.HasPrefix(name, "fleet") }

// difference is what a full read of a jail changes.
type difference struct {
	news    []found
	changed []found // the same ban, with another end
	gone    []netip.Prefix
}

type found struct {
	prefix netip.Prefix
	ban    ban
}

// compare takes a full read over into the table and tells what it changed. Removed bans are still in the table: why they
// went is the caller's to find out.
func (j *jail) compare(listing fail2ban.Listing, clock *zone, now time.Time) difference {
	var d difference
	read := make(map[netip.Prefix]ban, len(listing.Entries))
	for _, e := range listing.Entries {
		b := ban{since: now, duration: j.banTime, seen: now}
		if listing.Times {
			b.start, b.duration = clock.utc(e.BannedAt), e.Duration
			b.since = b.start
		}
		read[e.Addr] = b
	}
	j.extra = uint64(listing.Unparsable + len(listing.Entries) - len(read))
	for p, b := range read {
		old, ok := j.bans[p]
		switch {
		case !ok:
			d.news = append(d.news, found{p, b})
		case !listing.Times:
			continue
		case !old.start.IsZero() && b.start.Sub(old.start) > slack && b.start.After(old.seen):
			d.news = append(d.news, found{p, b}) // lifted and banned again in between
		default:
			end, forever := b.end()
			same := sameEnd(old, b)
			b.since, b.seen = old.since, old.seen
			if !forever {
				b.duration = max(end.Sub(b.since), time.Second)
			}
			if !same {
				d.changed = append(d.changed, found{p, b})
			}
		}
		j.bans[p] = b
	}
	for p := range j.bans {
		if _, ok := read[p]; !ok {
			d.gone = append(d.gone, p)
		}
	}
	j.inexact, j.known = false, true
	return d
}

func sameEnd(a, b ban) bool {
	x, forever := a.end()
	y, alsoForever := b.end()
	if forever || alsoForever {
		return forever == alsoForever
	}
	return x.Sub(y).Abs() <= slack
}

// expectation is a ban or unban that a command has ordered.
type expectation struct {
	command string
	until   time.Time
}

const (
	expectFor       = 30 * time.Second
	maxExpectations = 10_000
)

// ExpectUnban says that commandID is about to unban prefix, in any jail: its unbans within the next 30 s are told as that
// command's. Call it before fail2ban is told.
func (o *Observer) ExpectUnban(commandID string, prefix netip.Prefix) {
	o.expect(expectKey{prefix: prefix.Masked()}, commandID)
}

// ExpectBan says that commandID is about to ban prefix in a jail: its ban within the next 30 s is told as that command's.
// Call it before fail2ban is told.
func (o *Observer) ExpectBan(commandID, jail string, prefix netip.Prefix) {
	o.expect(expectKey{jail: jail, prefix: prefix.Masked()}, commandID)
}

// expectKey is a ban in a jail, or an unban if the jail is "".
type expectKey struct {
	jail   string
	prefix netip.Prefix
}

func (o *Observer) expect(key expectKey, command string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.now()
	if len(o.expected) >= maxExpectations {
		for k, e := range o.expected {
			if now.After(e.until) {
				delete(o.expected, k)
			}
		}
		if len(o.expected) >= maxExpectations {
			return // told as a person's, which is what it then looks like
		}
	}
	o.expected[key] = expectation{command, now.Add(expectFor)}
}

// ordered returns the command that ordered a ban (jail given) or an unban, "" if none did.
func (o *Observer) ordered(jail string, p netip.Prefix) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.now()
	if e, ok := o.expected[expectKey{jail, p}]; ok && now.Before(e.until) {
		return e.command
	}
	if jail != "" {
		return ""
	}
	// To unban a prefix lifts each ban within it.
	for bits := p.Bits() - 1; bits >= 0 && len(o.expected) > 0; bits-- {
		wide, err := p.Addr().Prefix(bits)
		if err != nil {
			break
		}
		if e, ok := o.expected[expectKey{"", wide}]; ok && now.Before(e.until) {
			return e.command
		}
	}
	return ""
}

func sourceDelay(source fleetbanv1.EventSource, poll, cost time.Duration) uint32 {
	if source == fleetbanv1.EventSource_EVENT_SOURCE_LOG {
		return 10
	}
	return uint32((poll + cost).Milliseconds())
}
