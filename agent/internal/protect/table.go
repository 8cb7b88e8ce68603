package protect

import (
	"net/netip"
	"slices"
	"sort"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

type entry struct {
	prefix  netip.Prefix
	refusal fleetbanv1.Refusal
}

// table answers which entry overlaps a prefix in a handful of look-ups, however many entries there are: two prefixes
// overlap if one's first address is in the other.
type table struct {
	sorted []entry // by first address
	exact  map[netip.Prefix]fleetbanv1.Refusal
	bits4  []int // lengths in use
	bits6  []int
}

func newTable(entries []entry) table {
	t := table{exact: make(map[netip.Prefix]fleetbanv1.Refusal, len(entries))}
	for _, e := range entries {
		e.prefix = e.prefix.Masked()
		if !e.prefix.IsValid() {
			continue
		}
		if old, ok := t.exact[e.prefix]; ok && old <= e.refusal {
			continue // the weightier reason has the lower number
		}
		t.exact[e.prefix] = e.refusal
	}
	for p, r := range t.exact {
		t.sorted = append(t.sorted, entry{p, r})
		bits := &t.bits6
		if p.Addr().Is4() {
			bits = &t.bits4
		}
		if !slices.Contains(*bits, p.Bits()) {
			*bits = append(*bits, p.Bits())
		}
	}
	// sort.Slice, not slices.SortFunc, here and elsewhere in the agent: that one is compiled anew for each type, 10 kB at a time.
	sort.Slice(t.sorted, func(i, j int) bool { return t.sorted[i].prefix.Compare(t.sorted[j].prefix) < 0 })
	return t
}

func (t table) overlapping(p netip.Prefix) (fleetbanv1.Refusal, bool) {
	bits := t.bits6
	if p.Addr().Is4() {
		bits = t.bits4
	}
	for _, n := range bits {
		if n > p.Bits() {
			continue
		}
		wider, err := p.Addr().Prefix(n)
		if err != nil {
			continue
		}
		if r, ok := t.exact[wider]; ok {
			return r, true
		}
	}
	i, _ := slices.BinarySearchFunc(t.sorted, p.Masked().Addr(), func(e entry, a netip.Addr) int { return e.prefix.Addr().Compare(a) })
	weightiest := fleetbanv1.Refusal_REFUSAL_UNSPECIFIED
	for ; i < len(t.sorted) && p.Contains(t.sorted[i].prefix.Addr()); i++ {
		if r := t.sorted[i].refusal; weightiest == 0 || r < weightiest {
			weightiest = r
		}
	}
	return weightiest, weightiest != 0
}
