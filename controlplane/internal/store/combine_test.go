package store_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
)

// TestTogether: what very many want of Redis in one moment, more than there are connections, is asked in few pipelines. Each hears its own
// answer, each change is made once, and who leaves before it was sent has changed nothing.
func TestTogether(t *testing.T) {
	t.Parallel()
	server := redistest.StartOne(t)
	st := server.Open()
	const callers = 2000
	own := func(i int) string { return store.Key("O", "n", strconv.Itoa(i)) }
	if err := add.Run(t.Context(), st, []string{store.Key("O", "loaded")}, 1).Err(); err != nil {
		t.Fatal(err)
	}
	reads := func() int64 {
		t.Helper()
		return field(t, st, "stats", "total_reads_processed")
	}
	before := reads()
	server.Pause() // so that all of them wait
	ctx, leave := context.WithCancel(t.Context())
	var wg, started sync.WaitGroup
	for i := range callers {
		started.Add(1)
		wg.Go(func() {
			started.Done()
			if i%2 == 0 {
				if n, err := add.Run(t.Context(), st, []string{own(i)}, i+1).Int(); err != nil || n != i+1 {
					t.Errorf("caller %d got %d, %v", i, n, err)
				}
				return
			}
			if _, err := st.Client().SetNX(t.Context(), own(i), i, time.Hour).Result(); err != nil {
				t.Errorf("caller %d: %v", i, err)
			}
		})
	}
	started.Wait()
	testwait.For(t, "as many commands are under way as may be", func() bool {
		pool := st.Client().PoolStats()
		return pool.TotalConns-pool.IdleConns >= 8
	})
	var left sync.WaitGroup
	for range 50 {
		left.Go(func() {
			if err := add.Run(ctx, st, []string{store.Key("O", "left")}, 1).Err(); !errors.Is(err, context.Canceled) {
				t.Errorf("one that left heard %v", err)
			}
		})
	}
	leave()
	left.Wait()
	server.Resume()
	wg.Wait()
	if n := reads() - before; n > callers/4 {
		t.Errorf("Redis read %d times for %d callers", n, callers)
	}
	if n, err := st.Client().Exists(t.Context(), store.Key("O", "left")).Result(); err != nil || n != 0 {
		t.Errorf("who left before it was sent has changed something: %d, %v", n, err)
	}
	for i := 1; i < callers; i += 2 {
		if n, err := st.Client().Get(t.Context(), own(i)).Int(); err != nil || n != i {
			t.Fatalf("caller %d stored %d, %v", i, n, err)
		}
	}
}

// field is a number that INFO tells.
func field(t *testing.T, st *store.Store, section, name string) int64 {
	t.Helper()
	info, err := st.Client().InfoMap(t.Context(), section).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, fields := range info {
		if n, err := strconv.ParseInt(fields[name], 10, 64); err == nil {
			return n
		}
	}
	t.Fatalf("INFO %s has no %s", section, name)
	return 0
}

// TestStaleErrorIsForgotten: a command that a cluster's server sent on to another one, and whose answer doesn't come there, says so. With
// the former server's MOVED it would be sent once more, and done twice.
func TestStaleErrorIsForgotten(t *testing.T) {
	t.Parallel()
	for what, replicas := range map[string]string{"together with others": "0", "with its replicas' word": "1"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			server := redistest.StartOne(t)
			server.Set("min-replicas-to-write", replicas)
			st := server.Open()
			if err := st.Client().Ping(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			server.Pause()
			var wg sync.WaitGroup
			if replicas == "0" { // all lanes are busy
				for range 8 {
					wg.Go(func() { _ = st.Client().Get(t.Context(), store.Key("O", "busy")).Err() })
				}
				testwait.For(t, "as many commands are under way as may be", func() bool {
					pool := st.Client().PoolStats()
					return pool.TotalConns-pool.IdleConns >= 8
				})
			}
			moved := errors.New("MOVED 1 127.0.0.1:1")
			for range 20 {
				wg.Go(func() {
					cmd := redis.NewCmd(t.Context(), "eval", "return 1", 0)
					cmd.SetErr(moved)
					if err := st.Client().Process(t.Context(), cmd); err == nil || errors.Is(err, moved) || errors.Is(cmd.Err(), moved) {
						t.Errorf("its answer never came: %v", err)
					}
				})
			}
			server.Kill()
			wg.Wait()
		})
	}
}
