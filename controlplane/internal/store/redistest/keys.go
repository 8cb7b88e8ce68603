package redistest

import (
	"context"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
)

// Keys are all that match a pattern: of a cluster, those of every master.
func Keys(tb testing.TB, client redis.UniversalClient, pattern string) (keys []string) {
	tb.Helper()
	var mu sync.Mutex
	list := func(ctx context.Context, one *redis.Client) error {
		some, err := one.Keys(ctx, pattern).Result()
		mu.Lock()
		defer mu.Unlock()
		keys = append(keys, some...)
		return err
	}
	var err error
	switch c := client.(type) {
	case *redis.ClusterClient: // asks one of the masters else
		err = c.ForEachMaster(context.Background(), list)
	case *redis.Client:
		err = list(context.Background(), c)
	default:
		tb.Fatalf("keys of a %T", client)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return keys
}
