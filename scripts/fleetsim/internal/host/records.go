package host

import (
	"net/netip"
	"sync"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// Record is the state of one prefix in a set.
type Record struct {
	Prefix         netip.Prefix
	Kind           fleetbanv1.RecordKind
	Since, Expires int64

	slot uint32 // the prefix's
	hash uint64 // its part of the digest; 0 where it has none
	mac  string
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

// records numbers records and prefixes, each from 1. What is numbered never changes.
type records struct {
	mu      sync.RWMutex
	ids     map[recordKey]uint32
	all     []*Record
	slots   map[string]uint32
	windows []*window // by slot
}

func newRecords() *records {
	return &records{ids: map[recordKey]uint32{}, all: []*Record{nil}, slots: map[string]uint32{}, windows: []*window{nil}}
}

// intern is the number of what a message says.
func (t *records) intern(r *fleetbanv1.Record) (uint32, *Record, error) {
	packed := r.GetPrefix()
	t.mu.RLock()
	// The compiler makes no copies for a look-up.
	id, ok := t.ids[recordKey{string(packed), r.GetKind(), r.GetSinceUnixMs(), r.GetExpiresUnixMs(), string(r.GetMac())}]
	if ok {
		record := t.all[id]
		t.mu.RUnlock()
		return id, record, nil
	}
	t.mu.RUnlock()
	p, err := prefix.Unpack(packed)
	if err != nil {
		return 0, nil, err
	}
	record := &Record{Prefix: p, Kind: r.GetKind(), Since: r.GetSinceUnixMs(), Expires: r.GetExpiresUnixMs(), mac: string(r.GetMac())}
	if record.Present() {
		record.hash = banset.Hash(packed, record.Expires)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	key := recordKey{string(packed), record.Kind, record.Since, record.Expires, record.mac}
	if id, ok := t.ids[key]; ok {
		return id, t.all[id], nil
	}
	record.slot = t.slot(key.prefix)
	id = uint32(len(t.all)) //nolint:gosec // memory ends first
	t.all = append(t.all, record)
	t.ids[key] = id
	return id, record, nil
}

// slot numbers a prefix. The caller holds the lock.
func (t *records) slot(packed string) uint32 {
	n, ok := t.slots[packed]
	if !ok {
		n = uint32(len(t.windows)) //nolint:gosec // memory ends first
		t.slots[packed] = n
		t.windows = append(t.windows, &window{})
	}
	return n
}

func (t *records) get(id uint32) *Record {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.all[id]
}

// window is what is being measured of a prefix.
func (t *records) window(slot uint32) *window {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.windows[slot]
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
