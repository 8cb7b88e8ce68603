package people

import (
	"context"
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// NewProvided makes an account that only an organisation's identity provider vouches for: it has no password, and its
// address leads to nobody. So no provider can take an address, or what another organisation gives to it.
func (p *People) NewProvided(ctx context.Context, address Email) (id string, err error) {
	id = ulid.Make().String()
	if err := p.store.Client().HSet(ctx, accountKey(id), "email", address.String(), "created", time.Now().UnixMilli()).Err(); err != nil {
		return "", fmt.Errorf("store account: %w", store.Classify(err))
	}
	return id, nil
}

// Provide makes a person what their organisation's identity provider says: a member with this role and these tags. In is's
// Version of a changed one, older access tokens are refused. ErrLastOwner, ErrInvalid or an error of the store.
func (p *People) Provide(ctx context.Context, org, person string, address Email, role Role, tags scope.Tags) (was, is Member, err error) {
	if err := checkRole(role, tags); err != nil {
		return Member{}, Member{}, err
	}
	answer, was, is, err := p.alter(ctx, org, alteration{what: "provide", person: person, role: role, tags: tags, email: address})
	if err != nil {
		return Member{}, Member{}, err
	}
	if err := refusals[answer]; err != nil {
		return was, is, err
	}
	return was, is, p.joined(ctx, person, org, is.Version)
}

// Withdraw ends a membership because the identity provider says so. ErrNoMember and ErrLastOwner as Remove.
func (p *People) Withdraw(ctx context.Context, org, person string) (was, is Member, err error) {
	answer, was, is, err := p.alter(ctx, org, alteration{what: "withdraw", person: person})
	if err != nil {
		return Member{}, Member{}, err
	}
	if err := refusals[answer]; err != nil {
		return was, is, err
	}
	if err := p.store.Client().HDel(ctx, orgsKey(person), org).Err(); err != nil {
		return was, is, fmt.Errorf("forget the organisation: %w", store.Classify(err))
	}
	return was, is, nil
}

// provided decides what an identity provider asks for.
func (d *decision) provided(ctx context.Context, was Member, stands bool) (string, Member, Member, error) {
	provider := Member{Role: Owner} // an owner chose it
	if d.what == "withdraw" {
		d.what = "remove"
		return d.change(ctx, provider, was, stands)
	}
	if !stands {
		return d.join(provider, was, false)
	}
	if was.Role == d.role && fmt.Sprint(was.Tags.Strings()) == fmt.Sprint(d.tags.Strings()) {
		return "already", was, was, nil
	}
	return d.change(ctx, provider, was, stands)
}

// HasPassword reports whether a person can sign in without a provider.
func (p *People) HasPassword(ctx context.Context, person string) (bool, error) {
	has, err := p.store.Client().HExists(ctx, accountKey(person), "password").Result()
	if err != nil {
		return false, fmt.Errorf("read account: %w", store.Classify(err))
	}
	return has, nil
}
