package store_test

import (
	"context"
	"errors"
	"testing"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
)

func TestScriptSurvivesARestart(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	st := server.Open()
	script := store.NewScript("incr", `return redis.call('INCRBY', KEYS[1], ARGV[1])`)
	for want := int64(2); want <= 6; want += 2 {
		got, err := script.Run(context.Background(), st, []string{store.Key("O", "n")}, 2).Int64()
		if err != nil || got != want {
			t.Fatalf("got %d, %v; want %d", got, err, want)
		}
		server.Kill()
		if _, err := script.Run(context.Background(), st, []string{store.Key("O", "n")}, 2).Int64(); !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrOutcomeUnknown) {
			t.Fatalf("with Redis away: %v", err)
		}
		server.Start()
	}
}
