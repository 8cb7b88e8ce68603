package factors

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

const (
	// ChallengeLife is how long a sign-in can be completed.
	ChallengeLife = 5 * time.Minute
	// EnrolmentLife is how long a factor that was begun can be confirmed.
	EnrolmentLife = 10 * time.Minute

	// maxTries is how many answers one challenge hears.
	maxTries = 5

	challengePrefix = "fbc_"
)

// What a challenge is for: one made for one thing is good for no other.
const (
	forSignIn  = "sign-in"
	forPasskey = "passkey-sign-in"
	forTOTP    = "totp"
	forNewKey  = "passkey"
	forProof   = "proof"
)

var (
	//go:embed lua/try.lua
	tryText   string
	tryScript = store.NewScript("factors/try", tryText)
)

// challenge is one as stored under the hash of its secret.
type challenge struct {
	For string `json:"for"`
	// Person may answer it; empty where the passkey says who.
	Person string `json:"person,omitempty"`
	// State is what the person's password was when it was asked for: a reset in between ends the sign-in.
	State string `json:"state,omitempty"`
	// Secret is a sealed one that is to be confirmed, Session what package webauthn remembers.
	Secret  string          `json:"secret,omitempty"`
	Session json.RawMessage `json:"session,omitempty"`
}

// ask stores a challenge and returns its secret, kept nowhere.
func (f *Factors) ask(ctx context.Context, c challenge, life time.Duration) (string, error) {
	body, err := json.Marshal(c) //nolint:gosec // Secret is sealed
	if err != nil {
		return "", fmt.Errorf("make challenge: %w", err)
	}
	text := secretText(challengePrefix)
	pipe := f.store.Client().TxPipeline()
	// Sealed, and bound to its secret: who writes to Redis makes none, and so has nobody's password taken for granted.
	pipe.HSet(ctx, challengeKey(text), "body", f.sealed("challenge", hashOf(text), body), "tries", 0)
	pipe.PExpire(ctx, challengeKey(text), life)
	if _, err := pipe.Exec(ctx); err != nil {
		return "", fmt.Errorf("store challenge: %w", store.Classify(err))
	}
	return text, nil
}

// try hears one answer to a challenge that is for one of these; ErrChallenge.
func (f *Factors) try(ctx context.Context, text string, what ...string) (challenge, error) {
	if !strings.HasPrefix(text, challengePrefix) {
		return challenge{}, ErrChallenge
	}
	reply, err := tryScript.Run(ctx, f.store, []string{challengeKey(text)}, maxTries).Text()
	if err != nil {
		return challenge{}, fmt.Errorf("look up challenge: %w", err)
	}
	if reply == "" {
		return challenge{}, ErrChallenge
	}
	body, err := f.opened("challenge", hashOf(text), reply)
	if err != nil {
		f.logger.ErrorContext(ctx, "a challenge in Redis is not this fleet's: somebody wrote to Redis", slog.Any("error", err))
		return challenge{}, ErrChallenge
	}
	var c challenge
	if err := json.Unmarshal(body, &c); err != nil {
		return challenge{}, fmt.Errorf("stored challenge is damaged: %w", err)
	}
	for _, w := range what {
		if c.For == w {
			return c, nil
		}
	}
	return challenge{}, ErrChallenge
}

// use uses a challenge up: of many who do so, one gets no error.
func (f *Factors) use(ctx context.Context, text string) error {
	n, err := f.store.Client().Del(ctx, challengeKey(text)).Result()
	if err != nil {
		return fmt.Errorf("use challenge: %w", store.Classify(err))
	}
	if n == 0 {
		return ErrChallenge
	}
	return nil
}

func number(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}
