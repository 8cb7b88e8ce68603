package keys

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
)

var (
	// ErrOtherKey is returned by Unwrap for what was wrapped under another key, or changed since.
	ErrOtherKey = errors.New("it was wrapped under another key")
	// ErrAway is wrapped where who holds the key doesn't answer. Trying again may help.
	ErrAway = errors.New("the key's keeper doesn't answer")
)

// Wrapped is the fleet's secret, encrypted.
type Wrapped struct {
	// By names the key, for people.
	By   string `json:"by"`
	Text []byte `json:"text"`
}

// Wrapper encrypts the fleet's secret under a key-encryption key that is kept elsewhere.
type Wrapper interface {
	Wrap(ctx context.Context, secret [SecretLen]byte) (Wrapped, error)
	// Unwrap returns ErrOtherKey or ErrAway (wrapped), or what else is wrong.
	Unwrap(ctx context.Context, w Wrapped) ([SecretLen]byte, error)
	// Name names the key, for people.
	Name() string
}

// wrapAs is authenticated with each wrapped secret, so that nothing else that the same key encrypts passes for one.
const wrapAs = "fleetban secret v1"

// fileKey wraps with AES-256-GCM under a key from a file.
type fileKey struct {
	aead cipher.AEAD
	name string
}

// LoadKEK reads key-encryption keys: 32 raw bytes, or lines of 64 hex digits, the first of which wraps while the others
// unwrap what they wrapped before.
func LoadKEK(path string) ([]Wrapper, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the key-encryption key: %w", err)
	}
	var out []Wrapper
	if len(raw) == SecretLen {
		w, err := newFileKey(raw)
		return []Wrapper{w}, err
	}
	for line := range bytes.Lines(raw) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		key := make([]byte, hex.DecodedLen(len(line)))
		if _, err := hex.Decode(key, line); err != nil || len(key) != SecretLen {
			return nil, fmt.Errorf("the key-encryption key in %s must be 32 bytes, or lines of 64 hex digits; `openssl rand -hex 32` makes one", path)
		}
		w, err := newFileKey(key)
		if err != nil {
			return nil, err
		}
		out = append(out, w)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("there is no key-encryption key in %s; `openssl rand -hex 32` makes one", path)
	}
	return out, nil
}

func newFileKey(key []byte) (fileKey, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return fileKey{}, fmt.Errorf("key-encryption key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return fileKey{}, fmt.Errorf("key-encryption key: %w", err)
	}
	sum := sha256.Sum256(append([]byte("fleetban key-encryption key "), key...))
	return fileKey{aead, "file:" + hex.EncodeToString(sum[:8])}, nil
}

func (f fileKey) Name() string { return f.name }

func (f fileKey) Wrap(_ context.Context, secret [SecretLen]byte) (Wrapped, error) {
	text := f.aead.Seal(nil, nil, secret[:], []byte(wrapAs)) //nolint:gosec // this AEAD makes the nonce itself, and puts it in front
	return Wrapped{By: f.name, Text: text}, nil
}

func (f fileKey) Unwrap(_ context.Context, w Wrapped) (secret [SecretLen]byte, err error) {
	plain, err := f.aead.Open(nil, nil, w.Text, []byte(wrapAs))
	if err != nil || len(plain) != SecretLen {
		return secret, fmt.Errorf("%s: %w", f.name, ErrOtherKey)
	}
	return [SecretLen]byte(plain), nil
}

func randomSecret() (secret [SecretLen]byte, err error) {
	_, err = rand.Read(secret[:])
	return secret, err
}
