package people

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// ErrBadLink says that the link of a reset or of a new address is unknown, expired, used, or was overtaken by a change.
var ErrBadLink = errors.New("the link is unknown, used or expired")

const (
	// ResetLife is how long a link to a new password can be used.
	ResetLife = 30 * time.Minute
	// EmailLife is how long one to a new address can.
	EmailLife = 24 * time.Hour

	resetPrefix = "fbp_"
	emailPrefix = "fbe_"

	// kindLink is what seals of links are bound to.
	kindLink = "link"

	// linksPerAddress is how many links an address (an IPv6 /64 counts as one) may ask for or try in an hour; mailsPerAccount
	// how many mails go to one address of somebody who may not have asked for them; linksPerPerson how many addresses somebody
	// who is signed in may have mailed to.
	linksPerAddress = 30
	mailsPerAccount = 5
	linksPerPerson  = 5
)

var (
	//go:embed lua/secure.lua
	secureText   string
	secureScript = store.NewScript("people/secure", secureText)

	//go:embed lua/point.lua
	pointText   string
	pointScript = store.NewScript("people/point", pointText)
)

// link is one as stored under the hash of its secret. It is good as long as the account's address and password are what they
// were when it was made.
type link struct {
	Person string `json:"person"`
	Email  string `json:"email"`
	State  string `json:"state"`
	New    string `json:"new,omitempty"`
}

// Link is one that was made: Secret is kept nowhere.
type Link struct {
	Secret  string
	Account Account
	Expires time.Time
}

// MayAskForLinks counts one call about links from an address; *TooOftenError.
func (p *People) MayAskForLinks(ctx context.Context, from netip.Addr) error {
	if !from.IsValid() {
		return nil
	}
	return p.perHour(ctx, store.Global("link", "address", Group(from)), linksPerAddress)
}

// MayMail counts one mail to an address that somebody else may have asked for; *TooOftenError.
func (p *People) MayMail(ctx context.Context, address Email) error {
	return p.perHour(ctx, store.Global("link", "mail", hashOf(address.String())), mailsPerAccount)
}

func (p *People) perHour(ctx context.Context, key string, n int) error {
	result, err := p.rate.Allow(ctx, key, redis_rate.PerHour(n))
	if err != nil {
		return fmt.Errorf("count links: %w", store.Classify(err))
	}
	if result.Allowed < 1 {
		return &TooOftenError{RetryAfter: result.RetryAfter}
	}
	return nil
}

// BeginReset makes a link by which a password can be set anew; ErrBadLogin where there is no account with a password.
func (p *People) BeginReset(ctx context.Context, address Email) (Link, error) {
	id, err := p.find(ctx, address)
	if err != nil {
		return Link{}, err
	}
	if id == "" {
		return Link{}, ErrBadLogin
	}
	account, err := p.Account(ctx, id)
	if err != nil {
		return Link{}, err
	}
	if account.State, err = p.State(ctx, id); err != nil {
		return Link{}, err
	}
	if account.State == "" || account.Email != address.String() {
		return Link{}, ErrBadLogin
	}
	return p.makeLink(ctx, resetPrefix, ResetLife, account, "")
}

func (p *People) makeLink(ctx context.Context, prefix string, life time.Duration, account Account, next string) (Link, error) {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails: crypto/rand ends the program instead
	secret := prefix + base64.RawURLEncoding.EncodeToString(raw[:])
	body, err := json.Marshal(link{Person: account.ID, Email: account.Email, State: account.State, New: next})
	if err != nil {
		return Link{}, fmt.Errorf("make link: %w", err)
	}
	if err := p.store.Client().Set(ctx, linkKey(secret), p.seal.Seal(kindLink, "", hashOf(secret), string(body)), life).Err(); err != nil {
		return Link{}, fmt.Errorf("store link: %w", store.Classify(err))
	}
	return Link{Secret: secret, Account: account, Expires: time.Now().Add(life)}, nil
}

// findLink is what a secret stands for, and what the account signs in with: ErrBadLink where it isn't good.
func (p *People) findLink(ctx context.Context, prefix, secret string) (l link, stands credential, err error) {
	if !strings.HasPrefix(secret, prefix) {
		return link{}, credential{}, ErrBadLink
	}
	raw, err := p.store.Client().Get(ctx, linkKey(secret)).Result()
	if errors.Is(err, redis.Nil) {
		return link{}, credential{}, ErrBadLink
	}
	if err != nil {
		return link{}, credential{}, fmt.Errorf("look up link: %w", store.Classify(err))
	}
	body, err := p.seal.Open(ctx, kindLink, "", hashOf(secret), raw)
	if errors.Is(err, seal.ErrForged) {
		return link{}, credential{}, ErrBadLink
	}
	if err != nil {
		return link{}, credential{}, err
	}
	if err := json.Unmarshal([]byte(body), &l); err != nil {
		return link{}, credential{}, fmt.Errorf("stored link is damaged: %w", err)
	}
	stands, err = p.credential(ctx, l.Person)
	if errors.Is(err, seal.ErrForged) {
		return link{}, credential{}, ErrBadLink
	}
	if err != nil {
		return link{}, credential{}, err
	}
	if stands.state() == "" || stands.state() != l.State || stands.email != l.Email && (l.New == "" || stands.email != l.New) {
		return link{}, credential{}, ErrBadLink
	}
	return l, stands, nil
}

// ResetPassword sets a password by the secret of a link, once: ErrBadLink, ErrWeakPassword (the link stays good), ErrBusy.
// end ends the person's sessions; it is called before and after the change, so that none of the former password is left,
// nor one that began meanwhile.
func (p *People) ResetPassword(ctx context.Context, secret, password string, end func(ctx context.Context, person string) error) (Account, error) {
	l, stands, err := p.findLink(ctx, resetPrefix, secret)
	if err != nil {
		return Account{}, err
	}
	address, err := ParseEmail(l.Email)
	if err != nil {
		return Account{}, fmt.Errorf("stored link is damaged: %w", err)
	}
	if err := checkPassword(password, address); err != nil {
		return Account{}, err
	}
	hash, err := p.hasher.hash(ctx, normal(password))
	if err != nil {
		return Account{}, err
	}
	if err := end(ctx, l.Person); err != nil {
		return Account{}, err
	}
	// Of many who use it at once, or use two links, one finds the password as it was.
	done, err := p.secure(ctx, l.Person, stands, hash, l.Email, true)
	if err != nil {
		return Account{}, err
	}
	if !done {
		return Account{}, ErrBadLink
	}
	if err := end(ctx, l.Person); err != nil {
		return Account{}, err
	}
	if err := p.store.Client().Del(ctx, linkKey(secret)).Err(); err != nil {
		return Account{}, fmt.Errorf("use link: %w", store.Classify(err)) // it is good for nothing: the password is another one
	}
	return p.Account(ctx, l.Person)
}

// BeginEmail makes the link by which a person's address becomes another one: ErrInvalid, *TooOftenError. Whether that has
// an account shows when the link is used.
func (p *People) BeginEmail(ctx context.Context, id string, next Email) (Link, error) {
	account, err := p.Account(ctx, id)
	if err != nil {
		return Link{}, err
	}
	if account.Email == next.String() {
		return Link{}, fmt.Errorf("%w e-mail address: it is yours already", ErrInvalid)
	}
	if account.State, err = p.State(ctx, id); err != nil {
		return Link{}, err
	}
	if err := p.perHour(ctx, store.Key(id, "links"), linksPerPerson); err != nil {
		return Link{}, err
	}
	if err := p.MayMail(ctx, next); err != nil {
		return Link{}, err
	}
	return p.makeLink(ctx, emailPrefix, EmailLife, account, next.String())
}

// ErrTaken says that there is another account with the address.
var ErrTaken = errors.New("there is another account with this address")

// ConfirmEmail changes an address by the secret of a link, once: ErrBadLink, ErrTaken. Account.Email is the new one, was the
// former. Repeated after it died half way, it completes what was begun.
func (p *People) ConfirmEmail(ctx context.Context, secret string) (account Account, was string, err error) {
	l, stands, err := p.findLink(ctx, emailPrefix, secret)
	if err != nil {
		return Account{}, "", err
	}
	next, err := ParseEmail(l.New)
	if err != nil {
		return Account{}, "", fmt.Errorf("stored link is damaged: %w", err)
	}
	former, err := ParseEmail(l.Email)
	if err != nil {
		return Account{}, "", fmt.Errorf("stored link is damaged: %w", err)
	}
	if err := p.take(ctx, next, l.Person); err != nil {
		return Account{}, "", err
	}
	if stands.email == l.Email {
		if _, err := p.secure(ctx, l.Person, stands, stands.hash, l.New, false); err != nil {
			return Account{}, "", err
		}
	}
	account, err = p.Account(ctx, l.Person)
	if err != nil {
		return Account{}, "", err
	}
	if account.Email != l.New {
		return Account{}, "", ErrBadLink // the password was changed this moment, or another link used
	}
	for _, org := range account.Orgs {
		if _, _, err := p.members(ctx, org, "email", "", l.Person, 0, next); err != nil {
			return Account{}, "", err
		}
	}
	if _, err := pointScript.Run(ctx, p.store, []string{emailKey(former)}, l.Person, "").Int(); err != nil {
		return Account{}, "", fmt.Errorf("give the former address back: %w", err)
	}
	if err := p.store.Client().Del(ctx, linkKey(secret)).Err(); err != nil {
		return Account{}, "", fmt.Errorf("use link: %w", store.Classify(err))
	}
	return account, l.Email, nil
}

// take makes an address lead to a person: ErrTaken where it leads to another one's account.
func (p *People) take(ctx context.Context, address Email, id string) error {
	if err := p.store.Client().SetNX(ctx, emailKey(address), id, 0).Err(); err != nil {
		return fmt.Errorf("claim the e-mail address: %w", store.Classify(err))
	}
	stands, err := p.find(ctx, address)
	if err != nil || stands == id {
		return err
	}
	if made, err := p.begun(ctx, stands); err != nil {
		return err
	} else if made {
		return ErrTaken
	}
	done, err := pointScript.Run(ctx, p.store, []string{emailKey(address)}, stands, id).Int()
	if err != nil {
		return fmt.Errorf("claim the e-mail address: %w", err)
	}
	if done != 1 {
		return ErrTaken
	}
	return nil
}

// begun reports whether anything stands of an account.
func (p *People) begun(ctx context.Context, id string) (bool, error) {
	n, err := p.store.Client().Exists(ctx, accountKey(id)).Result()
	if err != nil {
		return false, fmt.Errorf("read account: %w", store.Classify(err))
	}
	return n > 0, nil
}

func linkKey(secret string) string { return store.Global("link", hashOf(secret)) }
