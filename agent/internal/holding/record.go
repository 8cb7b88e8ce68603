package holding

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// key is a prefix in 24 bytes without pointers: 100,000 of them are nothing for the garbage collector to look at.
type key struct {
	hi, lo uint64
	bits   uint8
	six    bool
}

func keyOf(p netip.Prefix) key {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		return key{lo: uint64(binary.BigEndian.Uint32(a[:])), bits: uint8(p.Bits())} //nolint:gosec // 0..32
	}
	a := p.Addr().As16()
	return key{
		hi: binary.BigEndian.Uint64(a[:8]), lo: binary.BigEndian.Uint64(a[8:]),
		bits: uint8(p.Bits()), six: true, //nolint:gosec // 0..128
	}
}

func (k key) prefix() netip.Prefix {
	if !k.six {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], uint32(k.lo)) //nolint:gosec // keyOf put 32 bits there
		return netip.PrefixFrom(netip.AddrFrom4(a), int(k.bits))
	}
	var a [16]byte
	binary.BigEndian.PutUint64(a[:8], k.hi)
	binary.BigEndian.PutUint64(a[8:], k.lo)
	return netip.PrefixFrom(netip.AddrFrom16(a), int(k.bits))
}

// The kinds of record, as kept.
const (
	present   = uint8(fleetbanv1.RecordKind_RECORD_KIND_PRESENT)
	retracted = uint8(fleetbanv1.RecordKind_RECORD_KIND_RETRACTED)
	expired   = uint8(fleetbanv1.RecordKind_RECORD_KIND_EXPIRED)
)

const macLen = 16

// record is the state of one prefix in a set.
type record struct {
	since, expires int64
	// version is the set's version that brought it.
	version uint64
	mac     [macLen]byte
	macLen  uint8
	kind    uint8
}

// hash is the record's part of its set's digest.
func (r record) hash(k key) uint64 {
	if r.kind != present {
		return 0
	}
	var buf [prefix.PackedLen6]byte
	return banset.Hash(prefix.AppendPacked(buf[:0], k.prefix()), r.expires)
}

func (r record) message(k key) *fleetbanv1.Record {
	return fleetbanv1.Record_builder{
		Prefix: prefix.Pack(k.prefix()), Kind: fleetbanv1.RecordKind(r.kind),
		SinceUnixMs: r.since, ExpiresUnixMs: r.expires, Mac: append([]byte(nil), r.mac[:r.macLen]...),
	}.Build()
}

// keyed is a record and its prefix.
type keyed struct {
	key
	record
}

// parse reads the records of a message. known is false if one is of a kind that we don't know. An error means a
// malformed record.
func parse(in []*fleetbanv1.Record, version uint64) (out []keyed, known bool, err error) {
	for _, r := range in {
		switch r.GetKind() {
		case fleetbanv1.RecordKind_RECORD_KIND_PRESENT, fleetbanv1.RecordKind_RECORD_KIND_RETRACTED, fleetbanv1.RecordKind_RECORD_KIND_EXPIRED:
		default:
			return nil, false, nil
		}
	}
	out = make([]keyed, 0, len(in))
	for _, r := range in {
		p, err := prefix.Unpack(r.GetPrefix())
		if err != nil {
			return nil, true, fmt.Errorf("record: %w", err)
		}
		kr := keyed{key: keyOf(p), record: record{
			since: r.GetSinceUnixMs(), expires: r.GetExpiresUnixMs(), version: version,
			kind: uint8(r.GetKind()), //nolint:gosec // one of three
		}}
		if kr.since < 0 || kr.since > banset.Never || kr.expires < 0 || kr.expires > banset.Never {
			return nil, true, fmt.Errorf("record of %s: times %d and %d are not Unix milliseconds up to %d", p, kr.since, kr.expires, banset.Never)
		}
		if len(r.GetMac()) > macLen {
			return nil, true, fmt.Errorf("record of %s: its MAC has %d bytes, at most %d are possible", p, len(r.GetMac()), macLen)
		}
		kr.macLen = uint8(copy(kr.mac[:], r.GetMac())) //nolint:gosec // at most 16
		out = append(out, kr)
	}
	return out, true, nil
}
