// Package factors keeps people's second factors: secrets of programs that show codes (TOTP), passkeys, recovery codes, and
// whether an organisation asks its members for one.
//
//	SignIn: the password is right ─▶ has the person a factor? ── no ──▶ a session
//	                                        │ yes
//	                                        ▼
//	                              challenge (5 min, 5 tries) ─▶ code, passkey or recovery code ─▶ a session
//
// A challenge is used up by the first right answer, on whatever replica: who deletes its key has used it. The secrets of
// TOTP and passkeys are sealed under a key derived from the fleet's secret and bound to the person, so that who writes to
// Redis can't add one; of recovery codes only a MAC is kept.
// Everything of a person shares the person's hash tag; challenges are global, for a passkey says only when it answers whose it is.
package factors

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/go-webauthn/webauthn/webauthn"

	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// Errors that callers decide on.
var (
	// ErrChallenge: unknown, used, expired, tried too often, or not for this.
	ErrChallenge = errors.New("the challenge is unknown, used or expired")
	// ErrWrong: the code, recovery code or passkey is not one of the person's, or was used before.
	ErrWrong = errors.New("the code or passkey is wrong, or was used before")
	// ErrNone: there is no such factor.
	ErrNone = errors.New("no such factor")
	// ErrTooMany: no more passkeys are kept for one person.
	ErrTooMany = errors.New("too many passkeys")
	// ErrNoPasskeys: the public URL has no host name that passkeys could be bound to.
	ErrNoPasskeys = errors.New("passkeys need a public URL with a host name")
	// ErrInvalid is wrapped by refusals of a value; the text says what would be right.
	ErrInvalid = errors.New("invalid")
)

// attemptsPerHour is how many codes may be tried for an account in an hour, over all replicas and challenges; a right one
// begins it anew. Three of a million codes are right at any time: guessing without end takes years, not days.
const attemptsPerHour = 20

// Deriver derives keys from the fleet's secret: *keys.Keys.
type Deriver interface {
	FactorKey() [32]byte
	DeviceKey() [32]byte
}

// Options make a Factors.
type Options struct {
	Store *store.Store
	Keys  Deriver
	// PublicURL is where people's browsers find the control plane: passkeys are bound to its host name.
	PublicURL string
	// Now is Redis' clock as this replica knows it. Default time.Now.
	Now func() time.Time
	// Logger; default slog.Default().
	Logger *slog.Logger
}

// Factors keeps second factors in Redis. Safe for concurrent use.
type Factors struct {
	store    *store.Store
	seal     cipher.AEAD
	mac      [32]byte // of recovery codes
	device   [32]byte
	rate     *store.Limiter
	webauthn *webauthn.WebAuthn // nil where the public URL has no host name
	now      func() time.Time
	logger   *slog.Logger
}

// New makes a Factors.
func New(o Options) (*Factors, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	key := o.Keys.FactorKey()
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, fmt.Errorf("prepare the key of second factors: %w", err)
	}
	seal, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("prepare the key of second factors: %w", err)
	}
	f := &Factors{
		store: o.Store, seal: seal, mac: sha256.Sum256(append([]byte("recovery codes "), key[:]...)), device: o.Keys.DeviceKey(),
		rate: store.NewLimiter(o.Store), now: o.Now, logger: o.Logger,
	}
	if f.webauthn, err = relyingParty(o.PublicURL); err != nil {
		o.Logger.Warn("passkeys can't be used with this public URL", slog.Any("error", err))
	}
	return f, nil
}

// State is which factors a person has.
type State struct {
	TOTP bool
	// TOTPSince is when it was enabled, Unix milliseconds.
	TOTPSince int64
	// Recovery is how many recovery codes are left.
	Recovery int
	Passkeys []Passkey
}

// Any reports whether sign-in asks for a second factor.
func (s State) Any() bool { return s.TOTP || len(s.Passkeys) > 0 }

// State reads which factors a person has.
func (f *Factors) State(ctx context.Context, person string) (State, error) {
	v, err := f.store.Client().HMGet(ctx, totpKey(person), "secret", "since").Result()
	if err != nil {
		return State{}, fmt.Errorf("read second factors: %w", store.Classify(err))
	}
	s := State{TOTP: v[0] != nil}
	if text, ok := v[1].(string); ok {
		s.TOTPSince = number(text)
	}
	left, err := f.store.Client().SCard(ctx, recoveryKey(person)).Result()
	if err != nil {
		return State{}, fmt.Errorf("count recovery codes: %w", store.Classify(err))
	}
	s.Recovery = int(left)
	s.Passkeys, err = f.passkeys(ctx, person)
	return s, err
}

// has is State.Any for less.
func (f *Factors) has(ctx context.Context, person string) (bool, error) {
	totp, err := f.store.Client().HExists(ctx, totpKey(person), "secret").Result()
	if err != nil {
		return false, fmt.Errorf("read second factors: %w", store.Classify(err))
	}
	if totp {
		return true, nil
	}
	n, err := f.store.Client().HLen(ctx, passkeysKey(person)).Result()
	if err != nil {
		return false, fmt.Errorf("read second factors: %w", store.Classify(err))
	}
	return n > 0, nil
}

// RemoveAll removes all second factors of a person: by who runs the control plane, for who has lost them.
func (f *Factors) RemoveAll(ctx context.Context, person string) error {
	if err := f.store.Client().Del(ctx, totpKey(person), passkeysKey(person), recoveryKey(person)).Err(); err != nil {
		return fmt.Errorf("remove second factors: %w", store.Classify(err))
	}
	return nil
}

// Required reports whether an organisation asks its members for a second factor. Whatever stands there says that it does:
// who writes to Redis can't say that it doesn't but by taking it away.
func (f *Factors) Required(ctx context.Context, org string) (bool, error) {
	n, err := f.store.Client().Exists(ctx, policyKey(org)).Result()
	if err != nil {
		return false, fmt.Errorf("read whether a second factor is asked for: %w", store.Classify(err))
	}
	return n > 0, nil
}

// SetRequired says whether it does.
func (f *Factors) SetRequired(ctx context.Context, org string, required bool) error {
	var err error
	if required {
		err = f.store.Client().Set(ctx, policyKey(org), "required", 0).Err()
	} else {
		err = f.store.Client().Del(ctx, policyKey(org)).Err()
	}
	if err != nil {
		return fmt.Errorf("set whether a second factor is asked for: %w", store.Classify(err))
	}
	return nil
}

// Missing reports whether org asks its members for a second factor and the person has none.
func (f *Factors) Missing(ctx context.Context, org, person string) (bool, error) {
	required, err := f.Required(ctx, org)
	if err != nil || !required {
		return false, err
	}
	has, err := f.has(ctx, person)
	return !has, err
}

// attempt counts one try with a code: over all challenges, and apart for a device that the person signed in on before, so
// that who has the password can't keep its owner from typing codes. Whoever can't be counted isn't heard.
func (f *Factors) attempt(ctx context.Context, person, device string) error {
	result, err := f.rate.Allow(ctx, attemptsKey(person, device), redis_rate.PerHour(attemptsPerHour))
	if err != nil {
		return fmt.Errorf("count attempts with a second factor: %w", store.Classify(err))
	}
	if result.Allowed < 1 {
		return &people.TooOftenError{RetryAfter: result.RetryAfter}
	}
	return nil
}

// forgive begins the count anew after a right code. That it can't is no reason to refuse one.
func (f *Factors) forgive(ctx context.Context, person, device string) {
	if err := f.rate.Reset(ctx, attemptsKey(person, device)); err != nil {
		f.logger.WarnContext(ctx, "attempts with a second factor are still counted", slog.Any("error", err))
	}
}

// sealed encrypts a secret for one purpose and person; opened undoes that.
func (f *Factors) sealed(what, person string, secret []byte) string {
	return base64.RawStdEncoding.EncodeToString(f.seal.Seal(nil, nil, secret, []byte(what+" "+person))) //nolint:gosec // it makes a random nonce itself
}

func (f *Factors) opened(what, person, text string) ([]byte, error) {
	raw, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("stored %s is damaged: %w", what, err)
	}
	secret, err := f.seal.Open(nil, nil, raw, []byte(what+" "+person))
	if err != nil {
		return nil, fmt.Errorf("stored %s was not sealed with this fleet's secret: %w", what, err)
	}
	return secret, nil
}

func secretText(prefix string) string {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails: crypto/rand ends the program instead
	return prefix + base64.RawURLEncoding.EncodeToString(raw[:])
}

func hashOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func totpKey(person string) string     { return store.Key(person, "totp") }
func recoveryKey(person string) string { return store.Key(person, "recovery") }
func passkeysKey(person string) string { return store.Key(person, "passkeys") }
func policyKey(org string) string      { return store.Key(org, "second-factor") }
func challengeKey(text string) string  { return store.Global("challenge", hashOf(text)) }

func attemptsKey(person, device string) string {
	if device == "" {
		return store.Key(person, "codes")
	}
	return store.Key(person, "codes", device)
}
