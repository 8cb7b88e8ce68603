package people

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/oklog/ulid/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// Errors of changes of members.
var (
	// ErrNoMember: no such member.
	ErrNoMember = errors.New("no such member")
	// ErrOwnersOnly: only owners make, change and remove owners.
	ErrOwnersOnly = errors.New("only an owner may do this to an owner")
	// ErrNotAllowed: who asks, or who invited, is no owner or admin any more.
	ErrNotAllowed = errors.New("whose right this was has it no more")
	// ErrLastOwner: an organisation keeps one.
	ErrLastOwner = errors.New("this is the last owner")
	// ErrRestricted: the member is restricted to tags, which the role can't be.
	ErrRestricted = errors.New("the member is restricted to some hosts, which this role can't be")
	// ErrAmbiguous: several members have the address.
	ErrAmbiguous = errors.New("several members have this address")
	// ErrOwnerStands: the first owner was made before.
	ErrOwnerStands = errors.New("the organisation has its first owner already")
)

// Member is one person in one organisation.
type Member struct {
	Person string
	Email  string
	Role   Role
	// Tags restrict an operator or viewer to hosts that have one of them; none is the whole fleet.
	Tags scope.Tags
	// Version grows with each change of the role: access tokens of an older one are refused.
	Version uint64
	Since   int64 // Unix milliseconds
}

// Members lists an organisation's members, owners first, then by address.
func (p *People) Members(ctx context.Context, org string) ([]Member, error) {
	all, err := p.store.Client().HGetAll(ctx, membersKey(org)).Result()
	if err != nil {
		return nil, fmt.Errorf("list members: %w", store.Classify(err))
	}
	members := make([]Member, 0, len(all))
	for id, raw := range all {
		m, err := p.openMember(ctx, org, id, raw)
		if errors.Is(err, seal.ErrForged) {
			continue // nobody, and said so in the log
		}
		if err != nil {
			return nil, err
		}
		members = append(members, m)
	}
	slices.SortFunc(members, func(a, b Member) int { return cmp.Or(int(a.Role)-int(b.Role), strings.Compare(a.Email, b.Email)) })
	return members, nil
}

// Member reads one; ErrNoMember where the person doesn't belong to the organisation.
func (p *People) Member(ctx context.Context, org, person string) (Member, error) {
	raw, err := p.store.Client().HGet(ctx, membersKey(org), person).Result()
	if errors.Is(err, redis.Nil) {
		return Member{}, ErrNoMember
	}
	if err != nil {
		return Member{}, fmt.Errorf("read member: %w", store.Classify(err))
	}
	return p.openMember(ctx, org, person, raw)
}

// Restriction says what hosts a member shall be restricted to from now on: those with one of Tags; Lift ends it. The zero
// Restriction leaves it as it is.
type Restriction struct {
	Tags scope.Tags
	Lift bool
}

// SetRole changes a member's role and restriction in actor's right: ErrRestricted where the role can't have the restriction
// that stands. Of the Members, Version of the latter is the first that has it.
func (p *People) SetRole(ctx context.Context, org, actor, member string, role Role, to Restriction) (was, is Member, err error) {
	if err := checkRole(role, to.Tags); err != nil {
		return Member{}, Member{}, err
	}
	return p.change(ctx, org, "role", actor, member, role, to)
}

// checkRole: owners and admins steer the organisation, of which a part of the fleet is no part.
func checkRole(role Role, tags scope.Tags) error {
	if granted[role] == nil {
		return fmt.Errorf("%w role: owner, admin, operator or viewer is possible", ErrInvalid)
	}
	if !restrictable(role, tags) {
		return fmt.Errorf("%w tags: only operators and viewers can be restricted to some", ErrInvalid)
	}
	return nil
}

// restrictable reports whether a role can be that of a part of the fleet only, where tags name one.
func restrictable(role Role, tags scope.Tags) bool {
	return tags.Whole() || role == Operator || role == Viewer
}

// Remove ends a membership in actor's right. With ErrNoMember it returns the Person and a Version too: who repeats a
// removal whose outcome was unknown can still have it taken notice of.
func (p *People) Remove(ctx context.Context, org, actor, member string) (was, is Member, err error) {
	was, is, err = p.change(ctx, org, "remove", actor, member, 0, Restriction{})
	if err != nil {
		return was, is, err
	}
	if err := p.store.Client().HDel(ctx, orgsKey(is.Person), org).Err(); err != nil {
		return was, is, fmt.Errorf("forget the organisation: %w", store.Classify(err))
	}
	return was, is, nil
}

// Find reads the member with an id or address: ErrNoMember, ErrAmbiguous, ErrInvalid.
func (p *People) Find(ctx context.Context, org, member string) (Member, error) {
	id, err := p.named(ctx, org, member)
	if err != nil {
		return Member{}, err
	}
	return p.Member(ctx, org, id)
}

// named is the id of the member with an id or address. Not every member's address leads to an account: those of an identity
// provider's people don't. Who was a member before is found by what the address leads to.
func (p *People) named(ctx context.Context, org, member string) (id string, err error) {
	if !strings.Contains(member, "@") {
		if _, err := ulid.ParseStrict(member); err != nil {
			return "", ErrNoMember
		}
		return member, nil
	}
	address, err := ParseEmail(member)
	if err != nil {
		return "", err
	}
	all, err := p.Members(ctx, org)
	if err != nil {
		return "", err
	}
	for _, m := range all {
		switch {
		case m.Email != address.String():
		case id != "":
			return "", ErrAmbiguous
		default:
			id = m.Person
		}
	}
	if id == "" {
		if id, err = p.find(ctx, address); err == nil && id == "" {
			err = ErrNoMember
		}
	}
	return id, err
}

// change is alter of a member who is named by id or address.
func (p *People) change(ctx context.Context, org, what, actor, member string, role Role, to Restriction) (was, is Member, err error) {
	id, err := p.named(ctx, org, member)
	if err != nil {
		return Member{}, Member{}, err
	}
	answer, was, is, err := p.alter(ctx, org, alteration{what: what, actor: actor, person: id, role: role, tags: to.Tags, keep: len(to.Tags) == 0 && !to.Lift})
	if err != nil {
		return Member{}, Member{}, err
	}
	return was, is, refusals[answer]
}

var refusals = map[string]error{
	"missing": ErrNoMember, "actor": ErrNotAllowed, "owner": ErrOwnersOnly, "last": ErrLastOwner, "restricted": ErrRestricted,
}

// joined notes at the account that it belongs to an organisation: where sign-in looks.
func (p *People) joined(ctx context.Context, person, org string, at uint64) error {
	if err := p.store.Client().HSetNX(ctx, orgsKey(person), org, at).Err(); err != nil {
		return fmt.Errorf("note the organisation: %w", store.Classify(err))
	}
	return nil
}
