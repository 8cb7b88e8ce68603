package sets_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

func (f *fixture) tryBan(p netip.Prefix) error {
	_, err := f.Ban(context.Background(), org, sets.BanInput{Prefixes: []netip.Prefix{p}, Set: banset.All, Duration: time.Hour, Actor: "alice", Reason: "because"})
	return err
}

// dump is everything that Redis keeps of the organisation.
func (f *fixture) dump(t testing.TB) string {
	t.Helper()
	ctx := context.Background()
	keys := must(f.store.Client().Keys(ctx, store.Key(org, "*")).Result())(t)
	all := map[string]string{}
	for _, k := range keys {
		all[k] = must(f.store.Client().Dump(ctx, k).Result())(t)
	}
	return fmt.Sprint(all) // maps are printed in order
}

// One mutation of a batch meets a damaged key: it alone fails.
func TestDamageHarmsNoOther(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := context.Background()
	f.ban(t, time.Hour, "203.0.113.1/32")
	bad := address(7)
	bucket := store.Key(org, "c", fmt.Sprint(sets.BucketOf(prefix.Pack(bad))))
	if err := f.store.Client().Set(ctx, bucket, "nonsense", 0).Err(); err != nil {
		t.Fatal(err)
	}
	const callers = 40
	errs := make([]error, callers)
	f.redis.Pause() // the first call hangs, and the others gather behind it
	var wg sync.WaitGroup
	for n := range callers {
		wg.Go(func() { errs[n] = f.tryBan(address(n)) })
	}
	time.AfterFunc(300*time.Millisecond, f.redis.Resume)
	wg.Wait()
	for n, err := range errs {
		if damaged := sets.BucketOf(prefix.Pack(address(n))) == sets.BucketOf(prefix.Pack(bad)); damaged != (err != nil) {
			t.Errorf("ban of %s: %v", address(n), err)
		} else if damaged && (errors.Is(err, store.ErrOutcomeUnknown) || !strings.Contains(err.Error(), "WRONGTYPE")) {
			t.Errorf("the damaged one: %v", err)
		}
	}
	if err := f.store.Client().Del(ctx, bucket).Err(); err != nil {
		t.Fatal(err)
	}
	if states := f.check(t); states.Set(banset.All).Records != callers {
		t.Errorf("%+v", states)
	}
}

// Whatever key is damaged, a mutation that fails on it changes nothing at all, and works once it is mended.
func TestDamageLeavesNothingHalfDone(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := context.Background()
	f.ban(t, time.Hour, "203.0.113.1/32")
	f.events(t, "H1", jailBan(1, "sshd", "203.0.113.2/32", time.Hour))
	client := f.store.Client()
	for n, name := range []string{"due", "lens", "names", "refs", "sets", "events", "log:all", "set:all"} {
		k := store.Key(org, name)
		kept := must(client.Dump(ctx, k).Result())(t)
		if err := errors.Join(client.Del(ctx, k).Err(), client.Set(ctx, k, "nonsense", 0).Err()); err != nil {
			t.Fatal(err)
		}
		before := f.dump(t)
		if err := f.tryBan(address(n)); err == nil {
			t.Errorf("%s is damaged and the ban stands", name)
		}
		if _, err := f.Unban(ctx, org, sets.UnbanInput{Prefixes: []netip.Prefix{pfx("203.0.113.1/32")}, Actor: "alice"}); err == nil {
			t.Errorf("%s is damaged and the unban stands", name)
		}
		if after := f.dump(t); after != before {
			t.Errorf("%s is damaged and something changed", name)
		}
		if err := client.RestoreReplace(ctx, k, 0, kept).Err(); err != nil {
			t.Fatal(err)
		}
		if err := f.tryBan(address(n)); err != nil {
			t.Errorf("%s is mended: %v", name, err)
		}
	}
	// A state that was put back without its log.
	k := store.Key(org, "log:all")
	kept := must(client.Dump(ctx, k).Result())(t)
	if err := client.Do(ctx, "XADD", k, "1000000-0", "d", "0000000000000000", "c", "1", "r", "").Err(); err != nil {
		t.Fatal(err)
	}
	before := f.dump(t)
	if err := f.tryBan(address(100)); err == nil || f.dump(t) != before {
		t.Errorf("a log ahead of its state: %v", err)
	}
	if err := client.RestoreReplace(ctx, k, 0, kept).Err(); err != nil {
		t.Fatal(err)
	}
	f.ban(t, time.Hour, "203.0.113.3/32")
	f.check(t)
}
