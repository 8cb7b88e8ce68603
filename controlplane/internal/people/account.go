package people

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// kindAccount is what seals of accounts are bound to.
const kindAccount = "account"

// credential is what an account signs in with. Its record is signed as a whole, "HASH EMAIL ~SEAL", and bound to the person:
// who writes to Redis can give no account another password, nor another address to send the link of a reset to.
type credential struct {
	// raw is the record as it stands; empty: none. hash is the password's.
	raw, hash string
	// email is the account's, also where there is no password.
	email string
}

// state is Account.State.
func (c credential) state() string {
	if c.hash == "" {
		return ""
	}
	return hashOf(c.hash)
}

// credential reads what an account signs in with; its zero value where there is no account, and seal.ErrForged where this
// fleet didn't make it.
func (p *People) credential(ctx context.Context, id string) (credential, error) {
	v, err := p.store.Client().HMGet(ctx, accountKey(id), "password", "email").Result()
	if err != nil {
		return credential{}, fmt.Errorf("read account: %w", store.Classify(err))
	}
	raw, _ := v[0].(string)
	email, _ := v[1].(string)
	if raw == "" {
		return credential{email: email}, nil
	}
	text, err := p.seal.Open(ctx, kindAccount, "", id, raw)
	if err != nil {
		return credential{}, err
	}
	hash, ok := parseCredential(text, email)
	if !ok {
		return credential{}, p.seal.Forged(ctx, kindAccount, "", id)
	}
	return credential{raw: raw, hash: hash, email: email}, nil
}

// parseCredential is the hash in the text of a record, if that is bound to the account's address. One of a release that didn't sign is
// the hash alone.
func parseCredential(text, email string) (hash string, ok bool) {
	hash, signed, bound := strings.Cut(text, " ")
	return hash, !bound || signed == email
}

func (p *People) sealCredential(id, hash, email string) string {
	if p.seal.AcceptUnsigned() {
		return hash
	}
	return p.seal.Seal(kindAccount, "", id, hash+" "+email)
}

// secure puts another credential in place of c, if that still stands. secured: the password is another one, which makes
// strangers of the devices that were known before.
func (p *People) secure(ctx context.Context, id string, c credential, hash, email string, secured bool) (bool, error) {
	flag := "0"
	if secured {
		flag = "1"
	}
	done, err := secureScript.Run(ctx, p.store, []string{accountKey(id)}, c.raw, c.email, p.sealCredential(id, hash, email), email, flag).Int()
	if err != nil {
		return false, fmt.Errorf("store account: %w", err)
	}
	return done == 1, nil
}

// account is the account with an address, and whether it stood before: one is made where there is none, with this password.
// One that stands must have it: ErrBadLogin. ErrWeakPassword is of one that would be made.
//
// An account is complete before the address leads to it, and one that the address leads to is never given a first password:
// its person may be a member somewhere, and its password have been taken away by who writes to Redis.
func (p *People) account(ctx context.Context, address Email, password string) (id, state string, stood bool, err error) {
	for range alterTries {
		stands, err := p.find(ctx, address)
		if err != nil {
			return "", "", false, err
		}
		has := false
		if stands != "" {
			if has, err = p.HasPassword(ctx, stands); err != nil {
				return "", "", false, err
			}
		}
		if has {
			state, err := p.check(ctx, stands, password)
			return stands, state, true, err
		}
		if id == "" {
			if id, state, err = p.newAccount(ctx, address, password); err != nil {
				return "", "", false, err
			}
		}
		done, err := pointScript.Run(ctx, p.store, []string{emailKey(address)}, stands, id).Int()
		if err != nil {
			return "", "", false, fmt.Errorf("claim the e-mail address: %w", err)
		}
		if done == 1 {
			return id, state, false, nil
		}
		// Somebody else's account got the address this moment.
		if err := p.store.Client().Del(ctx, accountKey(id)).Err(); err != nil {
			return "", "", false, fmt.Errorf("remove account: %w", store.Classify(err))
		}
		id = ""
	}
	return "", "", false, errRace
}

// newAccount makes an account to which no address leads yet.
func (p *People) newAccount(ctx context.Context, address Email, password string) (id, state string, err error) {
	if err := checkPassword(password, address); err != nil {
		return "", "", err
	}
	hash, err := p.hasher.hash(ctx, normal(password))
	if err != nil {
		return "", "", err
	}
	id = ulid.Make().String()
	if err := p.store.Client().HSet(ctx, accountKey(id), "email", address.String(), "created", time.Now().UnixMilli(),
		"password", p.sealCredential(id, hash, address.String())).Err(); err != nil {
		return "", "", fmt.Errorf("store account: %w", store.Classify(err))
	}
	return id, hashOf(hash), nil
}

// SignAccounts seals the accounts of an organisation's members that a release left unsigned, with the addresses that they
// have, and returns those: a person shall know each of them.
func (p *People) SignAccounts(ctx context.Context, org string) ([]string, error) {
	members, err := p.Members(ctx, org)
	if err != nil {
		return nil, err
	}
	accepting := &People{store: p.store, seal: p.seal.Accepting()}
	var out []string
	for _, m := range members {
		c, err := accepting.credential(ctx, m.Person)
		switch {
		case errors.Is(err, seal.ErrForged):
			continue // sealed, and not by this fleet: said so in the log, and nothing to sign
		case err != nil:
			return out, err
		case c.raw == "" || seal.Sealed(c.raw):
			continue
		}
		done, err := p.secure(ctx, m.Person, c, c.hash, c.email, false)
		if err != nil {
			return out, err
		}
		if !done {
			return out, fmt.Errorf("%w: an account changed meanwhile: run it again", store.ErrUnavailable)
		}
		out = append(out, c.email)
	}
	return out, nil
}
