// Package terminals signs programs in by a browser, which may be on another machine (in the manner of RFC 8628).
//
//	          Begin                 Approve                Take
//	program ─────────▶ asked ────────────────▶ approved ─────────▶ gone, and a session
//	                     │          Deny                   Take
//	                     └───────────────────▶ denied ───────────▶ gone, and a refusal
//
// What is asked for lies in Redis under a MAC of the code that the person types: any replica goes on with it, nobody reads a
// code there. It is sealed and bound to its place, so that who writes to Redis approves nothing, and says itself when it ends.
// Two things are needed to get a session out of it: an approval, by who has the code and is signed in, and the verifier, which
// only the program has.
package terminals

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	_ "embed"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"
	"unicode"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

const (
	// Life is how long a code is good for.
	Life = 10 * time.Minute
	// Interval is how long a program waits before it asks again.
	Interval = 2 * time.Second

	// letters of codes: none that is taken for another one, and no vowels, so that they make no words (RFC 8628, 6.1).
	letters = "BCDFGHJKLMNPQRSTVWXZ"
	codeLen = 8 // 34 bits

	// What is let through in a minute: codes made for an address, tries of a program with one code, codes looked up by a
	// person and from an address. Of 20^8 codes, a person sees a hundred in their ten minutes.
	beginsPerAddress   = 20
	takesPerCode       = 60
	lookupsPerPerson   = 10
	lookupsPerAddress  = 30
	maxText            = 253 // bytes
	attemptsToMakeCode = 5
)

// Errors that callers decide on.
var (
	// ErrUnknown: no such code, or it is used, denied or expired, or the verifier is another program's.
	ErrUnknown = errors.New("this code is unknown, used or too old")
	// ErrDenied: somebody said no.
	ErrDenied = errors.New("the sign-in was denied")
	// ErrOtherOrganisation: the program asks for another one than the person is signed in to.
	ErrOtherOrganisation = errors.New("the program asks for another organisation than this one")
)

var (
	//go:embed lua/decide.lua
	decideText   string
	decideScript = store.NewScript("terminals/decide", decideText)
)

// Keys derives the key: *keys.Keys.
type Keys interface{ TerminalKey() [32]byte }

// Options make a Terminals.
type Options struct {
	Store *store.Store
	Keys  Keys
	// Now is Redis' clock as this replica knows it. Default time.Now.
	Now func() time.Time
	// Logger; default slog.Default().
	Logger *slog.Logger
}

// Terminals keeps sign-ins that wait for a browser. Safe for concurrent use.
type Terminals struct {
	store  *store.Store
	aead   cipher.AEAD
	mac    [32]byte // of codes
	rate   *store.Limiter
	now    func() time.Time
	logger *slog.Logger
}

// New makes a Terminals.
func New(o Options) (*Terminals, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	key := o.Keys.TerminalKey()
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, fmt.Errorf("prepare the key of terminal sign-ins: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("prepare the key of terminal sign-ins: %w", err)
	}
	return &Terminals{
		store: o.Store, aead: aead, mac: sha256.Sum256(append([]byte("codes "), key[:]...)), rate: store.NewLimiter(o.Store), now: o.Now, logger: o.Logger,
	}, nil
}

// Asker is a program that asks to be signed in, as the person is shown it.
type Asker struct {
	// Challenge is the SHA-256 of its verifier, base64url without padding.
	Challenge string `json:"challenge"`
	// Name and Agent are its own words.
	Name  string `json:"name,omitempty"`
	Agent string `json:"agent,omitempty"`
	// Address is where it asks from; the zero Addr where that isn't known.
	Address netip.Addr `json:"address,omitzero"`
	// Org is the only organisation that it wants; empty: any.
	Org string `json:"org,omitempty"`
}

// Approval is who lets it in, and as what.
type Approval struct {
	Person string `json:"person"`
	Org    string `json:"org"`
	// Session is the one that it was approved in, Method what that one began with.
	Session string `json:"session"`
	Method  string `json:"method"`
	// Proved is when the person last proved there who they are, Unix milliseconds; 0: never.
	Proved int64 `json:"proved"`
	// Alone is sessions.Proofs' of then.
	Alone string `json:"alone,omitempty"`
	// State is what changes with the person's password.
	State string `json:"state"`
}

// waiting is what is sealed in Redis.
type waiting struct {
	Asker    Asker     `json:"asker"`
	Began    int64     `json:"began"` // Unix milliseconds, as Until
	Until    int64     `json:"until"`
	Denied   bool      `json:"denied,omitempty"`
	Approval *Approval `json:"approval,omitempty"`
}

// Asked is a sign-in that nobody decided on yet.
type Asked struct {
	Asker

	// Code as it is shown: XXXX-XXXX.
	Code         string
	Began, Until time.Time
}

// Begin keeps what a program asks for, and returns the code: *people.TooOftenError, or an error of the store.
func (t *Terminals) Begin(ctx context.Context, a Asker) (string, error) {
	if a.Address.IsValid() {
		if err := t.count(ctx, limit{store.Global("terminal", "address", people.Group(a.Address)), beginsPerAddress}); err != nil {
			return "", err
		}
	}
	a.Name, a.Agent = plain(a.Name), plain(a.Agent)
	now := t.now()
	w := waiting{Asker: a, Began: now.UnixMilli(), Until: now.Add(Life).UnixMilli()}
	for range attemptsToMakeCode {
		code := newCode()
		key := t.key(code)
		sealed, err := t.sealed(key, w)
		if err != nil {
			return "", err
		}
		made, err := t.store.Client().SetNX(ctx, key, sealed, Life).Result()
		if err != nil {
			return "", fmt.Errorf("keep a terminal's sign-in: %w", store.Classify(err))
		}
		if made {
			return Shown(code), nil
		}
	}
	return "", errors.New("make a terminal's code: each that was tried is in use")
}

// Look says what a code is for, before a person decides: ErrUnknown, *people.TooOftenError.
func (t *Terminals) Look(ctx context.Context, person string, from netip.Addr, code string) (Asked, error) {
	w, _, _, err := t.open(ctx, person, from, code)
	if err != nil {
		return Asked{}, err
	}
	return w.asked(code), nil
}

func (w waiting) asked(code string) Asked {
	return Asked{Asker: w.Asker, Code: Shown(parse(code)), Began: time.UnixMilli(w.Began), Until: time.UnixMilli(w.Until)}
}

// Approve lets the program of a code in: ErrUnknown, ErrOtherOrganisation, *people.TooOftenError.
func (t *Terminals) Approve(ctx context.Context, from netip.Addr, code string, by Approval) (Asked, error) {
	w, key, read, err := t.open(ctx, by.Person, from, code)
	if err != nil {
		return Asked{}, err
	}
	if w.Asker.Org != "" && w.Asker.Org != by.Org {
		return Asked{}, ErrOtherOrganisation
	}
	w.Approval = &by
	return w.asked(code), t.decide(ctx, key, read, &w)
}

// Deny has the program of a code told so: ErrUnknown, *people.TooOftenError.
func (t *Terminals) Deny(ctx context.Context, person string, from netip.Addr, code string) (Asked, error) {
	w, key, read, err := t.open(ctx, person, from, code)
	if err != nil {
		return Asked{}, err
	}
	w.Denied = true
	return w.asked(code), t.decide(ctx, key, read, &w)
}

// Take gives a program what was decided, once: nil where nothing is yet, ErrUnknown, ErrDenied, *people.TooOftenError.
func (t *Terminals) Take(ctx context.Context, code, verifier string) (*Approval, error) {
	key := t.key(parse(code))
	w, read, err := t.read(ctx, key)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(verifier))
	if subtle.ConstantTimeCompare([]byte(base64.RawURLEncoding.EncodeToString(sum[:])), []byte(w.Asker.Challenge)) != 1 {
		return nil, fmt.Errorf("%w: another program began it", ErrUnknown)
	}
	if err := t.count(ctx, limit{store.Global("terminal", "take", w.Asker.Challenge), takesPerCode}); err != nil {
		return nil, err
	}
	if !w.Denied && w.Approval == nil {
		return nil, nil //nolint:nilnil // documented
	}
	if err := t.decide(ctx, key, read, nil); err != nil {
		return nil, err
	}
	if w.Denied {
		return nil, ErrDenied
	}
	return w.Approval, nil
}

// open reads what a person typed a code of, and counts that: guessing is bounded.
func (t *Terminals) open(ctx context.Context, person string, from netip.Addr, code string) (w waiting, key, read string, err error) {
	limits := []limit{{store.Key(person, "terminal"), lookupsPerPerson}}
	if from.IsValid() {
		limits = append(limits, limit{store.Global("terminal", "looks", people.Group(from)), lookupsPerAddress})
	}
	if err := t.count(ctx, limits...); err != nil {
		return waiting{}, "", "", err
	}
	key = t.key(parse(code))
	w, read, err = t.read(ctx, key)
	if err == nil && (w.Denied || w.Approval != nil) {
		err = ErrUnknown
	}
	return w, key, read, err
}

func (t *Terminals) read(ctx context.Context, key string) (w waiting, read string, err error) {
	read, err = t.store.Client().Get(ctx, key).Result()
	if errors.Is(err, redis.Nil) {
		return waiting{}, "", ErrUnknown
	}
	if err != nil {
		return waiting{}, "", fmt.Errorf("find a terminal's sign-in: %w", store.Classify(err))
	}
	opened, err := t.aead.Open(nil, nil, []byte(read), []byte(key))
	if err != nil {
		t.logger.ErrorContext(ctx, "a terminal's sign-in in Redis is not this fleet's: somebody wrote to Redis", slog.Any("error", err))
		return waiting{}, "", ErrUnknown
	}
	if err := json.Unmarshal(opened, &w); err != nil {
		return waiting{}, "", fmt.Errorf("stored sign-in of a terminal is damaged: %w", err)
	}
	if t.now().UnixMilli() >= w.Until {
		return waiting{}, "", ErrUnknown
	}
	return w, read, nil
}

// decide puts next in the place of what was read; nil takes it away. ErrUnknown where somebody else was first.
func (t *Terminals) decide(ctx context.Context, key, read string, next *waiting) error {
	becomes := ""
	if next != nil {
		var err error
		if becomes, err = t.sealed(key, *next); err != nil {
			return err
		}
	}
	done, err := decideScript.Run(ctx, t.store, []string{key}, read, becomes).Int()
	if err != nil {
		return fmt.Errorf("decide on a terminal's sign-in: %w", err)
	}
	if done != 1 {
		return ErrUnknown
	}
	return nil
}

func (t *Terminals) sealed(key string, w waiting) (string, error) {
	raw, err := json.Marshal(w)
	if err != nil {
		return "", fmt.Errorf("keep a terminal's sign-in: %w", err)
	}
	return string(t.aead.Seal(nil, nil, raw, []byte(key))), nil //nolint:gosec // this AEAD makes its nonces itself
}

type limit struct {
	key string
	n   int // a minute
}

// count counts one try with each of the limits; who can't be counted isn't heard.
func (t *Terminals) count(ctx context.Context, limits ...limit) error {
	for _, l := range limits {
		result, err := t.rate.Allow(ctx, l.key, redis_rate.PerMinute(l.n))
		if err != nil {
			return fmt.Errorf("count sign-ins of terminals: %w", store.Classify(err))
		}
		if result.Allowed < 1 {
			return &people.TooOftenError{RetryAfter: result.RetryAfter}
		}
	}
	return nil
}

// key is where a code's sign-in lies. A MAC: there are too few codes for a hash to hide one from who reads Redis.
func (t *Terminals) key(code string) string {
	mac := hmac.New(sha256.New, t.mac[:])
	mac.Write([]byte(code))
	return store.Global("terminal", hex.EncodeToString(mac.Sum(nil)))
}

func newCode() string {
	out := make([]byte, 0, codeLen)
	var b [1]byte
	for len(out) < codeLen {
		_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
		// Each letter equally often.
		if int(b[0]) < 256/len(letters)*len(letters) {
			out = append(out, letters[int(b[0])%len(letters)])
		}
	}
	return string(out)
}

// parse is a code as it is kept, of one as it was typed: "" where it can be none.
func parse(typed string) string {
	var out []byte
	for _, r := range typed {
		switch {
		case r == '-' || r == ' ':
			continue
		case r >= 'a' && r <= 'z':
			r += 'A' - 'a'
		}
		if r > unicode.MaxASCII || !strings.ContainsRune(letters, r) || len(out) == codeLen {
			return ""
		}
		out = append(out, byte(r))
	}
	if len(out) != codeLen {
		return ""
	}
	return string(out)
}

// Shown is a code as people read it.
func Shown(code string) string {
	if len(code) != codeLen {
		return ""
	}
	return code[:codeLen/2] + "-" + code[codeLen/2:]
}

// plain is text of a stranger, fit for a line.
func plain(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, ""))
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "")
	}
	return text
}
