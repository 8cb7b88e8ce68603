// Package keys holds the fleet's secret, 32 bytes that all replicas share, and derives everything else from it (HKDF,
// RFC 5869, SHA-256): the key of each organisation's record MACs, the Ed25519 key that signs grants, the audience of
// assertions, the keys of people's sessions, and a fingerprint by which replicas see that they hold the same secret.
package keys

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"net/netip"
	"strconv"
	"sync"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// Lengths in bytes.
const (
	SecretLen = 32
	MACLen    = 16
)

// Keys is what is derived from one secret. Safe for concurrent use.
type Keys struct {
	secret      []byte
	grant       ed25519.PrivateKey
	fingerprint string

	// org → *sync.Pool of keyed HMACs: a snapshot of 100,000 records is signed without deriving a key for each.
	macs   sync.Map
	audits sync.Map // the same for the audit log

	sealMu sync.Mutex
	seals  map[string][]byte // org → key
}

// New derives the keys of secret.
func New(secret [SecretLen]byte) *Keys {
	k := &Keys{secret: secret[:]}
	k.grant = ed25519.NewKeyFromSeed(k.derive("fleetban grant key v1", ed25519.SeedSize))
	k.fingerprint = hex.EncodeToString(k.derive("fleetban fingerprint v1", 8))
	return k
}

// Fingerprint names the secret without telling it: 16 hex digits.
func (k *Keys) Fingerprint() string { return k.fingerprint }

// Audience is the `aud` of this fleet's assertions and grants.
func (k *Keys) Audience() string { return "fleetban:" + k.fingerprint }

// GrantKey signs grants.
func (k *Keys) GrantKey() ed25519.PrivateKey { return k.grant }

// GrantPublicKey verifies them.
func (k *Keys) GrantPublicKey() ed25519.PublicKey {
	return k.grant.Public().(ed25519.PublicKey) //nolint:forcetypeassert // documented by crypto/ed25519
}

// TLSKey is the key of the certificates that replicas make where none is given, and have made where an authority makes them:
// the same for all and at each renewal, so that what hosts pin holds whichever replica they reach.
func (k *Keys) TLSKey() *ecdsa.PrivateKey { return k.p256("fleetban tls key v1 ") }

// ACMEAccountKey is who the fleet is to the authority that makes its certificates.
func (k *Keys) ACMEAccountKey() *ecdsa.PrivateKey { return k.p256("fleetban acme account key v1 ") }

func (k *Keys) p256(info string) *ecdsa.PrivateKey {
	for n := 0; ; n++ {
		// Not every 32 bytes are a scalar of P-256; about one in 2^32 isn't.
		key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), k.derive(info+strconv.Itoa(n), 32))
		if err == nil {
			return key
		}
	}
}

// SessionSeed is the seed of the Ed25519 key that signs people's access tokens in a period, a number that grows with time:
// the key changes without anyone having to distribute the next.
func (k *Keys) SessionSeed(period int64) [ed25519.SeedSize]byte {
	return [ed25519.SeedSize]byte(k.derive("fleetban session key v1 "+strconv.FormatInt(period, 10), ed25519.SeedSize))
}

// RefreshKey makes and checks people's refresh tokens.
func (k *Keys) RefreshKey() [sha256.Size]byte {
	return [sha256.Size]byte(k.derive("fleetban refresh key v1", sha256.Size))
}

// SignRecord sets r.Mac: the proof that this control plane issued the record in this set of this organisation.
func (k *Keys) SignRecord(org, set string, r *fleetbanv1.Record) { r.SetMac(k.mac(org, set, r)) }

// VerifyRecord reports whether SignRecord of the same secret made r.Mac.
func (k *Keys) VerifyRecord(org, set string, r *fleetbanv1.Record) bool {
	return hmac.Equal(r.GetMac(), k.mac(org, set, r))
}

// Sign is SignRecord for a record in its parts.
func (k *Keys) Sign(org, set string, p netip.Prefix, kind fleetbanv1.RecordKind, sinceUnixMS, expiresUnixMS int64) []byte {
	var packed [prefix.PackedLen6]byte
	return k.macOf(org, set, prefix.AppendPacked(packed[:0], p), kind, sinceUnixMS, expiresUnixMS)
}

func (k *Keys) mac(org, set string, r *fleetbanv1.Record) []byte {
	return k.macOf(org, set, r.GetPrefix(), r.GetKind(), r.GetSinceUnixMs(), r.GetExpiresUnixMs())
}

// macOf encodes so that no two records read the same: what varies in length is preceded by its length.
func (k *Keys) macOf(org, set string, packed []byte, kind fleetbanv1.RecordKind, since, expires int64) []byte {
	pool, ok := k.macs.Load(org)
	if !ok {
		key := k.derive("fleetban record mac v1 "+org, sha256.Size)
		pool, _ = k.macs.LoadOrStore(org, &sync.Pool{New: func() any { return hmac.New(sha256.New, key) }})
	}
	p := pool.(*sync.Pool)     //nolint:forcetypeassert // only pools are stored
	mac := p.Get().(hash.Hash) //nolint:forcetypeassert // only hashes are pooled
	defer p.Put(mac)
	mac.Reset()
	buf := make([]byte, 0, 256)
	buf = binary.BigEndian.AppendUint16(buf, uint16(min(len(set), 1<<16-1))) //nolint:gosec // bounded
	buf = append(buf, set...)
	buf = append(buf, byte(min(len(packed), 255)))
	buf = append(buf, packed...)
	buf = binary.BigEndian.AppendUint32(buf, uint32(kind))    //nolint:gosec // bits, not a number
	buf = binary.BigEndian.AppendUint64(buf, uint64(since))   //nolint:gosec // bits
	buf = binary.BigEndian.AppendUint64(buf, uint64(expires)) //nolint:gosec // bits
	mac.Write(buf)
	return mac.Sum(make([]byte, 0, sha256.Size))[:MACLen]
}

// AuditMAC is the proof that this control plane wrote data in the audit log of an organisation: 32 bytes. kind tells apart
// what must not pass for each other.
func (k *Keys) AuditMAC(org string, kind byte, data []byte) []byte {
	pool, ok := k.audits.Load(org)
	if !ok {
		key := k.derive("fleetban audit mac v1 "+org, sha256.Size)
		pool, _ = k.audits.LoadOrStore(org, &sync.Pool{New: func() any { return hmac.New(sha256.New, key) }})
	}
	p := pool.(*sync.Pool)     //nolint:forcetypeassert // only pools are stored
	mac := p.Get().(hash.Hash) //nolint:forcetypeassert // only hashes are pooled
	defer p.Put(mac)
	mac.Reset()
	mac.Write([]byte{kind})
	mac.Write(data)
	return mac.Sum(make([]byte, 0, sha256.Size))
}

func (k *Keys) derive(info string, n int) []byte {
	out, err := hkdf.Key(sha256.New, k.secret, nil, info, n)
	if err != nil {
		panic("keys: derive " + info + ": " + err.Error()) // only for lengths that no caller asks for
	}
	return out
}
