package host

import (
	"net/netip"
	"slices"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/agent/stream"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

const retracted, expired = fleetbanv1.RecordKind_RECORD_KIND_RETRACTED, fleetbanv1.RecordKind_RECORD_KIND_EXPIRED

func record(kind fleetbanv1.RecordKind, p string) *fleetbanv1.Record {
	return fleetbanv1.Record_builder{Prefix: prefix.Pack(netip.MustParsePrefix(p)), Kind: kind, ExpiresUnixMs: 1_000_000}.Build()
}

// sent is what the control plane sends: a delta of a version whose digest is that of the prefixes that are in force then.
func sent(t *testing.T, version uint64, present []string, records ...*fleetbanv1.Record) []byte {
	t.Helper()
	var digest uint64
	for _, p := range present {
		digest ^= banset.Hash(prefix.Pack(netip.MustParsePrefix(p)), 1_000_000)
	}
	b, err := proto.Marshal(fleetbanv1.ConnectResponse_builder{Delta: fleetbanv1.Delta_builder{
		Set: banset.All, Epoch: 1, FromVersion: version - 1, Version: version, Digest: digest, Records: records,
	}.Build()}.Build())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (h *Host) take(t *testing.T, b []byte) stream.Outcome {
	t.Helper()
	m, err := h.World.shared.decode(b)
	if err != nil {
		t.Fatal(err)
	}
	a, err := h.kernel.Apply(t.Context(), stream.Update{Delta: m.GetDelta()}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return a.Outcome
}

// TestHostsDiffer: what is read once for all hosts is applied to each as it is: to one that missed something, or holds something else.
func TestHostsDiffer(t *testing.T) {
	t.Parallel()
	const a, b, c = "203.0.113.1/32", "203.0.113.2/32", "2001:db8::/64"
	w := NewWorld()
	one, two := New(Options{World: w, Number: 1}), New(Options{World: w, Number: 2})
	w.Made(netip.MustParsePrefix(c), 1)
	first := sent(t, 1, []string{a, b}, record(Present, a), record(Present, b))
	// A prefix that comes twice: the last counts.
	second := sent(t, 2, []string{c}, record(Present, c), record(retracted, a), record(expired, b), record(Present, a), record(retracted, a))
	for _, step := range []struct {
		name string
		host *Host
		b    []byte
		want stream.Outcome
	}{
		{"the first", one, first, stream.Done},
		{"again", one, first, stream.Done},
		{"the second", one, second, stream.Done},
		{"the second without the first", two, second, stream.Gap},
		{"the first", two, first, stream.Done},
		{"the second", two, second, stream.Done},
		{"a digest that is another", two, sent(t, 3, []string{a}, record(retracted, c)), stream.Gap},
		{"a kind that isn't known", two, sent(t, 3, []string{a}, record(99, c)), stream.UnknownKind},
	} {
		if got := step.host.take(t, step.b); got != step.want {
			t.Fatalf("%s on %d: %d, want %d", step.name, step.host.Number, got, step.want)
		}
	}
	for _, h := range []*Host{one, two} {
		held := h.Held(banset.All)
		if held.Version != 2 || held.Said != held.Digest || len(held.Records) != 2 || h.kernel.enforced() != 1 {
			t.Errorf("%d holds %+v, %d in force", h.Number, held, h.kernel.enforced())
		}
	}
	// Both hosts had the ban that is measured; its maker isn't counted.
	if live, _ := w.Latencies(); live[Ordinary].TotalCount() != 1 {
		t.Errorf("%d arrivals were measured", live[Ordinary].TotalCount())
	}
	if n := w.Last([]netip.Prefix{netip.MustParsePrefix(c)}, 1).TotalCount(); n != 1 {
		t.Error("the last arrival wasn't measured")
	}
	if n := w.Last([]netip.Prefix{netip.MustParsePrefix(c)}, 2).TotalCount(); n != 0 {
		t.Error("a ban that one host has is on two")
	}
	one.SetSabotage(DropDelta)
	two.SetSabotage(KeepRetracted)
	third := sent(t, 3, []string{a, c}, record(Present, a))
	fourth := sent(t, 4, []string{a}, record(retracted, c))
	for _, h := range []*Host{one, two} {
		for _, b := range [][]byte{third, fourth} {
			if got := h.take(t, b); got != stream.Done {
				t.Errorf("%d: %d", h.Number, got)
			}
		}
		if held := h.Held(banset.All); held.Said == held.Digest {
			t.Errorf("%d is faulty, and it can't be seen", h.Number)
		}
	}
}

// TestShared: only what is sent to all is shared, only by the same bytes, and nothing that can't be read.
func TestShared(t *testing.T) {
	t.Parallel()
	w := NewWorld()
	read := func(b []byte) *fleetbanv1.ConnectResponse {
		t.Helper()
		m, err := w.shared.decode(b)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	b := sent(t, 1, nil, record(Present, "203.0.113.1/32"))
	m := read(b)
	if read(slices.Clone(b)) != m {
		t.Error("the same bytes are read twice")
	}
	other := sent(t, 1, nil, record(Present, "203.0.113.2/32"))
	if got := read(other); got == m || proto.Equal(got, m) {
		t.Error("other bytes are taken for the same")
	}
	clear(b)
	if !proto.Equal(m, read(sent(t, 1, nil, record(Present, "203.0.113.1/32")))) {
		t.Error("what was read changes with the buffer it came in")
	}
	beat, _ := proto.Marshal(fleetbanv1.ConnectResponse_builder{Heartbeat: &fleetbanv1.ServerHeartbeat{}}.Build())
	if first := read(beat); first == read(beat) {
		t.Error("a heartbeat is shared")
	}
	for _, bad := range [][]byte{{0x1a, 5, 1}, {0xff}, {0x1a, 2, 0xff, 0xff}} {
		if _, err := w.shared.decode(bad); err == nil {
			t.Errorf("%x is a message", bad)
		}
	}
}

// TestRecordsManyAtOnce: a number stays what it is while others are made beside it.
func TestRecordsManyAtOnce(t *testing.T) {
	t.Parallel()
	w := NewWorld()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range uint32(2 * tableChunk) {
				p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
				r, err := w.records.intern(fleetbanv1.Record_builder{Prefix: prefix.Pack(p), Kind: Present}.Build())
				if err != nil || r.Prefix != p || w.records.get(r.id) != r || w.records.windowOf(p) != r.window {
					t.Errorf("%s is %v, %v", p, r, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := int(w.records.n) - 1; n != 2*tableChunk {
		t.Errorf("%d records of %d", n, 2*tableChunk)
	}
}

func TestHeld(t *testing.T) {
	t.Parallel()
	var h held
	versions := map[uint32]uint64{1: 7, heldChunk - 1: 1 << 40, heldChunk: 9, 5 * heldChunk: 1<<53 - 1}
	for slot, v := range versions {
		h.put(slot, slot+1, v)
	}
	h.put(3, 4, 1)
	h.put(3, 0, 2)
	for slot, e := range h.all {
		if e.version() != versions[slot] || e.id != slot+1 || h.at(slot) != e.id {
			t.Errorf("slot %d holds %d of version %d", slot, e.id, e.version())
		}
		delete(versions, slot)
	}
	if len(versions) != 0 || h.at(3) != 0 || h.at(100*heldChunk) != 0 {
		t.Errorf("%v isn't held", versions)
	}
}
