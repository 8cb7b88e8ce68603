package factors

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/go-redis/redis_rate/v10"
	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/sessions"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// passkeySignIns is how many sign-ins with a passkey one address may begin in a minute.
const passkeySignIns = 30

// Asked is what a sign-in is to be completed with.
type Asked struct {
	Challenge      string
	TOTP, Recovery bool
	// PasskeyOptions are for navigator.credentials.get; nil without a passkey.
	PasskeyOptions []byte
}

// Ask asks for the second factor of a person whose password was right; nil where there is none. state is what changes with
// the password.
func (f *Factors) Ask(ctx context.Context, person, state string) (*Asked, error) {
	has, err := f.State(ctx, person)
	if err != nil || !has.Any() {
		return nil, err
	}
	asked := &Asked{TOTP: has.TOTP, Recovery: has.Recovery > 0}
	c := challenge{For: forSignIn, Person: person, State: state}
	if f.webauthn == nil || len(has.Passkeys) == 0 {
		asked.Challenge, err = f.ask(ctx, c, ChallengeLife)
		return asked, err
	}
	asked.Challenge, asked.PasskeyOptions, err = f.askForPasskey(ctx, c)
	return asked, err
}

// askForPasskey asks for one of c.Person's.
func (f *Factors) askForPasskey(ctx context.Context, c challenge) (text string, options []byte, err error) {
	h, err := f.holder(ctx, c.Person, "")
	if err != nil {
		return "", nil, err
	}
	assertion, session, err := f.webauthn.BeginLogin(h, webauthn.WithUserVerification(protocol.VerificationRequired))
	if err != nil {
		return "", nil, fmt.Errorf("ask for a passkey: %w", err)
	}
	return f.askWith(ctx, c, session, assertion)
}

// AskPasskey begins a sign-in with a passkey alone: *people.TooOftenError, ErrNoPasskeys.
func (f *Factors) AskPasskey(ctx context.Context, from netip.Addr) (text string, options []byte, err error) {
	if f.webauthn == nil {
		return "", nil, ErrNoPasskeys
	}
	if from.IsValid() {
		result, err := f.rate.Allow(ctx, store.Global("passkey", "address", people.Group(from)), redis_rate.PerMinute(passkeySignIns))
		if err != nil {
			return "", nil, fmt.Errorf("count sign-ins with a passkey: %w", store.Classify(err))
		}
		if result.Allowed < 1 {
			return "", nil, &people.TooOftenError{RetryAfter: result.RetryAfter}
		}
	}
	assertion, session, err := f.webauthn.BeginDiscoverableLogin(webauthn.WithUserVerification(protocol.VerificationRequired))
	if err != nil {
		return "", nil, fmt.Errorf("ask for a passkey: %w", err)
	}
	return f.askWith(ctx, challenge{For: forPasskey}, session, assertion)
}

// Answer is what completes a sign-in: one of them.
type Answer struct {
	TOTP, Recovery string
	Passkey        []byte
}

// Completed is whose sign-in it was.
type Completed struct {
	Person string
	// Method is one of package sessions' constants.
	Method string
	// State is what Ask was told; empty where no password was asked for.
	State string
}

// Complete takes the answer to a challenge of Ask or AskPasskey: ErrChallenge, ErrWrong, *people.TooOftenError. A wrong
// one leaves the challenge good, a few times. device is that of Device: known if it is the person's.
func (f *Factors) Complete(ctx context.Context, text string, a Answer, device people.Device) (Completed, error) {
	c, err := f.try(ctx, text, forSignIn, forPasskey)
	if err != nil {
		return Completed{}, err
	}
	own := ""
	if c.Person != "" && device.Person == c.Person {
		own = device.ID
	}
	out := Completed{Person: c.Person, State: c.State}
	switch {
	case a.Passkey != nil:
		person, used, err := f.checkPasskey(ctx, c, a.Passkey)
		if err != nil {
			return Completed{}, err
		}
		if out.Person, out.Method = person, sessions.PasswordPasskey; c.For == forPasskey {
			out.Method = sessions.Passkey
		}
		if err := f.use(ctx, text); err != nil {
			return Completed{}, err
		}
		return out, f.replace(ctx, person, used)
	case c.For == forPasskey:
		return Completed{}, ErrWrong
	case a.TOTP != "":
		out.Method = sessions.PasswordTOTP
		if err := f.Code(ctx, c.Person, own, a.TOTP); err != nil {
			return Completed{}, err
		}
		return out, f.use(ctx, text)
	case a.Recovery != "":
		out.Method = sessions.PasswordRecovery
		mac, err := f.knownRecovery(ctx, c.Person, own, a.Recovery)
		if err != nil {
			return Completed{}, err
		}
		// The challenge first: of two answers at once, the one that comes too late uses up no code.
		if err := f.use(ctx, text); err != nil {
			return Completed{}, err
		}
		return out, f.takeRecovery(ctx, c.Person, own, mac)
	default:
		return Completed{}, errors.New("complete sign-in: no answer")
	}
}
