package enforce

import (
	"time"

	"golang.org/x/sys/unix"
)

// jump is by how much the server's clock may differ from our idea of it before every element gets its timeout anew.
const jump = 2 * time.Second

// clock is the server's clock as this host knows it. Between two words of the server it goes on by CLOCK_BOOTTIME, which
// nobody sets and which counts suspension; from a reboot to the first word, by the host's clock and the last known
// difference, and never before the last known time.
type clock struct {
	server int64         // Unix milliseconds of the server
	at     time.Duration // of boottime, then
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

// start sets the clock from what was saved: the server's clock less the host's, and the last time known.
func (c *clock) start(offsetMS, lastMS int64) {
	c.server = max(time.Now().UnixMilli()+offsetMS, lastMS)
	c.at = boottime()
	c.asleep = sleeping()
}

func (c *clock) now() int64 {
	return c.server + (boottime() - c.at).Milliseconds()
}

// set takes the server's word and reports whether it differs by more than a jump.
func (c *clock) set(serverMS int64) bool {
	if serverMS <= 0 {
		return false
	}
	off := time.Duration(serverMS-c.now()) * time.Millisecond
	c.server, c.at = serverMS, boottime()
	return off > jump || off < -jump
}

// slept reports whether the machine was suspended since the last call.
func (c *clock) slept() bool {
	now := sleeping()
	was := c.asleep
	c.asleep = now
	return now-was > jump/2
}

func (c *clock) offset() int64 { return c.now() - time.Now().UnixMilli() }
