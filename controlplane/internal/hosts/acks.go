package hosts

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// AckWrite is an acknowledgement of one stream.
type AckWrite struct {
	Fence Fence
	// Cursors are of sets that the host holds.
	Cursors []sets.Cursor
	Inert   fleetbanv1.Inert
	// Exceptions has the list and the total of those that are told anew; nil: those that are stored stand.
	Exceptions *fleetbanv1.Ack
}

// says reports whether both say the same.
func (w *AckWrite) says(other *AckWrite) bool {
	return w.Inert == other.Inert && w.Exceptions == other.Exceptions && slices.Equal(w.Cursors, other.Cursors)
}

// alike is a run of acknowledgements that say the same: what a ban has all hosts say is said once.
type alike struct {
	first, last, n int
}

// maxAlike is among how many runs an acknowledgement looks for its own.
const maxAlike = 8

// alikes puts acknowledgements into runs. next is the one that follows in its run.
func alikes(acks []AckWrite) (runs []alike, next []int) {
	next = make([]int, len(acks))
search:
	for i := range acks {
		for r := len(runs) - 1; r >= max(0, len(runs)-maxAlike); r-- {
			if run := &runs[r]; acks[i].says(&acks[run.first]) {
				next[run.last] = i
				run.last, run.n = i, run.n+1
				continue search
			}
		}
		runs = append(runs, alike{first: i, last: i, n: 1})
	}
	return runs, next
}

// StoreAcks stores acknowledgements of streams of one organisation, at most 1000, in one round trip and rings the bell. It
// returns the hosts whose stream is stale: nothing of theirs was stored.
func (h *Hosts) StoreAcks(ctx context.Context, org string, acks []AckWrite) ([]string, error) {
	if len(acks) == 0 {
		return nil, nil
	}
	runs, next := alikes(acks)
	ids, fences := packStrings(len(acks)), packStrings(len(acks))
	args := make([]any, 2, 2+6*len(runs))
	for _, run := range runs {
		for i, n := run.first, run.n; n > 0; i, n = next[i], n-1 {
			ids = packString(ids, acks[i].Fence.Host)
			fences = packString(fences, acks[i].Fence.text())
		}
		says := &acks[run.first]
		exceptions, err := encodeExceptions(says.Exceptions)
		if err != nil {
			return nil, err
		}
		args = append(args, run.n, strconv.Itoa(int(says.Inert)), exceptions, len(says.Cursors))
		for _, c := range says.Cursors {
			args = append(args, c.Set, formatCursor(c))
		}
	}
	args[0], args[1] = ids, fences
	stale, err := acksScript.Run(ctx, h.store, h.keys(org), args...).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("store acknowledgements: %w", err)
	}
	h.answered(org, acks, stale)
	return stale, nil
}

// encodeExceptions is how they are stored; "-" where they aren't told.
func encodeExceptions(told *fleetbanv1.Ack) ([]byte, error) {
	switch {
	case told == nil:
		return []byte("-"), nil
	case len(told.GetExceptions()) == 0 && told.GetExceptionsTotal() == 0:
		return nil, nil
	}
	raw, err := proto.Marshal(fleetbanv1.Ack_builder{Exceptions: told.GetExceptions(), ExceptionsTotal: told.GetExceptionsTotal()}.Build())
	if err != nil {
		return nil, fmt.Errorf("encode exceptions: %w", err)
	}
	return raw, nil
}

// packStrings begins an array of strings in MessagePack, which scripts unpack faster than Redis takes as many arguments.
func packStrings(n int) []byte {
	return binary.BigEndian.AppendUint32(append(make([]byte, 0, 5+32*n), 0xdd), uint32(n)) //nolint:gosec // few
}

func packString(b []byte, s string) []byte {
	if len(s) < 32 {
		return append(append(b, 0xa0|byte(len(s))), s...)
	}
	return append(binary.BigEndian.AppendUint32(append(b, 0xdb), uint32(len(s))), s...) //nolint:gosec // short
}

func formatCursor(c sets.Cursor) string {
	return strconv.FormatUint(c.Epoch, 10) + " " + strconv.FormatUint(c.Version, 10) + " " + strconv.FormatUint(c.Digest, 16)
}
