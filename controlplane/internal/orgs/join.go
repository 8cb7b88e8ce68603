package orgs

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// JoinToken enrols hosts.
type JoinToken struct {
	// ID is the secret's beginning: enough to tell tokens apart, of no use to enrol.
	ID       string
	Created  int64 // Unix milliseconds
	Expires  int64 // Unix milliseconds
	Uses     uint32
	UsesLeft uint32
	Tags     map[string]string
	Note     string
	Actor    string
	// Ephemeral is after how long offline the hosts that it enrols are deleted; 0: they stay.
	Ephemeral time.Duration
	// Host is the id of the host that it enrols again; "": new ones.
	Host string
	// Secret is set by CreateJoinToken only.
	Secret string
}

// NewJoinToken says what a join token shall be.
type NewJoinToken struct {
	Life  time.Duration // 1 min to MaxJoinTokenLife; 0 is a day
	Uses  uint32        // 0 is one
	Tags  map[string]string
	Note  string
	Actor string
	// Ephemeral is a minute to MaxEphemeral, or 0: hosts stay.
	Ephemeral time.Duration
	// Host is the id of a host to enrol again, which keeps its tags; Uses is one then.
	Host string
}

// Join is what a join token gives the host that presents it.
type Join struct {
	Org  string
	ID   string
	Tags map[string]string
	// Ephemeral and Host as in JoinToken.
	Ephemeral time.Duration
	Host      string
	// Again: this public key has used the token before; nothing was consumed.
	Again bool
}

var (
	//go:embed lua/join_create.lua
	joinCreateText   string
	joinCreateScript = store.NewScript("orgs/join_create", joinCreateText)

	//go:embed lua/join_use.lua
	joinUseText   string
	joinUseScript = store.NewScript("orgs/join_use", joinUseText)
)

// CheckTag says whether k=v can be a host's tag.
func CheckTag(k, v string) error {
	if err := scope.Check(k, v); err != nil {
		return fmt.Errorf("%w %s", ErrInvalid, strings.TrimPrefix(err.Error(), "invalid "))
	}
	return nil
}

// CreateJoinToken makes a join token.
func (o *Orgs) CreateJoinToken(ctx context.Context, org string, n NewJoinToken) (JoinToken, error) {
	if n.Life == 0 {
		n.Life = 24 * time.Hour
	}
	if n.Uses == 0 {
		n.Uses = 1
	}
	switch {
	case n.Life < time.Minute || n.Life > MaxJoinTokenLife:
		return JoinToken{}, fmt.Errorf("%w life of %s: 1m to %s is possible", ErrInvalid, n.Life, MaxJoinTokenLife)
	case n.Uses > 100_000:
		return JoinToken{}, fmt.Errorf("%w uses %d: 1 to 100000 is possible", ErrInvalid, n.Uses)
	case len(n.Tags) > 16:
		return JoinToken{}, fmt.Errorf("%w tags: %d, 16 are possible", ErrInvalid, len(n.Tags))
	}
	switch {
	case n.Ephemeral != 0 && (n.Ephemeral < time.Minute || n.Ephemeral > MaxEphemeral):
		return JoinToken{}, fmt.Errorf("%w time offline of %s: 1m to %s is possible", ErrInvalid, n.Ephemeral, MaxEphemeral)
	case n.Host != "" && (n.Uses != 1 || len(n.Tags) > 0 || n.Ephemeral != 0):
		return JoinToken{}, fmt.Errorf("%w token for one host: it is good once, and the host keeps its tags and the rest", ErrInvalid)
	}
	if err := checkText("note", n.Note, 200); err != nil {
		return JoinToken{}, err
	}
	for k, v := range n.Tags {
		if err := CheckTag(k, v); err != nil {
			return JoinToken{}, err
		}
	}
	if n.Tags == nil {
		n.Tags = map[string]string{}
	}
	secret := newSecret(joinTokenPrefix)
	id, hash := secret[:joinTokenIDAt], hashSecret(secret)
	now, err := o.store.Time(ctx, org)
	if err != nil {
		return JoinToken{}, fmt.Errorf("create join token: %w", err)
	}
	kept := joinRecord{
		hash: hash, created: now.UnixMilli(), expires: now.Add(n.Life).UnixMilli(), uses: int64(n.Uses), ephemeral: n.Ephemeral.Milliseconds(), host: n.Host, tags: string(encode(n.Tags)),
	}
	made, err := joinCreateScript.Run(ctx, o.store, []string{joinKey(org, id), store.Key(org, "joins")},
		id, hash, n.Life.Milliseconds(), n.Uses, encode(n.Tags), n.Note, n.Actor, MaxJoinTokens, keptAfterExpiry.Milliseconds(),
		n.Ephemeral.Milliseconds(), n.Host, kept.created, o.sealJoin(org, id, kept)).Int()
	if err != nil {
		return JoinToken{}, fmt.Errorf("create join token: %w", err)
	}
	if made != 1 {
		return JoinToken{}, fmt.Errorf("%w number of join tokens: %d stand; revoke some", ErrInvalid, MaxJoinTokens)
	}
	// The way from the secret to the organisation comes last: a token that can be used is one that is listed.
	if err := o.store.Client().Set(ctx, store.Global("join", hash), org+" "+id, n.Life+keptAfterExpiry).Err(); err != nil {
		return JoinToken{}, fmt.Errorf("store join token: %w", store.Classify(err))
	}
	return JoinToken{
		ID: id, Created: kept.created, Expires: kept.expires, Uses: n.Uses, UsesLeft: n.Uses, Tags: n.Tags, Note: n.Note, Actor: n.Actor, Secret: secret,
		Ephemeral: n.Ephemeral, Host: n.Host,
	}, nil
}

// keptAfterExpiry is how long an expired token is still told from an unknown one.
const keptAfterExpiry = 7 * 24 * time.Hour

// UseJoinToken takes one use of a join token for a host's public key, atomically; the same key takes it once however
// often it tries, also when the token is used up since, so that an enrolment whose answer was lost can be repeated.
// ErrMalformed, ErrUnknownToken, ErrTokenExpired, ErrTokenUsedUp or an error of the store. The Join says whose token it is
// with ErrTokenExpired and ErrTokenUsedUp too.
func (o *Orgs) UseJoinToken(ctx context.Context, secret string, publicKey []byte) (Join, error) {
	if err := checkSecret(joinTokenPrefix, secret); err != nil {
		if strings.HasPrefix(secret, apiTokenPrefix) {
			return Join{}, fmt.Errorf("%w: this is an API token; a join token begins with %s", err, joinTokenPrefix)
		}
		return Join{}, err
	}
	hash := hashSecret(secret)
	where, err := o.store.Client().Get(ctx, store.Global("join", hash)).Result()
	if err != nil {
		if err := isNil(err); err != nil {
			return Join{}, fmt.Errorf("look up join token: %w", err)
		}
		return Join{}, ErrUnknownToken
	}
	org, id, ok := strings.Cut(where, " ")
	if !ok {
		return Join{}, fmt.Errorf("stored join token is damaged: %w", ErrUnknownToken)
	}
	reply, err := joinUseScript.Run(ctx, o.store, []string{joinKey(org, id), joinKey(org, id) + ":used"}, hash, publicKey).StringSlice()
	if err != nil {
		return Join{}, fmt.Errorf("use join token: %w", err)
	}
	join := Join{Org: org, ID: id}
	if reply[0] == "unknown" {
		return Join{}, ErrUnknownToken
	}
	if len(reply) != 8 {
		return Join{}, fmt.Errorf("use join token: unexpected reply of %d words", len(reply))
	}
	switch reply[0] {
	case "expired":
		return join, ErrTokenExpired
	case "used":
		return join, ErrTokenUsedUp
	case "again":
		join.Again = true
	}
	// A forged one is found out now: that its uses are taken, or its time is over, is no harm.
	if err := o.checkJoin(ctx, org, id, joinRecord{
		hash: hash, created: number(reply[4]), expires: number(reply[5]), uses: number(reply[6]), ephemeral: number(reply[2]), host: reply[3], tags: reply[1],
	}, reply[7]); err != nil {
		return Join{}, fmt.Errorf("%w: %w", ErrUnknownToken, err)
	}
	if err := json.Unmarshal([]byte(reply[1]), &join.Tags); err != nil {
		return Join{}, fmt.Errorf("stored join token %s is damaged: %w", id, err)
	}
	join.Ephemeral, join.Host = time.Duration(number(reply[2]))*time.Millisecond, reply[3]
	return join, nil
}

// kindJoin is what seals of join tokens are bound to.
const kindJoin = "join-token"

// joinRecord is what is signed of a join token: whoever writes to Redis makes none, nor gives one more uses, time or tags.
// How many uses are left is not: it changes with each.
type joinRecord struct {
	hash                              string
	created, expires, uses, ephemeral int64 // milliseconds but uses
	host, tags                        string
}

func recordOf(f map[string]string) joinRecord {
	return joinRecord{
		hash: f["hash"], created: number(f["created"]), expires: number(f["expires"]), uses: number(f["uses"]),
		ephemeral: number(f["ephemeral"]), host: f["host"], tags: f["tags"],
	}
}

func (r joinRecord) text() string {
	return fmt.Sprintf("%s %d %d %d %d %q %s", r.hash, r.created, r.expires, r.uses, r.ephemeral, r.host, r.tags)
}

func (o *Orgs) sealJoin(org, id string, r joinRecord) string {
	return strings.TrimPrefix(o.seal.Seal(kindJoin, org, id, r.text()), r.text())
}

// checkJoin is seal.ErrForged where the fleet didn't make it so.
func (o *Orgs) checkJoin(ctx context.Context, org, id string, r joinRecord, sealed string) error {
	_, err := o.seal.Open(ctx, kindJoin, org, id, r.text()+sealed)
	return err
}

// SignJoins seals an organisation's join tokens that aren't sealed, and says which: a person shall know them all.
func (o *Orgs) SignJoins(ctx context.Context, org string) (signed []string, err error) {
	client := o.store.Client()
	ids, err := client.ZRange(ctx, store.Key(org, "joins"), 0, -1).Result()
	if err != nil {
		return nil, fmt.Errorf("list join tokens: %w", store.Classify(err))
	}
	for _, id := range ids {
		f, err := client.HGetAll(ctx, joinKey(org, id)).Result()
		if err != nil {
			return signed, fmt.Errorf("read join token: %w", store.Classify(err))
		}
		if f["hash"] == "" || f["seal"] != "" {
			continue
		}
		if err := client.HSet(ctx, joinKey(org, id), "seal", o.sealJoin(org, id, recordOf(f))).Err(); err != nil {
			return signed, fmt.Errorf("sign join token %s: %w", id, store.Classify(err))
		}
		signed = append(signed, id)
	}
	return signed, nil
}

// ListJoinTokens lists the join tokens that have not expired, oldest first; used-up ones too.
func (o *Orgs) ListJoinTokens(ctx context.Context, org string) ([]JoinToken, error) {
	client := o.store.Client()
	ids, err := client.ZRange(ctx, store.Key(org, "joins"), 0, -1).Result()
	if err != nil {
		return nil, fmt.Errorf("list join tokens: %w", store.Classify(err))
	}
	now, err := o.store.Time(ctx, org)
	if err != nil {
		return nil, fmt.Errorf("list join tokens: %w", err)
	}
	commands := make([]*redis.MapStringStringCmd, len(ids))
	if _, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, id := range ids {
			commands[i] = p.HGetAll(ctx, joinKey(org, id))
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read join tokens: %w", store.Classify(err))
	}
	tokens := make([]JoinToken, 0, len(ids))
	for i, c := range commands {
		f := c.Val()
		if len(f) == 0 || number(f["expires"]) <= now.UnixMilli() {
			continue
		}
		if err := o.checkJoin(ctx, org, ids[i], recordOf(f), f["seal"]); err != nil {
			continue // it enrols nobody, and that is said in the log
		}
		t := JoinToken{
			ID: ids[i], Created: number(f["created"]), Expires: number(f["expires"]), Note: f["note"], Actor: f["actor"],
			Ephemeral: time.Duration(number(f["ephemeral"])) * time.Millisecond, Host: f["host"],
			Uses: uint32(number(f["uses"])), UsesLeft: uint32(max(0, number(f["left"]))), //nolint:gosec // at most 100,000
		}
		if err := json.Unmarshal([]byte(f["tags"]), &t.Tags); err != nil {
			return nil, fmt.Errorf("stored join token %s is damaged: %w", ids[i], err)
		}
		tokens = append(tokens, t)
	}
	return tokens, nil
}

// RevokeJoinToken ends a join token by its id, or by a beginning of it that only one token has. Hosts that it enrolled stay.
func (o *Orgs) RevokeJoinToken(ctx context.Context, org, id string) error {
	client, list := o.store.Client(), store.Key(org, "joins")
	ids, err := client.ZRange(ctx, list, 0, -1).Result()
	if err != nil {
		return fmt.Errorf("find join token: %w", store.Classify(err))
	}
	var found []string
	for _, candidate := range ids {
		if candidate == id {
			found = []string{candidate}
			break
		}
		// Four characters beyond "fbj_" at least: a person who types less doesn't mean one token.
		if len(id) >= len(joinTokenPrefix)+4 && strings.HasPrefix(candidate, id) {
			found = append(found, candidate)
		}
	}
	// Whoever pastes the whole secret means that token.
	if len(found) == 0 && checkSecret(joinTokenPrefix, id) == nil {
		return o.RevokeJoinToken(ctx, org, id[:joinTokenIDAt])
	}
	switch len(found) {
	case 0:
		return fmt.Errorf("join token: %w", ErrNotFound)
	case 1:
	default:
		return fmt.Errorf("%w id: %d join tokens begin so; write more of it", ErrInvalid, len(found))
	}
	key := joinKey(org, found[0])
	hash, err := client.HGet(ctx, key, "hash").Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return fmt.Errorf("find join token: %w", store.Classify(err))
	}
	// Gone from the organisation, it can't be used, whatever of the rest is still to be removed.
	pipe := client.TxPipeline()
	deleted := pipe.Del(ctx, key, key+":used")
	pipe.ZRem(ctx, list, found[0])
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("revoke join token: %w", store.Classify(err))
	}
	if deleted.Val() == 0 {
		return fmt.Errorf("join token: %w", ErrNotFound)
	}
	if err := client.Del(ctx, store.Global("join", hash)).Err(); err != nil {
		return fmt.Errorf("forget join token: %w", store.Classify(err))
	}
	return nil
}

// JoinTokenID is the id in what a person gave for one, who may have given the whole secret.
func JoinTokenID(s string) string { return s[:min(len(s), joinTokenIDAt)] }

func joinKey(org, id string) string { return store.Key(org, "join", id) }
