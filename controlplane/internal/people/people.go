// Package people keeps accounts, who belongs to which organisation, and invitations.
//
// A person is one account, found by its e-mail address, and may belong to several organisations. The account's keys
// share the person's hash tag (fb:{PERSON}:account, :orgs), a membership stands with its organisation (fb:{ORG}:members)
// and what leads to them is global: fb:email:HASH, fb:invite:HASH. An account is complete before its address leads to it.
package people

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// Errors that callers decide on.
var (
	// ErrInvalid is wrapped by refusals of a value; the text says which and what would be right.
	ErrInvalid = errors.New("invalid")
	// ErrWeakPassword is wrapped by refusals of a new password.
	ErrWeakPassword = errors.New("weak")
	// ErrBadLogin: no such account, or another password. Nobody is told which.
	ErrBadLogin = errors.New("the e-mail address or the password is wrong")
)

// TooOftenError says that an address or account was tried too often.
type TooOftenError struct{ RetryAfter time.Duration }

// Wait is how long until another attempt is heard.
func (e *TooOftenError) Wait() time.Duration { return e.RetryAfter }

func (e *TooOftenError) Error() string {
	return "too many attempts: try again in " + (e.RetryAfter.Truncate(time.Second) + time.Second).String()
}

// People keeps accounts in Redis. Safe for concurrent use.
type People struct {
	store  *store.Store
	seal   *seal.Sealer
	hasher *hasher
	rate   *store.Limiter
}

// New makes a People over st, which signs with s what it keeps there.
func New(st *store.Store, s *seal.Sealer) *People {
	return &People{store: st, seal: s, hasher: newHasher(), rate: store.NewLimiter(st)}
}

// Hashed is how many passwords were hashed since the start.
func (p *People) Hashed() int64 { return p.hasher.hashed.Load() }

// Account is a person.
type Account struct {
	ID    string // ULID
	Email string
	// Orgs are the ids of the organisations that the person belongs to, the one first joined first.
	Orgs []string
	// State changes with the password: what was begun with one is not completed after a reset. SignIn sets it.
	State string
}

// SignIn finds whose address and password these are: ErrInvalid, ErrBadLogin, ErrBusy, a *TooOftenError, or an error of
// the store. from is where the person is, and on what device. It takes the same time whether there is such an account or
// not, and is refused while attempts can't be counted.
func (p *People) SignIn(ctx context.Context, email, password string, from netip.Addr, on ...Device) (Account, error) {
	address, err := ParseEmail(email)
	if err != nil {
		return Account{}, err
	}
	id, err := p.find(ctx, address)
	if err != nil {
		return Account{}, err
	}
	var device Device
	if len(on) > 0 {
		device = on[0]
	}
	if err := p.attemptFrom(ctx, address, id, from, device); err != nil {
		return Account{}, err
	}
	state, err := p.check(ctx, id, password)
	if err != nil {
		return Account{}, err
	}
	account, err := p.Account(ctx, id)
	account.State = state
	return account, err
}

// Account reads an account; ErrBadLogin where there is none, seal.ErrForged where this fleet didn't make it.
func (p *People) Account(ctx context.Context, id string) (Account, error) {
	c, err := p.credential(ctx, id)
	if err != nil {
		return Account{}, err
	}
	if c.email == "" {
		return Account{}, ErrBadLogin
	}
	joined, err := p.store.Client().HGetAll(ctx, orgsKey(id)).Result()
	if err != nil {
		return Account{}, fmt.Errorf("read the account's organisations: %w", store.Classify(err))
	}
	account := Account{ID: id, Email: c.email}
	for org := range joined {
		// Who was removed meanwhile belongs to it no more: the organisation's own list decides.
		_, err := p.Member(ctx, org, id)
		switch {
		case errors.Is(err, ErrNoMember):
		case err != nil:
			return Account{}, err
		default:
			account.Orgs = append(account.Orgs, org)
		}
	}
	slices.SortFunc(account.Orgs, func(a, b string) int {
		x, _ := strconv.ParseInt(joined[a], 10, 64)
		y, _ := strconv.ParseInt(joined[b], 10, 64)
		return int(x - y)
	})
	return account, nil
}

// ChangePassword replaces a password by who knows it: ErrBadLogin, ErrWeakPassword, and what SignIn returns. The caller
// ends the sessions that the old one began.
func (p *People) ChangePassword(ctx context.Context, id, password, next string, _ netip.Addr) error {
	c, err := p.credential(ctx, id)
	if err != nil && !errors.Is(err, seal.ErrForged) {
		return err
	}
	address, err := ParseEmail(c.email)
	if err != nil {
		return ErrBadLogin
	}
	if err := p.Check(ctx, id, password); err != nil {
		return err
	}
	if err := checkPassword(next, address); err != nil {
		return err
	}
	hash, err := p.hasher.hash(ctx, normal(next))
	if err != nil {
		return err
	}
	// A reset in between is what the person wants: who knew the former password doesn't undo it.
	done, err := p.secure(ctx, id, c, hash, c.email, true)
	if err != nil {
		return err
	}
	if !done {
		return ErrBadLogin
	}
	return nil
}

// Check verifies the password of a person who is signed in: ErrBadLogin, ErrBusy, *TooOftenError. Attempts are counted for
// the person, apart from those of who isn't signed in.
func (p *People) Check(ctx context.Context, id, password string) error {
	if err := p.count(ctx, limit{store.Key(id, "checks"), attemptsOnDevice}); err != nil {
		return err
	}
	_, err := p.check(ctx, id, password)
	return err
}

// check verifies a password; ErrBadLogin where it is another one or there is no account.
func (p *People) check(ctx context.Context, id, password string) (state string, err error) {
	if id == "" {
		id = nobody // the same work
	}
	c, err := p.credential(ctx, id)
	if err != nil && !errors.Is(err, seal.ErrForged) {
		return "", err
	}
	// A forged one is nobody's password; it takes as long to say so.
	right, err := p.hasher.verify(ctx, c.hash, normal(password))
	if err != nil {
		return "", err
	}
	if !right {
		return "", ErrBadLogin
	}
	return c.state(), nil
}

// State is Account.State as it is now; "" without a password.
func (p *People) State(ctx context.Context, id string) (string, error) {
	c, err := p.credential(ctx, id)
	return c.state(), err
}

// find is the id behind an address, "" where there is none.
func (p *People) find(ctx context.Context, address Email) (string, error) {
	id, err := p.store.Client().Get(ctx, emailKey(address)).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return "", fmt.Errorf("look up the e-mail address: %w", store.Classify(err))
	}
	return id, nil
}

func hashOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func emailKey(e Email) string        { return store.Global("email", hashOf(e.String())) }
func accountKey(id string) string    { return store.Key(id, "account") }
func orgsKey(id string) string       { return store.Key(id, "orgs") }
func membersKey(org string) string   { return store.Key(org, "members") }
func inviteKey(secret string) string { return store.Global("invite", hashOf(secret)) }
