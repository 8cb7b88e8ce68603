package people

import (
	"context"
	"fmt"

	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// Sign seals the members of an organisation that an older release left unsealed, and returns them: a person shall know
// each of them.
func (p *People) Sign(ctx context.Context, org string) ([]Member, error) {
	all, err := p.store.Client().HGetAll(ctx, membersKey(org)).Result()
	if err != nil {
		return nil, fmt.Errorf("read members: %w", store.Classify(err))
	}
	accepting := &People{store: p.store, seal: p.seal.Accepting()}
	var out []Member
	for person, raw := range all {
		if seal.Sealed(raw) {
			continue
		}
		m, err := accepting.openMember(ctx, org, person, raw)
		if err != nil {
			return out, err
		}
		done, err := membersScript.Run(ctx, p.store, []string{membersKey(org)}, -1, person,
			p.seal.Seal(kindMember, org, person, raw), person, raw).Int()
		if err != nil {
			return out, fmt.Errorf("sign member %s: %w", person, err)
		}
		if done == 0 {
			return out, fmt.Errorf("%w: a member changed meanwhile: run it again", store.ErrUnavailable)
		}
		out = append(out, m)
	}
	return out, nil
}
