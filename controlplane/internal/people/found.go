package people

import (
	"context"
)

// Found makes the owner of an organisation that is about to be made. It can be repeated: by the same person it completes
// what died half way. ErrOwnerStands where the organisation has another member; ErrInvalid, ErrWeakPassword, ErrBadLogin
// where the account stands and has another password, ErrBusy, or an error of the store.
func (p *People) Found(ctx context.Context, org, email, password string) (Member, error) {
	address, err := ParseEmail(email)
	if err != nil {
		return Member{}, err
	}
	if err := checkPassword(password, address); err != nil {
		return Member{}, err
	}
	id, _, _, err := p.account(ctx, address, password)
	if err != nil {
		return Member{}, err
	}
	answer, version, err := p.members(ctx, org, "first", "", id, Owner, address)
	if err != nil {
		return Member{}, err
	}
	if answer != "ok" && answer != "already" {
		return Member{}, ErrOwnerStands
	}
	if err := p.joined(ctx, id, org, version); err != nil {
		return Member{}, err
	}
	return p.Member(ctx, org, id)
}
