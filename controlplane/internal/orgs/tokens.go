package orgs

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
)

// Limits of API tokens.
const (
	MaxTokens         = 100_000 // of an organisation
	MaxPersonalTokens = 100     // of a person in it
	MaxTokenLife      = 366 * 24 * time.Hour
	DefaultTokenLife  = 90 * 24 * time.Hour

	// usedEvery is how often a token's use is noted at most.
	usedEvery = time.Minute
	// kindToken is what seals of tokens are bound to.
	kindToken = "token"
)

// Token is an API token.
type Token struct {
	ID   string // ULID
	Org  string
	Name string
	// Person is whose it is, with the address of when it was made; empty: the organisation's. Since is that of the
	// membership it was made under: another one is not its.
	Person, Email string
	Since         int64
	// Permissions are what it may do at most. One of a person can't do more than the person may.
	Permissions []optionsv1.Permission
	// Tags restrict it to hosts that have one of them; none is the whole fleet.
	Tags scope.Tags
	// By is the name of who made it, and Maker the id; none where no person did, or one of an older release.
	By      string
	Maker   string
	Created int64 // Unix milliseconds
	Expires int64 // Unix milliseconds; 0: never
	// Used is when its use was last noted, from UsedFrom; 0: never.
	Used     int64
	UsedFrom string
	// Secret is set by CreateToken only: it is shown once and kept nowhere.
	Secret string

	isOld bool
}

// NewToken says what a token shall be.
type NewToken struct {
	Name          string
	Person, Email string
	Since         int64
	Permissions   []optionsv1.Permission
	Tags          scope.Tags
	// By and Maker as in Token.
	By, Maker string
	// Life is a minute to MaxTokenLife; 0 is for ever.
	Life time.Duration
}

// tokenRecord is a token as stored, sealed, under its id. Its secret names organisation and id, so that it is found there;
// of the secret only the hash is kept.
type tokenRecord struct {
	Hash        string   `json:"h"`
	Name        string   `json:"n"`
	Person      string   `json:"p,omitempty"`
	Email       string   `json:"e,omitempty"`
	Since       int64    `json:"s,omitempty"`
	Permissions []string `json:"m"`
	Tags        []string `json:"t,omitempty"`
	By          string   `json:"b,omitempty"`
	Maker       string   `json:"k,omitempty"`
	Created     int64    `json:"c"`
	Expires     int64    `json:"x,omitempty"`
}

var (
	//go:embed lua/token_create.lua
	tokenCreateText   string
	tokenCreateScript = store.NewScript("orgs/token_create", audit.Lua, tokenCreateText)

	//go:embed lua/token_delete.lua
	tokenDeleteText   string
	tokenDeleteScript = store.NewScript("orgs/token_delete", audit.Lua, tokenDeleteText)

	//go:embed lua/token_used.lua
	tokenUsedText   string
	tokenUsedScript = store.NewScript("orgs/token_used", tokenUsedText)
)

// AllPermissions is what an API token can hold.
func AllPermissions() []optionsv1.Permission {
	return []optionsv1.Permission{
		optionsv1.Permission_PERMISSION_FLEET_READ, optionsv1.Permission_PERMISSION_BANS_WRITE,
		optionsv1.Permission_PERMISSION_ALLOWLIST_WRITE, optionsv1.Permission_PERMISSION_POLICY_WRITE,
		optionsv1.Permission_PERMISSION_HOSTS_WRITE, optionsv1.Permission_PERMISSION_AUDIT_READ,
	}
}

// CreateToken makes an API token of an organisation, for ever, for the whole fleet.
func (o *Orgs) CreateToken(ctx context.Context, org, name string, permissions []optionsv1.Permission) (Token, error) {
	return o.AddToken(ctx, org, NewToken{Name: name, Permissions: permissions})
}

// AddToken makes an API token: ErrInvalid, or an error of the store.
func (o *Orgs) AddToken(ctx context.Context, org string, n NewToken) (Token, error) {
	now, err := o.store.Time(ctx, org)
	if err != nil {
		return Token{}, fmt.Errorf("create API token: %w", err)
	}
	token, sealed, err := o.newToken(org, n, now)
	if err != nil {
		return Token{}, err
	}
	entry := audit.Stage(ctx)
	body, mac := entry.Args()
	reply, err := tokenCreateScript.Run(ctx, o.store, []string{tokensKey(org), tokenIDsKey(org, ""), tokenIDsKey(org, n.Person)},
		token.ID, sealed, MaxTokens, MaxPersonalTokens, body, mac).Slice()
	if err != nil {
		return Token{}, fmt.Errorf("create API token: %w", err)
	}
	made, _ := reply[0].(int64)
	switch {
	case made == 0:
		return Token{}, fmt.Errorf("%w number of API tokens: %d stand; revoke some", ErrInvalid, MaxTokens)
	case made < 0:
		return Token{}, fmt.Errorf("%w number of API tokens: you have %d; revoke some", ErrInvalid, MaxPersonalTokens)
	}
	if wrote, _ := reply[1].([]any); len(wrote) > 0 {
		entry.Wrote(ctx, wrote)
	}
	return token, nil
}

// newToken checks what is asked for and makes the token and its record.
func (o *Orgs) newToken(org string, n NewToken, now time.Time) (token Token, sealed string, err error) {
	if err := checkText("name", n.Name, MaxNameLen); err != nil {
		return Token{}, "", err
	}
	all := AllPermissions()
	names := make([]string, 0, len(n.Permissions))
	for _, p := range n.Permissions {
		if !slices.Contains(all, p) {
			return Token{}, "", fmt.Errorf("%w permission %s: a token can't hold it", ErrInvalid, p)
		}
		names = append(names, p.String())
	}
	if len(names) == 0 {
		return Token{}, "", fmt.Errorf("%w permissions: there are none", ErrInvalid)
	}
	if n.Life != 0 && (n.Life < time.Minute || n.Life > MaxTokenLife) {
		return Token{}, "", fmt.Errorf("%w life of %s: 1m to %s is possible", ErrInvalid, n.Life, MaxTokenLife)
	}
	id, secret, err := newTokenSecret(org, n.Person != "")
	if err != nil {
		return Token{}, "", err
	}
	record := tokenRecord{
		Hash: hashSecret(secret), Name: n.Name, Person: n.Person, Email: n.Email, Since: n.Since, Permissions: names, Tags: n.Tags.Strings(),
		By: n.By, Maker: n.Maker, Created: now.UnixMilli(),
	}
	if n.Life > 0 {
		record.Expires = now.Add(n.Life).UnixMilli()
	}
	if token, err = record.token(org, id); err != nil {
		return Token{}, "", err
	}
	token.Secret = secret
	return token, o.seal.Seal(kindToken, org, id, string(encode(record))), nil
}

// Token finds whose secret this is: ErrMalformed, ErrUnknownToken, ErrTokenExpired, or an error of the store. Whether the
// person whose it is, if any, still may is the caller's to ask.
func (o *Orgs) Token(ctx context.Context, secret string) (Token, error) {
	org, id, err := parseTokenSecret(secret)
	if errors.Is(err, ErrMalformed) && checkSecret(apiTokenPrefix, secret) == nil {
		return o.oldToken(ctx, secret)
	}
	if err != nil {
		if strings.HasPrefix(secret, joinTokenPrefix) {
			return Token{}, fmt.Errorf("%w: this is a join token, which enrols hosts; an API token begins with %s", err, apiTokenPrefix)
		}
		return Token{}, err
	}
	pipe := o.store.Client().Pipeline()
	clock := pipe.Time(ctx)
	raw := pipe.HGet(ctx, tokensKey(org), id)
	use := pipe.HGet(ctx, tokenUseKey(org), id)
	if _, err := pipe.Exec(ctx); isNil(err) != nil {
		return Token{}, fmt.Errorf("look up API token: %w", isNil(err))
	}
	if raw.Err() != nil {
		return Token{}, ErrUnknownToken
	}
	record, err := o.openToken(ctx, org, id, raw.Val())
	if err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrUnknownToken, err)
	}
	if subtle.ConstantTimeCompare([]byte(record.Hash), []byte(hashSecret(secret))) != 1 {
		return Token{}, ErrUnknownToken
	}
	token, err := record.token(org, id)
	if err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrUnknownToken, err)
	}
	token.use(use.Val())
	if token.Expires > 0 && clock.Val().UnixMilli() >= token.Expires {
		return Token{}, ErrAPITokenExpired
	}
	return token, nil
}

// NoteUse notes that a token of Token was used from there, once in a minute.
func (o *Orgs) NoteUse(ctx context.Context, t Token, from netip.Addr, now time.Time) error {
	if t.old() || now.UnixMilli()-t.Used < usedEvery.Milliseconds() {
		return nil
	}
	address := "-"
	if from.IsValid() {
		address = from.String()
	}
	if err := tokenUsedScript.Run(ctx, o.store, []string{tokenUseKey(t.Org), tokensKey(t.Org)}, t.ID, address, usedEvery.Milliseconds()).Err(); err != nil {
		return fmt.Errorf("note the use of an API token: %w", err)
	}
	return nil
}

// PageTokens lists an organisation's API tokens after one ("": from the first), oldest first, at most size; of a person
// ("": of all). next is "" on the last page.
func (o *Orgs) PageTokens(ctx context.Context, org, person, after string, size int) (tokens []Token, next string, err error) {
	if after != "" {
		if _, err := ulid.ParseStrict(after); err != nil {
			return nil, "", ErrPageToken
		}
	}
	if after == "" && person == "" {
		// Those of before this release: few, and on the first page.
		if tokens, err = o.oldTokens(ctx, org); err != nil {
			return nil, "", err
		}
	}
	start := "-"
	if after != "" {
		start = "(" + after
	}
	ids, err := o.store.Client().ZRangeArgs(ctx, redis.ZRangeArgs{
		Key: tokenIDsKey(org, person), ByLex: true, Start: start, Stop: "+", Count: int64(size) + 1,
	}).Result()
	if err != nil {
		return nil, "", fmt.Errorf("list API tokens: %w", store.Classify(err))
	}
	if len(ids) > size {
		ids = ids[:size]
		next = ids[size-1]
	}
	if len(ids) == 0 {
		return tokens, "", nil
	}
	pipe := o.store.Client().Pipeline()
	records, uses := pipe.HMGet(ctx, tokensKey(org), ids...), pipe.HMGet(ctx, tokenUseKey(org), ids...)
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, "", fmt.Errorf("read API tokens: %w", store.Classify(err))
	}
	for i, id := range ids {
		raw := text(records.Val()[i])
		if raw == "" {
			continue // revoked meanwhile
		}
		record, err := o.openToken(ctx, org, id, raw)
		if errors.Is(err, seal.ErrForged) {
			continue // nobody's, and said so in the log
		}
		if err != nil {
			return nil, "", err
		}
		token, err := record.token(org, id)
		if err != nil {
			return nil, "", err
		}
		token.use(text(uses.Val()[i]))
		tokens = append(tokens, token)
	}
	return tokens, next, nil
}

// ListTokens lists all of an organisation's API tokens, oldest first.
func (o *Orgs) ListTokens(ctx context.Context, org string) ([]Token, error) {
	var out []Token
	for after := ""; ; {
		page, next, err := o.PageTokens(ctx, org, "", after, 1000)
		if err != nil {
			return nil, err
		}
		out = append(out, page...)
		if after = next; after == "" {
			return out, nil
		}
	}
}

// FindToken reads a token by its id, or by its whole secret; ErrNotFound.
func (o *Orgs) FindToken(ctx context.Context, org, id string) (Token, error) {
	if secretOrg, secretID, err := parseTokenSecret(id); err == nil && secretOrg == org {
		id = secretID
	}
	if _, err := ulid.ParseStrict(id); err != nil {
		return Token{}, fmt.Errorf("API token: %w", ErrNotFound)
	}
	raw, err := o.store.Client().HGet(ctx, tokensKey(org), id).Result()
	if err != nil {
		if err := isNil(err); err != nil {
			return Token{}, fmt.Errorf("find API token: %w", err)
		}
		return o.findOldToken(ctx, org, id)
	}
	record, err := o.openToken(ctx, org, id, raw)
	if err != nil {
		return Token{}, err
	}
	return record.token(org, id)
}

// RevokeToken ends a token at once, on every replica, for calls that begin. ErrNotFound. Streams that are open are the
// caller's to end.
func (o *Orgs) RevokeToken(ctx context.Context, org, id string) error {
	token, err := o.FindToken(ctx, org, id)
	if err != nil && !errors.Is(err, seal.ErrForged) {
		return err
	}
	if token.old() && err == nil {
		return o.revokeOld(ctx, org, token.ID)
	}
	if token.ID == "" {
		token.ID = id // a forged one may be removed
	}
	entry := audit.Stage(ctx)
	body, mac := entry.Args()
	reply, err := tokenDeleteScript.Run(ctx, o.store,
		[]string{tokensKey(org), tokenIDsKey(org, ""), tokenIDsKey(org, token.Person), tokenUseKey(org)}, token.ID, body, mac).Slice()
	if err != nil {
		return fmt.Errorf("revoke API token: %w", err)
	}
	if gone, _ := reply[0].(int64); gone == 0 {
		return fmt.Errorf("API token %s: %w", token.ID, ErrNotFound)
	}
	if wrote, _ := reply[1].([]any); len(wrote) > 0 {
		entry.Wrote(ctx, wrote)
	}
	return nil
}

// RevokePersonal ends all tokens of a person in an organisation. They are worth nothing once the membership ended; this
// removes what is left of them.
func (o *Orgs) RevokePersonal(ctx context.Context, org, person string) error {
	ids, err := o.store.Client().ZRange(ctx, tokenIDsKey(org, person), 0, -1).Result()
	if err != nil {
		return fmt.Errorf("find API tokens: %w", store.Classify(err))
	}
	for _, id := range ids {
		if err := tokenDeleteScript.Run(ctx, o.store,
			[]string{tokensKey(org), tokenIDsKey(org, ""), tokenIDsKey(org, person), tokenUseKey(org)}, id, "", "").Err(); err != nil {
			return fmt.Errorf("remove API token: %w", err)
		}
	}
	return nil
}

func (o *Orgs) openToken(ctx context.Context, org, id, raw string) (tokenRecord, error) {
	var record tokenRecord
	text, err := o.seal.Open(ctx, kindToken, org, id, raw)
	if err != nil {
		return record, err
	}
	if err := json.Unmarshal([]byte(text), &record); err != nil || len(record.Hash) != hex.EncodedLen(32) {
		return record, fmt.Errorf("stored API token %s is damaged: %w", id, errors.Join(err, ErrInvalid))
	}
	return record, nil
}

func (r tokenRecord) token(org, id string) (Token, error) {
	tags, err := scope.Parse(r.Tags)
	if err != nil {
		return Token{}, fmt.Errorf("%w tags of API token: %w", ErrInvalid, err)
	}
	return Token{
		ID: id, Org: org, Name: r.Name, Person: r.Person, Email: r.Email, Since: r.Since, Permissions: permissionsOf(r.Permissions), Tags: tags,
		By: r.By, Maker: r.Maker, Created: r.Created, Expires: r.Expires,
	}, nil
}

func permissionsOf(names []string) []optionsv1.Permission {
	var out []optionsv1.Permission
	for _, name := range names {
		// One that a newer release gave and this one doesn't know grants nothing here.
		if p, known := optionsv1.Permission_value[name]; known {
			out = append(out, optionsv1.Permission(p))
		}
	}
	return out
}

func (t *Token) use(raw string) {
	if at, from, ok := strings.Cut(raw, " "); ok {
		t.Used, t.UsedFrom = number(at), strings.TrimPrefix(from, "-")
	}
}

const (
	// A secret is its kind's prefix, 16 bytes each of the organisation and the id, 24 random ones, and the checksum.
	tokenRandom  = 24
	tokenBytes   = 16 + 16 + tokenRandom
	tokenBodyLen = 76 // 448 bits in base 62
)

func newTokenSecret(org string, personal bool) (id, secret string, err error) {
	o, err := ulid.ParseStrict(org)
	if err != nil {
		return "", "", fmt.Errorf("%w organisation %q", ErrInvalid, org)
	}
	u := ulid.Make()
	raw := make([]byte, tokenBytes)
	copy(raw, o[:])
	copy(raw[16:], u[:])
	_, _ = rand.Read(raw[32:]) // never fails: crypto/rand ends the program instead
	prefix := apiTokenPrefix
	if personal {
		prefix = personalTokenPrefix
	}
	body := prefix + base62(new(big.Int).SetBytes(raw), tokenBodyLen)
	return u.String(), body + checksum(body), nil
}

// parseTokenSecret reads organisation and id of a secret. ErrMalformed.
func parseTokenSecret(secret string) (org, id string, err error) {
	if !strings.HasPrefix(secret, apiTokenPrefix) && !strings.HasPrefix(secret, personalTokenPrefix) ||
		len(secret) != len(apiTokenPrefix)+tokenBodyLen+checksumLen {
		return "", "", ErrMalformed
	}
	split := len(secret) - checksumLen
	if checksum(secret[:split]) != secret[split:] {
		return "", "", ErrMalformed
	}
	n, ok := unbase62(secret[len(apiTokenPrefix):split])
	if !ok || n.BitLen() > 8*tokenBytes {
		return "", "", ErrMalformed
	}
	var raw [tokenBytes]byte
	n.FillBytes(raw[:])
	org, id = ulid.ULID(raw[:16]).String(), ulid.ULID(raw[16:32]).String()
	for _, text := range []string{org, id} {
		if _, err := ulid.ParseStrict(text); err != nil {
			return "", "", ErrMalformed
		}
	}
	return org, id, nil
}

func tokensKey(org string) string   { return store.Key(org, "apitokens") }
func tokenUseKey(org string) string { return store.Key(org, "apitokenuse") }

func tokenIDsKey(org, person string) string {
	if person == "" {
		return store.Key(org, "apitokenids")
	}
	return store.Key(org, "apitokenids", person)
}
