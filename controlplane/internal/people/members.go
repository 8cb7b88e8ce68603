package people

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/oklog/ulid/v2"
	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/scope"
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

var (
	//go:embed lua/members.lua
	membersText   string
	membersScript = store.NewScript("people/members", membersText)
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
		if err := p.check(ctx, id, password); err != nil {
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
		m, err := parseMember(id, raw)
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
	return parseMember(person, raw)
}

// SetRole changes a member's role in actor's right. The Member's Version is the first with the new role.
func (p *People) SetRole(ctx context.Context, org, actor, member string, role Role) (Member, error) {
	if granted[role] == nil {
		return Member{}, fmt.Errorf("%w role: owner, admin, operator or viewer is possible", ErrInvalid)
	}
	return p.change(ctx, org, "role", actor, member, role)
}

// Remove ends a membership in actor's right. With ErrNoMember it returns the Person and a Version too: who repeats a
// removal whose outcome was unknown can still have it taken notice of.
func (p *People) Remove(ctx context.Context, org, actor, member string) (Member, error) {
	m, err := p.change(ctx, org, "remove", actor, member, 0)
	if err != nil {
		return m, err
	}
	if err := p.store.Client().HDel(ctx, orgsKey(m.Person), org).Err(); err != nil {
		return m, fmt.Errorf("forget the organisation: %w", store.Classify(err))
	}
	return m, nil
}

// change finds the member by id or address.
func (p *People) change(ctx context.Context, org, what, actor, member string, role Role) (Member, error) {
	id := member
	if strings.Contains(member, "@") {
		address, err := ParseEmail(member)
		if err != nil {
			return Member{}, err
		}
		if id, err = p.find(ctx, address); err != nil {
			return Member{}, err
		}
	}
	if _, err := ulid.ParseStrict(id); err != nil {
		return Member{}, ErrNoMember
	}
	answer, version, err := p.members(ctx, org, what, actor, id, role, Email{})
	if err != nil {
		return Member{}, err
	}
	return Member{Person: id, Role: role, Version: version}, refusals[answer]
}

var refusals = map[string]error{
	"missing": ErrNoMember, "actor": ErrNotAllowed, "owner": ErrOwnersOnly, "last": ErrLastOwner,
}

func (p *People) members(ctx context.Context, org, what, actor, person string, role Role, email Email) (answer string, version uint64, err error) {
	reply, err := membersScript.Run(ctx, p.store, []string{membersKey(org)}, what, actor, person, int32(role), email.String()).Slice()
	if err != nil {
		return "", 0, fmt.Errorf("change members: %w", err)
	}
	if len(reply) == 2 {
		text, ok := reply[0].(string)
		n, isNumber := reply[1].(int64)
		if ok && isNumber && n >= 0 {
			return text, uint64(n), nil
		}
	}
	return "", 0, fmt.Errorf("change members: unexpected reply %v", reply)
}

// joined notes at the account that it belongs to an organisation: where sign-in looks.
func (p *People) joined(ctx context.Context, person, org string, at uint64) error {
	if err := p.store.Client().HSetNX(ctx, orgsKey(person), org, at).Err(); err != nil {
		return fmt.Errorf("note the organisation: %w", store.Classify(err))
	}
	return nil
}

func parseMember(id, raw string) (Member, error) {
	words := strings.Split(raw, " ")
	if len(words) != 4 {
		return Member{}, fmt.Errorf("stored member %s is damaged", id)
	}
	role, err1 := strconv.ParseInt(words[0], 10, 32)
	version, err2 := strconv.ParseUint(words[1], 10, 64)
	since, err3 := strconv.ParseInt(words[2], 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return Member{}, fmt.Errorf("stored member %s is damaged: %w", id, err)
	}
	return Member{Person: id, Role: Role(role), Version: version, Since: since, Email: words[3]}, nil
}
