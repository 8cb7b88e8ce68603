package orgs

import (
	"context"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
)

// ParseSecret is parseTokenSecret.
func ParseSecret(secret string) (org, id string, err error) { return parseTokenSecret(secret) }

// SecretFor is a well-formed secret of an organisation.
func SecretFor(org, _ string) string {
	_, secret, err := newTokenSecret(org, true)
	if err != nil {
		panic(err)
	}
	return secret
}

// OldSecret is one as older releases made them, and its hash.
func OldSecret() (secret, hash string) {
	secret = newSecret(apiTokenPrefix)
	return secret, hashSecret(secret)
}

// Seed makes n tokens named by their number as AddToken does, many in a round trip.
func (o *Orgs) Seed(ctx context.Context, org string, n int) (secrets []string, err error) {
	now := time.Now()
	for from := 0; from < n; from += 2000 {
		pipe := o.store.Client().Pipeline()
		var records []any
		var ids []redis.Z
		for i := from; i < min(n, from+2000); i++ {
			token, sealed, err := o.newToken(org, NewToken{
				Name: "token " + strconv.Itoa(i), Permissions: []optionsv1.Permission{optionsv1.Permission_PERMISSION_FLEET_READ}, By: "ada@example.com", Life: time.Hour,
			}, now)
			if err != nil {
				return nil, err
			}
			records, ids, secrets = append(records, token.ID, sealed), append(ids, redis.Z{Member: token.ID}), append(secrets, token.Secret)
		}
		pipe.HSet(ctx, tokensKey(org), records...)
		pipe.ZAdd(ctx, tokenIDsKey(org, ""), ids...)
		if _, err := pipe.Exec(ctx); err != nil {
			return nil, err
		}
	}
	return secrets, nil
}
