package store_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

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

func TestOpenHidesThePassword(t *testing.T) {
	t.Parallel()
	if _, err := store.Open(store.Options{URL: "redis://user:hunter2@host:port/x"}); err == nil || errors.Is(err, store.ErrUnavailable) {
		t.Fatal(err)
	} else if got := err.Error(); len(got) == 0 || strings.Contains(got, "hunter2") {
		t.Fatal(got)
	}
}

func TestTopologies(t *testing.T) {
	t.Parallel()
	t.Run("cluster", func(t *testing.T) {
		t.Parallel()
		began := time.Now()
		c := redistest.StartCluster(t)
		t.Log("started in", time.Since(began))
		facts, err := c.Open().Inspect(t.Context())
		if err != nil || facts.Topology != store.Cluster || len(facts.Masters) != 3 || facts.Durability() != store.Always || facts.LosesTail() {
			t.Errorf("%+v, %v", facts, err)
		}
	})
	t.Run("sentinel", func(t *testing.T) {
		t.Parallel()
		began := time.Now()
		c := redistest.StartSentinels(t)
		t.Log("started in", time.Since(began))
		facts, err := c.Open().Inspect(t.Context())
		if err != nil || facts.Topology != store.Sentinel || len(facts.Masters) != 1 || facts.Durability() != store.Always || !facts.LosesTail() {
			t.Errorf("%+v, %v", facts, err)
		}
	})
}
