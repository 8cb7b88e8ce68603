package agentapi

import (
	"encoding/binary"
	"unicode/utf8"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Tags of what an acknowledgement is made of: a field's number and how its value is written.
const (
	tagAck = 2<<3 | 2 // of ConnectRequest

	tagCursors, tagInert                    = 1<<3 | 2, 5 << 3                   // of Ack
	tagSet, tagEpoch, tagVersion, tagDigest = 1<<3 | 2, 2 << 3, 3 << 3, 4<<3 | 1 // of SetCursor

	plainCursors, plainSet = 4, 128 // the most of them, and the longest name of a set that the rules of the protos allow
)

// plainAck decodes the message that is most of what agents send: an acknowledgement of few cursors and nothing else, as
// ten thousand hosts send it at once for each ban. It appends those of sets that are held. By hand that takes a fifth of what reflection
// takes, no memory, and nothing that the rules of the protos refuse. ok is false for whatever isn't exactly that; it is decoded and checked
// as any message.
func plainAck(b []byte, held []string, few []sets.Cursor) (cursors []sets.Cursor, inert fleetbanv1.Inert, ok bool) {
	body, rest, ok := chunk(b, tagAck)
	if !ok || len(rest) > 0 {
		return nil, 0, false
	}
	cursors = few
	for n := 0; len(body) > 0; {
		switch body[0] {
		case tagCursors:
			var raw []byte
			if raw, body, ok = chunk(body, tagCursors); !ok || n == plainCursors {
				return nil, 0, false
			}
			n++
			c, ok := plainCursor(raw, held)
			if !ok {
				return nil, 0, false
			}
			if c.Set != "" {
				cursors = append(cursors, c)
			}
		case tagInert:
			var value uint64
			if value, body, ok = number(body); !ok || value > uint64(fleetbanv1.Inert_INERT_PROXIED) {
				return nil, 0, false
			}
			inert = fleetbanv1.Inert(value) //nolint:gosec // few
		default:
			return nil, 0, false
		}
	}
	return cursors, inert, true
}

// plainCursor has no name where the set isn't held.
func plainCursor(b []byte, held []string) (c sets.Cursor, ok bool) {
	var set []byte
	ok = true
	for len(b) > 0 && ok {
		switch b[0] {
		case tagSet:
			set, b, ok = chunk(b, tagSet)
		case tagEpoch:
			c.Epoch, b, ok = number(b)
		case tagVersion:
			c.Version, b, ok = number(b)
		case tagDigest:
			if ok = len(b) >= 9; ok {
				c.Digest, b = binary.LittleEndian.Uint64(b[1:]), b[9:]
			}
		default:
			ok = false
		}
	}
	if !ok {
		return c, false
	}
	for _, name := range held {
		if name == string(set) {
			c.Set = name
			return c, true
		}
	}
	return c, len(set) > 0 && len(set) <= plainSet && utf8.Valid(set)
}

// chunk reads a field of bytes with this tag.
func chunk(b []byte, tag byte) (value, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != tag {
		return nil, nil, false
	}
	n, size := binary.Uvarint(b[1:])
	if b = b[1+max(size, 0):]; size <= 0 || n > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}

// number reads a field of a varint, whatever its tag.
func number(b []byte) (value uint64, rest []byte, ok bool) {
	value, size := binary.Uvarint(b[1:])
	if size <= 0 {
		return 0, nil, false
	}
	return value, b[1+size:], true
}
