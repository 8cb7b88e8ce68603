package orgs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
)

// Token is an API token: a program's or, until accounts come, a person's.
type Token struct {
	ID          string // ULID
	Org         string
	Name        string
	Permissions []optionsv1.Permission
	Created     int64 // Unix milliseconds
	// Secret is set by CreateToken only: it is shown once and kept nowhere.
	Secret string
}

// tokenRecord is a token as stored, under its hash (fb:token:HASH) and listed by its id (fb:{ORG}:tokens).
type tokenRecord struct {
	Org         string   `json:"org"`
	ID          string   `json:"id"`
	Name        string   `json:"name"`
	Permissions []string `json:"permissions"`
	Created     int64    `json:"created"`
	// Hash is in the list only, so that revoking finds the key.
	Hash string `json:"hash,omitempty"`
}

// AllPermissions is what an administrator holds.
func AllPermissions() []optionsv1.Permission {
	return []optionsv1.Permission{
		optionsv1.Permission_PERMISSION_FLEET_READ, optionsv1.Permission_PERMISSION_BANS_WRITE,
		optionsv1.Permission_PERMISSION_ALLOWLIST_WRITE, optionsv1.Permission_PERMISSION_POLICY_WRITE,
		optionsv1.Permission_PERMISSION_HOSTS_WRITE, optionsv1.Permission_PERMISSION_AUDIT_READ,
	}
}

// beforeAudit is what an administrator held before there was an audit log: who holds all of it may read that too.
var beforeAudit = []string{
	"PERMISSION_FLEET_READ", "PERMISSION_BANS_WRITE", "PERMISSION_ALLOWLIST_WRITE", "PERMISSION_POLICY_WRITE", "PERMISSION_HOSTS_WRITE",
}

// CreateToken makes an API token of an organisation.
func (o *Orgs) CreateToken(ctx context.Context, org, name string, permissions []optionsv1.Permission) (Token, error) {
	if err := checkText("name", name, MaxNameLen); err != nil {
		return Token{}, err
	}
	all := AllPermissions()
	names := make([]string, 0, len(permissions))
	for _, p := range permissions {
		if !slices.Contains(all, p) {
			return Token{}, fmt.Errorf("%w permission %s: a token can't hold it", ErrInvalid, p)
		}
		names = append(names, p.String())
	}
	if len(names) == 0 {
		return Token{}, fmt.Errorf("%w permissions: there are none", ErrInvalid)
	}
	secret := newSecret(apiTokenPrefix)
	hash := hashSecret(secret)
	record := tokenRecord{Org: org, ID: ulid.Make().String(), Name: name, Permissions: names, Created: time.Now().UnixMilli()}
	listed := record
	listed.Hash = hash
	// Listed first: a token that works is always one that can be found and revoked.
	if err := o.store.Client().HSet(ctx, store.Key(org, "tokens"), record.ID, encode(listed)).Err(); err != nil {
		return Token{}, fmt.Errorf("list API token: %w", store.Classify(err))
	}
	if err := o.store.Client().Set(ctx, store.Global("token", hash), encode(record), 0).Err(); err != nil {
		return Token{}, fmt.Errorf("store API token: %w", store.Classify(err))
	}
	token := record.token()
	token.Secret = secret
	return token, nil
}

// Token finds whose secret this is: ErrMalformed, ErrUnknownToken, or an error of the store.
func (o *Orgs) Token(ctx context.Context, secret string) (Token, error) {
	if err := checkSecret(apiTokenPrefix, secret); err != nil {
		if strings.HasPrefix(secret, joinTokenPrefix) {
			return Token{}, fmt.Errorf("%w: this is a join token, which enrols hosts; an API token begins with %s", err, apiTokenPrefix)
		}
		return Token{}, err
	}
	// Found by its hash alone: what an attacker learns of the comparison's time is about the hash, which says nothing of the secret.
	raw, err := o.store.Client().Get(ctx, store.Global("token", hashSecret(secret))).Bytes()
	if err != nil {
		if err := isNil(err); err != nil {
			return Token{}, fmt.Errorf("look up API token: %w", err)
		}
		return Token{}, ErrUnknownToken
	}
	var record tokenRecord
	if err := json.Unmarshal(raw, &record); err != nil || record.Org == "" || record.ID == "" {
		return Token{}, fmt.Errorf("stored API token is damaged: %w", errors.Join(err, ErrUnknownToken))
	}
	return record.token(), nil
}

// ListTokens lists an organisation's API tokens, oldest first.
func (o *Orgs) ListTokens(ctx context.Context, org string) ([]Token, error) {
	all, err := o.store.Client().HGetAll(ctx, store.Key(org, "tokens")).Result()
	if err != nil {
		return nil, fmt.Errorf("list API tokens: %w", store.Classify(err))
	}
	tokens := make([]Token, 0, len(all))
	for id, raw := range all {
		var record tokenRecord
		if err := json.Unmarshal([]byte(raw), &record); err != nil {
			return nil, fmt.Errorf("stored API token %s is damaged: %w", id, err)
		}
		tokens = append(tokens, record.token())
	}
	slices.SortFunc(tokens, func(a, b Token) int { return strings.Compare(a.ID, b.ID) })
	return tokens, nil
}

// RevokeToken ends a token at once, on every replica.
func (o *Orgs) RevokeToken(ctx context.Context, org, id string) error {
	client, key := o.store.Client(), store.Key(org, "tokens")
	raw, err := client.HGet(ctx, key, id).Bytes()
	if err != nil {
		if err := isNil(err); err != nil {
			return fmt.Errorf("find API token: %w", err)
		}
		return fmt.Errorf("API token %q: %w", id, ErrNotFound)
	}
	var record tokenRecord
	if err := json.Unmarshal(raw, &record); err != nil || record.Hash == "" {
		return fmt.Errorf("stored API token %s is damaged: %w", id, err)
	}
	// What lets it work goes first.
	if err := client.Del(ctx, store.Global("token", record.Hash)).Err(); err != nil {
		return fmt.Errorf("revoke API token: %w", store.Classify(err))
	}
	if err := client.HDel(ctx, key, id).Err(); err != nil {
		return fmt.Errorf("unlist API token: %w", store.Classify(err))
	}
	return nil
}

func (r tokenRecord) token() Token {
	t := Token{ID: r.ID, Org: r.Org, Name: r.Name, Created: r.Created}
	for _, name := range r.Permissions {
		// One that a newer release gave and this one doesn't know grants nothing here.
		if p, known := optionsv1.Permission_value[name]; known {
			t.Permissions = append(t.Permissions, optionsv1.Permission(p))
		}
	}
	if slices.Equal(r.Permissions, beforeAudit) {
		t.Permissions = append(t.Permissions, optionsv1.Permission_PERMISSION_AUDIT_READ)
	}
	return t
}

func encode(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err) // records of ours always encode
	}
	return raw
}

// isNil is nil where err says that a key is missing, and the classified error otherwise.
func isNil(err error) error {
	if errors.Is(err, redis.Nil) {
		return nil
	}
	return store.Classify(err)
}
