package host

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// World is what the hosts of one process share.
type World struct {
	records *records
	shared  shared
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

// shard is what is measured of a part of the hosts.
type shard struct {
	mu   sync.Mutex
	live [2]*hdrhistogram.Histogram // by class
	late *hdrhistogram.Histogram
	bans []arrivals // by slot
}

// arrivals is on how many hosts a ban has arrived, and when on the last, Unix nanoseconds.
type arrivals struct {
	count int
	last  int64
}

// of is a ban's. The caller holds the lock.
func (s *shard) of(slot uint32) *arrivals {
	if n := int(slot) + 1; n > len(s.bans) {
		s.bans = append(s.bans, make([]arrivals, n-len(s.bans))...)
	}
	return &s.bans[slot]
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
	slot  uint32
	made  atomic.Int64 // Unix nanoseconds; 0 where nothing is measured
	maker atomic.Int32 // the host's number; -1 for none
}

// NewWorld makes a World.
func NewWorld() *World {
	w := &World{records: newRecords(), shared: shared{seed: maphash.MakeSeed()}}
	for i := range w.shards {
		w.shards[i].live = [2]*hdrhistogram.Histogram{Histogram(), Histogram()}
		w.shards[i].late = Histogram()
	}
	return w
}

// Made says that a ban of p was made now, by the host of that number, -1 for none, and is to be measured.
func (w *World) Made(p netip.Prefix, maker int) {
	m := w.records.windowOf(p)
	for i := range w.shards {
		s := &w.shards[i]
		s.mu.Lock()
		*s.of(m.slot) = arrivals{}
		s.mu.Unlock()
	}
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
		all := w.arrivals(m.slot)
		if made := m.made.Load(); made != 0 && all.count >= most {
			Observe(h, time.Duration(all.last-made))
		}
	}
	return h
}

func (w *World) arrivals(slot uint32) (all arrivals) {
	for i := range w.shards {
		s := &w.shards[i]
		s.mu.Lock()
		a := s.of(slot)
		all.count += a.count
		all.last = max(all.last, a.last)
		s.mu.Unlock()
	}
	return all
}

// Close ends the measurement of bans: who comes to know of them later isn't late.
func (w *World) Close(prefixes []netip.Prefix) {
	for _, p := range prefixes {
		w.records.windowOf(p).made.Store(0)
	}
}

// Connected is how many hosts have a stream now.
func (w *World) Connected() int { return int(w.connected.Load()) }

// arriving is what arrives on a host with one change, all of it now.
type arriving struct {
	world *World
	shard *shard
	host  int
	class Class
	now   int64 // Unix nanoseconds

	applied int64
}

// arriving begins to measure; close is to be called.
func (w *World) arriving(h *Host) *arriving {
	a := &arriving{world: w, shard: &w.shards[h.Number%len(w.shards)], host: h.Number, class: h.class(), now: time.Now().UnixNano()}
	a.shard.mu.Lock()
	return a
}

func (a *arriving) close() {
	a.shard.mu.Unlock()
	a.world.Applied.Add(a.applied)
}

// arrived measures a ban that is new on the host, whose stream began then.
func (a *arriving) arrived(m *window, began int64) {
	made := m.made.Load()
	if made == 0 || int(m.maker.Load()) == a.host {
		return
	}
	ban := a.shard.of(m.slot)
	ban.count++
	ban.last = max(ban.last, a.now)
	h := a.shard.live[a.class]
	if made < began {
		h = a.shard.late
	}
	Observe(h, time.Duration(a.now-made))
}
