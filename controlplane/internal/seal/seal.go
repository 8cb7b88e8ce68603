// Package seal signs what Redis keeps of who may do what: members, API tokens, invitations. Redis is where replicas meet,
// and whoever writes to it must not become an owner by that: what isn't signed under the fleet's secret counts as not there,
// and is said loudly.
//
// A seal binds the text to its kind, its organisation and its id, so that none can be put in another's place. It doesn't
// bind it to the moment: an older state of Redis that is put back is taken for what it was. Sealed text ends in " ~" and
// 43 characters.
package seal

import (
	"context"
	"crypto/hmac"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// ErrForged says that stored text isn't this fleet's.
var ErrForged = errors.New("it isn't signed by this fleet: somebody wrote to Redis, or (after an upgrade from a release that didn't sign) " +
	"`fleetban-controlplane sign` is still to be run")

// Keys makes MACs: *keys.Keys.
type Keys interface {
	SealMAC(org string, data []byte) []byte
}

// Options make a Sealer.
type Options struct {
	// AcceptUnsigned takes text without a seal, and leaves unsealed what older releases can read: while replicas that don't
	// sign are still running.
	AcceptUnsigned bool
	// Alarm, where it is given, is told of what was found, at most once a minute for each id.
	Alarm func(ctx context.Context, kind, org, id string)
	// Logger; default slog.Default().
	Logger *slog.Logger
}

// Sealer seals and opens. Safe for concurrent use.
type Sealer struct {
	keys Keys
	o    Options

	mu   sync.Mutex
	told map[string]time.Time
}

// New makes a Sealer.
func New(k Keys, o Options) *Sealer {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Sealer{keys: k, o: o, told: make(map[string]time.Time)}
}

const mark = " ~"

// AcceptUnsigned reports whether replicas of older releases may still run.
func (s *Sealer) AcceptUnsigned() bool { return s.o.AcceptUnsigned }

// Seal signs text.
func (s *Sealer) Seal(kind, org, id, text string) string {
	return text + mark + base64.RawURLEncoding.EncodeToString(s.mac(kind, org, id, text))
}

// Open returns the text of what Seal made of the same kind, organisation and id; ErrForged for anything else.
func (s *Sealer) Open(ctx context.Context, kind, org, id, sealed string) (string, error) {
	if at := strings.LastIndex(sealed, mark); at >= 0 {
		mac, err := base64.RawURLEncoding.Strict().DecodeString(sealed[at+len(mark):])
		if err == nil && hmac.Equal(mac, s.mac(kind, org, id, sealed[:at])) {
			return sealed[:at], nil
		}
	} else if s.o.AcceptUnsigned {
		return sealed, nil
	}
	s.alarm(ctx, kind, org, id)
	return "", fmt.Errorf("stored %s %s: %w", kind, id, ErrForged)
}

// Forged says so of what its seal doesn't tell by itself: that something beside it isn't what was signed.
func (s *Sealer) Forged(ctx context.Context, kind, org, id string) error {
	s.alarm(ctx, kind, org, id)
	return fmt.Errorf("stored %s %s: %w", kind, id, ErrForged)
}

// Mark is a MAC of text for who keeps the MAC and not the text: a secret that somebody will show.
func (s *Sealer) Mark(kind, org, id, text string) string {
	return base64.RawURLEncoding.EncodeToString(s.mac(kind, org, id, text))
}

// Sealed reports whether text has a seal, whoever's.
func Sealed(text string) bool { return strings.LastIndex(text, mark) >= 0 }

func (s *Sealer) mac(kind, org, id, text string) []byte {
	// Kinds and ids hold no zero byte: no two ways to read it.
	return s.keys.SealMAC(org, []byte(kind+"\x00"+id+"\x00"+text))
}

func (s *Sealer) alarm(ctx context.Context, kind, org, id string) {
	key, now := kind+"\x00"+org+"\x00"+id, time.Now()
	s.mu.Lock()
	if len(s.told) > 10_000 {
		clear(s.told)
	}
	again := now.Sub(s.told[key]) < time.Minute
	if !again {
		s.told[key] = now
	}
	s.mu.Unlock()
	if again {
		return
	}
	s.o.Logger.ErrorContext(ctx, "what Redis says of who may do what is not signed by this fleet, and is refused: somebody wrote to Redis, "+
		"or replicas of a release that didn't sign did; compare with the audit log",
		slog.String("kind", kind), slog.String("organisation", org), slog.String("id", id))
	if s.o.Alarm != nil {
		s.o.Alarm(ctx, kind, org, id)
	}
}

// Accepting is s that takes text without a seal: for what reads such text to seal it.
func (s *Sealer) Accepting() *Sealer {
	o := s.o
	o.AcceptUnsigned = true
	return New(s.keys, o)
}
