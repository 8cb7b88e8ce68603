package sso

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/redis/go-redis/v9"
	"golang.org/x/oauth2"

	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

const (
	// Path begins where browsers go: Path + ORGANISATION + "/start" and "/callback".
	Path = "/auth/oidc/"
	// attemptLife is how long a person has at the provider.
	attemptLife = 10 * time.Minute
	// codeLife is how long a program has to take what the browser brought it.
	codeLife = time.Minute
	// leeway is how far a provider's clock may be from ours.
	leeway = time.Minute
	// tokenAge is how old an ID token may be: it was asked for a moment ago.
	tokenAge = 5 * time.Minute
)

// Program is a command that waits on its machine's loopback for what the browser brings; the zero Program is none.
type Program struct {
	Port uint16 `json:"port,omitempty"`
	// Challenge is the S256 one of its verifier. State is its own, given back.
	Challenge string `json:"challenge,omitempty"`
	State     string `json:"state,omitempty"`
}

// attempt is a sign-in that is under way, sealed in Redis under its state: any replica can end it, and only once.
type attempt struct {
	Org      string  `json:"org"`
	Issuer   string  `json:"issuer"`
	ClientID string  `json:"client_id"`
	Nonce    string  `json:"nonce"`
	Verifier string  `json:"verifier"`
	Browser  string  `json:"browser"`
	Program  Program `json:"program"`
	// Fresh: the person was to be looked at again, at Began or later (Unix seconds).
	Fresh bool  `json:"fresh,omitempty"`
	Began int64 `json:"began,omitempty"`
}

// Begin begins a sign-in. to is where the browser goes next; browser is what it must show when it comes back, in a cookie.
// fresh has the provider look at the person again, whoever is signed in there: Signed.Looked says when it did.
func (s *SSO) Begin(ctx context.Context, org string, program Program, fresh bool) (to, browser string, err error) {
	if program != (Program{}) && (program.Port < 1024 || len(program.Challenge) != 43 || len(program.State) > 100) {
		return "", "", fmt.Errorf("%w: a program must listen on a port above 1023 and give an S256 challenge", ErrInvalid)
	}
	p, err := s.Get(ctx, org)
	if err != nil {
		return "", "", err
	}
	k, err := s.discover(ctx, p.Issuer, false)
	if err != nil {
		return "", "", err
	}
	state, browser := random(), random()
	a := attempt{Org: org, Issuer: p.Issuer, ClientID: p.ClientID, Nonce: random(), Verifier: oauth2.GenerateVerifier(), Browser: hashOf(browser), Program: program, Fresh: fresh, Began: s.o.Now().Unix()}
	options := []oauth2.AuthCodeOption{oauth2.S256ChallengeOption(a.Verifier), oidc.Nonce(a.Nonce)}
	if fresh {
		options = append(options, oauth2.SetAuthURLParam("prompt", "login"), oauth2.SetAuthURLParam("max_age", "0"))
	}
	if err := s.put(ctx, attemptKey(state), a, attemptLife); err != nil {
		return "", "", err
	}
	return s.oauth(p, k, org).AuthCodeURL(state, options...), browser, nil
}

func (s *SSO) oauth(p Provider, k known, org string) *oauth2.Config {
	return &oauth2.Config{
		ClientID: p.ClientID, ClientSecret: p.ClientSecret, Endpoint: k.provider.Endpoint(), RedirectURL: s.RedirectURL(org),
		Scopes: []string{oidc.ScopeOpenID, "email", "profile"},
	}
}

// Signed is who came back, and for whom they came.
type Signed struct {
	Account people.Account
	Org     string
	Program Program
	// Looked is when the provider looked at the person, where it was asked to do so again; zero otherwise.
	Looked time.Time `json:"looked,omitzero"`
}

// Complete ends a sign-in with what the provider had the browser bring. ErrAttempt, ErrNone, ErrProvider, ErrRefused, or
// an error of the store.
func (s *SSO) Complete(ctx context.Context, org string, query url.Values, browser string) (Signed, error) {
	var a attempt
	if err := s.take(ctx, attemptKey(query.Get("state")), &a); err != nil {
		return Signed{}, err
	}
	if a.Org != org || subtle.ConstantTimeCompare([]byte(a.Browser), []byte(hashOf(browser))) != 1 {
		return Signed{}, fmt.Errorf("%w: another browser began it", ErrAttempt)
	}
	if code := query.Get("error"); code != "" {
		return Signed{}, fmt.Errorf("%w by the identity provider: %s", ErrRefused, plain(code+" "+query.Get("error_description")))
	}
	p, err := s.Get(ctx, org)
	if err != nil {
		return Signed{}, err
	}
	if p.Issuer != a.Issuer || p.ClientID != a.ClientID {
		return Signed{}, fmt.Errorf("%w: the organisation changed its identity provider meanwhile", ErrAttempt)
	}
	k, err := s.discover(ctx, p.Issuer, false)
	if err != nil {
		return Signed{}, err
	}
	if iss := query.Get("iss"); iss != p.Issuer && (iss != "" || k.namesItself) {
		return Signed{}, fmt.Errorf("%w: the answer is of another issuer", ErrProvider)
	}
	claims, err := s.claims(ctx, org, p, k, a, query.Get("code"))
	if err != nil {
		return Signed{}, err
	}
	var looked time.Time
	if a.Fresh {
		if looked, err = a.looked(claims.looked, s.o.Now()); err != nil {
			return Signed{}, err
		}
	}
	account, err := s.person(ctx, org, p, claims)
	return Signed{Account: account, Org: org, Program: a.Program, Looked: looked}, err
}

// looked is when the provider looked at the person again, as it was asked to: max_age obliges it to say so, and one that
// doesn't proves nothing.
func (a attempt) looked(authTime int64, now time.Time) (time.Time, error) {
	at := time.Unix(authTime, 0)
	if at.Before(time.Unix(a.Began, 0).Add(-leeway)) || at.After(now.Add(leeway)) {
		return time.Time{}, fmt.Errorf("%w: the identity provider didn't have you sign in anew, as it was asked to (prompt=login, max_age=0, auth_time)", ErrRefused)
	}
	return at, nil
}

// claims are what is used of what a provider says of a person.
type claims struct {
	subject  string
	email    string
	verified bool
	groups   []string
	// looked is auth_time, Unix seconds; 0: it doesn't say.
	looked int64
}

func (s *SSO) claims(ctx context.Context, org string, p Provider, k known, a attempt, code string) (claims, error) {
	ctx, cancel := context.WithTimeout(oidc.ClientContext(ctx, s.client()), 2*askWithin)
	defer cancel()
	bad := func(what string, err error) (claims, error) {
		return claims{}, fmt.Errorf("%w: %s: %w", ErrProvider, what, brief{err})
	}
	token, err := s.oauth(p, k, org).Exchange(ctx, code, oauth2.VerifierOption(a.Verifier))
	if err != nil {
		return bad("it doesn't take its code", err)
	}
	raw, _ := token.Extra("id_token").(string)
	now := s.o.Now()
	// The library knows no leeway for the end.
	id, err := k.provider.VerifierContext(ctx, &oidc.Config{ClientID: p.ClientID, Now: func() time.Time { return now.Add(-leeway) }}).Verify(ctx, raw)
	if err != nil {
		return bad("its ID token", err)
	}
	var more map[string]any
	if err := id.Claims(&more); err != nil {
		return bad("its ID token", err)
	}
	switch azp, _ := more["azp"].(string); {
	case subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(a.Nonce)) != 1:
		return bad("its ID token", errors.New("it is of another sign-in"))
	case id.IssuedAt.After(now.Add(leeway)), id.IssuedAt.Before(now.Add(-tokenAge)):
		return bad("its ID token", errors.New("its clock is another, or the token is old"))
	case azp != "" && azp != p.ClientID, azp == "" && len(id.Audience) > 1:
		return bad("its ID token", errors.New("it was made for another client"))
	case id.Subject == "" || len(id.Subject) > 255:
		return bad("its ID token", errors.New("it names no subject"))
	}
	if id.AccessTokenHash != "" {
		if err := id.VerifyAccessToken(token.AccessToken); err != nil {
			return bad("its access token", err)
		}
	}
	// What the token leaves out is asked for.
	if more["email"] == nil || more[p.GroupClaim] == nil {
		if k.provider.UserInfoEndpoint() != "" {
			info, err := k.provider.UserInfo(ctx, oauth2.StaticTokenSource(token))
			if err != nil {
				return bad("what it says of the person", err)
			}
			if info.Subject != id.Subject {
				return bad("what it says of the person", errors.New("it is of another person"))
			}
			var said map[string]any
			if err := info.Claims(&said); err != nil {
				return bad("what it says of the person", err)
			}
			// An address and whether it is verified belong together.
			if more["email"] == nil {
				more["email"], more["email_verified"] = said["email"], said["email_verified"]
			}
			if more[p.GroupClaim] == nil {
				more[p.GroupClaim] = said[p.GroupClaim]
			}
		}
	}
	out := claims{subject: id.Subject}
	if at, ok := more["auth_time"].(float64); ok && at > 0 && at < 1<<40 {
		out.looked = int64(at)
	}
	out.email, _ = more["email"].(string)
	switch verified := more["email_verified"].(type) {
	case bool:
		out.verified = verified
	case string:
		out.verified = verified == "true"
	}
	switch groups := more[p.GroupClaim].(type) {
	case string:
		out.groups = []string{groups}
	case []any:
		for _, g := range groups {
			if text, ok := g.(string); ok {
				out.groups = append(out.groups, text)
			}
		}
	}
	return out, nil
}

// Code keeps who came back for a program, for a minute and one use. to is where the browser brings it.
func (s *SSO) Code(ctx context.Context, who Signed) (to string, err error) {
	code := random()
	if err := s.put(ctx, codeKey(code), who, codeLife); err != nil {
		return "", err
	}
	query := url.Values{"code": {code}, "state": {who.Program.State}}
	return "http://127.0.0.1:" + strconv.Itoa(int(who.Program.Port)) + "/?" + query.Encode(), nil
}

// Redeem gives a program who came back for it: ErrAttempt, or an error of the store.
func (s *SSO) Redeem(ctx context.Context, code, verifier string) (Signed, error) {
	var who Signed
	if err := s.take(ctx, codeKey(code), &who); err != nil {
		return Signed{}, err
	}
	sum := sha256.Sum256([]byte(verifier))
	if subtle.ConstantTimeCompare([]byte(base64.RawURLEncoding.EncodeToString(sum[:])), []byte(who.Program.Challenge)) != 1 {
		return Signed{}, fmt.Errorf("%w: another program began it", ErrAttempt)
	}
	return who, nil
}

// put seals v under key; take takes it out, once.
func (s *SSO) put(ctx context.Context, key string, v any, life time.Duration) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("keep a sign-in: %w", err)
	}
	sealed := s.aead.Seal(nil, nil, raw, []byte(key)) //nolint:gosec // this AEAD makes its nonces itself
	if err := s.o.Store.Client().Set(ctx, key, sealed, life).Err(); err != nil {
		return fmt.Errorf("keep a sign-in: %w", store.Classify(err))
	}
	return nil
}

func (s *SSO) take(ctx context.Context, key string, v any) error {
	raw, err := s.o.Store.Client().GetDel(ctx, key).Bytes()
	if errors.Is(err, redis.Nil) {
		return ErrAttempt
	}
	if err != nil {
		return fmt.Errorf("find a sign-in: %w", store.Classify(err))
	}
	opened, err := s.aead.Open(nil, nil, raw, []byte(key))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrAttempt, err)
	}
	if err := json.Unmarshal(opened, v); err != nil {
		return fmt.Errorf("%w: %w", ErrAttempt, err)
	}
	return nil
}

// plain is text of a stranger, fit for a line.
func plain(text string) string {
	text = strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, text))
	return text[:min(len(text), 200)]
}

func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func attemptKey(state string) string { return store.Global("sso", "attempt", hashOf(state)) }
func codeKey(code string) string     { return store.Global("sso", "code", hashOf(code)) }
