package hostauth

import (
	"crypto/ed25519"
	"encoding/hex"
)

// weak are the encodings of the points of small order, the sign bit left out: keys that nobody holds, and by which signatures can be
// made that verify. crypto/ed25519 takes them, as RFC 8032 has it. The list is that of D. J. Bernstein and T. Lange's 8-torsion points
// and of those of them that aren't reduced.
var weak = func() map[[ed25519.PublicKeySize]byte]bool {
	out := make(map[[ed25519.PublicKeySize]byte]bool)
	for _, text := range []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	} {
		b, err := hex.DecodeString(text)
		if err != nil {
			panic(err)
		}
		out[[ed25519.PublicKeySize]byte(b)] = true
	}
	return out
}()

// Sound reports whether a public key can be somebody's: it has the right length and isn't of small order.
func Sound(key ed25519.PublicKey) bool {
	if len(key) != ed25519.PublicKeySize {
		return false
	}
	plain := [ed25519.PublicKeySize]byte(key)
	plain[ed25519.PublicKeySize-1] &^= 0x80
	return !weak[plain]
}
