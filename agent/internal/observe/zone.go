package observe

import "time"

// zone turns the clock on fail2ban's wall into UTC. fail2ban writes local time without a zone, and its zone (TZ in its
// unit, a container, a zone changed since it started) may not be this process's. Where the two agree, the local rules are
// used, which know of summer time; else a fixed offset, learned from things that have just happened.
type zone struct {
	offset time.Duration
	known  bool
	// foreign: the offset isn't this process's, as it was when it was learned. Where summer time comes or goes later, both follow.
	foreign bool
}

const zoneStep = 15 * time.Minute // every zone's offset is a multiple

// learn takes a time that fail2ban wrote at about now: up to late before it, or a little after. It returns by
// how much what utc returns is later than before.
func (z *zone) learn(naive, now time.Time, late time.Duration) (shift time.Duration) {
	difference := naive.Sub(now.UTC())
	offset := (difference + late/2).Round(zoneStep)
	if rest := difference - offset; rest > 2*time.Second || rest < -late || offset < -14*time.Hour || offset > 15*time.Hour {
		return 0
	}
	before := z.utc(naive)
	*z = zoneOf(offset, now)
	return z.utc(naive).Sub(before)
}

// zoneOf is the zone with this offset now.
func zoneOf(offset time.Duration, now time.Time) zone {
	_, seconds := now.In(time.Local).Zone()
	return zone{offset: offset, known: true, foreign: offset != time.Duration(seconds)*time.Second}
}

// utc converts. naive is kept as if it were UTC. Of an hour that the clock on the wall shows twice, either may be meant.
func (z *zone) utc(naive time.Time) time.Time {
	if z.foreign {
		return naive.Add(-z.offset)
	}
	return time.Date(naive.Year(), naive.Month(), naive.Day(), naive.Hour(), naive.Minute(), naive.Second(), naive.Nanosecond(), time.Local).UTC()
}
