package orgs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
)

// API tokens as releases before tokens.go made them: 53 characters that say nothing, and so found by their hash under one
// global key. They stay good; no new one is made.

// oldRecord is such a token as stored under its hash (fb:token:HASH) and listed by its id (fb:{ORG}:tokens).
type oldRecord struct {
	Org         string   `json:"org"`
	ID          string   `json:"id"`
	Name        string   `json:"name"`
	Permissions []string `json:"permissions"`
	Created     int64    `json:"created"`
	// Hash is in the list only, so that revoking finds the key.
	Hash string `json:"hash,omitempty"`
	// Seal is over all the rest. Those that made the token didn't know of it: SignOld adds it.
	Seal string `json:"seal,omitempty"`
}

// kindOldToken is what seals of old tokens are bound to.
const kindOldToken = "old-token"

// sealed is what the seal is over: hash is that of the key it stands under.
func (r oldRecord) sealed(hash string) string {
	r.Seal, r.Hash = "", hash
	return string(encode(r))
}

// openOld checks the seal of one.
func (o *Orgs) openOld(ctx context.Context, r oldRecord, hash string) error {
	text := r.sealed(hash)
	if r.Seal != "" {
		text += r.Seal
	}
	_, err := o.seal.Open(ctx, kindOldToken, r.Org, r.ID, text)
	return err
}

// beforeAudit is what an administrator held before there was an audit log: who holds all of it may read that too.
var beforeAudit = []string{
	"PERMISSION_FLEET_READ", "PERMISSION_BANS_WRITE", "PERMISSION_ALLOWLIST_WRITE", "PERMISSION_POLICY_WRITE", "PERMISSION_HOSTS_WRITE",
}

func (o *Orgs) oldToken(ctx context.Context, secret string) (Token, error) {
	// Found by its hash alone: what an attacker learns of the comparison's time is about the hash, which says nothing of the secret.
	hash := hashSecret(secret)
	raw, err := o.store.Client().Get(ctx, store.Global("token", hash)).Bytes()
	if err != nil {
		if err := isNil(err); err != nil {
			return Token{}, fmt.Errorf("look up API token: %w", err)
		}
		return Token{}, ErrUnknownToken
	}
	var record oldRecord
	if err := json.Unmarshal(raw, &record); err != nil || record.Org == "" || record.ID == "" {
		return Token{}, fmt.Errorf("stored API token is damaged: %w", errors.Join(err, ErrUnknownToken))
	}
	if err := o.openOld(ctx, record, hash); err != nil {
		return Token{}, fmt.Errorf("%w: %w", ErrUnknownToken, err)
	}
	return record.token(), nil
}

// oldTokens lists those of an organisation, oldest first.
func (o *Orgs) oldTokens(ctx context.Context, org string) ([]Token, error) {
	all, err := o.store.Client().HGetAll(ctx, oldTokensKey(org)).Result()
	if err != nil {
		return nil, fmt.Errorf("list API tokens: %w", store.Classify(err))
	}
	tokens := make([]Token, 0, len(all))
	for id, raw := range all {
		var record oldRecord
		if err := json.Unmarshal([]byte(raw), &record); err != nil {
			return nil, fmt.Errorf("stored API token %s is damaged: %w", id, err)
		}
		tokens = append(tokens, record.token())
	}
	slices.SortFunc(tokens, func(a, b Token) int { return strings.Compare(a.ID, b.ID) })
	return tokens, nil
}

func (o *Orgs) findOldToken(ctx context.Context, org, id string) (Token, error) {
	record, err := o.oldListed(ctx, org, id)
	return record.token(), err
}

func (o *Orgs) oldListed(ctx context.Context, org, id string) (oldRecord, error) {
	raw, err := o.store.Client().HGet(ctx, oldTokensKey(org), id).Bytes()
	if err != nil {
		if err := isNil(err); err != nil {
			return oldRecord{}, fmt.Errorf("find API token: %w", err)
		}
		return oldRecord{}, fmt.Errorf("API token %q: %w", id, ErrNotFound)
	}
	var record oldRecord
	if err := json.Unmarshal(raw, &record); err != nil || record.Hash == "" {
		return oldRecord{}, fmt.Errorf("stored API token %s is damaged: %w", id, errors.Join(err, ErrInvalid))
	}
	return record, nil
}

func (o *Orgs) revokeOld(ctx context.Context, org, id string) error {
	record, err := o.oldListed(ctx, org, id)
	if err != nil {
		return err
	}
	client := o.store.Client()
	// What lets it work goes first.
	if err := client.Del(ctx, store.Global("token", record.Hash)).Err(); err != nil {
		return fmt.Errorf("revoke API token: %w", store.Classify(err))
	}
	if err := client.HDel(ctx, oldTokensKey(org), id).Err(); err != nil {
		return fmt.Errorf("unlist API token: %w", store.Classify(err))
	}
	return nil
}

// SignOld seals an organisation's old tokens that aren't sealed, and says which: a person shall know them all.
func (o *Orgs) SignOld(ctx context.Context, org string) ([]Token, error) {
	all, err := o.oldTokens(ctx, org)
	if err != nil {
		return nil, err
	}
	var signed []Token
	for _, t := range all {
		listed, err := o.oldListed(ctx, org, t.ID)
		if err != nil {
			return nil, err
		}
		key := store.Global("token", listed.Hash)
		raw, err := o.store.Client().Get(ctx, key).Bytes()
		if errors.Is(err, redis.Nil) {
			continue // revoked, half
		}
		var record oldRecord
		if err = errors.Join(store.Classify(err), json.Unmarshal(raw, &record)); err != nil {
			return nil, fmt.Errorf("read API token %s: %w", t.ID, err)
		}
		if record.Seal != "" {
			continue
		}
		text := record.sealed(listed.Hash)
		record.Seal = strings.TrimPrefix(o.seal.Seal(kindOldToken, record.Org, record.ID, text), text)
		if err := o.store.Client().Set(ctx, key, encode(record), 0).Err(); err != nil {
			return nil, fmt.Errorf("sign API token %s: %w", t.ID, store.Classify(err))
		}
		signed = append(signed, record.token())
	}
	return signed, nil
}

func oldTokensKey(org string) string { return store.Key(org, "tokens") }

func (r oldRecord) token() Token {
	t := Token{ID: r.ID, Org: r.Org, Name: r.Name, Created: r.Created, Permissions: permissionsOf(r.Permissions), isOld: r.ID != ""}
	if slices.Equal(r.Permissions, beforeAudit) {
		t.Permissions = append(t.Permissions, optionsv1.Permission_PERMISSION_AUDIT_READ)
	}
	return t
}

// old: it was made by a release before tokens.go.
func (t Token) old() bool { return t.isOld }

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
