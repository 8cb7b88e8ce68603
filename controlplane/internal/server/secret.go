package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

// firstText stands in the file that says that a first start isn't done.
const firstText = "The first start in this folder has not made its organisation yet.\n"

// wrapped reports whether the secret stands in Redis.
func (b *Backend) wrapped() bool { return b.KEKFile != "" || len(b.KMSKeyIDs) > 0 }

// wrappers are the keys that the secret is or was wrapped under, the present one first.
func (b *Backend) wrappers(ctx context.Context) ([]keys.Wrapper, error) {
	var out []keys.Wrapper
	for _, id := range b.KMSKeyIDs {
		w, err := keys.OpenKMS(ctx, id)
		if err != nil {
			return nil, err
		}
		out = append(out, w)
	}
	if b.KEKFile == "" {
		return out, nil
	}
	fromFile, err := keys.LoadKEK(b.KEKFile)
	return append(out, fromFile...), err
}

// keptSecret loads the secret that stands in Redis, or makes it, and waits for whoever is away: without the secret nothing
// can be served. The one start that makes it is the fleet's first.
func (b *base) keptSecret(ctx context.Context, from *Backend, logger *slog.Logger) error {
	wrappers, err := from.wrappers(ctx)
	if err != nil {
		return err
	}
	source := keys.Kept{Store: b.store, Wrappers: wrappers, Copy: filepath.Join(from.DataDir, "secret.wrapped"), Logger: logger}
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		k, created, err := source.Open(ctx)
		if err == nil {
			b.keys = k
			return b.firstStartIf(ctx, created, from.DataDir, logger)
		}
		if ctx.Err() != nil || !errors.Is(err, keys.ErrAway) && !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrOutcomeUnknown) {
			return err
		}
		logger.WarnContext(ctx, "the fleet's secret can't be had, trying again: nothing is served until then", slog.Any("error", err))
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: %w", err, ctx.Err())
		case <-timer.C:
		}
	}
}

// firstStartIf remembers that the fleet's first start is this folder's.
func (b *base) firstStartIf(ctx context.Context, created bool, dir string, logger *slog.Logger) error {
	marker := filepath.Join(dir, "first-start")
	if created {
		logger.InfoContext(ctx, "the fleet's secret was made and stands in Redis: keep the key-encryption key and copies of Redis, hosts' identities hang on both")
		if err := os.WriteFile(marker, []byte(firstText), 0o600); err != nil {
			return fmt.Errorf("begin the first start: %w", err)
		}
	}
	if _, err := os.Stat(marker); err == nil {
		b.firstStart = marker
	}
	return nil
}
