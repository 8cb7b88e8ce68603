// Package sessions is how a person who signed in stays signed in.
//
//	SignIn ─▶ access token (5 min) ─────▶ every call; verified with keys alone, no look at Redis
//	      └─▶ refresh token (once) ─▶ Refresh ─▶ the next two; a copy that is used later ends the session
//
// What a replica must know beside the keys is which sessions and roles ended within the life of an access token: a short
// list in Redis that each replica holds in memory (Revoked).
package sessions

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/oklog/ulid/v2"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

const (
	// AccessLife is how long an access token is good.
	AccessLife = 5 * time.Minute
	// keyPeriod is how long one key signs. Tokens of the period before and after are verified too: a token outlives the
	// turn of the period, and replicas' clocks differ.
	keyPeriod = 30 * 24 * time.Hour
	// leeway is how far replicas' clocks may differ. They follow Redis'.
	leeway = 5 * time.Second

	issuer    = "fleetban"
	tokenType = "fleetban-session+jwt"
	// scopedType is that of a token with tags: a replica that doesn't know of tags refuses it instead of overlooking them.
	scopedType  = "fleetban-scoped-session+jwt"
	maxAccess   = 4096
	refreshName = "fbr_"
)

// ErrToken is wrapped by every refusal of a token.
var ErrToken = errors.New("bad session token")

// Deriver derives keys from the fleet's secret: *keys.Keys.
type Deriver interface {
	SessionSeed(period int64) [ed25519.SeedSize]byte
	RefreshKey() [sha256.Size]byte
	Fingerprint() string
}

// Claims are what an access token says.
type Claims struct {
	jwt.RegisteredClaims

	// Org and Role are where the person acts and as what; Version is that of the membership.
	Org     string          `json:"org"`
	Role    operatorv1.Role `json:"role"`
	Version uint64          `json:"ver"`
	// Tags restrict the person to hosts that have one of them; none is the whole fleet.
	Tags []string `json:"tags,omitempty"`
	// Session is the session's id, and Ends when it ends, Unix milliseconds.
	Session string `json:"sid"`
	Ends    int64  `json:"ends"`
	Email   string `json:"email"`
	// Proved is when the person last proved to be that, Unix seconds. Enrol: the token is good for enrolling a second factor only.
	Proved int64 `json:"auth"`
	Enrol  bool  `json:"enrol,omitempty"`
}

// signer signs and verifies access tokens, and makes refresh tokens.
type signer struct {
	derive   Deriver
	audience string
	refresh  [sha256.Size]byte
	now      func() time.Time
	parser   *jwt.Parser
	seen     seen

	mu   sync.RWMutex
	keys map[int64]ed25519.PrivateKey
}

func newSigner(derive Deriver, now func() time.Time) *signer {
	s := &signer{
		derive: derive, audience: "fleetban-people:" + derive.Fingerprint(), refresh: derive.RefreshKey(), now: now,
		keys: make(map[int64]ed25519.PrivateKey),
	}
	s.parser = jwt.NewParser(jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}), jwt.WithIssuer(issuer), jwt.WithAudience(s.audience),
		jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(leeway), jwt.WithTimeFunc(now), jwt.WithStrictDecoding())
	return s
}

func (s *signer) period() int64 { return s.now().Unix() / int64(keyPeriod/time.Second) }

// key is that of a period: derived, so that all replicas have it and none keeps it.
func (s *signer) key(period int64) ed25519.PrivateKey {
	s.mu.RLock()
	key := s.keys[period]
	s.mu.RUnlock()
	if key != nil {
		return key
	}
	seed := s.derive.SessionSeed(period)
	key = ed25519.NewKeyFromSeed(seed[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.keys) > 4 {
		clear(s.keys)
	}
	s.keys[period] = key
	return key
}

func (s *signer) sign(c Claims) (string, error) {
	now, period := s.now(), s.period()
	c.Issuer, c.Audience = issuer, jwt.ClaimStrings{s.audience}
	c.IssuedAt, c.ExpiresAt = jwt.NewNumericDate(now), jwt.NewNumericDate(now.Add(AccessLife))
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, c)
	token.Header["typ"], token.Header["kid"] = typeOf(c), strconv.FormatInt(period, 10)
	signed, err := token.SignedString(s.key(period))
	if err != nil {
		return "", fmt.Errorf("sign access token: %w", err)
	}
	return signed, nil
}

func typeOf(c Claims) string {
	if len(c.Tags) > 0 {
		return scopedType
	}
	return tokenType
}

func (s *signer) verify(token string) (Claims, error) {
	var c Claims
	if len(token) > maxAccess {
		return c, fmt.Errorf("%w: it has %d bytes", ErrToken, len(token))
	}
	_, err := s.parser.ParseWithClaims(token, &c, func(t *jwt.Token) (any, error) {
		kid, _ := t.Header["kid"].(string)
		period, err := strconv.ParseInt(kid, 10, 64)
		if current := s.period(); err != nil || period < current-1 || period > current+1 || strconv.FormatInt(period, 10) != kid {
			return nil, errors.New("no such key")
		}
		if t.Header["typ"] != typeOf(c) {
			return nil, errors.New("another kind of token")
		}
		return s.key(period).Public(), nil
	})
	if err != nil {
		return Claims{}, fmt.Errorf("%w: %w", ErrToken, err)
	}
	if c.Subject == "" || c.Org == "" || c.Session == "" || c.IssuedAt == nil || c.ExpiresAt.Sub(c.IssuedAt.Time) > AccessLife {
		return Claims{}, fmt.Errorf("%w: a claim is missing or out of range", ErrToken)
	}
	return c, nil
}

// refreshToken names the session and its turn: only that of the session's own turn is taken. It is a MAC and no random
// number so that who asks twice at once gets the same one from any replica, though it is stored nowhere.
type refreshToken struct {
	person, session string
	turn            uint64
}

const refreshBody = 2*16 + 8 + 32 // two ULIDs, the turn, the MAC

func (s *signer) mac(body []byte) []byte {
	mac := hmac.New(sha256.New, s.refresh[:])
	mac.Write(body)
	return mac.Sum(nil)
}

func (s *signer) refreshText(t refreshToken) (string, error) {
	person, err1 := ulid.ParseStrict(t.person)
	session, err2 := ulid.ParseStrict(t.session)
	if err := errors.Join(err1, err2); err != nil {
		return "", fmt.Errorf("make refresh token: %w", err)
	}
	body := binary.BigEndian.AppendUint64(append(append(make([]byte, 0, refreshBody), person[:]...), session[:]...), t.turn)
	return refreshName + base64.RawURLEncoding.EncodeToString(append(body, s.mac(body)...)), nil
}

func (s *signer) parseRefresh(text string) (refreshToken, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(strings.TrimPrefix(text, refreshName))
	if err != nil || len(raw) != refreshBody || !strings.HasPrefix(text, refreshName) {
		return refreshToken{}, fmt.Errorf("%w: malformed", ErrToken)
	}
	body, mac := raw[:refreshBody-sha256.Size], raw[refreshBody-sha256.Size:]
	if !hmac.Equal(mac, s.mac(body)) {
		return refreshToken{}, fmt.Errorf("%w: not made by this fleet", ErrToken)
	}
	return refreshToken{
		person: ulid.ULID(body[:16]).String(), session: ulid.ULID(body[16:32]).String(), turn: binary.BigEndian.Uint64(body[32:]),
	}, nil
}
