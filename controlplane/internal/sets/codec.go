package sets

import (
	"crypto/sha1" //nolint:gosec // spreads prefixes over buckets, as the scripts do
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// errCorrupt is wrapped by what finds bytes in Redis that no script of ours wrote.
var errCorrupt = errors.New("malformed data in redis")

const (
	// buckets is how many hashes hold an organisation's claims: with 100,000 prefixes some 24 each, which Redis packs.
	buckets = 4096
	// packedClaim is the length of one claim: two of them stay within Redis's default hash-max-listpack-value of 64.
	packedClaim = 25

	sourceTombHost = 14
	sourceTomb     = 15

	numberAll   = 1
	numberAllow = 2
	numberHosts = 3

	// awaitWindow is how long the scripts remember a claim that awaits a second host at least.
	awaitWindow = 600_000
	// forever is how an event's duration says never.
	forever = 1<<48 - 1
)

// bucketOf is the bucket of a packed prefix: the first 12 bits of its SHA-1.
func bucketOf(packed []byte) int {
	sum := sha1.Sum(packed) //nolint:gosec // see the import
	return int(sum[0])<<4 | int(sum[1])>>4
}

// rawClaim is one packed claim or tombstone, as prelude.lua's CLAIM.
type rawClaim struct {
	source   uint8
	set      uint16
	why      uint8
	host     uint32 // number of a host, or of the actor of a person's claim or a tombstone
	slot     uint32 // number of a jail, or of a person's reason
	since    int64
	expires  int64
	failures uint16
}

func (c rawClaim) tomb() bool { return c.source >= sourceTombHost }

func (c rawClaim) counts() bool { return !c.tomb() && c.set != 0 && c.why == 0 }

func (c rawClaim) person() bool {
	return c.source == uint8(operatorv1.ClaimSource_CLAIM_SOURCE_PERSON)
}

func uint48(b []byte) int64 {
	return int64(b[0])<<40 | int64(b[1])<<32 | int64(binary.BigEndian.Uint32(b[2:]))
}

func appendUint48(b []byte, n int64) []byte {
	return append(b, byte(n>>40), byte(n>>32), byte(n>>24), byte(n>>16), byte(n>>8), byte(n)) //nolint:gosec // the bytes of n
}

// unpackClaims decodes the claims of one prefix.
func unpackClaims(b []byte) ([]rawClaim, error) {
	if len(b)%packedClaim != 0 {
		return nil, fmt.Errorf("%w: %d bytes of claims, want a multiple of %d", errCorrupt, len(b), packedClaim)
	}
	claims := make([]rawClaim, 0, len(b)/packedClaim)
	for ; len(b) > 0; b = b[packedClaim:] {
		claims = append(claims, rawClaim{
			source: b[0], set: binary.BigEndian.Uint16(b[1:]), why: b[3], host: uint32(b[4])<<16 | uint32(b[5])<<8 | uint32(b[6]),
			slot: binary.BigEndian.Uint32(b[7:]), since: uint48(b[11:]), expires: uint48(b[17:]), failures: binary.BigEndian.Uint16(b[23:]),
		})
	}
	return claims, nil
}

// packClaims is unpackClaims' inverse.
func packClaims(claims []rawClaim) []byte {
	b := make([]byte, 0, len(claims)*packedClaim)
	for _, c := range claims {
		b = append(b, c.source, byte(c.set>>8), byte(c.set), c.why, byte(c.host>>16), byte(c.host>>8), byte(c.host)) //nolint:gosec // bytes
		b = binary.BigEndian.AppendUint32(b, c.slot)
		b = appendUint48(appendUint48(b, c.since), c.expires)
		b = binary.BigEndian.AppendUint16(b, c.failures)
	}
	return b
}

// kindOfNumber is the kind of a set by its number inside claims.
func kindOfNumber(set uint16) fleetbanv1.SetKind {
	switch set {
	case numberAllow:
		return fleetbanv1.SetKind_SET_KIND_ALLOW
	case numberHosts:
		return fleetbanv1.SetKind_SET_KIND_PROTECT
	default:
		return fleetbanv1.SetKind_SET_KIND_BAN
	}
}

// retractionOf is the tombstone that a snapshot names for a prefix that isn't in the set: one of all; in a rebuild one of a host's jail
// too, for hosts hold the prefix from before and take nothing that is merely absent for lifted.
func retractionOf(claims []rawClaim, set uint16, rebuilding bool, now int64) (since, expires int64, ok bool) {
	for _, c := range claims {
		if !c.tomb() || c.expires <= now || c.set != set && (c.set != 0 || kindOfNumber(set) != fleetbanv1.SetKind_SET_KIND_BAN) {
			continue
		}
		if c.source == sourceTomb || rebuilding {
			since, expires, ok = max(since, c.since), max(expires, c.expires), true
		}
	}
	return since, expires, ok
}

// viewOf is what a set says of a prefix with these claims: those that ran out at `after` or before are left out. It
// mirrors views in prelude.lua.
func viewOf(claims []rawClaim, set uint16, after int64) (since, expires int64, ok bool) {
	for _, c := range claims {
		if !c.counts() || c.set != set || c.expires <= after {
			continue
		}
		if !ok || c.since < since {
			since = c.since
		}
		expires = max(expires, c.expires)
		ok = true
	}
	if ok {
		for _, c := range claims {
			if c.tomb() && (c.set == set || c.set == 0 && kindOfNumber(set) == fleetbanv1.SetKind_SET_KIND_BAN) {
				since = max(since, c.since)
			}
		}
	}
	return since, expires, ok
}

// AppendRecord packs a record as logs and the doorbell carry it: a byte of length, the packed prefix, kind, since and
// expires of 6 bytes.
func AppendRecord(b []byte, r Record) []byte {
	at := len(b)
	b = prefix.AppendPacked(append(b, 0), r.Prefix)
	b[at] = byte(len(b) - at - 1)                                                  //nolint:gosec // 5 or 17
	return appendUint48(appendUint48(append(b, byte(r.Kind)), r.Since), r.Expires) //nolint:gosec // an enum of few
}

// UnpackRecords decodes what AppendRecord packed.
func UnpackRecords(b []byte) ([]Record, error) {
	var records []Record
	for len(b) > 0 {
		n := int(b[0])
		if len(b) < 1+n+13 {
			return nil, fmt.Errorf("%w: a record is cut short", errCorrupt)
		}
		p, err := prefix.Unpack(b[1 : 1+n])
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errCorrupt, err)
		}
		b = b[1+n:]
		r := Record{Prefix: p, Kind: fleetbanv1.RecordKind(b[0]), Since: uint48(b[1:]), Expires: uint48(b[7:])}
		if r.Kind < fleetbanv1.RecordKind_RECORD_KIND_PRESENT || r.Kind > fleetbanv1.RecordKind_RECORD_KIND_EXPIRED {
			return nil, fmt.Errorf("%w: record of kind %d", errCorrupt, r.Kind)
		}
		records = append(records, r)
		b = b[13:]
	}
	return records, nil
}

// DigestOf is the digest of a set that holds these PRESENT records.
func DigestOf(records []Record) uint64 {
	var digest uint64
	for _, r := range records {
		if r.Kind == fleetbanv1.RecordKind_RECORD_KIND_PRESENT {
			digest ^= banset.Hash(prefix.Pack(r.Prefix), r.Expires)
		}
	}
	return digest
}

func appendPrefix(b []byte, p netip.Prefix) []byte {
	at := len(b)
	b = prefix.AppendPacked(append(b, 0), p)
	b[at] = byte(len(b) - at - 1) //nolint:gosec // 5 or 17
	return b
}

// packPrefixes packs each prefix once, in order, and returns those it packed.
func packPrefixes(prefixes []netip.Prefix) ([]byte, []netip.Prefix, error) {
	if len(prefixes) > MaxPrefixes {
		return nil, nil, fmt.Errorf("%w: %d prefixes, at most %d", ErrTooLarge, len(prefixes), MaxPrefixes)
	}
	seen := make(map[netip.Prefix]bool, len(prefixes))
	var packed []byte
	kept := make([]netip.Prefix, 0, len(prefixes))
	for _, p := range prefixes {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			return nil, nil, fmt.Errorf("%w: prefix %s", ErrInvalid, p)
		}
		if seen[p] {
			continue
		}
		seen[p] = true
		packed = appendPrefix(packed, p)
		kept = append(kept, p)
	}
	return packed, kept, nil
}

func appendText(b []byte, s string) []byte {
	return append(append(b, byte(len(s))), s...) //nolint:gosec // bounded by the caller
}

// packEvents packs events as events.lua reads them.
func packEvents(events []Event) ([]byte, error) {
	var b []byte
	for _, e := range events {
		ms := func(d int64) int64 { return min(max(d, 0), forever-1) }
		if e.Seq == 0 || e.Seq >= 1<<48 || e.Jail == "" || len(e.Jail) > 128 || !validSet(e.Set, true) || e.Kind < EventBan || e.Kind > EventUnban ||
			!e.Prefix.IsValid() || e.Prefix != e.Prefix.Masked() || e.Prefix.Addr().Is4In6() || e.Window.Milliseconds() > awaitWindow {
			return nil, fmt.Errorf("%w: event %d of jail %.40q on %s", ErrInvalid, e.Seq, e.Jail, e.Prefix)
		}
		b = appendUint48(b, int64(e.Seq))               //nolint:gosec // checked
		b = append(b, byte(e.Kind), byte(e.Unpromoted)) //nolint:gosec // an enum of few
		b = appendUint48(b, ms(e.Age.Milliseconds()))
		if e.Duration < 0 {
			b = appendUint48(b, forever)
		} else {
			b = appendUint48(b, ms(e.Duration.Milliseconds()))
		}
		b = binary.BigEndian.AppendUint32(b, e.Failures)
		b = binary.BigEndian.AppendUint32(b, uint32(ms(e.Window.Milliseconds()))) //nolint:gosec // checked
		b = appendUint48(b, ms(e.Cap.Milliseconds()))
		b = append(b, byte(min(uint32(e.Cause), math.MaxUint8))) //nolint:gosec // bounded
		b = appendText(b, e.Jail)
		b = appendPrefix(b, e.Prefix)
		b = appendText(b, e.Set)
	}
	return b, nil
}

// validSet reports whether a set may have this name: it stands in keys and in the doorbell's words.
func validSet(name string, empty bool) bool {
	if name == "" {
		return empty
	}
	if len(name) > MaxSetName {
		return false
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' {
			return false
		}
	}
	return true
}
