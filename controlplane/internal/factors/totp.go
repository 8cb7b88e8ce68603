package factors

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	_ "embed"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/pquerna/otp"
	"github.com/pquerna/otp/totp"
	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

const (
	totpIssuer    = "Fleetban"
	totpSecretLen = 20 // bytes, as RFC 4226 recommends
	totpPeriod    = 30 // seconds
	// totpWindow is how many steps before and after the present one are right: clocks differ, typing takes time.
	totpWindow = 1

	// recoveryCodes is how many there are, recoveryLen how many letters each has: 50 bits.
	recoveryCodes = 10
	recoveryLen   = 10
)

var (
	//go:embed lua/step.lua
	stepText   string
	stepScript = store.NewScript("factors/step", stepText)
)

var (
	plain32 = base32.StdEncoding.WithPadding(base32.NoPadding)
	// lower32 has no letters that look like digits in it.
	lower32 = base32.NewEncoding("abcdefghjkmnpqrstuvwxyz023456789").WithPadding(base32.NoPadding)

	totpOptions = totp.ValidateOpts{Period: totpPeriod, Digits: otp.DigitsSix, Algorithm: otp.AlgorithmSHA1}
)

// NewTOTP is a secret that counts for nothing until a code of it is confirmed.
type NewTOTP struct {
	Secret    string // base32
	URI       string // otpauth://
	Enrolment string
}

// BeginTOTP makes a secret for a person, whom the program shows as email.
func (f *Factors) BeginTOTP(ctx context.Context, person, email string) (NewTOTP, error) {
	var raw [totpSecretLen]byte
	_, _ = rand.Read(raw[:]) // never fails: crypto/rand ends the program instead
	secret := plain32.EncodeToString(raw[:])
	enrolment, err := f.ask(ctx, challenge{For: forTOTP, Person: person, Secret: f.sealed("TOTP secret", person, []byte(secret))}, EnrolmentLife)
	if err != nil {
		return NewTOTP{}, err
	}
	query := url.Values{"secret": {secret}, "issuer": {totpIssuer}, "algorithm": {"SHA1"}, "digits": {"6"}, "period": {"30"}}
	uri := url.URL{Scheme: "otpauth", Host: "totp", Path: "/" + totpIssuer + ":" + email, RawQuery: query.Encode()}
	return NewTOTP{Secret: secret, URI: uri.String(), Enrolment: enrolment}, nil
}

// Enabled is what came of a new factor.
type Enabled struct {
	// First: the person had none before.
	First bool
	// Recovery are new recovery codes, shown once; none where the person has some.
	Recovery []string
}

// ConfirmTOTP enables the secret of an enrolment with a code of it, in place of one that was enabled before: ErrChallenge,
// ErrWrong. The code is good for no sign-in any more.
func (f *Factors) ConfirmTOTP(ctx context.Context, person, enrolment, code string) (Enabled, error) {
	c, err := f.try(ctx, enrolment, forTOTP)
	if err != nil {
		return Enabled{}, err
	}
	if c.Person != person {
		return Enabled{}, ErrChallenge
	}
	secret, err := f.opened("TOTP secret", person, c.Secret)
	if err != nil {
		return Enabled{}, err
	}
	step, ok := f.stepOf(string(secret), code)
	if !ok {
		return Enabled{}, ErrWrong
	}
	before, err := f.State(ctx, person)
	if err != nil {
		return Enabled{}, err
	}
	if err := f.use(ctx, enrolment); err != nil {
		return Enabled{}, err
	}
	// The codes are made first: nobody is left with a factor and no way around it.
	out := Enabled{First: !before.Any()}
	if before.Recovery == 0 {
		if out.Recovery, err = f.MakeRecoveryCodes(ctx, person); err != nil {
			return Enabled{}, err
		}
	}
	if err := f.store.Client().HSet(ctx, totpKey(person), "secret", c.Secret, "since", f.now().UnixMilli(), "step", step).Err(); err != nil {
		return Enabled{}, fmt.Errorf("store TOTP secret: %w", store.Classify(err))
	}
	return out, nil
}

// DisableTOTP removes it; ErrNone where there is none. Recovery codes go with the last factor.
func (f *Factors) DisableTOTP(ctx context.Context, person string) error {
	n, err := f.store.Client().Del(ctx, totpKey(person)).Result()
	if err != nil {
		return fmt.Errorf("remove TOTP secret: %w", store.Classify(err))
	}
	if n == 0 {
		return ErrNone
	}
	return f.tidy(ctx, person)
}

// tidy removes recovery codes of who has no factor: they would be one.
func (f *Factors) tidy(ctx context.Context, person string) error {
	has, err := f.has(ctx, person)
	if err != nil || has {
		return err
	}
	if err := f.store.Client().Del(ctx, recoveryKey(person)).Err(); err != nil {
		return fmt.Errorf("remove recovery codes: %w", store.Classify(err))
	}
	return nil
}

// Code takes a TOTP code of a person, once: ErrWrong, *people.TooOftenError. device is that of Device.ID, or empty.
func (f *Factors) Code(ctx context.Context, person, device, code string) error {
	if err := f.attempt(ctx, person, device); err != nil {
		return err
	}
	sealed, err := f.store.Client().HGet(ctx, totpKey(person), "secret").Result()
	if errors.Is(err, redis.Nil) {
		return ErrWrong
	}
	if err != nil {
		return fmt.Errorf("read TOTP secret: %w", store.Classify(err))
	}
	secret, err := f.opened("TOTP secret", person, sealed)
	if err != nil {
		return err
	}
	step, ok := f.stepOf(string(secret), code)
	if !ok {
		return ErrWrong
	}
	taken, err := stepScript.Run(ctx, f.store, []string{totpKey(person)}, sealed, step).Int()
	if err != nil {
		return fmt.Errorf("take code: %w", err)
	}
	if taken != 1 {
		return ErrWrong
	}
	f.forgive(ctx, person, device)
	return nil
}

// stepOf is the time step whose code this is. All of the window are computed, whichever is right.
func (f *Factors) stepOf(secret, code string) (step int64, ok bool) {
	code = strings.Map(func(r rune) rune {
		if r == ' ' || r == '-' {
			return -1
		}
		return r
	}, code)
	now := f.now()
	for i := -totpWindow; i <= totpWindow; i++ {
		at := now.Add(time.Duration(i*totpPeriod) * time.Second)
		want, err := totp.GenerateCodeCustom(secret, at, totpOptions)
		if err == nil && subtle.ConstantTimeCompare([]byte(want), []byte(code)) == 1 {
			step, ok = at.Unix()/totpPeriod, true
		}
	}
	return step, ok
}

// MakeRecoveryCodes makes new ones; the former are good no more.
func (f *Factors) MakeRecoveryCodes(ctx context.Context, person string) ([]string, error) {
	codes, macs := make([]string, 0, recoveryCodes), make([]any, 0, recoveryCodes)
	for range recoveryCodes {
		var raw [7]byte
		_, _ = rand.Read(raw[:]) // never fails: crypto/rand ends the program instead
		text := lower32.EncodeToString(raw[:])[:recoveryLen]
		codes, macs = append(codes, text[:recoveryLen/2]+"-"+text[recoveryLen/2:]), append(macs, f.recoveryMAC(person, text))
	}
	pipe := f.store.Client().TxPipeline()
	pipe.Del(ctx, recoveryKey(person))
	pipe.SAdd(ctx, recoveryKey(person), macs...)
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, fmt.Errorf("store recovery codes: %w", store.Classify(err))
	}
	return codes, nil
}

// RecoveryCode takes a recovery code, once: ErrWrong, *people.TooOftenError.
func (f *Factors) RecoveryCode(ctx context.Context, person, device, code string) error {
	mac, err := f.knownRecovery(ctx, person, device, code)
	if err != nil {
		return err
	}
	return f.takeRecovery(ctx, person, device, mac)
}

// knownRecovery is the MAC of a code that the person has.
func (f *Factors) knownRecovery(ctx context.Context, person, device, code string) (mac string, err error) {
	if err := f.attempt(ctx, person, device); err != nil {
		return "", err
	}
	text := strings.Map(func(r rune) rune {
		if r == ' ' || r == '-' {
			return -1
		}
		return r
	}, strings.ToLower(code))
	if len(text) != recoveryLen {
		return "", ErrWrong
	}
	mac = f.recoveryMAC(person, text)
	is, err := f.store.Client().SIsMember(ctx, recoveryKey(person), mac).Result()
	if err != nil {
		return "", fmt.Errorf("look up recovery code: %w", store.Classify(err))
	}
	if !is {
		return "", ErrWrong
	}
	return mac, nil
}

func (f *Factors) takeRecovery(ctx context.Context, person, device, mac string) error {
	n, err := f.store.Client().SRem(ctx, recoveryKey(person), mac).Result()
	if err != nil {
		return fmt.Errorf("use recovery code: %w", store.Classify(err))
	}
	if n == 0 {
		return ErrWrong
	}
	f.forgive(ctx, person, device)
	return nil
}

func (f *Factors) recoveryMAC(person, text string) string {
	mac := hmac.New(sha256.New, f.mac[:])
	mac.Write([]byte(person + " " + text))
	return hex.EncodeToString(mac.Sum(nil))
}
