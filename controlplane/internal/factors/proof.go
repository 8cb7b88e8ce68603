package factors

import (
	"context"

	"github.com/fleetban/fleetban/controlplane/internal/people"
)

// AskProof says what a person who is signed in can prove again with who they are; the Asked has no Challenge where they have
// no passkey.
func (f *Factors) AskProof(ctx context.Context, person string) (Asked, error) {
	has, err := f.State(ctx, person)
	if err != nil {
		return Asked{}, err
	}
	asked := Asked{TOTP: has.TOTP, Recovery: has.Any() && has.Recovery > 0}
	if f.webauthn == nil || len(has.Passkeys) == 0 {
		return asked, nil
	}
	asked.Challenge, asked.PasskeyOptions, err = f.askForPasskey(ctx, challenge{For: forProof, Person: person})
	return asked, err
}

// Passkey takes the passkey of a person who is signed in, once for each challenge of AskProof: ErrChallenge, ErrWrong.
func (f *Factors) Passkey(ctx context.Context, person, text string, response []byte) error {
	c, err := f.try(ctx, text, forProof)
	if err != nil {
		return err
	}
	if c.Person != person {
		return ErrChallenge
	}
	_, used, err := f.checkPasskey(ctx, c, response)
	if err != nil {
		return err
	}
	if err := f.use(ctx, text); err != nil {
		return err
	}
	return f.replace(ctx, person, used)
}

// Confirm takes the answer to a challenge of Ask for something else than a sign-in, by the same person with the same
// password: ErrChallenge, ErrWrong, *people.TooOftenError. It returns with what it was: one of package sessions' constants.
func (f *Factors) Confirm(ctx context.Context, person, state, text string, a Answer) (method string, err error) {
	done, err := f.Complete(ctx, text, a, people.Device{})
	if err != nil {
		return "", err
	}
	if done.Person != person || done.State != state {
		return "", ErrChallenge
	}
	return done.Method, nil
}
