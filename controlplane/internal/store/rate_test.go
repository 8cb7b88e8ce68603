package store_test

import (
	"testing"
	"time"

	"github.com/go-redis/redis_rate/v10"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
)

// Redis' clock was minutes ahead and is set right: nobody is refused until it is there again. The limit itself holds.
func TestLimitsOutliveASetClock(t *testing.T) {
	t.Parallel()
	st := redistest.Start(t).Open()
	l := store.NewLimiter(st)
	ctx, limit := t.Context(), redis_rate.PerMinute(3)
	for range 2 {
		for i := range 4 {
			got, err := l.Allow(ctx, "who", limit)
			if err != nil || got.Allowed != map[bool]int{true: 1}[i < 3] {
				t.Fatalf("the %d. of 3: %+v, %v", i+1, got, err)
			}
		}
		// What is kept is a time, in seconds.
		if err := st.Client().IncrByFloat(ctx, "rate:who", (10 * time.Minute).Seconds()).Err(); err != nil {
			t.Fatal(err)
		}
	}
}
