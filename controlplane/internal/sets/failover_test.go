package sets_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// TestThereAndBack: a master with the newest ban is deposed, nobody asks for anything meanwhile, and it becomes the master
// again, in the same process: without that ban, which the server that was the master in between never had. Its run id is the
// one that it had, and yet what hosts hold is asked for.
func TestThereAndBack(t *testing.T) {
	t.Parallel()
	redis := redistest.StartSentinels(t)
	first, second := redis.Nodes()[0], redis.Nodes()[1]
	redis.Nodes()[2].Kill() // the way back leads to the first only
	f := &fixture{t: t, redis: &redis.Server, store: redis.Open()}
	f.Sets = sets.New(f.store, sets.Options{})
	t.Cleanup(f.Close)
	ctx := context.Background()

	f.ban(t, time.Hour, "203.0.113.1/32")
	redis.Follows(second, first)
	h := &host{}
	h.follow(t, f)
	kept := h.cursor
	second.Pause()
	first.DropReplicas()
	f.ban(t, time.Hour, "203.0.113.2/32") // acknowledged by the first alone
	h.follow(t, f)
	first.Pause()
	second.Resume()
	redis.Failed(first)
	first.Resume()
	redis.Follows(first, second)
	redis.Handover(second)
	redis.Follows(second, first) // and answers nobody any more

	runid := func(text string) string {
		_, rest, _ := strings.Cut(text, "run_id:")
		return strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0])
	}
	stored := must(first.Client().HGet(ctx, store.Key(org, "meta"), "runid").Result())(t)
	if now := runid(must(first.Client().Info(ctx, "server").Result())(t)); now != stored {
		t.Fatalf("its run id is %s and %s is stored: this shows nothing", now, stored)
	}
	var r sets.Resume
	testwait.Until(t, "the first is found again", func() (err error) {
		r, err = f.Resume(ctx, org, h.cursor)
		return err
	})
	if r.Action != sets.ResumeOffer || r.After != kept.Version || r.State.Cursor.Epoch <= kept.Epoch {
		t.Fatalf("resume of %+v: %+v", h.cursor, r)
	}
	if got := must(f.Offer(ctx, org, banset.All, h.above(r.After)))(t); got.Recovered != 1 {
		t.Fatalf("%+v", got)
	}
	// Nobody is left with what was before: the host that had it all, and one that has nothing, end with the same.
	snap := must(f.Snapshot(ctx, org, banset.All))(t)
	if snap.State.Cursor.Digest != digest(present(h.held)) || len(snap.Records) != 2 {
		t.Errorf("%+v, and the host holds %+v", snap, h.held)
	}
	f.check(t)
}

// TestForked: two servers went different ways from one version, and the one that wasn't the master last is now. A host that
// followed the other one is ahead of the point where they parted by as many versions as this one: all that it has is asked for.
func TestForked(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := context.Background()
	f.ban(t, time.Hour, "203.0.113.1/32")
	restoreCommon := f.redis.Backup()
	f.ban(t, time.Hour, "203.0.113.2/32") // what only the first had
	f.ban(t, time.Hour, "203.0.113.3/32")
	restoreFirst := f.redis.Backup()
	restoreCommon()
	f.advance(time.Second)
	other := &host{}
	f.ban(t, time.Hour, "203.0.113.4/32") // what only the second had
	f.ban(t, time.Hour, "203.0.113.5/32")
	other.follow(t, f)
	restoreFirst()
	f.advance(time.Second)

	r := must(f.Resume(ctx, org, other.cursor))(t)
	if r.Action != sets.ResumeOffer || r.After != 0 {
		t.Fatalf("%+v at %+v: %+v", other.cursor, r.State, r)
	}
	if got := must(f.Offer(ctx, org, banset.All, other.above(0)))(t); got.Recovered != 2 {
		t.Errorf("%+v", got)
	}
	if snap := must(f.Snapshot(ctx, org, banset.All))(t); len(snap.Records) != 5 {
		t.Errorf("%+v", snap)
	}
	f.check(t)
}

func present(held map[netip.Prefix]sets.Record) map[netip.Prefix]int64 {
	out := map[netip.Prefix]int64{}
	for p, r := range held {
		if r.Kind == fleetbanv1.RecordKind_RECORD_KIND_PRESENT {
			out[p] = r.Expires
		}
	}
	return out
}
