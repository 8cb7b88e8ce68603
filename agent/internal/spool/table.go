package spool

import (
	"strings"
	"unicode/utf8"

	"github.com/fleetban/fleetban/proto/wire/prefix"

	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// slackMS is how far two reports of the same ban may differ: fail2ban counts in whole seconds, and reports take time.
const slackMS = 2500

// Bounds of what is taken from an observation; beyond them it is dropped. The helper is trusted, its bugs are not.
const (
	maxJailName = 128
	// maxBaseline is how many bans one baseline may have.
	maxBaseline = 500_000
)

// standing is a ban that is known to stand.
type standing struct {
	start    instant
	duration int64 // milliseconds; -1 is for ever
}

// left is how long it lasts yet, and whether it ends at all.
func (b standing) left(now instant) (int64, bool) {
	if b.duration < 0 {
		return 0, false
	}
	return b.duration - b.start.age(now), true
}

// table is the bans known to stand: jail, packed prefix.
type table map[string]map[string]standing

func (t table) get(jail, packed string) (standing, bool) {
	b, ok := t[jail][packed]
	return b, ok
}

func (t table) size() (n int) {
	for _, bans := range t {
		n += len(bans)
	}
	return n
}

// change is an event before it has a sequence number.
type change struct {
	at    instant
	event *fleetbanv1.Event // neither seq nor age
}

// apply does to the table what an event says.
func (t table) apply(c change) {
	jail, packed := c.event.GetJail(), string(c.event.GetPrefix())
	switch c.event.WhichChange() {
	case fleetbanv1.Event_Ban_case:
		bans := t[jail]
		if bans == nil {
			bans = map[string]standing{}
			t[jail] = bans
		}
		bans[packed] = standing{c.at, c.event.GetBan().GetDurationMs()}
	case fleetbanv1.Event_Extension_case:
		if b, ok := t[jail][packed]; ok {
			b.duration = c.event.GetExtension().GetDurationMs()
			t[jail][packed] = b
		}
	case fleetbanv1.Event_Unban_case:
		delete(t[jail], packed)
		if len(t[jail]) == 0 {
			delete(t, jail)
		}
	}
}

func newBan(at instant, jail, packed string, ban fleetbanv1.ObservedBan_builder) change {
	return change{at, fleetbanv1.Event_builder{Jail: jail, Prefix: []byte(packed), Ban: ban.Build()}.Build()}
}

func newExtension(at instant, jail, packed string, duration int64) change {
	return change{at, fleetbanv1.Event_builder{
		Jail: jail, Prefix: []byte(packed), Extension: fleetbanv1.ObservedExtension_builder{DurationMs: duration}.Build(),
	}.Build()}
}

func newUnban(at instant, jail, packed string, cause fleetbanv1.UnbanCause, command string) change {
	return change{at, fleetbanv1.Event_builder{
		Jail: jail, Prefix: []byte(packed), Unban: fleetbanv1.ObservedUnban_builder{Cause: cause, CommandId: command}.Build(),
	}.Build()}
}

// seen is a ban as an observation tells of it: what it says of one unknown is in ban.
func (t table) seen(now instant, ageMS int64, jail, packed string, ban fleetbanv1.ObservedBan_builder, emit func(change) bool) bool {
	start := now.back(max(0, ageMS))
	ban.DurationMs = max(-1, ban.DurationMs)
	known, ok := t.get(jail, packed)
	if !ok {
		return emit(newBan(start, jail, packed, ban))
	}
	// How long after the known one's start this one began, if at all.
	later := known.start.age(now) - max(0, ageMS)
	if known.duration >= 0 && later >= max(known.duration-slackMS, slackMS) {
		// The known one had ended by itself: its end was missed.
		end := now.back(max(0, known.start.age(now)-known.duration))
		return emit(newUnban(end, jail, packed, fleetbanv1.UnbanCause_UNBAN_CAUSE_EXPIRED, "")) && emit(newBan(start, jail, packed, ban))
	}
	duration := ban.DurationMs
	if duration >= 0 {
		duration += max(0, later)
	}
	if same(duration, known.duration) {
		return true
	}
	return emit(newExtension(now, jail, packed, duration))
}

// same reports whether two lengths are the same within the slack.
func same(a, b int64) bool {
	if a < 0 || b < 0 {
		return a < 0 && b < 0
	}
	return a-b <= slackMS && b-a <= slackMS
}

// observeChange turns a change into the events it means for the table; none if it is known already.
func (t table) observeChange(now instant, c *hostv1.Change, emit func(change) bool) {
	jail, packed := c.GetJail(), string(c.GetPrefix())
	if !valid(jail, c.GetPrefix()) {
		return
	}
	at := now.back(max(0, c.GetAgeMs()))
	known, ok := t.get(jail, packed)
	switch c.WhichChange() {
	case hostv1.Change_Ban_case:
		b := c.GetBan()
		t.seen(now, c.GetAgeMs(), jail, packed, fleetbanv1.ObservedBan_builder{
			DurationMs: b.GetDurationMs(), Failures: b.GetFailures(), Restored: b.GetRestored(), CommandId: clip(b.GetCommandId(), 64),
		}, emit)
	case hostv1.Change_Extension_case:
		if !ok || same(known.duration, c.GetExtension().GetDurationMs()) {
			return // an unknown one's next baseline tells all
		}
		emit(newExtension(at, jail, packed, max(-1, c.GetExtension().GetDurationMs())))
	case hostv1.Change_Unban_case:
		cause := c.GetUnban().GetCause()
		if !ok || cause == fleetbanv1.UnbanCause_UNBAN_CAUSE_UNSPECIFIED && known.start.age(now)+slackMS < c.GetAgeMs() {
			return // unknown, or of a ban before this one
		}
		if cause == fleetbanv1.UnbanCause_UNBAN_CAUSE_UNSPECIFIED {
			// Its line was there, behind no stop of its jail: before its end, that was a person.
			cause = fleetbanv1.UnbanCause_UNBAN_CAUSE_PERSON
			if left, ends := known.left(at); ends && left <= slackMS {
				cause = fleetbanv1.UnbanCause_UNBAN_CAUSE_EXPIRED
			}
		}
		emit(newUnban(at, jail, packed, cause, clip(c.GetUnban().GetCommandId(), 64)))
	}
}

// baseline is one under way.
type baseline struct {
	jails   map[string]bool
	bans    table
	n       int
	restart bool
	at      instant
	// behind are changes that came between its pages.
	behind []*hostv1.Change
}

func (b *baseline) add(now instant, page *hostv1.Baseline) {
	for _, j := range page.GetJails() {
		b.jails[j] = true
	}
	for _, ban := range page.GetBanned() {
		if !valid(ban.GetJail(), ban.GetPrefix()) || b.n >= maxBaseline {
			continue
		}
		b.n++
		b.jails[ban.GetJail()] = true
		b.bans.apply(newBan(now.back(max(0, ban.GetAgeMs())), ban.GetJail(), string(ban.GetPrefix()),
			fleetbanv1.ObservedBan_builder{DurationMs: ban.GetDurationMs()}))
	}
	b.restart = b.restart || page.GetAfterStart()
}

// observeBaseline turns a complete baseline into the events that take the table there. first says that none came before.
func (t table) observeBaseline(now instant, b *baseline, first bool, emit func(change) bool) bool {
	// What isn't banned any more goes first, so that a table at its bound makes room.
	for jail, bans := range t {
		for packed, known := range bans {
			if _, still := b.bans.get(jail, packed); still {
				continue
			}
			if !emit(newUnban(now, jail, packed, b.cause(now, jail, known), "")) {
				return false
			}
		}
	}
	for jail, bans := range b.bans {
		for packed, ban := range bans {
			if !t.seen(now, ban.start.age(now), jail, packed, fleetbanv1.ObservedBan_builder{
				DurationMs: ban.duration, Restored: b.restart, Preexisting: first,
			}, emit) {
				return false
			}
		}
	}
	return true
}

// cause says why a known ban isn't in a baseline. Nobody saw it go: fail2ban may have been restarted without its database
// while this process or the helper was away, and reads back what it has by and by. So it is never told as a person's doing,
// which would take the ban back on the whole fleet; the claim stands until its end.
func (b *baseline) cause(now instant, jail string, known standing) fleetbanv1.UnbanCause {
	left, ends := known.left(now)
	switch {
	case ends && left <= slackMS:
		return fleetbanv1.UnbanCause_UNBAN_CAUSE_EXPIRED
	case b.restart || !b.jails[jail]:
		return fleetbanv1.UnbanCause_UNBAN_CAUSE_JAIL_STOPPED
	default:
		return fleetbanv1.UnbanCause_UNBAN_CAUSE_UNSPECIFIED
	}
}

func valid(jail string, packed []byte) bool {
	if jail == "" || len(jail) > maxJailName || !utf8.ValidString(jail) {
		return false
	}
	_, err := prefix.Unpack(packed)
	return err == nil
}

func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ToValidUTF8(s, "")
}
