package observe

import "time"

// zone turns the clock on fail2ban's wall into UTC. fail2ban writes local time without a zone, and its zone (TZ in its
// unit, a container, a zone changed since it started) may not be this process's. Where the two agree, the local rules are
// used, which know of summer time; else a fixed offset, learned from things that have just happened.
type zone struct {
	offset time.Duration
	known  bool
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
	z.offset, z.known = offset, true
	return z.utc(naive).Sub(before)
}

// utc converts. naive is kept as if it were UTC.
func (z *zone) utc(naive time.Time) time.Time {
	local := time.Date(naive.Year(), naive.Month(), naive.Day(), naive.Hour(), naive.Minute(), naive.Second(), naive.Nanosecond(), time.Local)
	if _, seconds := time.Now().In(time.Local).Zone(); !z.known || z.offset == time.Duration(seconds)*time.Second {
		return local.UTC()
	}
	return naive.Add(-z.offset)
}
