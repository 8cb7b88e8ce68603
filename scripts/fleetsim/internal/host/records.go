package host

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// Record is the state of one prefix in a set.
type Record struct {
	Prefix         netip.Prefix
	Kind           fleetbanv1.RecordKind
	Since, Expires int64

	id     uint32
	slot   uint32  // the prefix's
	window *window // the prefix's
	hash   uint64  // its part of the digest; 0 where it has none
	mac    string
}

// Present reports whether the prefix is in the set, and what is then in the kernel.
func (r *Record) Present() bool { return r.Kind == fleetbanv1.RecordKind_RECORD_KIND_PRESENT }

// recordKey is what makes two records the same.
type recordKey struct {
	prefix         string
	kind           fleetbanv1.RecordKind
	since, expires int64
	mac            string
}

// tableChunk is how many records are allocated at once.
const tableChunk = 4096

// records numbers records and prefixes, each from 1. What is numbered never changes, so a number is looked up without a lock.
type records struct {
	chunks atomic.Pointer[[]*[tableChunk]Record]

	mu      sync.Mutex
	n       uint32 // records, and the 0 that is none
	ids     map[recordKey]*Record
	slots   map[string]uint32
	windows []*window // by slot
}

func newRecords() *records {
	t := &records{n: 1, ids: map[recordKey]*Record{}, slots: map[string]uint32{}, windows: []*window{nil}}
	t.chunks.Store(&[]*[tableChunk]Record{new([tableChunk]Record)})
	return t
}

// intern is what a message says.
func (t *records) intern(m *fleetbanv1.Record) (*Record, error) {
	packed := m.GetPrefix()
	t.mu.Lock()
	defer t.mu.Unlock()
	// The compiler makes no copies for a look-up.
	r, ok := t.ids[recordKey{string(packed), m.GetKind(), m.GetSinceUnixMs(), m.GetExpiresUnixMs(), string(m.GetMac())}]
	if ok {
		return r, nil
	}
	p, err := prefix.Unpack(packed)
	if err != nil {
		return nil, err
	}
	chunks := *t.chunks.Load()
	if int(t.n) == len(chunks)*tableChunk {
		chunks = append(slices.Clone(chunks), new([tableChunk]Record))
		t.chunks.Store(&chunks)
	}
	key := recordKey{string(packed), m.GetKind(), m.GetSinceUnixMs(), m.GetExpiresUnixMs(), string(m.GetMac())}
	slot := t.slot(key.prefix)
	r = &chunks[t.n/tableChunk][t.n%tableChunk]
	*r = Record{Prefix: p, Kind: key.kind, Since: key.since, Expires: key.expires, id: t.n, slot: slot, window: t.windows[slot], mac: key.mac}
	if r.Present() {
		r.hash = banset.Hash(packed, r.Expires)
	}
	t.n++
	t.ids[key] = r
	return r, nil
}

// slot numbers a prefix. The caller holds the lock.
func (t *records) slot(packed string) uint32 {
	n, ok := t.slots[packed]
	if !ok {
		n = uint32(len(t.windows)) //nolint:gosec // memory ends first
		t.slots[packed] = n
		t.windows = append(t.windows, &window{slot: n})
	}
	return n
}

// get is the record of a number that intern has given.
func (t *records) get(id uint32) *Record {
	return &(*t.chunks.Load())[id/tableChunk][id%tableChunk]
}

func (t *records) windowOf(p netip.Prefix) *window {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.windows[t.slot(string(prefix.Pack(p)))]
}

func message(r *Record) *fleetbanv1.Record {
	return fleetbanv1.Record_builder{
		Prefix: prefix.Pack(r.Prefix), Kind: r.Kind, SinceUnixMs: r.Since, ExpiresUnixMs: r.Expires, Mac: []byte(r.mac),
	}.Build()
}
