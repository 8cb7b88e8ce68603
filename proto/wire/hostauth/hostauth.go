// Package hostauth is how a host proves who it is.
//
// A host has an Ed25519 key that never leaves it. Enrolment gives it a grant: a JWT by the control plane that says "this
// key is host H of organisation O". Each connection presents the grant beside an assertion: a JWT by the host's key that
// lives a minute and is used once. A replica checks both with no look-up, so a fleet whose Redis was lost still knows
// its hosts.
package hostauth

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

const (
	// GrantHeader is the metadata key that carries the grant; the assertion is the bearer token.
	GrantHeader = "Fleetban-Grant"
	// AssertionLife is the longest that an assertion may live.
	AssertionLife = 60 * time.Second
	// ClockLeeway is how far a host's clock may be off before its assertions are refused.
	ClockLeeway = 30 * time.Second

	// maxToken bounds what is parsed.
	maxToken = 4096
)

// Errors of VerifyAssertion and VerifyGrant.
var (
	// ErrMalformed: not a JWT of the expected kind.
	ErrMalformed = errors.New("credential is malformed")
	// ErrSignature: signed by another key.
	ErrSignature = errors.New("credential is signed by another key")
	// ErrTime: expired, from the future, or living too long, by the verifier's clock.
	ErrTime = errors.New("credential's times don't fit the server's clock")
	// ErrAudience: made for another fleet.
	ErrAudience = errors.New("credential is for another control plane")
)

// Assertion is what a verified assertion says.
type Assertion struct {
	HostID string
	// ID is the jti: the verifier must refuse to see it twice before Expires.
	ID      string
	Expires time.Time
}

// Sign makes an assertion of hostID for audience, valid from now by the server's clock.
func Sign(key ed25519.PrivateKey, hostID, audience string, now time.Time) (string, error) {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return "", fmt.Errorf("make assertion id: %w", err)
	}
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.RegisteredClaims{
		Issuer:    hostID,
		Subject:   hostID,
		Audience:  jwt.ClaimStrings{audience},
		IssuedAt:  jwt.NewNumericDate(now),
		ExpiresAt: jwt.NewNumericDate(now.Add(AssertionLife)),
		ID:        base64.RawURLEncoding.EncodeToString(id[:]),
	})
	signed, err := token.SignedString(key)
	if err != nil {
		return "", fmt.Errorf("sign assertion: %w", err)
	}
	return signed, nil
}

// VerifyAssertion checks token against the key that the grant names, for this audience, at now.
func VerifyAssertion(token string, key ed25519.PublicKey, hostID, audience string, now time.Time) (Assertion, error) {
	var claims jwt.RegisteredClaims
	if err := parse(token, &claims, key, audience, now, jwt.WithIssuer(hostID), jwt.WithSubject(hostID)); err != nil {
		return Assertion{}, fmt.Errorf("assertion: %w", err)
	}
	if claims.IssuedAt == nil || claims.ID == "" || len(claims.ID) > 64 {
		return Assertion{}, fmt.Errorf("assertion: %w: iat or jti is missing", ErrMalformed)
	}
	if claims.ExpiresAt.Sub(claims.IssuedAt.Time) > AssertionLife {
		return Assertion{}, fmt.Errorf("assertion: %w: it lives longer than %s", ErrTime, AssertionLife)
	}
	return Assertion{HostID: claims.Subject, ID: claims.ID, Expires: claims.ExpiresAt.Time}, nil
}

// Grant is the control plane's statement about a host.
type Grant struct {
	HostID         string
	OrganisationID string
	Name           string
	PublicKey      ed25519.PublicKey
	Tags           map[string]string
	// Ephemeral is after how long offline the host is deleted; 0: it stays.
	Ephemeral time.Duration
	IssuedAt  time.Time
}

type grantClaims struct {
	jwt.RegisteredClaims
	Organisation string            `json:"org"`
	Name         string            `json:"name"`
	Key          string            `json:"key"`
	Tags         map[string]string `json:"tags,omitempty"`
	Ephemeral    int64             `json:"eph,omitempty"` // seconds
}

// grantAudienceSuffix keeps a grant from being taken for another kind of token of the same key and audience.
const grantAudienceSuffix = "#grant"

// SignGrant makes a grant with the control plane's key. Grants don't expire: deleting the host revokes it.
func SignGrant(key ed25519.PrivateKey, audience string, g Grant) (string, error) {
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, grantClaims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer:   audience,
			Subject:  g.HostID,
			Audience: jwt.ClaimStrings{audience + grantAudienceSuffix},
			IssuedAt: jwt.NewNumericDate(g.IssuedAt),
		},
		Organisation: g.OrganisationID,
		Name:         g.Name,
		Key:          base64.RawURLEncoding.EncodeToString(g.PublicKey),
		Tags:         g.Tags,
		Ephemeral:    int64(g.Ephemeral / time.Second),
	})
	signed, err := token.SignedString(key)
	if err != nil {
		return "", fmt.Errorf("sign grant: %w", err)
	}
	return signed, nil
}

// VerifyGrant checks that the control plane made the grant.
func VerifyGrant(token string, key ed25519.PublicKey, audience string) (Grant, error) {
	if len(token) > maxToken {
		return Grant{}, fmt.Errorf("grant: %w", ErrMalformed)
	}
	var claims grantClaims
	_, err := jwt.ParseWithClaims(token, &claims, func(*jwt.Token) (any, error) { return key, nil },
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}),
		jwt.WithIssuer(audience), jwt.WithAudience(audience+grantAudienceSuffix))
	if err != nil {
		return Grant{}, fmt.Errorf("grant: %w", classify(err))
	}
	raw, err := base64.RawURLEncoding.DecodeString(claims.Key)
	if err != nil || len(raw) != ed25519.PublicKeySize || claims.Subject == "" || claims.Organisation == "" {
		return Grant{}, fmt.Errorf("grant: %w", ErrMalformed)
	}
	g := Grant{
		HostID: claims.Subject, OrganisationID: claims.Organisation, Name: claims.Name, PublicKey: raw, Tags: claims.Tags,
		Ephemeral: time.Duration(max(claims.Ephemeral, 0)) * time.Second,
	}
	if claims.IssuedAt != nil {
		g.IssuedAt = claims.IssuedAt.Time
	}
	return g, nil
}

func parse(token string, claims jwt.Claims, key ed25519.PublicKey, audience string, now time.Time, more ...jwt.ParserOption) error {
	if len(token) > maxToken {
		return ErrMalformed
	}
	options := append([]jwt.ParserOption{
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}),
		jwt.WithAudience(audience),
		jwt.WithExpirationRequired(),
		jwt.WithIssuedAt(),
		jwt.WithLeeway(ClockLeeway),
		jwt.WithTimeFunc(func() time.Time { return now }),
	}, more...)
	if _, err := jwt.ParseWithClaims(token, claims, func(*jwt.Token) (any, error) { return key, nil }, options...); err != nil {
		return classify(err)
	}
	return nil
}

func classify(err error) error {
	switch {
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return ErrSignature
	case errors.Is(err, jwt.ErrTokenExpired), errors.Is(err, jwt.ErrTokenUsedBeforeIssued), errors.Is(err, jwt.ErrTokenNotValidYet):
		return ErrTime
	case errors.Is(err, jwt.ErrTokenInvalidAudience), errors.Is(err, jwt.ErrTokenInvalidIssuer), errors.Is(err, jwt.ErrTokenInvalidSubject):
		return ErrAudience
	default:
		return ErrMalformed
	}
}
