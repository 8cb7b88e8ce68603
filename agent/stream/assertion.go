package stream

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"strconv"
	"time"
)

const (
	// GrantHeader is hostauth.GrantHeader, and assertionLife its AssertionLife; a test holds them together.
	GrantHeader   = "Fleetban-Grant"
	assertionLife = 60 * time.Second
)

// Assertion makes what hostauth.Sign makes: a JWT (EdDSA) that says that this host connects to this audience now. It is written
// out here because golang-jwt brings every algorithm it knows, 140 kB, to a program that only ever signs this one.
func Assertion(key ed25519.PrivateKey, hostID, audience string, now time.Time) (string, error) {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return "", err
	}
	b64 := base64.RawURLEncoding
	claims := `{"iss":` + quote(hostID) + `,"sub":` + quote(hostID) + `,"aud":[` + quote(audience) + `],"iat":` + strconv.FormatInt(now.Unix(), 10) +
		`,"exp":` + strconv.FormatInt(now.Add(assertionLife).Unix(), 10) + `,"jti":"` + b64.EncodeToString(id[:]) + `"}`
	text := b64.EncodeToString([]byte(`{"alg":"EdDSA","typ":"JWT"}`)) + "." + b64.EncodeToString([]byte(claims))
	return text + "." + b64.EncodeToString(ed25519.Sign(key, []byte(text))), nil
}

// quote writes a JSON string.
func quote(s string) string {
	b := []byte{'"'}
	for _, r := range s {
		if r < ' ' || r == '"' || r == '\\' {
			b = append(b, `\u00`...)
			b = append(b, "0123456789abcdef"[r>>4], "0123456789abcdef"[r&15])
			continue
		}
		b = append(b, string(r)...)
	}
	return string(append(b, '"'))
}
