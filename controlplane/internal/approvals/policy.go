package approvals

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// Policy is what needs a second person. The zero Policy: nothing does.
type Policy struct {
	Required bool
	// A ban is wide that has a prefix wider than these, or more than Most prefixes.
	Widest4, Widest6, Most int
}

// Defaults of what a wide ban is.
const (
	DefaultWidest4 = 24
	DefaultWidest6 = 64
	DefaultMost    = 100
)

// filled has the defaults where nothing is said.
func (p Policy) filled() Policy {
	if p.Widest4 == 0 {
		p.Widest4 = DefaultWidest4
	}
	if p.Widest6 == 0 {
		p.Widest6 = DefaultWidest6
	}
	if p.Most == 0 {
		p.Most = DefaultMost
	}
	return p
}

// Wide reports whether a ban of these prefixes is.
func (p Policy) Wide(prefixes []netip.Prefix) bool {
	if len(prefixes) > p.Most {
		return true
	}
	for _, one := range prefixes {
		widest := p.Widest4
		if one.Addr().Is6() {
			widest = p.Widest6
		}
		if one.Bits() < widest {
			return true
		}
	}
	return false
}

// Policy reads what an organisation asks for. A forged one asks for everything.
func (a *Approvals) Policy(ctx context.Context, org string) (Policy, error) {
	sealed, err := a.store.Client().Get(ctx, policyKey(org)).Result()
	if errors.Is(err, redis.Nil) {
		return Policy{}.filled(), nil
	}
	if err != nil {
		return Policy{}, fmt.Errorf("read what needs approval: %w", store.Classify(err))
	}
	text, err := a.seal.Open(ctx, sealKind, org, "policy", sealed)
	var p Policy
	var required int
	if err == nil {
		_, err = fmt.Sscanf(text, "%d %d %d %d", &required, &p.Widest4, &p.Widest6, &p.Most)
	}
	if err != nil {
		return Policy{Required: true, Widest4: 32, Widest6: 128, Most: 1}, nil //nolint:nilerr // package seal says it loudly
	}
	p.Required = required != 0
	return p.filled(), nil
}

// SetPolicy says what an organisation asks for.
func (a *Approvals) SetPolicy(ctx context.Context, org string, p Policy) (Policy, error) {
	p = p.filled()
	required := 0
	if p.Required {
		required = 1
	}
	text := fmt.Sprintf("%d %d %d %d", required, p.Widest4, p.Widest6, p.Most)
	entry := audit.Stage(ctx)
	body, mac := entry.Args()
	reply, err := policyScript.Run(ctx, a.store, []string{policyKey(org)}, a.seal.Seal(sealKind, org, "policy", text), text, body, mac).Slice()
	if err != nil {
		return Policy{}, fmt.Errorf("say what needs approval: %w", err)
	}
	said(ctx, entry, any(reply))
	return p, nil
}
