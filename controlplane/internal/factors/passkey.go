package factors

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"
	"github.com/oklog/ulid/v2"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

const (
	maxPasskeys = 20
	maxName     = 60 // characters
)

var (
	//go:embed lua/passkey.lua
	passkeyText   string
	passkeyScript = store.NewScript("factors/passkey", passkeyText)
)

// relyingParty is nil where the public URL names no host: an IP address can't have passkeys.
func relyingParty(publicURL string) (*webauthn.WebAuthn, error) {
	u, err := url.Parse(publicURL)
	if err != nil || u.Hostname() == "" {
		return nil, nil //nolint:nilnil,nilerr // documented
	}
	if _, err := netip.ParseAddr(u.Hostname()); err == nil {
		return nil, nil //nolint:nilnil // documented
	}
	rp, err := webauthn.New(&webauthn.Config{
		RPID: strings.ToLower(u.Hostname()), RPDisplayName: "Fleetban", RPOrigins: []string{u.Scheme + "://" + strings.ToLower(u.Host)},
		AttestationPreference: protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			ResidentKey: protocol.ResidentKeyRequirementRequired, UserVerification: protocol.VerificationRequired,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("passkeys for %s: %w", u.Hostname(), err)
	}
	return rp, nil
}

// PasskeysPossible reports whether passkeys can be registered.
func (f *Factors) PasskeysPossible() bool { return f.webauthn != nil }

// Passkey is one of a person's. Times are Unix milliseconds.
type Passkey struct {
	ID     string
	Name   string
	Since  int64
	Used   int64 // 0: never yet
	Synced bool  // kept by a provider, on several devices maybe

	credential webauthn.Credential
	raw        string
}

// record is a passkey as stored.
type record struct {
	Name       string              `json:"name"`
	Since      int64               `json:"since"`
	Used       int64               `json:"used,omitempty"`
	Credential webauthn.Credential `json:"credential"`
}

func (f *Factors) passkeys(ctx context.Context, person string) ([]Passkey, error) {
	all, err := f.store.Client().HGetAll(ctx, passkeysKey(person)).Result()
	if err != nil {
		return nil, fmt.Errorf("read passkeys: %w", store.Classify(err))
	}
	out := make([]Passkey, 0, len(all))
	for id, raw := range all {
		text, err := f.opened("passkey "+id, person, raw)
		if err != nil {
			return nil, err
		}
		var r record
		if err := json.Unmarshal(text, &r); err != nil {
			return nil, fmt.Errorf("stored passkey %s is damaged: %w", id, err)
		}
		out = append(out, Passkey{ID: id, Name: r.Name, Since: r.Since, Used: r.Used, Synced: r.Credential.Flags.BackupState, credential: r.Credential, raw: raw})
	}
	slices.SortFunc(out, func(a, b Passkey) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// holder is a person as package webauthn sees one.
type holder struct {
	id       ulid.ULID
	email    string
	passkeys []Passkey
}

func (h holder) WebAuthnID() []byte          { return h.id[:] }
func (h holder) WebAuthnName() string        { return h.email }
func (h holder) WebAuthnDisplayName() string { return h.email }

func (h holder) WebAuthnCredentials() []webauthn.Credential {
	out := make([]webauthn.Credential, 0, len(h.passkeys))
	for _, p := range h.passkeys {
		out = append(out, p.credential)
	}
	return out
}

func (f *Factors) holder(ctx context.Context, person, email string) (holder, error) {
	id, err := ulid.ParseStrict(person)
	if err != nil {
		return holder{}, fmt.Errorf("person's id: %w", err)
	}
	keys, err := f.passkeys(ctx, person)
	return holder{id: id, email: email, passkeys: keys}, err
}

// BeginPasskey begins a registration: options for navigator.credentials.create, and the challenge for FinishPasskey.
func (f *Factors) BeginPasskey(ctx context.Context, person, email string) (text string, options []byte, err error) {
	if f.webauthn == nil {
		return "", nil, ErrNoPasskeys
	}
	h, err := f.holder(ctx, person, email)
	if err != nil {
		return "", nil, err
	}
	if len(h.passkeys) >= maxPasskeys {
		return "", nil, ErrTooMany
	}
	creation, session, err := f.webauthn.BeginRegistration(h, webauthn.WithExclusions(webauthn.Credentials(h.WebAuthnCredentials()).CredentialDescriptors()))
	if err != nil {
		return "", nil, fmt.Errorf("begin passkey: %w", err)
	}
	return f.askWith(ctx, challenge{For: forNewKey, Person: person}, session, creation)
}

func (f *Factors) askWith(ctx context.Context, c challenge, session *webauthn.SessionData, forBrowser any) (text string, options []byte, err error) {
	if c.Session, err = json.Marshal(session); err != nil {
		return "", nil, fmt.Errorf("make challenge: %w", err)
	}
	if options, err = json.Marshal(forBrowser); err != nil {
		return "", nil, fmt.Errorf("make challenge: %w", err)
	}
	life := ChallengeLife
	if c.For == forNewKey {
		life = EnrolmentLife
	}
	text, err = f.ask(ctx, c, life)
	return text, options, err
}

// FinishPasskey keeps the passkey that a browser made: ErrChallenge, ErrWrong, ErrInvalid.
func (f *Factors) FinishPasskey(ctx context.Context, person, email, text, name string, response []byte) (Passkey, Enabled, error) {
	if f.webauthn == nil {
		return Passkey{}, Enabled{}, ErrNoPasskeys
	}
	name, err := cleanName(name)
	if err != nil {
		return Passkey{}, Enabled{}, err
	}
	c, err := f.try(ctx, text, forNewKey)
	if err != nil {
		return Passkey{}, Enabled{}, err
	}
	var session webauthn.SessionData
	if err := json.Unmarshal(c.Session, &session); err != nil {
		return Passkey{}, Enabled{}, fmt.Errorf("stored challenge is damaged: %w", err)
	}
	if c.Person != person {
		return Passkey{}, Enabled{}, ErrChallenge
	}
	h, err := f.holder(ctx, person, email)
	if err != nil {
		return Passkey{}, Enabled{}, err
	}
	parsed, err := protocol.ParseCredentialCreationResponseBytes(response)
	if err != nil {
		return Passkey{}, Enabled{}, fmt.Errorf("%w: %w", ErrWrong, err)
	}
	made, err := f.webauthn.CreateCredential(h, session, parsed)
	if err != nil {
		return Passkey{}, Enabled{}, fmt.Errorf("%w: %w", ErrWrong, err)
	}
	made.Attestation = webauthn.CredentialAttestation{} // not asked for, and long
	before, err := f.State(ctx, person)
	if err != nil {
		return Passkey{}, Enabled{}, err
	}
	if len(before.Passkeys) >= maxPasskeys {
		return Passkey{}, Enabled{}, ErrTooMany
	}
	if err := f.use(ctx, text); err != nil {
		return Passkey{}, Enabled{}, err
	}
	out := Enabled{First: !before.Any()}
	if before.Recovery == 0 {
		if out.Recovery, err = f.MakeRecoveryCodes(ctx, person); err != nil {
			return Passkey{}, Enabled{}, err
		}
	}
	p := Passkey{ID: ulid.Make().String(), Name: name, Since: f.now().UnixMilli(), Synced: made.Flags.BackupState}
	body, err := json.Marshal(record{Name: p.Name, Since: p.Since, Credential: *made})
	if err != nil {
		return Passkey{}, Enabled{}, fmt.Errorf("make passkey: %w", err)
	}
	if err := f.store.Client().HSet(ctx, passkeysKey(person), p.ID, f.sealed("passkey "+p.ID, person, body)).Err(); err != nil {
		return Passkey{}, Enabled{}, fmt.Errorf("store passkey: %w", store.Classify(err))
	}
	return p, out, nil
}

// RenamePasskey gives one another name; ErrNone, ErrInvalid.
func (f *Factors) RenamePasskey(ctx context.Context, person, id, name string) error {
	name, err := cleanName(name)
	if err != nil {
		return err
	}
	all, err := f.passkeys(ctx, person)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(p Passkey) bool { return p.ID == id })
	if i < 0 {
		return ErrNone
	}
	p := all[i]
	p.Name = name
	return f.replace(ctx, person, p)
}

// DeletePasskey removes one; ErrNone. Recovery codes go with the last factor.
func (f *Factors) DeletePasskey(ctx context.Context, person, id string) error {
	n, err := f.store.Client().HDel(ctx, passkeysKey(person), id).Result()
	if err != nil {
		return fmt.Errorf("remove passkey: %w", store.Classify(err))
	}
	if n == 0 {
		return ErrNone
	}
	return f.tidy(ctx, person)
}

// replace stores a passkey that was read before; ErrWrong where somebody else has changed it meanwhile.
func (f *Factors) replace(ctx context.Context, person string, p Passkey) error {
	body, err := json.Marshal(record{Name: p.Name, Since: p.Since, Used: p.Used, Credential: p.credential})
	if err != nil {
		return fmt.Errorf("change passkey: %w", err)
	}
	done, err := passkeyScript.Run(ctx, f.store, []string{passkeysKey(person)}, p.ID, p.raw, f.sealed("passkey "+p.ID, person, body)).Int()
	if err != nil {
		return fmt.Errorf("change passkey: %w", err)
	}
	if done != 1 {
		return ErrWrong
	}
	return nil
}

// checkPasskey verifies an assertion: of c.Person, or where that is empty of whom the passkey names.
func (f *Factors) checkPasskey(ctx context.Context, c challenge, response []byte) (person string, used Passkey, err error) {
	if f.webauthn == nil || c.Session == nil {
		return "", Passkey{}, ErrWrong
	}
	var session webauthn.SessionData
	if err := json.Unmarshal(c.Session, &session); err != nil {
		return "", Passkey{}, fmt.Errorf("stored challenge is damaged: %w", err)
	}
	parsed, err := protocol.ParseCredentialRequestResponseBytes(response)
	if err != nil {
		return "", Passkey{}, fmt.Errorf("%w: %w", ErrWrong, err)
	}
	var h holder
	var made *webauthn.Credential
	if c.Person != "" {
		if h, err = f.holder(ctx, c.Person, ""); err != nil {
			return "", Passkey{}, err
		}
		made, err = f.webauthn.ValidateLogin(h, session, parsed)
	} else {
		var away error
		made, err = f.webauthn.ValidateDiscoverableLogin(func(_, handle []byte) (webauthn.User, error) {
			if len(handle) != len(h.id) {
				return nil, ErrWrong
			}
			h, away = f.holder(ctx, ulid.ULID(handle).String(), "")
			return h, away
		}, session, parsed)
		if away != nil {
			return "", Passkey{}, away
		}
	}
	if err != nil {
		return "", Passkey{}, fmt.Errorf("%w: %w", ErrWrong, err)
	}
	person = h.id.String()
	i := slices.IndexFunc(h.passkeys, func(p Passkey) bool { return slices.Equal(p.credential.ID, made.ID) })
	if i < 0 {
		return "", Passkey{}, ErrWrong
	}
	if made.Authenticator.CloneWarning {
		// Each use must count up: one that doesn't is a copy's, or comes after a copy's.
		f.logger.WarnContext(ctx, "a passkey's sign count went back: there may be a copy of it", slog.String("person", person), slog.String("passkey", h.passkeys[i].ID))
		return "", Passkey{}, fmt.Errorf("%w: its sign count went back", ErrWrong)
	}
	used = h.passkeys[i]
	used.credential, used.Used = *made, f.now().UnixMilli()
	return person, used, nil
}

func cleanName(name string) (string, error) {
	name = strings.TrimSpace(name)
	if !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return "", fmt.Errorf("%w name: only characters that can be seen are possible", ErrInvalid)
	}
	if n := utf8.RuneCountInString(name); n < 1 || n > maxName {
		return "", fmt.Errorf("%w name: 1 to %d characters are possible", ErrInvalid, maxName)
	}
	return name, nil
}

var _ webauthn.User = holder{}

// IsWrong reports whether err says that what was answered is wrong, and not that it couldn't be looked at.
func IsWrong(err error) bool { return errors.Is(err, ErrWrong) || errors.Is(err, ErrChallenge) }
