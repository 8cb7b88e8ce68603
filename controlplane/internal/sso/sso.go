// Package sso lets people sign in with their organisation's OpenID Connect provider.
//
//	browser ─ start ─▶ attempt in Redis (state, nonce, verifier) ─▶ provider ─▶ callback, at any replica ─▶ session
//
// A provider vouches for the people of one organisation and nobody else. Who is new gets an account of their own, which
// neither a password nor another organisation leads to; an account that stands is taken only where it is a member
// here and nowhere else, its address is verified by the provider and in a domain that an owner named. From then on the
// provider's subject decides, not the address. What the provider says of groups is what the person may do here, anew at
// each sign-in.
package sso

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// Errors that callers decide on.
var (
	// ErrNone: the organisation has no provider, or there is no such organisation.
	ErrNone = errors.New("the organisation has no identity provider")
	// ErrInvalid is wrapped by refusals of a setting.
	ErrInvalid = errors.New("invalid")
	// ErrProvider is wrapped by what a provider does wrong, or does not do.
	ErrProvider = errors.New("the identity provider")
	// ErrAttempt: the sign-in is unknown, over, too old, or another browser's.
	ErrAttempt = errors.New("this sign-in is unknown, used or too old")
	// ErrRefused is wrapped by refusals of a person whom the provider let in; the text says why.
	ErrRefused = errors.New("refused")
)

// Mapping is what a group of the provider is here.
type Mapping struct {
	// Group; empty: everyone.
	Group string
	Role  people.Role
	Tags  scope.Tags
}

// Provider is an organisation's setting.
type Provider struct {
	Issuer, ClientID, ClientSecret string
	// Domains of addresses that it may vouch for, in lower case.
	Domains []string
	// GroupClaim lists a person's groups.
	GroupClaim string
	Roles      []Mapping
	// Required: nobody signs in otherwise, but BreakGlass, the id of an owner.
	Required   bool
	BreakGlass string
}

// stored is a Provider in Redis.
type stored struct {
	Issuer       string         `json:"issuer"`
	ClientID     string         `json:"client_id"`
	ClientSecret string         `json:"client_secret"`
	Domains      []string       `json:"domains"`
	GroupClaim   string         `json:"group_claim"`
	Roles        []storedRoleOf `json:"roles"`
	Required     bool           `json:"required"`
	BreakGlass   string         `json:"break_glass"`
}

type storedRoleOf struct {
	Group string      `json:"group"`
	Role  people.Role `json:"role"`
	Tags  []string    `json:"tags"`
}

// Keys derives the key that settings are sealed with: *keys.Keys.
type Keys interface{ SSOKey() [32]byte }

// Options make an SSO.
type Options struct {
	Store  *store.Store
	Keys   Keys
	Seal   *seal.Sealer
	People *people.People
	// Changed is told of members whose role changed or who went: older access tokens end.
	Changed func(ctx context.Context, org string, m people.Member) error
	// PublicURL is where browsers reach the control plane.
	PublicURL string
	// AllowPrivate lets providers have private addresses: for a control plane of one organisation. Otherwise whoever sets a
	// provider could have the control plane ask what stands beside it.
	AllowPrivate bool
	// RootCAs are those that providers' certificates are checked with; nil: the system's.
	RootCAs *x509.CertPool
	Now     func() time.Time
	// Logger; default slog.Default().
	Logger *slog.Logger
}

// SSO keeps organisations' providers and signs people in with them. Safe for concurrent use.
type SSO struct {
	o    Options
	aead cipher.AEAD

	mu    sync.Mutex
	known map[string]known // by issuer
}

// New makes an SSO.
func New(o Options) (*SSO, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	key := o.Keys.SSOKey()
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, fmt.Errorf("key of identity providers: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("key of identity providers: %w", err)
	}
	return &SSO{o: o, aead: aead, known: map[string]known{}}, nil
}

// Get reads an organisation's provider; ErrNone.
func (s *SSO) Get(ctx context.Context, org string) (Provider, error) {
	raw, err := s.o.Store.Client().Get(ctx, settingKey(org)).Bytes()
	if errors.Is(err, redis.Nil) {
		return Provider{}, ErrNone
	}
	if err != nil {
		return Provider{}, fmt.Errorf("read the identity provider: %w", store.Classify(err))
	}
	plain, err := s.aead.Open(nil, nil, raw, []byte(org))
	if err != nil {
		return Provider{}, fmt.Errorf("the stored identity provider of %s is not this fleet's: %w", org, err)
	}
	var v stored
	if err := json.Unmarshal(plain, &v); err != nil {
		return Provider{}, fmt.Errorf("the stored identity provider of %s is damaged: %w", org, err)
	}
	p := Provider{
		Issuer: v.Issuer, ClientID: v.ClientID, ClientSecret: v.ClientSecret, Domains: v.Domains, GroupClaim: v.GroupClaim,
		Required: v.Required, BreakGlass: v.BreakGlass,
	}
	for _, r := range v.Roles {
		tags, err := scope.Parse(r.Tags)
		if err != nil {
			return Provider{}, fmt.Errorf("the stored identity provider of %s is damaged: %w", org, err)
		}
		p.Roles = append(p.Roles, Mapping{Group: r.Group, Role: r.Role, Tags: tags})
	}
	return p, nil
}

var domain = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$`)

// Set makes p the organisation's provider, after it has answered. Without a secret, that of the provider that stands is
// kept, if issuer and client are the same. ErrInvalid, ErrProvider, or an error of the store.
func (s *SSO) Set(ctx context.Context, org string, p Provider) error {
	if p.GroupClaim == "" {
		p.GroupClaim = "groups"
	}
	if p.ClientSecret == "" {
		before, err := s.Get(ctx, org)
		if err == nil && before.Issuer == p.Issuer && before.ClientID == p.ClientID {
			p.ClientSecret = before.ClientSecret
		} else if err != nil && !errors.Is(err, ErrNone) {
			return err
		}
	}
	if err := check(p); err != nil {
		return err
	}
	if _, err := s.discover(ctx, p.Issuer, true); err != nil {
		return err
	}
	v := stored{
		Issuer: p.Issuer, ClientID: p.ClientID, ClientSecret: p.ClientSecret, Domains: p.Domains, GroupClaim: p.GroupClaim, Required: p.Required, BreakGlass: p.BreakGlass,
	}
	for _, r := range p.Roles {
		v.Roles = append(v.Roles, storedRoleOf{r.Group, r.Role, r.Tags.Strings()})
	}
	plain, err := json.Marshal(v) //nolint:gosec // to be sealed
	if err != nil {
		return fmt.Errorf("store the identity provider: %w", err)
	}
	sealed := s.aead.Seal(nil, nil, plain, []byte(org)) //nolint:gosec // this AEAD makes its nonces itself
	if err := s.o.Store.Client().Set(ctx, settingKey(org), sealed, 0).Err(); err != nil {
		return fmt.Errorf("store the identity provider: %w", store.Classify(err))
	}
	return nil
}

func check(p Provider) error {
	u, err := url.Parse(p.Issuer)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%w issuer: write https://HOST/…, as the provider calls itself", ErrInvalid)
	case p.ClientSecret == "":
		return fmt.Errorf("%w client secret: it is missing", ErrInvalid)
	case len(p.Domains) == 0 || len(p.Roles) == 0:
		return fmt.Errorf("%w: name a domain of e-mail addresses, and a role", ErrInvalid)
	case p.Required && p.BreakGlass == "":
		return fmt.Errorf("%w: name an owner who may still use a password (break glass) for the day on which the provider fails", ErrInvalid)
	}
	for _, d := range p.Domains {
		if !domain.MatchString(d) || len(d) > 253 {
			return fmt.Errorf("%w domain %q: write example.com, in lower case", ErrInvalid, d)
		}
	}
	for _, r := range p.Roles {
		if !r.Tags.Whole() && r.Role != people.Operator && r.Role != people.Viewer {
			return fmt.Errorf("%w tags of the group %q: only operators and viewers can be restricted to some", ErrInvalid, r.Group)
		}
	}
	return nil
}

// Delete ends it; ErrNone where there is none.
func (s *SSO) Delete(ctx context.Context, org string) error {
	n, err := s.o.Store.Client().Del(ctx, settingKey(org)).Result()
	if err != nil {
		return fmt.Errorf("delete the identity provider: %w", store.Classify(err))
	}
	if n == 0 {
		return ErrNone
	}
	return nil
}

// MayUsePassword says whether a person may sign in to an organisation without its provider, and whether that is breaking
// the glass.
func (s *SSO) MayUsePassword(ctx context.Context, org, person string) (may, breakGlass bool, err error) {
	p, err := s.Get(ctx, org)
	if errors.Is(err, ErrNone) || err == nil && !p.Required {
		return true, false, nil
	}
	if err != nil {
		return false, false, err
	}
	return p.BreakGlass == person, p.BreakGlass == person, nil
}

// RedirectURL is what the provider is to be told, StartURL where people begin.
func (s *SSO) RedirectURL(org string) string { return s.o.PublicURL + Path + org + "/callback" }

// StartURL is where people begin to sign in to an organisation.
func (s *SSO) StartURL(org string) string { return s.o.PublicURL + Path + org + "/start" }

// role is what a person with these groups is here; false: nobody.
func (p Provider) role(groups []string) (role people.Role, tags scope.Tags, ok bool) {
	var texts []string
	whole := false
	for _, m := range p.Roles {
		if m.Group != "" && !slices.Contains(groups, m.Group) {
			continue
		}
		// The numbers of roles fall with what they may.
		if !ok || m.Role < role {
			role, ok, texts, whole = m.Role, true, nil, false
		}
		if m.Role == role {
			texts = append(texts, m.Tags.Strings()...)
			whole = whole || m.Tags.Whole()
		}
	}
	if whole || !ok {
		return role, nil, ok
	}
	slices.Sort(texts)
	tags, err := scope.Parse(slices.Compact(texts))
	return role, tags, err == nil
}

func (p Provider) vouchesFor(address people.Email) bool {
	_, host, found := strings.Cut(address.String(), "@")
	return found && slices.Contains(p.Domains, host)
}

func random() string { return rand.Text() + rand.Text() } // 260 bits

func settingKey(org string) string { return store.Key(org, "sso") }
func linkKey(org string) string    { return store.Key(org, "sso", "subjects") }
