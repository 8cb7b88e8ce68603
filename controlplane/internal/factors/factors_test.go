package factors

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/descope/virtualwebauthn"
	"github.com/oklog/ulid/v2"
	"github.com/pquerna/otp/totp"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/sessions"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
)

const (
	ada    = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
	bob    = "01ARZ3NDEKTSV4RRFFQ69G5FAW"
	origin = "https://fleet.example.com"
	state  = "the password's state"
)

var nowhere people.Device

// clock is Redis' as the replicas know it, turned by the test.
type clock struct{ now atomic.Int64 }

func (c *clock) at() time.Time        { return time.UnixMilli(c.now.Load()) }
func (c *clock) turn(d time.Duration) { c.now.Add(d.Milliseconds()) }

// replicas are two over one Redis.
func replicas(t *testing.T) (a, b *Factors, server *redistest.Server, c *clock) {
	t.Helper()
	server = redistest.Start(t)
	c = &clock{}
	c.now.Store(time.Now().UnixMilli())
	open := func() *Factors {
		f, err := New(Options{
			Store: server.Open(), Keys: keys.New([keys.SecretLen]byte{7}), PublicURL: origin, Now: c.at, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	return open(), open(), server, c
}

func (f *Factors) codeAt(t *testing.T, secret string, at time.Time) string {
	t.Helper()
	code, err := totp.GenerateCodeCustom(secret, at, totpOptions)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// enable gives a person codes, and lets the code that was typed for it pass.
func enable(t *testing.T, f *Factors, c *clock, person string) (secret string, recovery []string) {
	t.Helper()
	made, err := f.BeginTOTP(t.Context(), person, "ada@example.com")
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(made.URI)
	if err != nil || u.Query().Get("secret") != made.Secret || u.Path != "/Fleetban:ada@example.com" {
		t.Fatal(made.URI, err)
	}
	enabled, err := f.ConfirmTOTP(t.Context(), person, made.Enrolment, f.codeAt(t, made.Secret, c.at()))
	if err != nil {
		t.Fatal(err)
	}
	c.turn(2 * totpPeriod * time.Second)
	return made.Secret, enabled.Recovery
}

func is(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func ask(t *testing.T, f *Factors, person string) *Asked {
	t.Helper()
	asked, err := f.Ask(t.Context(), person, state)
	if err != nil || asked == nil {
		t.Fatal(asked, err)
	}
	return asked
}

func TestTOTP(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	a, b, _, c := replicas(t)
	if asked, err := a.Ask(ctx, ada, state); asked != nil || err != nil {
		t.Fatalf("without a factor: %v, %v", asked, err)
	}
	made, err := a.BeginTOTP(ctx, ada, "ada@example.com")
	if err != nil {
		t.Fatal(err)
	}
	right := a.codeAt(t, made.Secret, c.at())
	_, err = b.ConfirmTOTP(ctx, bob, made.Enrolment, right)
	is(t, "another person's enrolment", err, ErrChallenge)
	_, err = b.ConfirmTOTP(ctx, ada, made.Enrolment, "000000x")
	is(t, "a wrong code", err, ErrWrong)
	enabled, err := b.ConfirmTOTP(ctx, ada, made.Enrolment, right[:3]+" "+right[3:])
	if err != nil || !enabled.First || len(enabled.Recovery) != recoveryCodes {
		t.Fatal(enabled, err)
	}
	_, err = b.ConfirmTOTP(ctx, ada, made.Enrolment, right)
	is(t, "an enrolment twice", err, ErrChallenge)
	asked := ask(t, a, ada)
	if !asked.TOTP || !asked.Recovery || asked.PasskeyOptions != nil {
		t.Fatalf("%+v", asked)
	}
	_, err = a.Complete(ctx, asked.Challenge, Answer{TOTP: right}, nowhere)
	is(t, "the code that confirmed it", err, ErrWrong)
	c.turn(totpPeriod * time.Second)
	right = a.codeAt(t, made.Secret, c.at())
	done, err := b.Complete(ctx, asked.Challenge, Answer{TOTP: right}, nowhere)
	if err != nil || done != (Completed{Person: ada, Method: sessions.PasswordTOTP, State: state}) {
		t.Fatal(done, err)
	}
	_, err = a.Complete(ctx, asked.Challenge, Answer{TOTP: a.codeAt(t, made.Secret, c.at().Add(totpPeriod*time.Second))}, nowhere)
	is(t, "a challenge twice", err, ErrChallenge)
	asked = ask(t, b, ada)
	_, err = a.Complete(ctx, asked.Challenge, Answer{TOTP: right}, nowhere)
	is(t, "a code twice", err, ErrWrong)
	_, err = a.Complete(ctx, asked.Challenge, Answer{TOTP: a.codeAt(t, made.Secret, c.at().Add(-totpPeriod*time.Second))}, nowhere)
	is(t, "the code before one that was used", err, ErrWrong)
	for offset, want := range map[int]bool{-2: false, 2: false, 1: true} {
		asked = ask(t, b, ada)
		_, err = a.Complete(ctx, asked.Challenge, Answer{TOTP: a.codeAt(t, made.Secret, c.at().Add(time.Duration(offset*totpPeriod)*time.Second))}, nowhere)
		if (err == nil) != want {
			t.Errorf("the code of step %d: %v", offset, err)
		}
	}
	if err := a.DisableTOTP(ctx, ada); err != nil {
		t.Fatal(err)
	}
	is(t, "disabled twice", a.DisableTOTP(ctx, ada), ErrNone)
	if s, err := b.State(ctx, ada); err != nil || s.Any() || s.Recovery != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

// Of many who send one code at once, to two replicas, one is let in: with one challenge, or one each.
func TestCodeIsGoodOnce(t *testing.T) {
	t.Parallel()
	a, b, _, c := replicas(t)
	secret, _ := enable(t, a, c, ada)
	for _, own := range []bool{false, true} {
		c.turn(3 * totpPeriod * time.Second)
		code, shared := a.codeAt(t, secret, c.at()), ask(t, a, ada).Challenge
		var won atomic.Int64
		var all sync.WaitGroup
		for i := range 4 {
			challenge := shared
			if own {
				challenge = ask(t, a, ada).Challenge
			}
			all.Go(func() {
				switch _, err := []*Factors{a, b}[i%2].Complete(t.Context(), challenge, Answer{TOTP: code}, nowhere); {
				case err == nil:
					won.Add(1)
				case !IsWrong(err):
					t.Error(err)
				}
			})
		}
		all.Wait()
		if won.Load() != 1 {
			t.Errorf("%d were let in", won.Load())
		}
	}
}

// Guessing is bounded by each challenge, and by the account over all of them; a device that is known goes on.
func TestCodesAreGuessed(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	a, b, _, c := replicas(t)
	secret, _ := enable(t, a, c, ada)
	wrong := func(code string) string { // one that is none of the window
		for n := byte('0'); ; n++ {
			guess := string(n) + code[1:]
			if _, ok := a.stepOf(secret, guess); !ok {
				return guess
			}
		}
	}
	code := a.codeAt(t, secret, c.at())
	one := ask(t, a, ada).Challenge
	for range maxTries {
		_, err := b.Complete(ctx, one, Answer{TOTP: wrong(code)}, nowhere)
		is(t, "a wrong code", err, ErrWrong)
	}
	_, err := a.Complete(ctx, one, Answer{TOTP: code}, nowhere)
	is(t, "a right code after too many wrong ones", err, ErrChallenge)
	heard := maxTries
	var often *people.TooOftenError
	for range 40 {
		_, err := []*Factors{a, b}[heard%2].Complete(ctx, ask(t, a, ada).Challenge, Answer{TOTP: wrong(code)}, nowhere)
		if errors.As(err, &often) {
			break
		}
		is(t, "a wrong code", err, ErrWrong)
		heard++
	}
	if often == nil || often.RetryAfter <= 0 || heard < attemptsPerHour || heard > attemptsPerHour+2 {
		t.Errorf("%d guesses were heard, then: %v", heard, often)
	}
	if _, err = a.Complete(ctx, ask(t, a, ada).Challenge, Answer{Recovery: "aaaaa-aaaaa"}, nowhere); !errors.As(err, &often) {
		t.Errorf("recovery codes are guessed on: %v", err)
	}
	// The owner, at home.
	if _, err = b.Complete(ctx, ask(t, a, ada).Challenge, Answer{TOTP: code}, a.Device(b.NewDevice(bob))); !errors.As(err, &often) {
		t.Errorf("another person's device: %v", err)
	}
	if _, err = b.Complete(ctx, ask(t, a, ada).Challenge, Answer{TOTP: code}, a.Device(b.NewDevice(ada))); err != nil {
		t.Errorf("on a known device: %v", err)
	}
}

func TestRecoveryCodes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	a, b, server, c := replicas(t)
	secret, codes := enable(t, a, c, ada)
	raw, err := server.Open().Client().SMembers(ctx, recoveryKey(ada)).Result()
	if err != nil || len(raw) != recoveryCodes {
		t.Fatal(raw, err)
	}
	sealed, err := server.Open().Client().HGet(ctx, totpKey(ada), "secret").Result()
	if err != nil || strings.Contains(sealed, secret) {
		t.Errorf("the secret is stored as it is: %v, %v", sealed, err)
	}
	for _, code := range codes {
		if strings.Contains(strings.Join(raw, " "), strings.ReplaceAll(code, "-", "")) {
			t.Error("a recovery code is stored as it is")
		}
	}
	enable(t, a, c, bob)
	_, err = a.Complete(ctx, ask(t, a, bob).Challenge, Answer{Recovery: codes[0]}, nowhere)
	is(t, "another person's", err, ErrWrong)
	// One code, many at once: one is let in, and one code is used up.
	var won atomic.Int64
	var all sync.WaitGroup
	for i := range 4 {
		challenge := ask(t, a, ada).Challenge
		all.Go(func() {
			switch done, err := []*Factors{a, b}[i%2].Complete(ctx, challenge, Answer{Recovery: " " + strings.ToUpper(codes[0])}, nowhere); {
			case err == nil && done.Method == sessions.PasswordRecovery:
				won.Add(1)
			case !IsWrong(err):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if s, err := a.State(ctx, ada); err != nil || won.Load() != 1 || s.Recovery != recoveryCodes-1 {
		t.Errorf("%d were let in, %d codes are left (%v)", won.Load(), s.Recovery, err)
	}
	fresh, err := b.MakeRecoveryCodes(ctx, ada)
	if err != nil {
		t.Fatal(err)
	}
	is(t, "a former one", a.RecoveryCode(ctx, ada, "", codes[1]), ErrWrong)
	if err := a.RecoveryCode(ctx, ada, "", fresh[9]); err != nil {
		t.Error(err)
	}
	// A sealed secret is bound to its person: who writes to Redis can't give another one theirs.
	if err := server.Open().Client().HSet(ctx, totpKey(bob), "secret", sealed).Err(); err != nil {
		t.Fatal(err)
	}
	if err := a.Code(ctx, bob, "", a.codeAt(t, secret, c.at())); err == nil || IsWrong(err) {
		t.Errorf("a secret that was put in another's place: %v", err)
	}
}

func TestRequired(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	a, b, _, c := replicas(t)
	missing := func(want bool) {
		t.Helper()
		if got, err := b.Missing(ctx, "org", ada); got != want || err != nil {
			t.Errorf("missing: %v, %v", got, err)
		}
	}
	missing(false)
	if err := a.SetRequired(ctx, "org", true); err != nil {
		t.Fatal(err)
	}
	missing(true)
	enable(t, a, c, ada)
	missing(false)
	if err := a.RemoveAll(ctx, ada); err != nil {
		t.Fatal(err)
	}
	missing(true)
	if err := a.SetRequired(ctx, "org", false); err != nil {
		t.Fatal(err)
	}
	missing(false)
}

// key is a passkey in a browser.
type key struct {
	t      *testing.T
	rp     virtualwebauthn.RelyingParty
	device virtualwebauthn.Authenticator
	cred   virtualwebauthn.Credential
}

func newKey(t *testing.T) *key {
	return &key{
		t: t, rp: virtualwebauthn.RelyingParty{ID: "fleet.example.com", Name: "Fleetban", Origin: origin},
		device: virtualwebauthn.NewAuthenticator(), cred: passkey(),
	}
}

// makes answers navigator.credentials.create, gets navigator.credentials.get.
func (k *key) makes(options []byte) []byte {
	k.t.Helper()
	parsed, err := virtualwebauthn.ParseAttestationOptions(string(options))
	if err != nil {
		k.t.Fatal(err)
	}
	k.device.Options.UserHandle = []byte(parsed.UserID)
	return []byte(virtualwebauthn.CreateAttestationResponse(k.rp, k.device, k.cred, *parsed))
}

func (k *key) gets(options []byte) []byte {
	k.t.Helper()
	parsed, err := virtualwebauthn.ParseAssertionOptions(string(options))
	if err != nil {
		k.t.Fatal(err)
	}
	k.cred.Counter++
	return []byte(virtualwebauthn.CreateAssertionResponse(k.rp, k.device, k.cred, *parsed))
}

func register(t *testing.T, f *Factors, k *key, person string) Passkey {
	t.Helper()
	challenge, options, err := f.BeginPasskey(t.Context(), person, "ada@example.com")
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := f.FinishPasskey(t.Context(), person, "ada@example.com", challenge, " laptop ", k.makes(options))
	if err != nil || p.Name != "laptop" {
		t.Fatal(p, err)
	}
	return p
}

func TestPasskeys(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	a, b, server, _ := replicas(t)
	k := newKey(t)
	challenge, options, err := a.BeginPasskey(ctx, ada, "ada@example.com")
	if err != nil {
		t.Fatal(err)
	}
	var wants struct {
		PublicKey struct {
			RP   struct{ ID string }
			User struct{ ID string }

			AuthenticatorSelection struct{ ResidentKey, UserVerification string }
		}
	}
	if err := json.Unmarshal(options, &wants); err != nil || wants.PublicKey.RP.ID != "fleet.example.com" ||
		wants.PublicKey.AuthenticatorSelection.UserVerification != "required" || wants.PublicKey.AuthenticatorSelection.ResidentKey != "required" {
		t.Fatalf("%s: %v", options, err)
	}
	id := ulid.MustParse(ada)
	if wants.PublicKey.User.ID != base64.RawURLEncoding.EncodeToString(id[:]) {
		t.Errorf("the user handle is %s", wants.PublicKey.User.ID)
	}
	answer := k.makes(options)
	_, _, err = b.FinishPasskey(ctx, bob, "bob@example.com", challenge, "x", answer)
	is(t, "another person's registration", err, ErrChallenge)
	_, _, err = b.FinishPasskey(ctx, ada, "ada@example.com", challenge, "a\x00b", answer)
	is(t, "a name that can't be seen", err, ErrInvalid)
	elsewhere := newKey(t)
	elsewhere.rp.Origin = "https://fleet.example.com.evil.example"
	_, _, err = b.FinishPasskey(ctx, ada, "ada@example.com", challenge, "x", elsewhere.makes(options))
	is(t, "made at another origin", err, ErrWrong)
	p, enabled, err := b.FinishPasskey(ctx, ada, "ada@example.com", challenge, "laptop", answer)
	if err != nil || !enabled.First || len(enabled.Recovery) != recoveryCodes {
		t.Fatal(p, enabled, err)
	}
	_, _, err = a.FinishPasskey(ctx, ada, "ada@example.com", challenge, "again", answer)
	is(t, "a registration twice", err, ErrChallenge)
	raw, err := server.Open().Client().HGet(ctx, passkeysKey(ada), p.ID).Result()
	if err != nil || strings.Contains(raw, "laptop") {
		t.Errorf("the passkey is stored unsealed: %v", err)
	}
	// As second factor.
	asked := ask(t, a, ada)
	if asked.TOTP || !asked.Recovery || asked.PasskeyOptions == nil {
		t.Fatalf("%+v", asked)
	}
	assertion := k.gets(asked.PasskeyOptions)
	_, err = b.Complete(ctx, ask(t, b, ada).Challenge, Answer{Passkey: assertion}, nowhere)
	is(t, "an answer to another challenge", err, ErrWrong)
	done, err := b.Complete(ctx, asked.Challenge, Answer{Passkey: assertion}, nowhere)
	if err != nil || done != (Completed{Person: ada, Method: sessions.PasswordPasskey, State: state}) {
		t.Fatal(done, err)
	}
	_, err = a.Complete(ctx, asked.Challenge, Answer{Passkey: assertion}, nowhere)
	is(t, "an answer twice", err, ErrChallenge)
	// Alone.
	alone := func(k *key) (Completed, error) {
		t.Helper()
		challenge, options, err := a.AskPasskey(ctx, netip.MustParseAddr("192.0.2.1"))
		if err != nil {
			t.Fatal(err)
		}
		return b.Complete(ctx, challenge, Answer{Passkey: k.gets(options)}, nowhere)
	}
	if done, err = alone(k); err != nil || done != (Completed{Person: ada, Method: sessions.Passkey}) {
		t.Fatal(done, err)
	}
	all, err := a.State(ctx, ada)
	if err != nil || len(all.Passkeys) != 1 || all.Passkeys[0].Used == 0 || all.Passkeys[0].credential.Authenticator.SignCount != 2 {
		t.Errorf("%+v, %v", all, err)
	}
	stranger := newKey(t)
	stranger.device.Options.UserHandle = k.device.Options.UserHandle
	_, err = alone(stranger)
	is(t, "a key that isn't registered", err, ErrWrong)
	forged := newKey(t)
	forged.cred.ID, forged.device = k.cred.ID, k.device
	_, err = alone(forged)
	is(t, "another key with the credential's id", err, ErrWrong)
	unverified := *k
	unverified.device.Options.UserNotVerified = true
	_, err = alone(&unverified)
	is(t, "without user verification", err, ErrWrong)
	nobody := *k
	nobody.device.Options.UserHandle = []byte("0123456789abcdef")
	_, err = alone(&nobody)
	is(t, "of nobody", err, ErrWrong)
	// A copy: one counts on, the other is behind.
	copied := *k
	if _, err = alone(k); err != nil {
		t.Fatal(err)
	}
	_, err = alone(&copied)
	is(t, "a sign count that doesn't go up", err, ErrWrong)
	// A code isn't an answer to who shows a passkey alone.
	challenge, _, err = a.AskPasskey(ctx, netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Complete(ctx, challenge, Answer{TOTP: "123456"}, nowhere)
	is(t, "a code for a passkey", err, ErrWrong)
	is(t, "another's is renamed", a.RenamePasskey(ctx, bob, p.ID, "mine"), ErrNone)
	is(t, "another's is deleted", a.DeletePasskey(ctx, bob, p.ID), ErrNone)
	if err := a.RenamePasskey(ctx, ada, p.ID, "phone"); err != nil {
		t.Fatal(err)
	}
	if err := b.DeletePasskey(ctx, ada, p.ID); err != nil {
		t.Fatal(err)
	}
	_, err = alone(k)
	is(t, "one that was deleted", err, ErrWrong)
	if s, err := a.State(ctx, ada); err != nil || s.Any() || s.Recovery != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

// A passkey's record is bound to its person.
func TestPasskeyIsBound(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	a, _, server, _ := replicas(t)
	p := register(t, a, newKey(t), ada)
	client := server.Open().Client()
	raw, err := client.HGet(ctx, passkeysKey(ada), p.ID).Result()
	if err != nil {
		t.Fatal(err)
	}
	if err := client.HSet(ctx, passkeysKey(bob), p.ID, raw).Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.State(ctx, bob); err == nil {
		t.Error("a passkey that was put in another's place is taken")
	}
}

func TestNoPasskeysWithoutName(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"https://fleet.example.com": true, "https://Fleet.Example.com:8443": true, "http://localhost:8080": true,
		"https://203.0.113.5:8443": false, "https://[2001:db8::1]": false, "": false,
	} {
		if rp, err := relyingParty(text); err != nil || (rp != nil) != want {
			t.Errorf("%q: %v, %v", text, rp != nil, err)
		}
	}
}

func TestDevice(t *testing.T) {
	t.Parallel()
	a, b, _, _ := replicas(t)
	text := a.NewDevice(ada)
	if d := b.Device(text); d.Person != ada || d.ID == "" || d.Made == 0 {
		t.Errorf("%+v", d)
	}
	other, err := New(Options{Store: a.store, Keys: keys.New([keys.SecretLen]byte{8})})
	if err != nil {
		t.Fatal(err)
	}
	if d := other.Device(text); d != (people.Device{}) {
		t.Errorf("of another fleet: %+v", d)
	}
	if a.NewDevice("nobody") != "" {
		t.Error("a device of nobody")
	}
}

func FuzzAnswers(f *testing.F) {
	server := redistest.Start(f)
	// Each of the fuzzer's processes has a fleet of its own: only what it made itself may be taken there.
	var secret [keys.SecretLen]byte
	_, _ = rand.Read(secret[:])
	keep, err := New(Options{Store: server.Open(), Keys: keys.New(secret), PublicURL: origin, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	text := keep.NewDevice(ada)
	f.Add(text, []byte(`{"id":"AA","rawId":"AA","type":"public-key","response":{}}`))
	f.Add("fbd_", []byte("{}"))
	f.Fuzz(func(t *testing.T, device string, response []byte) {
		if d := keep.Device(device); d != (people.Device{}) && device != text {
			t.Errorf("%q is a device", device)
		}
		challenge, _, err := keep.AskPasskey(context.Background(), netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := keep.Complete(context.Background(), challenge, Answer{Passkey: response}, nowhere); !IsWrong(err) {
			t.Errorf("%q: %v", response, err)
		}
	})
}

// passkey is what a device makes. The library leaves out the zeros that one in 128 keys begins with, which no device does and
// is refused: such a key, shorter than others, isn't used.
func passkey() virtualwebauthn.Credential {
	const whole = 77 // bytes of CBOR
	for {
		if c := virtualwebauthn.NewCredential(virtualwebauthn.KeyTypeEC2); len(c.Key.AttestationData()) == whole {
			return c
		}
	}
}
