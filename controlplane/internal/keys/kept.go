package keys

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

var (
	//go:embed lua/rewrap.lua
	rewrapText   string
	rewrapScript = store.NewScript("keys/rewrap", rewrapText)
)

// Source is where the fleet's secret comes from.
type Source interface {
	// Open loads the secret, or makes it where there is none: one, however many open at once. created: it was this one's.
	Open(ctx context.Context) (k *Keys, created bool, err error)
}

// File is a secret in a file of this machine.
type File string

// Open implements Source.
func (f File) Open(context.Context) (k *Keys, created bool, err error) {
	return LoadOrCreate(string(f))
}

// Kept is a secret that stands in Redis, wrapped: replicas need no file but the key-encryption key.
//
// A copy of what stands there, as unreadable, is kept beside: where Redis comes back empty, the fleet's secret is put back
// and not made anew, for hosts' identities hang on it.
type Kept struct {
	Store *store.Store
	// Wrappers: the first wraps, all unwrap. What another one wrapped is wrapped anew by the first.
	Wrappers []Wrapper
	// Copy is the copy's path.
	Copy   string
	Logger *slog.Logger
}

var (
	_ Source = File("")
	_ Source = Kept{}
)

func keptKey() string { return store.Global("secret") }

// Open implements Source. It returns ErrAway, store.ErrUnavailable or store.ErrOutcomeUnknown (wrapped) where repeating it
// may help.
func (s Kept) Open(ctx context.Context) (*Keys, bool, error) {
	text, err := s.stands(ctx)
	if err != nil {
		return nil, false, err
	}
	created := false
	if text == "" {
		if text, created, err = s.put(ctx); err != nil {
			return nil, false, err
		}
	}
	secret, by, err := s.unwrap(ctx, text)
	if err != nil {
		return nil, false, fmt.Errorf("the fleet's secret in Redis: %w", err)
	}
	if err := s.compare(ctx, text, secret); err != nil {
		return nil, false, err
	}
	if by > 0 {
		if text, err = s.rewrap(ctx, text, secret); err != nil {
			return nil, false, err
		}
	}
	if err := s.keep(text); err != nil {
		return nil, false, err
	}
	return New(secret), created, nil
}

// stands is what Redis holds; "" where that is nothing.
func (s Kept) stands(ctx context.Context) (string, error) {
	text, err := s.Store.Client().Get(ctx, keptKey()).Result()
	if errors.Is(err, redis.Nil) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the fleet's secret in Redis: %w", store.Classify(err))
	}
	return text, nil
}

// put gives Redis the copy, or a new secret; of several replicas one does, and all go on with what stands then.
func (s Kept) put(ctx context.Context) (text string, created bool, err error) {
	raw, err := os.ReadFile(s.Copy)
	switch {
	case err == nil:
		text = string(raw)
		s.Logger.WarnContext(ctx, "Redis holds no secret, putting back the one that this machine knows", slog.String("path", s.Copy))
	case errors.Is(err, os.ErrNotExist):
		secret, err := randomSecret()
		if err != nil {
			return "", false, fmt.Errorf("make the fleet's secret: %w", err)
		}
		if text, err = s.wrap(ctx, secret); err != nil {
			return "", false, err
		}
		created = true
	default:
		return "", false, fmt.Errorf("read the copy of the fleet's secret: %w", err)
	}
	if err := s.Store.Client().SetNX(ctx, keptKey(), text, 0).Err(); err != nil {
		return "", false, fmt.Errorf("put the fleet's secret in Redis: %w", store.Classify(err))
	}
	// Another replica may have been first.
	stands, err := s.stands(ctx)
	if err == nil && stands == "" {
		err = fmt.Errorf("put the fleet's secret in Redis: it is gone at once: %w", store.ErrUnavailable)
	}
	return stands, created && stands == text, err
}

func (s Kept) wrap(ctx context.Context, secret [SecretLen]byte) (string, error) {
	wrapped, err := s.Wrappers[0].Wrap(ctx, secret)
	if err != nil {
		return "", fmt.Errorf("wrap the fleet's secret: %w", err)
	}
	text, err := json.Marshal(wrapped)
	if err != nil {
		return "", fmt.Errorf("wrap the fleet's secret: %w", err)
	}
	return string(text), nil
}

// unwrap says which of Wrappers unwrapped it.
func (s Kept) unwrap(ctx context.Context, text string) (secret [SecretLen]byte, by int, err error) {
	var wrapped Wrapped
	if err := json.Unmarshal([]byte(text), &wrapped); err != nil {
		return secret, 0, fmt.Errorf("it is damaged: %w", err)
	}
	for by, w := range s.Wrappers {
		secret, err := w.Unwrap(ctx, wrapped)
		if err == nil || !errors.Is(err, ErrOtherKey) {
			return secret, by, err
		}
	}
	names := make([]string, len(s.Wrappers))
	for i, w := range s.Wrappers {
		names[i] = w.Name()
	}
	return secret, 0, fmt.Errorf("%w: by %q, and this replica has %q; give it that key too (--kek-file takes several, --kms-key-id is repeatable)", ErrOtherKey, wrapped.By, names)
}

// compare refuses a secret that isn't the one that this machine knew: whoever writes to Redis doesn't choose it.
func (s Kept) compare(ctx context.Context, text string, secret [SecretLen]byte) error {
	raw, err := os.ReadFile(s.Copy)
	if errors.Is(err, os.ErrNotExist) || err == nil && string(raw) == text {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the copy of the fleet's secret: %w", err)
	}
	known, _, err := s.unwrap(ctx, string(raw))
	if errors.Is(err, ErrAway) {
		return err
	}
	if err != nil {
		// Of a key that was replaced since.
		s.Logger.WarnContext(ctx, "the copy of the fleet's secret can't be read any more, taking what Redis holds", slog.Any("error", err))
		return nil
	}
	if known != secret {
		return fmt.Errorf("%w: Redis holds %s, this machine knew %s in %s; if the fleet's secret was replaced on purpose, delete that file",
			ErrDisagree, New(secret).fingerprint, New(known).fingerprint, s.Copy)
	}
	return nil
}

// rewrap puts the secret back under the first key, unless someone else has.
func (s Kept) rewrap(ctx context.Context, text string, secret [SecretLen]byte) (string, error) {
	next, err := s.wrap(ctx, secret)
	if err != nil {
		return "", err
	}
	done, err := rewrapScript.Run(ctx, s.Store, []string{keptKey()}, text, next).Int()
	if err != nil {
		return "", fmt.Errorf("wrap the fleet's secret anew: %w", err)
	}
	if done == 0 {
		return text, nil
	}
	s.Logger.InfoContext(ctx, "the fleet's secret is wrapped under another key now: the former one may go once every replica was restarted",
		slog.String("key", s.Wrappers[0].Name()))
	return next, nil
}

// keep writes the copy, whole or not at all.
func (s Kept) keep(text string) error {
	if raw, err := os.ReadFile(s.Copy); err == nil && string(raw) == text {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(s.Copy), ".secret-*") // made 0600
	if err != nil {
		return fmt.Errorf("keep a copy of the wrapped secret: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), s.Copy)
	}
	if err != nil {
		return fmt.Errorf("keep a copy of the wrapped secret: %w", err)
	}
	return nil
}
