package operatorapi_test

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/hosts/commandlog"
	"github.com/fleetban/fleetban/controlplane/internal/operatorapi/apitest"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

func claimed(seq uint64, address string) sets.Event {
	return sets.Event{Seq: seq, Kind: sets.EventBan, Jail: "sshd", Prefix: netip.MustParsePrefix(address), Duration: time.Hour, Set: "all", Failures: 5}
}

func orderedPrefixes(t *testing.T, commands []*fleetbanv1.Command) (out [][]string) {
	t.Helper()
	for _, c := range commands {
		var one []string
		for _, raw := range c.GetUnbanInJails().GetPrefixes() {
			p, err := prefix.Unpack(raw)
			if err != nil {
				t.Fatal(err)
			}
			one = append(one, prefix.Format(p))
		}
		slices.Sort(one)
		out = append(out, one)
	}
	return out
}

// One command a host and call, in the same change as the retraction: a Redis that dies the moment it answered has both,
// and hosts that were away, deleted or full of orders change nothing for the others.
func TestUnbanOrdersWithTheRetraction(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	a := with(cp, cp.Token)
	ctx := context.Background()
	one, two, gone, idle := cp.Enrol("one", nil).Attach(), cp.Enrol("two", nil).Attach(), cp.Enrol("gone", nil).Attach(), cp.Enrol("idle", nil).Attach()
	one.Report(claimed(1, "203.0.113.9/32"), claimed(2, "2001:db8::9/128"), claimed(3, "203.0.113.77/32"))
	two.Report(claimed(1, "203.0.113.9/32"))
	gone.Report(claimed(1, "203.0.113.9/32"))
	idle.Report(claimed(1, "203.0.113.50/32"))
	if err := cp.Hosts.Delete(ctx, cp.Org.ID, gone.ID, "test"); err != nil {
		t.Fatal(err)
	}
	for range commandlog.Kept {
		if _, err := cp.Hosts.QueueCommand(ctx, cp.Org.ID, two.ID, &fleetbanv1.Command{}, "test"); err != nil {
			t.Fatal(err)
		}
	}
	un := ask(t, a.bans.Unban, operatorv1.UnbanRequest_builder{Prefixes: []string{"203.0.113.9", "2001:db8::9"}}.Build())
	cp.Redis.Kill()
	cp.Redis.Start()
	got := [][]string{un.GetPrefixes()[0].GetOrderedHosts(), un.GetPrefixes()[1].GetOrderedHosts()}
	slices.Sort(got[0])
	if !slices.EqualFunc(got, [][]string{{"one", "two"}, {"one"}}, slices.Equal) {
		t.Errorf("ordered %v", got)
	}
	for host, want := range map[*apitest.Host][][]string{one: {{"2001:db8::9", "203.0.113.9"}}, two: {{"203.0.113.9"}}, idle: nil} {
		pending, err := cp.Hosts.Pending(ctx, cp.Org.ID, host.ID)
		if err != nil {
			t.Fatal(err)
		}
		if host == two {
			pending = slices.DeleteFunc(pending, func(c *fleetbanv1.Command) bool { return !c.HasUnbanInJails() })
		}
		if got := orderedPrefixes(t, pending); !slices.EqualFunc(got, want, slices.Equal) {
			t.Errorf("%s is to unban %v, want %v", host.Name, got, want)
		}
		for _, c := range pending {
			if left := time.Until(time.UnixMilli(c.GetNotAfterUnixMs())); left < commandlog.Life-time.Hour || left > commandlog.Life+time.Hour || len(c.GetCommandId()) != 26 {
				t.Errorf("%s has the order %v", host.Name, c)
			}
		}
	}
}

// With Redis gone nothing is retracted either, and the caller may simply repeat.
func TestUnbanWithRedisAway(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	a := with(cp, cp.Token)
	one := cp.Enrol("one", nil).Attach()
	one.Report(claimed(1, "203.0.113.9/32"))
	ask(t, a.bans.ListBans, &operatorv1.ListBansRequest{}) // the token is known from now on
	cp.Redis.Kill()
	request := operatorv1.UnbanRequest_builder{Prefixes: []string{"203.0.113.9"}}.Build()
	if _, err := a.bans.Unban(context.Background(), connect.NewRequest(request)); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Fatalf("with Redis away: %v", err)
	}
	cp.Redis.Start()
	un := ask(t, a.bans.Unban, request)
	if p := un.GetPrefixes()[0]; len(p.GetRetracted()) != 1 || strings.Join(p.GetOrderedHosts(), " ") != "one" {
		t.Errorf("repeated: %v", p)
	}
}
