package hostauth

import (
	"crypto/ed25519"
	"strings"
)

// Rotation is what a host's next key signs, so that nobody is given a key that they don't hold: RotateKeyRequest.proof.
func Rotation(audience, hostID string, present, next ed25519.PublicKey) []byte {
	return statement("fleetban key rotation 1", audience, hostID, string(present), string(next))
}

// Reenrolment is what a machine's former key signs, so that it is given its host again: EnrollRequest.former_proof.
func Reenrolment(audience string, former, next ed25519.PublicKey) []byte {
	return statement("fleetban re-enrolment 1", audience, string(former), string(next))
}

// Verify reports whether signature is key's, over text. A key of another length signs nothing.
func Verify(key ed25519.PublicKey, text, signature []byte) bool {
	return len(key) == ed25519.PublicKeySize && ed25519.Verify(key, text, signature)
}

// statement joins parts so that no other parts give the same: the keys, which may hold any byte, come last and have one length.
func statement(parts ...string) []byte { return []byte(strings.Join(parts, "\x00")) }
