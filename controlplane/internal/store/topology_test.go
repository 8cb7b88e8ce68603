package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
)

var add = store.NewScript("add", `return redis.call('INCRBY', KEYS[1], ARGV[1])`)

// A master of a cluster answers too late: the client library would send the change again, and count it twice.
func TestNothingIsRepeated(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t)
	st, err := store.Open(store.Options{URL: cluster.URL(), Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	plain := redis.NewClusterClient(&redis.ClusterOptions{
		Addrs: []string{cluster.Masters("")[0].Addr()}, ReadTimeout: time.Second, MaxRetries: -1, ContextTimeoutEnabled: true,
	})
	defer func() { _ = plain.Close() }()
	ctx := t.Context()
	ours, theirs := store.Key("O", "ours"), store.Key("O", "theirs")
	testwait.Until(t, "the script is loaded", func() error { return add.Run(ctx, st, []string{store.Key("O", "loaded")}, 1).Err() })
	// Several connections stand before the pause: one that times out is not used again, also if the machine is slow.
	for _, c := range []redis.UniversalClient{st.Client(), plain} {
		var calls sync.WaitGroup
		for range 4 {
			calls.Go(func() { _ = c.Do(ctx, "blpop", store.Key("O", "none"), "0.1").Err() })
		}
		calls.Wait()
	}
	master := cluster.Masters(ours)[0]
	master.Pause()
	began := time.Now()
	err = add.Run(ctx, st, []string{ours}, 1).Err()
	took := time.Since(began)
	_ = plain.IncrBy(ctx, theirs, 1).Err()
	master.Resume()
	if !errors.Is(err, store.ErrOutcomeUnknown) || took > 30*time.Second {
		t.Errorf("after %s: %v", took, err)
	}
	// What was sent while it was paused may be read after what is sent now.
	read := func(key string) (n int64) {
		n, err := st.Client().Get(ctx, key).Int64()
		if err != nil && !errors.Is(err, redis.Nil) {
			t.Error(err)
		}
		return n
	}
	testwait.Until(t, "what was sent came, and by the library alone twice", func() error {
		if us, them := read(ours), read(theirs); us < 1 || them < 2 {
			return fmt.Errorf("%d times, and %d: it repeats nothing any more?", us, them)
		}
		return nil
	})
	if n := read(ours); n != 1 {
		t.Errorf("a change was made %d times", n)
	}
}

// With min-replicas-to-write, an answer comes when so many replicas have confirmed; without them the outcome is unknown.
func TestReplicasConfirm(t *testing.T) {
	t.Parallel()
	s := redistest.StartSentinels(t, "--min-replicas-to-write", "1", "--min-replicas-max-lag", "60")
	st := s.Open()
	facts, err := st.Inspect(t.Context())
	if err != nil || facts.Topology != store.Sentinel || len(facts.Masters) != 1 || facts.Durability() != store.Always || facts.LosesTail() ||
		facts.Masters[0].Confirm != 1 || facts.Masters[0].Replicas != 2 {
		t.Fatalf("%+v, %v", facts, err)
	}
	keys := []string{store.Key("O", "n")}
	if err := add.Run(t.Context(), st, keys, 1).Err(); err != nil {
		t.Fatal(err)
	}
	master, replicas := s.Nodes()[0], s.Nodes()[1:]
	replicas[0].Pause()
	if err := add.Run(t.Context(), st, keys, 1).Err(); err != nil {
		t.Fatalf("one of two replicas confirms: %v", err)
	}
	replicas[1].Pause()
	if err := add.Run(t.Context(), st, keys, 1).Err(); !errors.Is(err, store.ErrOutcomeUnknown) {
		t.Errorf("no replica confirms: %v", err)
	}
	// As readiness does every other second: what is set anew is heeded, with no new connection.
	master.Set("min-replicas-to-write", "0")
	for _, key := range []string{"appendonly", "appendfsync"} {
		master.Set(key, map[string]string{"appendonly": "yes", "appendfsync": "everysec"}[key])
	}
	facts, err = st.Inspect(t.Context())
	if err != nil || facts.Durability() != store.Everysec || !facts.LosesTail() {
		t.Errorf("%+v, %v", facts, err)
	}
	if n, err := add.Run(t.Context(), st, keys, 1).Int64(); err != nil || n != 4 {
		t.Errorf("%d, %v", n, err)
	}
	replicas[0].Resume()
	replicas[1].Resume()
}

// The class of a cluster is that of its worst master.
func TestClusterFacts(t *testing.T) {
	t.Parallel()
	c := redistest.StartCluster(t)
	st := c.Open()
	check := func(want store.Durability) {
		t.Helper()
		facts, err := st.Inspect(t.Context())
		if err != nil || facts.Topology != store.Cluster || len(facts.Masters) != 3 || facts.Durability() != want || facts.LosesTail() {
			t.Errorf("%+v, %v", facts, err)
		}
	}
	check(store.Always)
	masters := c.Masters("")
	masters[1].Set("appendfsync", "everysec")
	check(store.Everysec)
	masters[2].Set("appendonly", "no")
	check(store.None)
	masters[0].Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if facts, err := st.Inspect(ctx); !errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrOutcomeUnknown) {
		t.Errorf("with a master away: %+v, %v", facts, err)
	}
}
