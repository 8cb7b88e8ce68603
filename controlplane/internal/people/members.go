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

// FirstOwner makes the account and the owner of an organisation that has no members. Of concurrent callers exactly one
// gets a Member; the others get ErrOwnerStands. One that died half way is completed by the next with the same address.
func (p *People) FirstOwner(ctx context.Context, org, email, password string) (Member, error) {
	address, err := ParseEmail(email)
	if err != nil {
		return Member{}, err
	}
	if err := checkPassword(password, address); err != nil {
		return Member{}, err
	}
	hash, err := p.hasher.hash(ctx, normal(password))
	if err != nil {
		return Member{}, err
	}
	id, err := p.claim(ctx, address)
	if err != nil {
		return Member{}, err
	}
	stood, err := p.store.Client().HExists(ctx, accountKey(id), "password").Result()
	if err != nil {
		return Member{}, fmt.Errorf("read account: %w", store.Classify(err))
	}
	if stood {
		// Of another organisation: its password is the proof, and who is made an owner first decides.
		if _, err := p.check(ctx, id, password); err != nil {
			return Member{}, err
		}
	}
	answer, version, err := p.members(ctx, org, "first", "", id, Owner, address)
	if err != nil {
		return Member{}, err
	}
	if answer == "actor" || answer == "already" && stood {
		return Member{}, ErrOwnerStands
	}
	if err := p.joined(ctx, id, org, version); err != nil {
		return Member{}, err
	}
	if !stood {
		// Who gives it its password decides between those with one address, all of whom are this owner.
		made, err := p.create(ctx, id, address, hash)
		if err != nil {
			return Member{}, err
		}
		if !made {
			return Member{}, ErrOwnerStands
		}
	}
	return Member{Person: id, Email: address.String(), Role: Owner, Version: version, Since: int64(version)}, nil
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

// SetRole changes a member's role and tags in actor's right. Of the Members, Version of the latter is the first that has it.
func (p *People) SetRole(ctx context.Context, org, actor, member string, role Role, tags scope.Tags) (was, is Member, err error) {
	if err := checkRole(role, tags); err != nil {
		return Member{}, Member{}, err
	}
	return p.change(ctx, org, "role", actor, member, role, tags)
}

// checkRole: owners and admins steer the organisation, of which a part of the fleet is no part.
func checkRole(role Role, tags scope.Tags) error {
	if granted[role] == nil {
		return fmt.Errorf("%w role: owner, admin, operator or viewer is possible", ErrInvalid)
	}
	if !tags.Whole() && role != Operator && role != Viewer {
		return fmt.Errorf("%w tags: only operators and viewers can be restricted to some", ErrInvalid)
	}
	return nil
}

// Remove ends a membership in actor's right. With ErrNoMember it returns the Person and a Version too: who repeats a
// removal whose outcome was unknown can still have it taken notice of.
func (p *People) Remove(ctx context.Context, org, actor, member string) (was, is Member, err error) {
	was, is, err = p.change(ctx, org, "remove", actor, member, 0, nil)
	if err != nil {
		return was, is, err
	}
	if err := p.store.Client().HDel(ctx, orgsKey(is.Person), org).Err(); err != nil {
		return was, is, fmt.Errorf("forget the organisation: %w", store.Classify(err))
	}
	return was, is, nil
}

// change finds the member by id or address.
func (p *People) change(ctx context.Context, org, what, actor, member string, role Role, tags scope.Tags) (was, is Member, err error) {
	id := member
	if strings.Contains(member, "@") {
		address, err := ParseEmail(member)
		if err != nil {
			return Member{}, Member{}, err
		}
		if id, err = p.find(ctx, address); err != nil {
			return Member{}, Member{}, err
		}
	}
	if _, err := ulid.ParseStrict(id); err != nil {
		return Member{}, Member{}, ErrNoMember
	}
	answer, was, is, err := p.alter(ctx, org, alteration{what: what, actor: actor, person: id, role: role, tags: tags})
	if err != nil {
		return Member{}, Member{}, err
	}
	return was, is, refusals[answer]
}

var refusals = map[string]error{
	"missing": ErrNoMember, "actor": ErrNotAllowed, "owner": ErrOwnersOnly, "last": ErrLastOwner,
}

// joined notes at the account that it belongs to an organisation: where sign-in looks.
func (p *People) joined(ctx context.Context, person, org string, at uint64) error {
	if err := p.store.Client().HSetNX(ctx, orgsKey(person), org, at).Err(); err != nil {
		return fmt.Errorf("note the organisation: %w", store.Classify(err))
	}
	return nil
}
