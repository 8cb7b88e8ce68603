package sso

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// kindSubject is what seals of subjects are bound to.
const kindSubject = "subject"

// person finds or makes who a provider's subject is here, and makes them what their groups say.
func (s *SSO) person(ctx context.Context, org string, p Provider, c claims) (people.Account, error) {
	address, err := people.ParseEmail(c.email)
	switch {
	case err != nil:
		return people.Account{}, fmt.Errorf("%w: the identity provider gives no e-mail address that can be used", ErrRefused)
	case !c.verified:
		return people.Account{}, fmt.Errorf("%w: the identity provider has not verified the address %s", ErrRefused, address)
	case !p.vouchesFor(address):
		return people.Account{}, fmt.Errorf("%w: the identity provider may not vouch for the address %s", ErrRefused, address)
	}
	role, tags, may := p.role(c.groups)
	field := hashOf(p.Issuer + "\n" + c.subject)
	id, err := s.linked(ctx, org, field)
	if err != nil {
		return people.Account{}, err
	}
	if !may {
		if id == p.BreakGlass {
			id = "" // who is kept for the day on which the provider fails is kept from it
		}
		return people.Account{}, errors.Join(s.withdraw(ctx, org, id),
			fmt.Errorf("%w: none of your groups may do anything here; ask an owner", ErrRefused))
	}
	if id == "" {
		if id, err = s.link(ctx, org, field, address); err != nil {
			return people.Account{}, err
		}
	}
	account, err := s.o.People.Account(ctx, id)
	if err != nil {
		return people.Account{}, fmt.Errorf("read the account: %w", err)
	}
	for _, other := range account.Orgs {
		if other != org {
			// Whoever runs this provider must not act for them there, nor change what they sign in there with.
			return people.Account{}, fmt.Errorf("%w: your account belongs to another organisation too; sign in with its password", ErrRefused)
		}
	}
	if id != p.BreakGlass {
		was, is, err := s.o.People.Provide(ctx, org, id, address, role, tags)
		if errors.Is(err, people.ErrLastOwner) {
			is, err = was, nil // stays what it is: an organisation keeps an owner
		}
		if err != nil {
			return people.Account{}, fmt.Errorf("set the role: %w", err)
		}
		if was.Version != 0 && was.Version != is.Version {
			if err := s.o.Changed(ctx, org, is); err != nil {
				return people.Account{}, err
			}
		}
	}
	return s.o.People.Account(ctx, id)
}

// linked is who the subject is, "" where it is new.
func (s *SSO) linked(ctx context.Context, org, field string) (string, error) {
	raw, err := s.o.Store.Client().HGet(ctx, linkKey(org), field).Result()
	if errors.Is(err, redis.Nil) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("find the subject: %w", store.Classify(err))
	}
	return s.o.Seal.Open(ctx, kindSubject, org, field, raw)
}

// link finds who a new subject is: a member with this address, or a new account.
func (s *SSO) link(ctx context.Context, org, field string, address people.Email) (string, error) {
	members, err := s.o.People.Members(ctx, org)
	if err != nil {
		return "", err
	}
	id := ""
	for _, m := range members {
		if m.Email != address.String() {
			continue
		}
		account, err := s.o.People.Account(ctx, m.Person)
		if err != nil {
			return "", err
		}
		if len(account.Orgs) != 1 || account.Orgs[0] != org {
			return "", fmt.Errorf("%w: your account belongs to another organisation too; sign in with its password", ErrRefused)
		}
		id = m.Person
	}
	if id == "" {
		if id, err = s.o.People.NewProvided(ctx, address); err != nil {
			return "", err
		}
	}
	// Of two that come at once the first stays.
	if err := s.o.Store.Client().HSetNX(ctx, linkKey(org), field, s.o.Seal.Seal(kindSubject, org, field, id)).Err(); err != nil {
		return "", fmt.Errorf("note the subject: %w", store.Classify(err))
	}
	return s.linked(ctx, org, field)
}

// withdraw ends what the provider gave.
func (s *SSO) withdraw(ctx context.Context, org, id string) error {
	if id == "" {
		return nil
	}
	_, is, err := s.o.People.Withdraw(ctx, org, id)
	switch {
	case errors.Is(err, people.ErrNoMember), errors.Is(err, people.ErrLastOwner):
		return nil
	case err != nil:
		return fmt.Errorf("end the membership: %w", err)
	}
	return s.o.Changed(ctx, org, is)
}
