package stream

import (
	"crypto/ed25519"
	"testing"
	"time"

	"github.com/fleetban/fleetban/proto/wire/hostauth"
)

// TestAssertion holds what is signed here to what the control plane verifies.
func TestAssertion(t *testing.T) {
	t.Parallel()
	if GrantHeader != hostauth.GrantHeader || assertionLife != hostauth.AssertionLife {
		t.Error("the constants differ from hostauth's")
	}
	public, private, _ := ed25519.GenerateKey(nil)
	now := time.Unix(1_800_000_000, 0)
	for _, audience := range []string{"fleetban:test", `odd "\` + "\x01é"} {
		token, err := Assertion(private, "H1", audience, now)
		if err != nil {
			t.Fatal(err)
		}
		if a, err := hostauth.VerifyAssertion(token, public, "H1", audience, now); err != nil || a.ID == "" {
			t.Errorf("%q: %+v, %v", audience, a, err)
		}
		if _, err := hostauth.VerifyAssertion(token, public, "H1", audience, now.Add(2*time.Minute)); err == nil {
			t.Error("it never expires")
		}
	}
}
