package keys

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// ErrDisagree is returned by Agree when the replicas on this Redis use another secret.
var ErrDisagree = errors.New("this replica's secret is not the one that the other replicas on this Redis use")

// Load reads a secret file: 32 raw bytes, or 64 hex digits.
func Load(path string) (*Keys, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the fleet's secret: %w", err)
	}
	var secret [SecretLen]byte
	if text := bytes.TrimSpace(raw); len(raw) != SecretLen {
		decoded := make([]byte, hex.DecodedLen(len(text)))
		if _, err := hex.Decode(decoded, text); err != nil || len(decoded) != SecretLen {
			return nil, fmt.Errorf("the fleet's secret in %s must be 32 bytes or 64 hex digits; `openssl rand -hex 32` makes one", path)
		}
		raw = decoded
	}
	copy(secret[:], raw)
	return New(secret), nil
}

// LoadOrCreate is Load, and where the file doesn't exist, makes a secret there (0600, on disk before it returns). Two
// processes that do so at once end with the same one.
func LoadOrCreate(path string) (k *Keys, created bool, err error) {
	if k, err := Load(path); !errors.Is(err, os.ErrNotExist) {
		return k, false, err
	}
	var secret [SecretLen]byte
	if _, err := rand.Read(secret[:]); err != nil {
		return nil, false, fmt.Errorf("make the fleet's secret: %w", err)
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".secret-*") // made 0600
	if err != nil {
		return nil, false, fmt.Errorf("make the fleet's secret: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = f.WriteString(hex.EncodeToString(secret[:]) + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return nil, false, fmt.Errorf("write the fleet's secret: %w", err)
	}
	// A link fails where a rename would replace the secret that another process has just made.
	if err := os.Link(f.Name(), path); err != nil {
		if errors.Is(err, os.ErrExist) {
			k, err := Load(path)
			return k, false, err
		}
		return nil, false, fmt.Errorf("keep the fleet's secret: %w", err)
	}
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync()
		_ = d.Close()
	}
	return New(secret), true, nil
}

// Agree records the fingerprint in Redis where none is, and returns ErrDisagree where another one stands.
func (k *Keys) Agree(ctx context.Context, st *store.Store) error {
	key := store.Global("keys")
	if err := st.Client().SetNX(ctx, key, k.fingerprint, 0).Err(); err != nil {
		return fmt.Errorf("record the secret's fingerprint: %w", store.Classify(err))
	}
	stands, err := st.Client().Get(ctx, key).Result()
	switch {
	case errors.Is(err, redis.Nil):
		return nil // emptied in between; the next check records it
	case err != nil:
		return fmt.Errorf("read the secret's fingerprint: %w", store.Classify(err))
	case stands != k.fingerprint:
		return fmt.Errorf("%w: this one is %s, Redis has %s; give every replica the same --secret-file (if the old secret is lost "+
			"for good, delete the key %s in Redis and enrol every host again)", ErrDisagree, k.fingerprint, stands, key)
	default:
		return nil
	}
}
