package hosts

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// An organisation's slot goes to another master while hosts come, go, are heard and are deleted. A script that meets keys which
// have gone changes nothing: what refers to a host, and what it refers to, agree afterwards, and each life goes on where it stood.
func TestSlotMoves(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t)
	f := &fixture{Hosts: New(cluster.Open(), &recorder{}, nil), t: t, server: &cluster.Server, fleet: &recorder{}}
	ctx := t.Context()
	tried, refused := 0, 0
	// Tries once. What is refused is tried again when the slot stands still: it must not have been done by half.
	try := func(do func() error) bool {
		t.Helper()
		tried++
		err := do()
		switch {
		case err == nil:
			return true
		case errors.Is(err, store.ErrUnavailable):
			refused++
		default:
			t.Errorf("%v", err)
		}
		return false
	}
	type life struct {
		id    Identity
		fence Fence
		steps int // done
	}
	lives := make([]*life, 12)
	for i := range lives {
		lives[i] = &life{}
	}
	// The next step of a host's life, by its number: enrolled, attached, heard, gone, back, deleted.
	step := func(n int, l *life) func() error {
		k := key(byte(n + 1)) //nolint:gosec // small
		return func() (err error) {
			switch l.steps {
			case 0:
				l.id, err = f.Enrol(ctx, org, "web", k, map[string]string{"role": "web"}, fleetbanv1.HostFacts_builder{Hostname: "web"}.Build())
			case 1, 4:
				var a Attachment
				a, err = f.Attach(ctx, org, l.id.ID, fmt.Sprint("i", n), "replica-1", k, nil, time.Time{})
				l.fence = a.Fence
			case 2:
				var states map[string]State
				if states, err = f.Touch(ctx, org, []Fence{l.fence}); err == nil && len(states) > 0 {
					err = fmt.Errorf("%+v", states)
				}
			case 3:
				err = f.Detach(ctx, l.fence, "it left")
			default:
				err = f.Delete(ctx, org, l.id.ID, "alice")
			}
			return err
		}
	}
	advance := func(most int) {
		for n, l := range lives {
			if l.steps < most && try(step(n, l)) {
				l.steps++
			}
		}
	}
	for n, l := range lives { // each is somewhere else in its life, and some keys are there only once a host is gone
		for l.steps < (n+1)%7 {
			testwait.Until(t, "the cluster serves", step(n, l))
			l.steps++
		}
	}
	meta := store.Key(org, "hosts")
	for range 2 {
		before := refused
		cluster.MoveByKey(meta, func() {
			advance(6)
			f.agrees(cluster)
		})
		if refused == before {
			t.Error("nothing was refused while keys were elsewhere: this shows nothing")
		}
		testwait.Until(t, "the slot is found", func() error { _, _, err := f.Count(ctx, org); return err })
		f.agrees(cluster)
		advance(5)
	}
	for range 6 {
		for n, l := range lives {
			if l.steps < 6 {
				testwait.Until(t, "life goes on", step(n, l))
				l.steps++
			}
		}
	}
	f.agrees(cluster)
	t.Logf("%d of %d calls were refused", refused, tried)
	if hosts, online, err := f.Count(ctx, org); hosts != 0 || online != 0 || err != nil {
		t.Errorf("%d hosts are left, %d online, %v", hosts, online, err)
	}
	for _, err := range cluster.Stray(meta) {
		t.Error(err)
	}
}

// agrees sees that the keys of the organisation tell one story, wherever each of them is now.
func (f *fixture) agrees(cluster *redistest.RedisCluster) {
	f.t.Helper()
	ctx := f.t.Context()
	hash := func(name string) map[string]string {
		f.t.Helper()
		out := map[string]string{}
		for _, n := range cluster.Masters("") {
			// ASKING lets a server that a slot moves to tell of the keys that came already.
			pipe := n.Client().Pipeline()
			pipe.Do(ctx, "asking")
			all := pipe.HGetAll(ctx, store.Key(org, name))
			_, _ = pipe.Exec(ctx)
			if err := all.Err(); err != nil && !strings.HasPrefix(err.Error(), "MOVED") && !strings.HasPrefix(err.Error(), "ASK") {
				f.t.Fatal(err)
			}
			for k, v := range all.Val() {
				out[k] = v
			}
		}
		return out
	}
	hosts, gone := hash("hosts"), hash("hostgone")
	for id := range hosts {
		if gone[id] != "" {
			f.t.Errorf("%s is there and deleted", id)
		}
	}
	for _, index := range []string{"hostnames", "hostkeys"} {
		entries := hash(index)
		for k, id := range entries {
			if hosts[id] == "" {
				f.t.Errorf("%s has %s of %s, which isn't there", index, k, id)
			}
		}
		if len(entries) != len(hosts) {
			f.t.Errorf("%d entries of %s for %d hosts", len(entries), index, len(hosts))
		}
	}
	for _, of := range []string{"routes", "facts"} {
		for id := range hash(of) {
			if hosts[id] == "" {
				f.t.Errorf("%s are kept of %s, which isn't there", of, id)
			}
		}
	}
}
