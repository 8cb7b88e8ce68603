package host

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// World is what the hosts of one process share.
type World struct {
	records *records
	shards  [16]shard
	// Counts of what hosts did, since the World was made.
	Deltas, Pages, Snapshots, Syncs, Gaps, Applied, Connects, Executed atomic.Int64
	// OnCommand is optional.
	OnCommand OnCommand
	// connected counts the hosts whose stream is up now.
	connected atomic.Int64
}

// A World measures in microseconds up to five minutes, to three digits.
const (
	longest = int64(5 * time.Minute / time.Microsecond)
	digits  = 3
)

// Histogram of microseconds, empty.
func Histogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, longest, digits) }

// Observe notes a duration in a histogram.
func Observe(h *hdrhistogram.Histogram, d time.Duration) {
	_ = h.RecordValue(min(max(d.Microseconds(), 1), longest))
}

type shard struct {
	mu   sync.Mutex
	live [2]*hdrhistogram.Histogram // by class
	late *hdrhistogram.Histogram
}

// Class tells hosts apart in measurements.
type Class uint8

// The classes.
const (
	Ordinary Class = iota
	Slow
)

// window is what is measured of a ban of one prefix: from when it was made until each host has it.
type window struct {
	made  atomic.Int64 // Unix nanoseconds; 0 where nothing is measured
	maker atomic.Int32 // the host's number; -1 for none
	count atomic.Int32
	last  atomic.Int64 // Unix nanoseconds
}

// NewWorld makes a World.
func NewWorld() *World {
	w := &World{records: newRecords()}
	for i := range w.shards {
		w.shards[i].live = [2]*hdrhistogram.Histogram{Histogram(), Histogram()}
		w.shards[i].late = Histogram()
	}
	return w
}

// Made says that a ban of p was made now, by the host of that number, -1 for none, and is to be measured.
func (w *World) Made(p netip.Prefix, maker int) {
	m := w.records.windowOf(p)
	m.count.Store(0)
	m.last.Store(0)
	m.maker.Store(int32(maker)) //nolint:gosec // hosts fit
	m.made.Store(time.Now().UnixNano())
}

// Latencies is how long bans took until other hosts had them: by class, those that came by a stream that was up, and those
// that a host caught up on. They begin anew.
func (w *World) Latencies() (live [2]*hdrhistogram.Histogram, late *hdrhistogram.Histogram) {
	live, late = [2]*hdrhistogram.Histogram{Histogram(), Histogram()}, Histogram()
	for i := range w.shards {
		s := &w.shards[i]
		s.mu.Lock()
		for c, h := range s.live {
			live[c].Merge(h)
			h.Reset()
		}
		late.Merge(s.late)
		s.late.Reset()
		s.mu.Unlock()
	}
	return live, late
}

// Last is how long the bans of these prefixes took until the last of at least most hosts had them.
func (w *World) Last(prefixes []netip.Prefix, most int) *hdrhistogram.Histogram {
	h := Histogram()
	for _, p := range prefixes {
		m := w.records.windowOf(p)
		if made := m.made.Load(); made != 0 && int(m.count.Load()) >= most {
			Observe(h, time.Duration(m.last.Load()-made))
		}
	}
	return h
}

// Close ends the measurement of bans: who comes to know of them later isn't late.
func (w *World) Close(prefixes []netip.Prefix) {
	for _, p := range prefixes {
		w.records.windowOf(p).made.Store(0)
	}
}

// Connected is how many hosts have a stream now.
func (w *World) Connected() int { return int(w.connected.Load()) }

// arrived measures a ban that is new on a host.
func (w *World) arrived(slot uint32, host int, class Class, since int64) {
	m := w.records.window(slot)
	made := m.made.Load()
	if made == 0 || int(m.maker.Load()) == host {
		return
	}
	now := time.Now().UnixNano()
	m.count.Add(1)
	for last := m.last.Load(); now > last && !m.last.CompareAndSwap(last, now); last = m.last.Load() {
	}
	s := &w.shards[host%len(w.shards)]
	s.mu.Lock()
	if made >= since {
		Observe(s.live[class], time.Duration(now-made))
	} else {
		Observe(s.late, time.Duration(now-made))
	}
	s.mu.Unlock()
}
