package people

import (
	"context"
	"errors"

	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
)

// Standing is what a person may in an organisation at this moment, for who acts in their name: see auth.Members.
func (p *People) Standing(ctx context.Context, org, person string) (
	may []optionsv1.Permission, tags scope.Tags, since int64, version uint64, ok bool, err error,
) {
	m, err := p.Member(ctx, org, person)
	switch {
	case errors.Is(err, ErrNoMember), errors.Is(err, seal.ErrForged):
		return nil, nil, 0, 0, false, nil
	case err != nil:
		return nil, nil, 0, 0, false, err
	}
	return Permissions(m.Role), m.Tags, m.Since, m.Version, true, nil
}

// Within implements auth.Members: see the function of that name.
func (*People) Within(permissions []optionsv1.Permission, tags scope.Tags) []optionsv1.Permission {
	return Within(permissions, tags)
}
