package hosts

import (
	"context"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/proto"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// AckWrite is an acknowledgement of one stream.
type AckWrite struct {
	Fence Fence
	Ack   *fleetbanv1.Ack
}

// StoreAcks stores acknowledgements of streams of one organisation in one round trip and rings the bell. It returns the
// hosts whose stream is stale: nothing of theirs was stored. Cursors must be of sets that their hosts hold.
func (h *Hosts) StoreAcks(ctx context.Context, org string, acks []AckWrite) ([]string, error) {
	if len(acks) == 0 {
		return nil, nil
	}
	args := make([]any, 0, 8*len(acks))
	for _, a := range acks {
		exceptions := []byte("-")
		if a.Ack.GetExceptionsChanged() {
			exceptions = nil
			if len(a.Ack.GetExceptions()) > 0 || a.Ack.GetExceptionsTotal() > 0 {
				raw, err := proto.Marshal(fleetbanv1.Ack_builder{Exceptions: a.Ack.GetExceptions(), ExceptionsTotal: a.Ack.GetExceptionsTotal()}.Build())
				if err != nil {
					return nil, fmt.Errorf("encode exceptions: %w", err)
				}
				exceptions = raw
			}
		}
		args = append(args, a.Fence.Host, a.Fence.text(), strconv.Itoa(int(a.Ack.GetInert())), exceptions, len(a.Ack.GetCursors()))
		for _, c := range a.Ack.GetCursors() {
			args = append(args, c.GetSet(), formatCursor(c))
		}
	}
	stale, err := acksScript.Run(ctx, h.store, h.keys(org), args...).StringSlice()
	if err != nil {
		return nil, fmt.Errorf("store acknowledgements: %w", err)
	}
	return stale, nil
}
