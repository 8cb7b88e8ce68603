package spool

import (
	"encoding/binary"
	"hash/fnv"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// instant is when something happened, so that its age can be told after a restart: by the clock that only counts up,
// within one boot, and by the wall clock across boots.
type instant struct {
	boot   uint64 // which boot; a hash of the kernel's boot id
	bootMS int64  // CLOCK_BOOTTIME, which goes on in suspend
	wallMS int64  // Unix
}

// age is how long before now it was, in milliseconds; never negative.
func (i instant) age(now instant) int64 {
	if i.boot == now.boot {
		return max(0, now.bootMS-i.bootMS)
	}
	return max(0, now.wallMS-i.wallMS)
}

// back is the instant d milliseconds earlier.
func (i instant) back(d int64) instant {
	return instant{i.boot, i.bootMS - d, i.wallMS - d}
}

const instantLen = 24

func (i instant) append(dst []byte) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, i.boot)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(i.bootMS))  //nolint:gosec // bits
	return binary.LittleEndian.AppendUint64(dst, uint64(i.wallMS)) //nolint:gosec // bits
}

func readInstant(b []byte) instant {
	return instant{
		binary.LittleEndian.Uint64(b), int64(binary.LittleEndian.Uint64(b[8:])), int64(binary.LittleEndian.Uint64(b[16:])), //nolint:gosec // bits
	}
}

// systemClock reads the kernel's clocks.
func systemClock() func() instant {
	h := fnv.New64a()
	if id, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		_, _ = h.Write(id)
	} else {
		// Each start is then a boot of its own and ages go by the wall clock.
		_, _ = h.Write([]byte(time.Now().String()))
	}
	boot := h.Sum64()
	return func() instant {
		var ts unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
		return instant{boot, ts.Nano() / 1e6, time.Now().UnixMilli()}
	}
}
