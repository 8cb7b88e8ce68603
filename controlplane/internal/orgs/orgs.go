// Package orgs keeps organisations: their settings, the API tokens of people and programs, and the join tokens that
// enrol hosts.
//
// An organisation's own state stands under its hash tag (fb:{ORG}:meta, :tokens, :joins, :join:ID). What must be found
// before the organisation is known, a secret's hash, is one global key that names the organisation and nothing more
// than is needed to decide: fb:token:HASH, fb:join:HASH. Secrets themselves are never stored.
package orgs

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/oklog/ulid/v2"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Errors that callers decide on.
var (
	ErrNotFound = errors.New("no such organisation or token")
	// ErrUnknownToken: well-formed, and nobody's: revoked, or of another fleet.
	ErrUnknownToken = errors.New("unknown token")
	ErrTokenExpired = errors.New("the join token expired")
	// ErrAPITokenExpired says so of an API token.
	ErrAPITokenExpired = errors.New("the API token expired")
	// ErrPageToken: not one that a list gave.
	ErrPageToken   = errors.New("malformed page token")
	ErrTokenUsedUp = errors.New("the join token is used up")
	// ErrInvalid is wrapped by refusals of a value; the text says which and what would be right.
	ErrInvalid = errors.New("invalid")
)

// Limits of what is taken.
const (
	MaxNameLen       = 100
	MaxPause         = 7 * 24 * time.Hour
	MaxJoinTokenLife = 366 * 24 * time.Hour
	MaxJoinTokens    = 1000
	MaxEphemeral     = 30 * 24 * time.Hour
)

// Organisation is a tenant's settings.
type Organisation struct {
	ID   string // ULID
	Name string
	Mode fleetbanv1.Mode
	// PausedUntil is Unix milliseconds; 0 when enforcement isn't paused.
	PausedUntil int64
	// SettingsVersion grows with each change of Mode and PausedUntil.
	SettingsVersion uint64
	Created         int64 // Unix milliseconds
}

// Settings is what hosts are told of it.
func (o Organisation) Settings() *fleetbanv1.Settings {
	return fleetbanv1.Settings_builder{Version: o.SettingsVersion, PausedUntilUnixMs: o.PausedUntil, Mode: o.Mode}.Build()
}

// Orgs keeps organisations in Redis. Safe for concurrent use.
type Orgs struct {
	store *store.Store
	seal  *seal.Sealer
}

// New makes an Orgs over st, which signs with s what it keeps there of who may do what.
func New(st *store.Store, s *seal.Sealer) *Orgs { return &Orgs{store: st, seal: s} }

var (
	//go:embed lua/create.lua
	createText   string
	createScript = store.NewScript("orgs/create", createText)

	//go:embed lua/settings.lua
	settingsText   string
	settingsScript = store.NewScript("orgs/settings", audit.Lua, settingsText)
)

// firstKey names the organisation that the first start made. One key, for SET NX decides a race of replicas.
var firstKey = store.Global("first")

// FirstStart is what a first start made.
type FirstStart struct {
	Organisation Organisation
	// AdminToken is the administrator's API token, for the one caller that won; empty for all others, and ever after.
	AdminToken string
}

// First makes the first organisation and its administrator's token, once for a fleet: of concurrent starts exactly one
// gets the token, all get the same organisation. A start that died half way is completed by the next one. If it died
// after taking the token and before a person read it, CreateToken makes another.
func (o *Orgs) First(ctx context.Context, name string, mode fleetbanv1.Mode) (FirstStart, error) {
	if err := checkNew(name, mode); err != nil {
		return FirstStart{}, err
	}
	client := o.store.Client()
	id, err := client.Get(ctx, firstKey).Result()
	if err != nil {
		if err := isNil(err); err != nil {
			return FirstStart{}, fmt.Errorf("look for the first organisation: %w", err)
		}
		id = ulid.Make().String()
		won, err := client.SetNX(ctx, firstKey, id, 0).Result()
		if err != nil {
			return FirstStart{}, fmt.Errorf("claim the first start: %w", store.Classify(err))
		}
		if !won {
			if id, err = client.Get(ctx, firstKey).Result(); err != nil {
				return FirstStart{}, fmt.Errorf("read the first organisation: %w", store.Classify(err))
			}
		}
	}
	org, err := o.create(ctx, id, name, mode, true)
	if err != nil {
		return FirstStart{}, err
	}
	taken, err := client.HExists(ctx, metaKey(id), "first_token").Result()
	if err != nil {
		return FirstStart{}, fmt.Errorf("look for the first token: %w", store.Classify(err))
	}
	if taken {
		return FirstStart{Organisation: org}, nil
	}
	token, err := o.CreateToken(ctx, id, "first administrator", AllPermissions())
	if err != nil {
		return FirstStart{}, err
	}
	won, err := client.HSetNX(ctx, metaKey(id), "first_token", token.ID).Result()
	if err != nil {
		return FirstStart{}, fmt.Errorf("take the first token: %w", store.Classify(err))
	}
	if !won {
		if err := o.RevokeToken(ctx, id, token.ID); err != nil {
			return FirstStart{}, err
		}
		return FirstStart{Organisation: org}, nil
	}
	return FirstStart{Organisation: org, AdminToken: token.Secret}, nil
}

// FirstID is the id of the organisation that the first start made; ErrNotFound before.
func (o *Orgs) FirstID(ctx context.Context) (string, error) {
	id, err := o.store.Client().Get(ctx, firstKey).Result()
	if err != nil {
		if err := isNil(err); err != nil {
			return "", fmt.Errorf("look for the first organisation: %w", err)
		}
		return "", ErrNotFound
	}
	return id, nil
}

// Create makes an organisation.
func (o *Orgs) Create(ctx context.Context, name string, mode fleetbanv1.Mode) (Organisation, error) {
	if err := checkNew(name, mode); err != nil {
		return Organisation{}, err
	}
	return o.create(ctx, ulid.Make().String(), name, mode, true)
}

// create makes the organisation unless it stands, and reads it. fresh: no host can hold anything of it.
func (o *Orgs) create(ctx context.Context, id, name string, mode fleetbanv1.Mode, fresh bool) (Organisation, error) {
	if err := createScript.Run(ctx, o.store, []string{metaKey(id)}, name, int32(mode), fresh).Err(); err != nil {
		return Organisation{}, fmt.Errorf("create organisation: %w", err)
	}
	if err := o.store.Client().SAdd(ctx, allKey, id).Err(); err != nil {
		return Organisation{}, fmt.Errorf("list organisation: %w", store.Classify(err))
	}
	return o.Get(ctx, id)
}

// Get reads an organisation; ErrNotFound when there is none.
func (o *Orgs) Get(ctx context.Context, id string) (Organisation, error) {
	v, err := o.store.Client().HMGet(ctx, metaKey(id), "name", "mode", "paused_until", "settings_version", "created").Result()
	if err != nil {
		return Organisation{}, fmt.Errorf("read organisation: %w", store.Classify(err))
	}
	if v[0] == nil {
		return Organisation{}, fmt.Errorf("organisation %s: %w", id, ErrNotFound)
	}
	return Organisation{
		ID: id, Name: text(v[0]), Mode: fleetbanv1.Mode(number(text(v[1]))), //nolint:gosec // an enum of ours
		PausedUntil: number(text(v[2])), SettingsVersion: uint64(number(text(v[3]))), Created: number(text(v[4])), //nolint:gosec // never negative
	}, nil
}

// SetMode changes what promotion does, and says whether that was a change.
func (o *Orgs) SetMode(ctx context.Context, id string, mode fleetbanv1.Mode) (org Organisation, changed bool, err error) {
	if err := checkMode(mode); err != nil {
		return Organisation{}, false, err
	}
	return o.change(ctx, id, "mode", int64(mode))
}

// Pause stops enforcement on every host for d, 1 s to MaxPause, counted from now by Redis' clock.
func (o *Orgs) Pause(ctx context.Context, id string, d time.Duration) (Organisation, error) {
	if d < time.Second || d > MaxPause {
		return Organisation{}, fmt.Errorf("%w pause of %s: 1s to %s is possible", ErrInvalid, d, MaxPause)
	}
	org, _, err := o.change(ctx, id, "pause", d.Milliseconds())
	return org, err
}

// Resume ends a pause, and says whether there was one.
func (o *Orgs) Resume(ctx context.Context, id string) (org Organisation, changed bool, err error) {
	return o.change(ctx, id, "pause", 0)
}

func (o *Orgs) change(ctx context.Context, id, what string, value int64) (Organisation, bool, error) {
	entry := audit.Stage(ctx)
	body, mac := entry.Args()
	reply, err := settingsScript.Run(ctx, o.store, []string{metaKey(id), store.BellChannel(id)}, what, value, body, mac).Slice()
	if err != nil {
		return Organisation{}, false, fmt.Errorf("change %s: %w", what, err)
	}
	if len(reply) < 2 {
		return Organisation{}, false, fmt.Errorf("organisation %s: %w", id, ErrNotFound)
	}
	changed, _ := reply[0].(int64)
	wrote, _ := reply[1].([]any)
	entry.Wrote(ctx, wrote)
	org, err := o.Get(ctx, id)
	return org, changed == 1, err
}

func metaKey(id string) string { return store.Key(id, "meta") }

func checkNew(name string, mode fleetbanv1.Mode) error {
	if err := checkText("name", name, MaxNameLen); err != nil {
		return err
	}
	if name == "" {
		return fmt.Errorf("%w name: it is empty", ErrInvalid)
	}
	return checkMode(mode)
}

func checkMode(mode fleetbanv1.Mode) error {
	if mode != fleetbanv1.Mode_MODE_WATCH && mode != fleetbanv1.Mode_MODE_ENFORCE {
		return fmt.Errorf("%w mode %d: enforce or watch is possible", ErrInvalid, mode)
	}
	return nil
}

// checkText keeps control characters out of what people will be shown.
func checkText(what, s string, limit int) error {
	if len(s) > limit {
		return fmt.Errorf("%w %s: %d bytes, %d are possible", ErrInvalid, what, len(s), limit)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%w %s: not UTF-8", ErrInvalid, what)
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return fmt.Errorf("%w %s: it contains the control character %U", ErrInvalid, what, r)
		}
	}
	return nil
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

func number(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}
