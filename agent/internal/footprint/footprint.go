// Package footprint keeps a process small. The runtime gives back what a burst of work left only by and by, for it expects
// the next one; on somebody else's machine a small agent is worth more than a fast second burst.
package footprint

import (
	"os"
	"runtime/debug"
	"sync"
	"time"
)

const (
	// rest is how long nothing must happen before a burst is over.
	rest = 2 * time.Second
	// burst is how much work is one. Less isn't worth a collection.
	burst = 256
)

var (
	mu     sync.Mutex
	done   int  // since memory was last given back
	before int  // done when it was last looked at
	armed  bool // it will be looked at
)

// Limit keeps the heap close to what is in use, unless whoever starts the process says otherwise.
func Limit() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(30)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(24 << 20)
	}
}

// Worked notes n pieces of work: records applied, observations passed on. When no more come, memory is given back. At rest
// it costs nothing.
func Worked(n int) {
	mu.Lock()
	defer mu.Unlock()
	done += n
	if !armed && done >= burst {
		armed = true
		time.AfterFunc(rest, look)
	}
}

func look() {
	mu.Lock()
	again := done != before
	before = done
	if again {
		time.AfterFunc(rest, look)
	} else {
		armed, done, before = false, 0, 0
	}
	mu.Unlock()
	if !again {
		debug.FreeOSMemory()
	}
}
