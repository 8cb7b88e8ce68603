package hostauth_test

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/fleetban/fleetban/proto/wire/hostauth"
)

const audience = "fleetban:test"

func TestAssertion(t *testing.T) {
	t.Parallel()
	public, private, _ := ed25519.GenerateKey(nil)
	otherPublic, _, _ := ed25519.GenerateKey(nil)
	now := time.Unix(1_800_000_000, 0)
	token, err := hostauth.Sign(private, "H1", audience, now)
	if err != nil {
		t.Fatal(err)
	}
	if a, err := hostauth.VerifyAssertion(token, public, "H1", audience, now.Add(time.Second)); err != nil || a.HostID != "H1" || a.ID == "" {
		t.Fatalf("good assertion: %+v, %v", a, err)
	}
	again, _ := hostauth.Sign(private, "H1", audience, now)
	if again == token {
		t.Error("two assertions are the same")
	}
	none, _ := jwt.NewWithClaims(jwt.SigningMethodNone, jwt.RegisteredClaims{Issuer: "H1", Subject: "H1", Audience: jwt.ClaimStrings{audience}}).SignedString(jwt.UnsafeAllowNoneSignatureType)
	hs, _ := jwt.NewWithClaims(jwt.SigningMethodHS256, jwt.RegisteredClaims{Issuer: "H1", Subject: "H1", Audience: jwt.ClaimStrings{audience}, ExpiresAt: jwt.NewNumericDate(now.Add(time.Minute))}).SignedString([]byte(public))
	long, _ := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.RegisteredClaims{Issuer: "H1", Subject: "H1", Audience: jwt.ClaimStrings{audience}, ID: "x", IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(time.Hour))}).SignedString(private)
	for name, tc := range map[string]struct {
		token, host, audience string
		key                   ed25519.PublicKey
		at                    time.Time
		want                  error
	}{
		"expired":        {token, "H1", audience, public, now.Add(2 * time.Minute), hostauth.ErrTime},
		"future":         {token, "H1", audience, public, now.Add(-2 * time.Minute), hostauth.ErrTime},
		"long-lived":     {long, "H1", audience, public, now, hostauth.ErrTime},
		"other key":      {token, "H1", audience, otherPublic, now, hostauth.ErrSignature},
		"other host":     {token, "H2", audience, public, now, hostauth.ErrAudience},
		"other audience": {token, "H1", "fleetban:other", public, now, hostauth.ErrAudience},
		"truncated":      {token[:len(token)-10], "H1", audience, public, now, hostauth.ErrSignature},
		"empty":          {"", "H1", audience, public, now, hostauth.ErrMalformed},
		"huge":           {strings.Repeat("x", 1<<20), "H1", audience, public, now, hostauth.ErrMalformed},
		"alg none":       {none, "H1", audience, public, now, hostauth.ErrSignature},
		"alg HS256":      {hs, "H1", audience, public, now, hostauth.ErrSignature},
	} {
		if _, err := hostauth.VerifyAssertion(tc.token, tc.key, tc.host, tc.audience, tc.at); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
}

func TestGrant(t *testing.T) {
	t.Parallel()
	public, private, _ := ed25519.GenerateKey(nil)
	host, hostPrivate, _ := ed25519.GenerateKey(nil)
	want := hostauth.Grant{HostID: "H1", OrganisationID: "O1", Name: "web-1", PublicKey: host, Tags: map[string]string{"team": "web"}, IssuedAt: time.Unix(1_800_000_000, 0)}
	token, err := hostauth.SignGrant(private, audience, want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := hostauth.VerifyGrant(token, public, audience)
	if err != nil || got.HostID != want.HostID || got.OrganisationID != want.OrganisationID || !got.PublicKey.Equal(host) || got.Tags["team"] != "web" {
		t.Fatalf("got %+v, %v", got, err)
	}
	if _, err := hostauth.VerifyGrant(token, public, "fleetban:other"); !errors.Is(err, hostauth.ErrAudience) {
		t.Errorf("other audience: %v", err)
	}
	forged, _ := hostauth.SignGrant(hostPrivate, audience, want)
	if _, err := hostauth.VerifyGrant(forged, public, audience); !errors.Is(err, hostauth.ErrSignature) {
		t.Errorf("forged: %v", err)
	}
	assertion, _ := hostauth.Sign(private, "H1", audience, time.Now())
	if _, err := hostauth.VerifyGrant(assertion, public, audience); err == nil {
		t.Error("an assertion passed for a grant")
	}
	if _, err := hostauth.VerifyAssertion(token, public, "H1", audience, time.Now()); err == nil {
		t.Error("a grant passed for an assertion")
	}
}

func FuzzVerifyAssertion(f *testing.F) {
	public, private, _ := ed25519.GenerateKey(nil)
	now := time.Unix(1_800_000_000, 0)
	token, _ := hostauth.Sign(private, "H1", audience, now)
	f.Add(token)
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, s string) {
		if _, err := hostauth.VerifyAssertion(s, public, "H1", audience, now); err == nil && s != token {
			t.Fatalf("accepted %q", s)
		}
	})
}
