package people

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

var (
	//go:embed lua/members.lua
	membersText   string
	membersScript = store.NewScript("people/members", membersText)
)

// kindMember is what seals of memberships are bound to.
const kindMember = "member"

// alteration is one change of who belongs to an organisation.
type alteration struct {
	// what: "first" makes the person the owner of an organisation that has no members; "join" makes them a member, and one
	// who is one already stays what they are; "role" changes role and tags; "email" the address; "remove" ends it;
	// "provide" and "withdraw" are join or role, and remove, by the organisation's identity provider.
	what string
	// actor is whose right it is; of first, email, provide and withdraw, nobody's.
	actor  string
	person string
	role   Role
	tags   scope.Tags
	// keep leaves the restriction of who has one as it is.
	keep  bool
	email Email
}

// alterTries bounds how often a change is decided anew because another one came in between.
const alterTries = 20

// errRace: others changed the same members all the while.
var errRace = fmt.Errorf("%w: others change the members at this moment: try again", store.ErrUnavailable)

// alter decides and makes a change. The answers: ok, already, missing, actor (may not), owner (only owners may), last (the
// last owner), restricted (to tags, which the role can't be). Versions grow with each change and never fall; they are Redis' milliseconds.
func (p *People) alter(ctx context.Context, org string, a alteration) (answer string, was, is Member, err error) {
	for range alterTries {
		all, err := p.store.Client().HGetAll(ctx, membersKey(org)).Result()
		if err != nil {
			return "", Member{}, Member{}, fmt.Errorf("change members: %w", store.Classify(err))
		}
		// Read after the members: a version made of it is greater than that of a membership that ended before.
		now, err := p.store.Time(ctx, org)
		if err != nil {
			return "", Member{}, Member{}, fmt.Errorf("change members: %w", err)
		}
		d := decision{people: p, org: org, alteration: a, all: all, now: uint64(now.UnixMilli())} //nolint:gosec // after 1970
		answer, was, is, err := d.decide(ctx)
		if err != nil || d.args == nil {
			return answer, was, is, err
		}
		done, err := membersScript.Run(ctx, p.store, []string{membersKey(org)}, d.args...).Int()
		if err != nil {
			return "", Member{}, Member{}, fmt.Errorf("change members: %w", err)
		}
		if done == 1 {
			return answer, was, is, nil
		}
	}
	return "", Member{}, Member{}, errRace
}

// decision is what is to be done about members that were read.
type decision struct {
	alteration

	people *People
	org    string
	all    map[string]string
	now    uint64
	// args are the script's; nil where nothing is to be done.
	args []any
}

// member opens one; false where there is none.
func (d *decision) member(ctx context.Context, person string) (Member, bool, error) {
	raw, is := d.all[person]
	if !is {
		return Member{}, false, nil
	}
	m, err := d.people.openMember(ctx, d.org, person, raw)
	return m, err == nil, err
}

func (d *decision) decide(ctx context.Context) (answer string, was, is Member, err error) {
	was, stands, err := d.member(ctx, d.person)
	// A forged record is nobody's; but it isn't written over by joining either: a person should look at it.
	if err != nil {
		return "", Member{}, Member{}, err
	}
	if d.what == "first" {
		return d.first(was, stands)
	}
	if d.what == "email" {
		if !stands {
			return "missing", Member{}, Member{}, nil
		}
		is = was
		is.Email = d.email.String()
		d.write(is, -1)
		return "ok", was, is, nil
	}
	if d.what == "provide" || d.what == "withdraw" {
		return d.provided(ctx, was, stands)
	}
	by, is2, err := d.member(ctx, d.actor)
	if err != nil && !errors.Is(err, seal.ErrForged) {
		return "", Member{}, Member{}, err
	}
	if !is2 || by.Role != Owner && by.Role != Admin {
		return "actor", Member{}, Member{}, nil
	}
	if d.what == "join" {
		return d.join(by, was, stands)
	}
	return d.change(ctx, by, was, stands)
}

func (d *decision) first(was Member, stands bool) (string, Member, Member, error) {
	if stands && was.Role == Owner {
		return "already", was, was, nil
	}
	if len(d.all) > 0 {
		return "actor", Member{}, Member{}, nil
	}
	is := Member{Person: d.person, Email: d.email.String(), Role: Owner, Version: d.now, Since: int64(d.now)} //nolint:gosec // milliseconds
	d.write(is, 0)
	return "ok", Member{}, is, nil
}

func (d *decision) join(by, was Member, stands bool) (string, Member, Member, error) {
	if d.role == Owner && by.Role != Owner {
		return "owner", Member{}, Member{}, nil
	}
	if stands {
		return "already", was, was, nil
	}
	is := Member{Person: d.person, Email: d.email.String(), Role: d.role, Tags: d.tags, Version: d.now, Since: int64(d.now)} //nolint:gosec // milliseconds
	d.write(is, -1, d.actor)
	return "ok", Member{}, is, nil
}

// change is of a role, or its end.
func (d *decision) change(ctx context.Context, by, was Member, stands bool) (string, Member, Member, error) {
	if !stands {
		return "missing", Member{}, Member{Person: d.person, Version: d.now}, nil
	}
	if (was.Role == Owner || d.role == Owner) && by.Role != Owner {
		return "owner", Member{}, Member{}, nil
	}
	tags := d.tags
	if d.what == "role" && d.keep {
		if tags = was.Tags; !restrictable(d.role, tags) {
			return "restricted", was, Member{}, nil
		}
	}
	needs := []string{d.actor}
	if was.Role == Owner && d.role != Owner {
		other, err := d.otherOwner(ctx)
		if err != nil {
			return "", Member{}, Member{}, err
		}
		if other == "" {
			return "last", Member{}, Member{}, nil
		}
		needs = append(needs, other)
	}
	is := was
	is.Role, is.Tags, is.Version = d.role, tags, max(d.now, was.Version+1)
	if d.what == "remove" {
		d.args = append([]any{-1, d.person, "", d.person, d.all[d.person]}, d.pairs(needs)...)
		return "ok", was, is, nil
	}
	d.write(is, -1, needs...)
	return "ok", was, is, nil
}

// otherOwner is one that stays, "" where there is none.
func (d *decision) otherOwner(ctx context.Context) (string, error) {
	for person := range d.all {
		m, stands, err := d.member(ctx, person)
		if err != nil && !errors.Is(err, seal.ErrForged) {
			return "", err
		}
		if stands && m.Role == Owner && person != d.person {
			return person, nil
		}
	}
	return "", nil
}

// write is of m, if there are at most that many others (-1: any number) and those it was decided on are what they were.
func (d *decision) write(m Member, others int, needs ...string) {
	d.args = append([]any{others, d.person, d.people.sealMember(d.org, m), d.person, d.all[d.person]}, d.pairs(needs)...)
}

func (d *decision) pairs(persons []string) []any {
	var out []any
	for _, person := range persons {
		if person != d.person {
			out = append(out, person, d.all[person])
		}
	}
	return out
}

// members is alter without tags.
func (p *People) members(ctx context.Context, org, what, actor, person string, role Role, email Email) (answer string, version uint64, err error) {
	answer, _, is, err := p.alter(ctx, org, alteration{what: what, actor: actor, person: person, role: role, email: email})
	return answer, is.Version, err
}

func (p *People) sealMember(org string, m Member) string {
	text := strings.Join([]string{
		strconv.Itoa(int(m.Role)), strconv.FormatUint(m.Version, 10), strconv.FormatInt(m.Since, 10), m.Email,
	}, " ")
	switch {
	case !m.Tags.Whole():
		// Releases that know of no tags can't read it, and so don't overlook them.
		text += " " + strings.Join(m.Tags.Strings(), ",")
	case p.seal.AcceptUnsigned():
		return text
	}
	return p.seal.Seal(kindMember, org, m.Person, text)
}

func (p *People) openMember(ctx context.Context, org, id, raw string) (Member, error) {
	text, err := p.seal.Open(ctx, kindMember, org, id, raw)
	if err != nil {
		return Member{}, err
	}
	words := strings.Split(text, " ")
	if len(words) != 4 && len(words) != 5 {
		return Member{}, fmt.Errorf("stored member %s is damaged", id)
	}
	role, err1 := strconv.ParseInt(words[0], 10, 32)
	version, err2 := strconv.ParseUint(words[1], 10, 64)
	since, err3 := strconv.ParseInt(words[2], 10, 64)
	var tags scope.Tags
	var err4 error
	if len(words) == 5 {
		tags, err4 = scope.Parse(strings.Split(words[4], ","))
	}
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return Member{}, fmt.Errorf("stored member %s is damaged: %w", id, err)
	}
	return Member{Person: id, Role: Role(role), Version: version, Since: since, Email: words[3], Tags: tags}, nil
}
