package sessions

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

var (
	//go:embed lua/prove.lua
	proveText   string
	proveScript = store.NewScript("sessions/prove", proveText)
)

// Proofs are when the person of a session proved again who they are, since it began; zero: not yet.
type Proofs struct {
	// Account is by what the account itself has: its password, a code or a passkey.
	Account time.Time
	// Provider is by the organisation's identity provider, which looked again. It says nothing of who may change the account's
	// own factors: whoever runs the provider could.
	Provider time.Time
	// Method is what the session began with: one of the constants of this package.
	Method string
	// Alone is another one whenever all other sessions of the person were ended; empty: never.
	Alone string
}

// Proofs reads them; ErrNone where the session ended.
func (s *Sessions) Proofs(ctx context.Context, person, id string) (Proofs, error) {
	v, err := s.store.Client().HMGet(ctx, sessionKey(person, id), "proof", "vouched", "method", "org", "alone").Result()
	if err != nil {
		return Proofs{}, fmt.Errorf("read session: %w", store.Classify(err))
	}
	text := func(i int) string { t, _ := v[i].(string); return t }
	if text(3) == "" {
		return Proofs{}, ErrNone
	}
	at := func(i int) time.Time {
		if n := number(text(i)); n > 0 {
			return time.UnixMilli(n)
		}
		return time.Time{}
	}
	return Proofs{Account: at(0), Provider: at(1), Method: text(2), Alone: text(4)}, nil
}

// Prove notes that the person has proved again, this moment, who they are; ErrNone where the session ended.
func (s *Sessions) Prove(ctx context.Context, person, id string) error {
	return s.set(ctx, person, id, "proof", s.signer.now().UnixMilli())
}

// Vouched notes when the identity provider looked again.
func (s *Sessions) Vouched(ctx context.Context, person, id string, at time.Time) error {
	return s.set(ctx, person, id, "vouched", at.UnixMilli())
}

func (s *Sessions) set(ctx context.Context, person, id, field string, value any) error {
	done, err := proveScript.Run(ctx, s.store, []string{sessionKey(person, id)}, field, value).Int()
	if err != nil {
		return fmt.Errorf("note it in the session: %w", err)
	}
	if done != 1 {
		return ErrNone
	}
	return nil
}

// EndIn ends a person's sessions in one organisation that keep doesn't name the method of, and says how many.
func (s *Sessions) EndIn(ctx context.Context, person, org, keep string) (int, error) {
	ids, err := s.store.Client().ZRange(ctx, listKey(person), 0, -1).Result()
	if err != nil {
		return 0, fmt.Errorf("list sessions: %w", store.Classify(err))
	}
	var out []string
	for _, id := range ids {
		v, err := s.store.Client().HMGet(ctx, sessionKey(person, id), "org", "method").Result()
		if err != nil {
			return 0, fmt.Errorf("read session: %w", store.Classify(err))
		}
		if in, _ := v[0].(string); in != org {
			continue
		}
		if method, _ := v[1].(string); method != keep {
			out = append(out, id)
		}
	}
	return len(out), s.end(ctx, person, out...)
}
