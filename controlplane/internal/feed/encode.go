package feed

import (
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/controlplane/internal/link"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// pageRecords is the most that a snapshot page or a delta's frame carries.
const pageRecords = 1000

// Frame is one encoded fleetbanv1.ConnectResponse, shared by all streams that send it: never to be changed.
type Frame struct {
	// Bytes is the message in protobuf's binary form; Message is the same with gRPC's prefix.
	Bytes, Message []byte
	// Cursor is what a holder has when it has applied the frame. Of a snapshot, only the last page has it.
	Cursor sets.Cursor
}

func newFrame(m *fleetbanv1.ConnectResponse, at sets.Cursor) *Frame {
	// Marshalling what was built here can't fail: no required fields, and every string is valid UTF-8 by construction.
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, link.PrefixLength, link.PrefixLength+proto.Size(m)), m)
	if err != nil {
		panic("encode a frame: " + err.Error())
	}
	link.PutPrefix(b)
	return &Frame{Bytes: b[link.PrefixLength:], Message: b, Cursor: at}
}

func (f *Feed) protoRecords(set string, records []sets.Record) []*fleetbanv1.Record {
	out := make([]*fleetbanv1.Record, 0, len(records))
	for _, r := range records {
		out = append(out, fleetbanv1.Record_builder{
			Prefix: prefix.Pack(r.Prefix), Kind: r.Kind, SinceUnixMs: r.Since, ExpiresUnixMs: r.Expires, Mac: f.feeds.o.Sign(f.org, set, r),
		}.Build())
	}
	return out
}

func (f *Feed) deltaFrame(d sets.Delta) *Frame {
	at := sets.Cursor{Set: d.Set, Epoch: d.Epoch, Version: d.Version, Digest: d.Digest}
	return newFrame(fleetbanv1.ConnectResponse_builder{Delta: fleetbanv1.Delta_builder{
		Set: d.Set, Kind: d.Kind, Epoch: d.Epoch, FromVersion: d.Version - 1, Version: d.Version, Digest: d.Digest, Records: f.protoRecords(d.Set, d.Records),
	}.Build()}.Build(), at)
}

// frameOf encodes a node once, when the first stream needs it.
func (f *Feed) frameOf(n *node) *Frame {
	n.once.Do(func() { n.frame = f.deltaFrame(n.delta) })
	return n.frame
}

func (f *Feed) snapshotFrames(snap *sets.Snapshot) []*Frame {
	at := snap.State.Cursor
	var frames []*Frame
	for page := 0; ; page++ {
		first, last := page*pageRecords, min((page+1)*pageRecords, len(snap.Records))
		done := last == len(snap.Records)
		message := fleetbanv1.ConnectResponse_builder{Snapshot: fleetbanv1.SnapshotPage_builder{
			Set: at.Set, Kind: snap.State.Kind, Epoch: at.Epoch, Version: at.Version, Digest: at.Digest, Page: uint32(page), Last: done, Partial: snap.Partial, //nolint:gosec // few
			Records: f.protoRecords(at.Set, snap.Records[first:last]),
		}.Build()}.Build()
		if done {
			return append(frames, newFrame(message, at))
		}
		frames = append(frames, newFrame(message, sets.Cursor{}))
	}
}

func syncFrame(at sets.Cursor, kind fleetbanv1.SetKind) *Frame {
	return newFrame(fleetbanv1.ConnectResponse_builder{SetSync: fleetbanv1.SetSync_builder{Cursor: at.Proto(), Kind: kind}.Build()}.Build(), at)
}

func offerFrame(set string, above uint64) *Frame {
	return newFrame(fleetbanv1.ConnectResponse_builder{OfferRequest: fleetbanv1.OfferRequest_builder{Set: set, AboveVersion: above}.Build()}.Build(), sets.Cursor{})
}
