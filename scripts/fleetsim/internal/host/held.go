package host

// heldChunk is how many prefixes are allocated at once on a host: so many make 1.5 kB.
const heldChunk = 128

// held is what a host holds of a set, by slot.
type held []*[heldChunk]entry

// entry is the number of a record, 0 for none, and the version that brought it, in halves: a uint64 would leave a gap beside the number.
type entry struct {
	id        uint32
	low, high uint32
}

func (e entry) version() uint64 { return uint64(e.high)<<32 | uint64(e.low) }

// at is the number of the record of a slot.
func (h held) at(slot uint32) uint32 {
	if i := int(slot / heldChunk); i < len(h) && h[i] != nil {
		return h[i][slot%heldChunk].id
	}
	return 0
}

// put sets the record of a slot.
func (h *held) put(slot, id uint32, version uint64) {
	i := int(slot / heldChunk)
	for i >= len(*h) {
		*h = append(*h, nil)
	}
	if (*h)[i] == nil {
		(*h)[i] = new([heldChunk]entry)
	}
	(*h)[i][slot%heldChunk] = entry{id, uint32(version), uint32(version >> 32)} //nolint:gosec // its halves
}

// all yields what is held.
func (h held) all(yield func(slot uint32, e entry) bool) {
	for i, c := range h {
		if c == nil {
			continue
		}
		for j, e := range c {
			if e.id != 0 && !yield(uint32(i*heldChunk+j), e) { //nolint:gosec // a slot
				return
			}
		}
	}
}
