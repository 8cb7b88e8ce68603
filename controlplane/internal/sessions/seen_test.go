package sessions

import (
	"fmt"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
)

// A token that was seen is judged as one that wasn't, at every time; memory is bounded, and a changed token was never seen.
func TestSeen(t *testing.T) {
	t.Parallel()
	now := time.Now()
	s := newSigner(keys.New([keys.SecretLen]byte{1}), func() time.Time { return now })
	token, err := s.sign(Claims{RegisteredClaims: jwt.RegisteredClaims{Subject: "p"}, Org: "o", Session: "s", Email: "e"})
	if err != nil {
		t.Fatal(err)
	}
	began := now
	for _, at := range []time.Duration{0, time.Second, AccessLife - time.Second, AccessLife + leeway - time.Second, AccessLife + leeway, AccessLife + leeway + time.Second, -leeway, -leeway - 2*time.Second, keyPeriod, 3 * keyPeriod, time.Minute} {
		now = began.Add(at)
		_, fresh := s.verify(token)
		c, again := s.check(token)
		if (fresh == nil) != (again == nil) || again == nil && c.Email != "e" {
			t.Errorf("after %s: verified anew %v, seen before %v", at, fresh, again)
		}
	}
	now = began
	if _, err := s.check(token[:len(token)-4] + "AAAA"); err == nil {
		t.Error("another signature passes")
	}
	for i := range 3 * maxSeen {
		s.seen.add([32]byte{byte(i), byte(i >> 8), byte(i >> 16)}, Claims{})
	}
	if n := len(s.seen.young) + len(s.seen.old); n > 2*maxSeen {
		t.Errorf("%d are remembered", n)
	}
	if _, err := s.check(token); err != nil {
		t.Error(fmt.Errorf("after it was forgotten: %w", err))
	}
}
