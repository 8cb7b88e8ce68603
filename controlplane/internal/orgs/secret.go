package orgs

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"math/big"
	"strings"
)

// The kinds of secret, told apart by how they begin: a person who pastes the wrong one hears so.
const (
	apiTokenPrefix      = "fbt_"
	personalTokenPrefix = "fbp_"
	joinTokenPrefix     = "fbj_"
)

const (
	secretBytes   = 32
	bodyLen       = 43 // 256 bits in base 62
	checksumLen   = 6  // 32 bits in base 62
	joinTokenIDAt = len(joinTokenPrefix) + 8
	alphabet      = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

// ErrMalformed says that this is not a secret that was ever handed out: a typing or pasting error, not a revoked one. It needs no look at Redis.
var ErrMalformed = errors.New("malformed token")

// newSecret makes 256 random bits as text: prefix, body, checksum. Only letters, digits and one underscore, so that a
// double click selects it and no shell changes it.
func newSecret(prefix string) string {
	var raw [secretBytes]byte
	_, _ = rand.Read(raw[:]) // never fails: crypto/rand ends the program instead
	body := base62(new(big.Int).SetBytes(raw[:]), bodyLen)
	return prefix + body + checksum(prefix+body)
}

// checkSecret tells a mistyped secret from an unknown one.
func checkSecret(prefix, secret string) error {
	if !strings.HasPrefix(secret, prefix) || len(secret) != len(prefix)+bodyLen+checksumLen {
		return ErrMalformed
	}
	split := len(secret) - checksumLen
	if checksum(secret[:split]) != secret[split:] {
		return ErrMalformed
	}
	return nil
}

// hashSecret is what is kept of a secret. A plain hash suffices for 256 random bits: there is nothing to guess.
func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

func checksum(s string) string {
	return base62(new(big.Int).SetUint64(uint64(crc32.ChecksumIEEE([]byte(s)))), checksumLen)
}

// unbase62 reads what base62 writes.
func unbase62(s string) (*big.Int, bool) {
	n, base := new(big.Int), big.NewInt(int64(len(alphabet)))
	for i := range len(s) {
		digit := strings.IndexByte(alphabet, s[i])
		if digit < 0 {
			return nil, false
		}
		n.Add(n.Mul(n, base), big.NewInt(int64(digit)))
	}
	return n, true
}

func base62(n *big.Int, width int) string {
	out := make([]byte, width)
	base, digit := big.NewInt(int64(len(alphabet))), new(big.Int)
	for i := width - 1; i >= 0; i-- {
		n.DivMod(n, base, digit)
		out[i] = alphabet[digit.Int64()]
	}
	return string(out)
}
