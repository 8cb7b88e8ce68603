// Package banset defines what both sides must agree on about a set: when an expiry is never, and how its digest is
// computed.
package banset

import (
	"crypto/sha1" //nolint:gosec // Redis can compute it inside a script; it guards against mistakes, not adversaries.
	"encoding/binary"
)

// Never is the expiry of what doesn't expire: 9999-12-31T23:59:59Z in Unix milliseconds, as fail2ban writes it.
const Never int64 = 253402300799000

// Names of the sets that every host holds. Others are "tag:k=v" and "list:<id>".
const (
	All   = "all"
	Allow = "allow"
	Hosts = "hosts"
)

// TagPrefix begins the name of the set of a tag: "tag:team=web".
const TagPrefix = "tag:"

// Hash is one PRESENT record's part of its set's digest: the first 64 bits, big-endian, of SHA-1(packed prefix ||
// expires as 8 bytes big-endian). A set's digest is the XOR of its records' hashes; an empty set's is 0.
func Hash(packed []byte, expiresUnixMS int64) uint64 {
	var buf [17 + 8]byte
	n := copy(buf[:], packed)
	binary.BigEndian.PutUint64(buf[n:], uint64(expiresUnixMS)) //nolint:gosec // bits, not a number
	sum := sha1.Sum(buf[:n+8])                                 //nolint:gosec // see the import
	return binary.BigEndian.Uint64(sum[:8])
}
