package people

import (
	"context"
)

// Found makes the owner of an organisation that is about to be made. It can be repeated: by the same person it completes
// what died half way. ErrOwnerStands where the organisation has another member; ErrInvalid, ErrWeakPassword, ErrBadLogin
// where the account stands and has another password, ErrBusy, or an error of the store.
func (p *People) Found(ctx context.Context, org, email, password string) (Member, error) {
	id, _, err := p.found(ctx, org, email, password)
	if err != nil {
		return Member{}, err
	}
	return p.Member(ctx, org, id)
}

// FirstOwner is Found for an organisation that stands and has no members: of concurrent callers exactly one gets a Member, the
// others get ErrOwnerStands. One that died half way is completed by the next with the same address.
func (p *People) FirstOwner(ctx context.Context, org, email, password string) (Member, error) {
	id, already, err := p.found(ctx, org, email, password)
	if err != nil {
		return Member{}, err
	}
	if already {
		return Member{}, ErrOwnerStands
	}
	return p.Member(ctx, org, id)
}

// found makes the account and the membership; already says that the person was the owner before.
func (p *People) found(ctx context.Context, org, email, password string) (id string, already bool, err error) {
	address, err := ParseEmail(email)
	if err != nil {
		return "", false, err
	}
	if err := checkPassword(password, address); err != nil {
		return "", false, err
	}
	id, _, _, err = p.account(ctx, address, password)
	if err != nil {
		return "", false, err
	}
	answer, version, err := p.members(ctx, org, "first", "", id, Owner, address)
	if err != nil {
		return "", false, err
	}
	if answer != "ok" && answer != "already" {
		return "", false, ErrOwnerStands
	}
	return id, answer == "already", p.joined(ctx, id, org, version)
}
