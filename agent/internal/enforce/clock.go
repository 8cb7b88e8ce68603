package enforce

import (
	"time"

	"golang.org/x/sys/unix"
)

// jump is by how much the server's clock may differ from our idea of it before every element gets its timeout anew.
const jump = 2 * time.Second

const (
	// agreement is how near the host's clock must be to a server's that goes back.
	agreement = time.Minute
	// returnWithin is how long a jump ahead can be taken back.
	returnWithin = 10 * time.Minute
)

// clock is the server's clock as this host knows it. Between two words of the server it goes on by CLOCK_BOOTTIME, which
// nobody sets and which counts suspension; from a reboot to the first word, by the host's clock and the last known
// difference, and never before the last known time.
//
// It is set back only where the host's own clock says the same, or to what it was some minutes ago, before it jumped ahead:
// otherwise whoever sets a control plane's clock back, or takes the unprivileged half over, would make every ban outlive its
// end.
type clock struct {
	server int64         // Unix milliseconds of the server
	at     time.Duration // of boottime, then
	// told: the server has spoken, now or before a restart. Until then the time is a guess that any word replaces.
	told bool
	// top is the most that the server's clock was ever ahead of boottime, in milliseconds.
	top int64
	// before is what top was before the clock jumped ahead; until then it may return there.
	before int64
	until  time.Duration // of boottime
	// refused is how far back the server last wanted to set the clock, in vain; 0 if its last word was taken.
	refused time.Duration
	// asleep is how much longer the machine has been up than awake. The kernel's set timeouts stand still in suspension.
	asleep time.Duration
}

func monotonic(id int32) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

func boottime() time.Duration { return monotonic(unix.CLOCK_BOOTTIME) }

func sleeping() time.Duration { return boottime() - monotonic(unix.CLOCK_MONOTONIC) }

// start sets the clock from what was saved: the server's clock less the host's, and the last time known. That last time is
// a word of the server's; what the host's clock adds to it is a guess, for it may have been set while we were away (a
// hardware clock in local time is), and the first word may take that back.
func (c *clock) start(offsetMS, lastMS int64, told bool) {
	c.server = max(time.Now().UnixMilli()+offsetMS, lastMS)
	c.at, c.told = boottime(), told
	c.top = lastMS - c.at.Milliseconds()
	c.asleep = sleeping()
}

func (c *clock) now() int64 {
	return c.server + (boottime() - c.at).Milliseconds()
}

// set takes the server's word, which is about host by the host's own clock, and reports whether it differs by more than a
// jump.
func (c *clock) set(serverMS, hostMS int64) bool {
	if serverMS <= 0 || serverMS >= forever {
		return false
	}
	at, now := boottime(), c.now()
	ahead, step := serverMS-at.Milliseconds(), jump.Milliseconds()
	// Words differ by what the network delays; many small steps back are still one.
	switch back := c.top - ahead; {
	case back > step:
		returns := at < c.until && ahead >= c.before-step
		if c.told && !returns && distance(hostMS, serverMS) > agreement.Milliseconds() {
			c.refused = time.Duration(min(back, int64(100*365*24*time.Hour/time.Millisecond))) * time.Millisecond
			return false
		}
		c.top = ahead
	case -back > step && c.told && at >= c.until:
		c.before, c.until = c.top, at+returnWithin
	}
	off := serverMS - now
	c.server, c.at, c.told, c.refused, c.top = serverMS, at, true, 0, max(c.top, ahead)
	return max(off, -off) > jump.Milliseconds()
}

func distance(a, b int64) int64 { return max(a-b, b-a) }

// slept reports whether the machine was suspended since the last call.
func (c *clock) slept() bool {
	now := sleeping()
	was := c.asleep
	c.asleep = now
	return now-was > jump/2
}

func (c *clock) offset() int64 { return c.now() - time.Now().UnixMilli() }
