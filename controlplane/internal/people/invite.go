package people

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// ErrBadInvitation says that an invitation is unknown, expired or used.
var ErrBadInvitation = errors.New("the invitation is unknown, used or expired")

const (
	// InvitationLife is how long an invitation can be accepted.
	InvitationLife = 7 * 24 * time.Hour

	invitePrefix = "fbi_"

	// kindInvitation is what seals of invitations are bound to.
	kindInvitation = "invitation"
)

// invitation is one as stored under the hash of its secret.
type invitation struct {
	Org   string `json:"org"`
	Email string `json:"email"`
	Role  Role   `json:"role"`
	By    string `json:"by"`
	// Tags restrict the person to hosts that have one of them.
	Tags []string `json:"tags,omitempty"`
}

// Invite makes an invitation in actor's right, and returns its secret: shown once and kept nowhere. Whether actor may is
// looked at now and again when it is accepted.
func (p *People) Invite(ctx context.Context, org, actor, email string, role Role, tags scope.Tags) (secret string, expires time.Time, err error) {
	address, err := ParseEmail(email)
	if err != nil {
		return "", time.Time{}, err
	}
	if err := checkRole(role, tags); err != nil {
		return "", time.Time{}, err
	}
	by, err := p.Member(ctx, org, actor)
	switch {
	case errors.Is(err, ErrNoMember), err == nil && by.Role != Owner && by.Role != Admin:
		return "", time.Time{}, ErrNotAllowed
	case err != nil:
		return "", time.Time{}, err
	case role == Owner && by.Role != Owner:
		return "", time.Time{}, ErrOwnersOnly
	}
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails: crypto/rand ends the program instead
	secret = invitePrefix + base64.RawURLEncoding.EncodeToString(raw[:])
	record, err := json.Marshal(invitation{Org: org, Email: address.String(), Role: role, By: actor, Tags: tags.Strings()})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("make invitation: %w", err)
	}
	sealed := p.seal.Seal(kindInvitation, "", hashOf(secret), string(record))
	if err := p.store.Client().Set(ctx, inviteKey(secret), sealed, InvitationLife).Err(); err != nil {
		return "", time.Time{}, fmt.Errorf("store invitation: %w", store.Classify(err))
	}
	return secret, time.Now().Add(InvitationLife), nil
}

// Accept makes the invited person a member, once: ErrBadInvitation, ErrWeakPassword for an account that is to be made,
// ErrBadLogin for one that stands and has another password, ErrNotAllowed, and what SignIn returns. A refused password
// leaves the invitation good.
//
// second is asked for an account that stands, once its password was right: its error, of a second factor that is missing or
// wrong, leaves the invitation good too.
func (p *People) Accept(
	ctx context.Context, secret, password string, from netip.Addr, second func(ctx context.Context, person, state string) error,
) (org string, m Member, err error) {
	if !strings.HasPrefix(secret, invitePrefix) {
		return "", Member{}, ErrBadInvitation
	}
	client := p.store.Client()
	raw, err := client.Get(ctx, inviteKey(secret)).Result()
	if errors.Is(err, redis.Nil) {
		return "", Member{}, ErrBadInvitation
	}
	if err != nil {
		return "", Member{}, fmt.Errorf("look up invitation: %w", store.Classify(err))
	}
	raw, err = p.seal.Open(ctx, kindInvitation, "", hashOf(secret), raw)
	if err != nil {
		return "", Member{}, fmt.Errorf("%w: %w", ErrBadInvitation, err)
	}
	var invited invitation
	err1 := json.Unmarshal([]byte(raw), &invited)
	address, err2 := ParseEmail(invited.Email)
	tags, err3 := scope.Parse(invited.Tags)
	if err := errors.Join(err1, err2, err3); err != nil {
		return "", Member{}, fmt.Errorf("stored invitation is damaged: %w", err)
	}
	if err := p.attempt(ctx, address, from); err != nil {
		return "", Member{}, err
	}
	id, state, stood, err := p.account(ctx, address, password)
	if err != nil {
		return "", Member{}, err
	}
	if stood && second != nil {
		if err := second(ctx, id, state); err != nil {
			return "", Member{}, err
		}
	}
	// Whoever takes it is the one who used it. Had this died before, the account stands and the invitation is good.
	if n, err := client.Del(ctx, inviteKey(secret)).Result(); err != nil {
		return "", Member{}, fmt.Errorf("use invitation: %w", store.Classify(err))
	} else if n == 0 {
		return "", Member{}, ErrBadInvitation
	}
	answer, _, joined, err := p.alter(ctx, invited.Org, alteration{
		what: "join", actor: invited.By, person: id, role: invited.Role, tags: tags, email: address,
	})
	if err != nil {
		return "", Member{}, err
	}
	if err := refusals[answer]; err != nil {
		return "", Member{}, err
	}
	if err := p.joined(ctx, id, invited.Org, joined.Version); err != nil {
		return "", Member{}, err
	}
	m, err = p.Member(ctx, invited.Org, id)
	return invited.Org, m, err
}
