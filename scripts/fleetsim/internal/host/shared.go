package host

import (
	"bytes"
	"hash/maphash"
	"slices"
	"sync/atomic"

	"github.com/fleetban/fleetban/agent/stream"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// sharedFew is how many messages a World remembers of the last ones: hosts are about as far as one another.
const sharedFew = 256

// shared is what hosts were sent lately: the control plane sends the same change to all of them, in the same bytes. What those say is
// found out once; what becomes of a host by it is each host's own.
type shared struct {
	seed     maphash.Seed
	messages [sharedFew]atomic.Pointer[decoded] // by the bytes' hash
	changes  [sharedFew]atomic.Pointer[change]  // by the version
}

// decoded is a message, of all of its bytes.
type decoded struct {
	bytes   []byte
	message *fleetbanv1.ConnectResponse
}

// The numbers of the fields of ConnectResponse that all hosts are sent alike.
const fieldSnapshot, fieldDelta = 2, 3

// decode is stream.Config's Decode. The message is not to be changed.
func (s *shared) decode(b []byte) (*fleetbanv1.ConnectResponse, error) {
	number, _, _ := protowire.ConsumeTag(b)
	if number != fieldSnapshot && number != fieldDelta {
		m := new(fleetbanv1.ConnectResponse)
		return m, proto.Unmarshal(b, m)
	}
	at := &s.messages[maphash.Bytes(s.seed, b)%sharedFew]
	if d := at.Load(); d != nil && bytes.Equal(d.bytes, b) {
		return d.message, nil
	}
	d := &decoded{slices.Clone(b), new(fleetbanv1.ConnectResponse)}
	if err := proto.Unmarshal(d.bytes, d.message); err != nil {
		return nil, err
	}
	at.Store(d)
	return d.message, nil
}

// change is what the records of a delta or of a page say.
type change struct {
	of      any // the *Delta or the *SnapshotPage
	records []*Record
	// once: no prefix comes twice.
	once bool
	// outcome is other than 0 where the records can't be read.
	outcome stream.Outcome
}

// change reads the records of a message that is of a version.
func (w *World) change(of any, version uint64, in []*fleetbanv1.Record) *change {
	at := &w.shared.changes[version%sharedFew]
	if c := at.Load(); c != nil && c.of == of {
		return c
	}
	c := &change{of: of, records: make([]*Record, 0, len(in))}
	seen := make(map[uint32]bool, len(in))
	for _, m := range in {
		switch m.GetKind() {
		case fleetbanv1.RecordKind_RECORD_KIND_PRESENT, fleetbanv1.RecordKind_RECORD_KIND_RETRACTED, fleetbanv1.RecordKind_RECORD_KIND_EXPIRED:
		default:
			c.outcome = stream.UnknownKind
			return c
		}
		r, err := w.records.intern(m)
		if err != nil {
			c.outcome = stream.Gap
			return c
		}
		c.records = append(c.records, r)
		seen[r.slot] = true
	}
	c.once = len(seen) == len(c.records)
	at.Store(c)
	return c
}
