package operatorapi_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/fleetban/fleetban/controlplane/internal/operatorapi/apitest"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/scope"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// team is a token of the organisation that is restricted to hosts with the tag.
func team(t testing.TB, cp *apitest.ControlPlane, name string) api {
	t.Helper()
	return with(cp, teamToken(t, cp, name))
}

func teamToken(t testing.TB, cp *apitest.ControlPlane, name string) string {
	t.Helper()
	token, err := cp.Orgs.AddToken(t.Context(), cp.Org.ID, orgs.NewToken{
		Name: "team-" + name, Permissions: orgs.AllPermissions(), Tags: scope.Tags{{Key: "team", Value: name}}, Life: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	return token.Secret
}

func banOf(jail string, seq uint64, address, set string) sets.Event {
	e := sets.Event{Seq: seq, Kind: sets.EventBan, Jail: jail, Prefix: netip.MustParsePrefix(address), Duration: time.Hour, Set: set, Failures: 5}
	if set == "" {
		e.Unpromoted = operatorv1.Unpromoted_UNPROMOTED_LOCAL_JAIL
	}
	return e
}

func denied(err error) bool { return connect.CodeOf(err) == connect.CodePermissionDenied }

func missing(err error) bool { return connect.CodeOf(err) == connect.CodeNotFound }

// Two teams of one organisation: what each sees and steers.
func TestTeams(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	ctx := t.Context()
	all, web, db := with(cp, cp.Token), team(t, cp, "web"), team(t, cp, "db")
	w, d := cp.Enrol("web-1", map[string]string{"team": "web"}).Attach(), cp.Enrol("db-1", map[string]string{"team": "db"}).Attach()
	const both, local, teams, fleet = "203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4"
	w.Report(banOf("wjail", 1, both+"/32", "all"))
	d.Report(banOf("djail", 1, both+"/32", "all"), banOf("djail", 2, local+"/32", ""))
	ban := func(a api, tag string, prefixes ...string) error {
		_, err := a.bans.Ban(ctx, connect.NewRequest(operatorv1.BanRequest_builder{Prefixes: prefixes, DurationS: 600, Tag: tag, Reason: "r"}.Build()))
		return err
	}
	if err := errors.Join(ban(all, "", fleet), ban(db, "team=db", teams), ban(web, "team=web", "203.0.113.5")); err != nil {
		t.Fatal(err)
	}
	if err := ban(web, "", "203.0.113.6"); !denied(err) {
		t.Errorf("a team bans on every host: %v", err)
	}
	if err := ban(web, "team=db", "203.0.113.6"); !denied(err) {
		t.Errorf("a team bans on another's: %v", err)
	}
	listed := func(a api, r *operatorv1.ListBansRequest) (out []string) {
		t.Helper()
		res, err := a.bans.ListBans(ctx, connect.NewRequest(r))
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range res.Msg.GetBans() {
			out = append(out, b.GetPrefix())
		}
		slices.Sort(out)
		return out
	}
	if got := listed(web, operatorv1.ListBansRequest_builder{IncludeUnpromoted: true}.Build()); !slices.Equal(got, []string{both, fleet, "203.0.113.5"}) {
		t.Errorf("web sees %v", got)
	}
	if got := listed(db, operatorv1.ListBansRequest_builder{IncludeUnpromoted: true}.Build()); !slices.Equal(got, []string{both, local, teams, fleet}) {
		t.Errorf("db sees %v", got)
	}
	if got := listed(web, operatorv1.ListBansRequest_builder{Jail: "djail", IncludeUnpromoted: true}.Build()); len(got) != 0 {
		t.Errorf("by a jail of another team's host: %v", got)
	}
	for name, err := range map[string]error{
		"bans of its host": func() error {
			_, err := web.bans.ListBans(ctx, connect.NewRequest(operatorv1.ListBansRequest_builder{Host: "db-1"}.Build()))
			return err
		}(),
		"the host by name": func() error {
			_, err := web.hosts.GetHost(ctx, connect.NewRequest(operatorv1.GetHostRequest_builder{Host: "db-1"}.Build()))
			return err
		}(),
		"the host by id": func() error {
			_, err := web.hosts.GetHost(ctx, connect.NewRequest(operatorv1.GetHostRequest_builder{Host: d.ID}.Build()))
			return err
		}(),
		"its commands": func() error {
			_, err := web.hosts.ListCommands(ctx, connect.NewRequest(operatorv1.ListCommandsRequest_builder{Host: d.ID}.Build()))
			return err
		}(),
		"deleting it": func() error {
			_, err := web.hosts.DeleteHost(ctx, connect.NewRequest(operatorv1.DeleteHostRequest_builder{Host: d.ID}.Build()))
			return err
		}(),
		"releasing it": func() error {
			_, err := web.hosts.ReleaseHost(ctx, connect.NewRequest(operatorv1.ReleaseHostRequest_builder{Host: d.ID}.Build()))
			return err
		}(),
	} {
		if !missing(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"pause": func() error {
			_, err := web.fleet.Pause(ctx, connect.NewRequest(operatorv1.PauseRequest_builder{DurationS: 5}.Build()))
			return err
		}(),
		"allow": func() error {
			_, err := web.allow.Allow(ctx, connect.NewRequest(operatorv1.AllowRequest_builder{Prefixes: []string{both}}.Build()))
			return err
		}(),
		"join db":   joinWith(ctx, web, map[string]string{"team": "db"}),
		"join all":  joinWith(ctx, web, nil),
		"join more": joinWith(ctx, web, map[string]string{"team": "web", "role": "db"}),
	} {
		if !denied(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := errors.Join(joinWith(ctx, web, map[string]string{"team": "web"}), joinWith(ctx, all, map[string]string{"team": "db"})); err != nil {
		t.Error(err)
	}
	joins, err := web.join.ListJoinTokens(ctx, connect.NewRequest(&operatorv1.ListJoinTokensRequest{}))
	if err != nil || len(joins.Msg.GetJoinTokens()) == 0 || slices.ContainsFunc(joins.Msg.GetJoinTokens(), func(j *operatorv1.JoinToken) bool { return j.GetTags()["team"] != "web" }) {
		t.Errorf("%v, %v", joins, err)
	}
	status, err := web.fleet.GetFleet(ctx, connect.NewRequest(&operatorv1.GetFleetRequest{}))
	if err != nil || status.Msg.GetHosts() != 1 || status.Msg.GetHostsOnline() != 1 || status.Msg.GetBans() != 3 {
		t.Errorf("%v, %v", status, err)
	}
	unbanOfATeam(t, cp, all, web, w, d, both)
}

func joinWith(ctx context.Context, a api, tags map[string]string) error {
	_, err := a.join.CreateJoinToken(ctx, connect.NewRequest(operatorv1.CreateJoinTokenRequest_builder{Tags: tags}.Build()))
	return err
}

// A team's unban takes back what its hosts claim, and orders only them; the rest stands.
func unbanOfATeam(t *testing.T, cp *apitest.ControlPlane, all, web api, w, d *apitest.Host, address string) {
	t.Helper()
	ctx := t.Context()
	res, err := web.bans.Unban(ctx, connect.NewRequest(operatorv1.UnbanRequest_builder{Prefixes: []string{address, "203.0.113.3", "203.0.113.4"}}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	first := res.Msg.GetPrefixes()[0]
	if len(first.GetRetracted()) != 1 || first.GetRetracted()[0].GetHostId() != w.ID || !slices.Equal(first.GetOrderedHosts(), []string{"web-1"}) {
		t.Errorf("%v", first)
	}
	for _, other := range res.Msg.GetPrefixes()[1:] {
		if len(other.GetRetracted()) != 0 {
			t.Errorf("of others: %v", other)
		}
	}
	commands := func(id string) int {
		t.Helper()
		list, err := cp.Hosts.Commands(ctx, cp.Org.ID, id)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	if commands(w.ID) != 1 || commands(d.ID) != 0 {
		t.Errorf("%d and %d orders", commands(w.ID), commands(d.ID))
	}
	stands, err := all.bans.Explain(ctx, connect.NewRequest(operatorv1.ExplainRequest_builder{Address: address}.Build()))
	if err != nil || !stands.Msg.GetBanned() || len(stands.Msg.GetBans()) != 1 || len(stands.Msg.GetBans()[0].GetClaims()) != 1 {
		t.Errorf("%v, %v", stands, err)
	}
	seen, err := web.bans.Explain(ctx, connect.NewRequest(operatorv1.ExplainRequest_builder{Address: address}.Build()))
	if err != nil || !seen.Msg.GetBanned() || len(seen.Msg.GetBans()) != 1 || len(seen.Msg.GetBans()[0].GetClaims()) != 0 {
		t.Errorf("in force, for others' reasons: %v, %v", seen, err)
	}
	// What its host reports late of the same ban is refused; what the other's reports stands.
	w.Report(banOf("wjail", 2, "203.0.113.200/32", "all"))
	if again, err := web.bans.Explain(ctx, connect.NewRequest(operatorv1.ExplainRequest_builder{Address: "203.0.113.200"}.Build())); err != nil || !again.Msg.GetBanned() {
		t.Errorf("%v, %v", again, err)
	}
}

// Whatever happens in the fleet, and whatever a team asks: nothing of another team's hosts, claims and events is in any
// answer, in no page token either.
func TestTeamsSeeNothingElse(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	all, web := with(cp, cp.Token), team(t, cp, "web")
	hosts := map[string]*apitest.Host{}
	for _, name := range []string{"web-one", "web-two", "secret-one", "secret-two"} {
		hosts[name] = cp.Enrol(name, map[string]string{"team": strings.Split(name, "-")[0]}).Attach()
	}
	seqs := map[string]uint64{}
	marks := []string{"secret", hosts["secret-one"].ID, hosts["secret-two"].ID}
	address := rapid.SampledFrom([]string{"203.0.113.1", "203.0.113.2", "203.0.113.3", "198.51.100.1", "198.51.100.0/24"})
	rapid.Check(t, func(rt *rapid.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		for range rapid.IntRange(1, 4).Draw(rt, "changes") {
			name := rapid.SampledFrom([]string{"web-one", "web-two", "secret-one", "secret-two"}).Draw(rt, "host")
			kind := strings.Split(name, "-")[0]
			where := address.Draw(rt, "prefix")
			switch rapid.IntRange(0, 3).Draw(rt, "what") {
			case 0:
				if strings.Contains(where, "/") {
					continue
				}
				seqs[name]++
				hosts[name].Report(banOf(kind+"-jail", seqs[name], where+"/32", rapid.SampledFrom([]string{"", "all"}).Draw(rt, "set")))
			case 1:
				tag := rapid.SampledFrom([]string{"team=" + kind, ""}).Draw(rt, "tag")
				reason := ""
				if tag != "" {
					reason = kind + "-reason"
				}
				_, err := all.bans.Ban(ctx, connect.NewRequest(operatorv1.BanRequest_builder{Prefixes: []string{where}, DurationS: 600, Tag: tag, Reason: reason}.Build()))
				if err != nil {
					rt.Fatal(err)
				}
			case 2:
				if _, err := web.bans.Unban(ctx, connect.NewRequest(operatorv1.UnbanRequest_builder{Prefixes: []string{where}, Reason: "web"}.Build())); err != nil {
					rt.Fatal(err)
				}
			case 3:
				if _, err := all.bans.Unban(ctx, connect.NewRequest(operatorv1.UnbanRequest_builder{Prefixes: []string{where}, Reason: kind + "-reason"}.Build())); err != nil {
					rt.Fatal(err)
				}
			}
		}
		for what, answer := range asked(ctx, rt, web, address.Draw(rt, "asked")) {
			for _, mark := range marks {
				if strings.Contains(answer, mark) {
					rt.Fatalf("%s shows %q: %s", what, mark, answer)
				}
			}
		}
	})
}

// asked is every answer that a caller gets, as JSON.
func asked(ctx context.Context, t *rapid.T, a api, address string) map[string]string {
	out := map[string]string{}
	add := func(what string, m proto.Message, err error) {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		raw, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		out[what] += string(raw)
	}
	fleet, err := a.fleet.GetFleet(ctx, connect.NewRequest(&operatorv1.GetFleetRequest{}))
	add("GetFleet", fleet.Msg, err)
	explained, err := a.bans.Explain(ctx, connect.NewRequest(operatorv1.ExplainRequest_builder{Address: address}.Build()))
	add("Explain", explained.Msg, err)
	for token, i := "", 0; i == 0 || token != ""; i++ {
		res, err := a.hosts.ListHosts(ctx, connect.NewRequest(operatorv1.ListHostsRequest_builder{PageSize: 1, PageToken: token}.Build()))
		add("ListHosts", res.Msg, err)
		token = res.Msg.GetNextPageToken()
	}
	seen := map[string]bool{}
	for token, i := "", 0; i == 0 || token != ""; i++ {
		res, err := a.bans.ListBans(ctx, connect.NewRequest(operatorv1.ListBansRequest_builder{PageSize: 1, PageToken: token, IncludeUnpromoted: true}.Build()))
		add("ListBans", res.Msg, err)
		for _, b := range res.Msg.GetBans() {
			if seen[b.GetPrefix()] {
				t.Fatalf("%s is listed twice", b.GetPrefix())
			}
			seen[b.GetPrefix()] = true
		}
		token = res.Msg.GetNextPageToken()
	}
	watched(ctx, t, a, func(e *operatorv1.WatchResponse) { add("Watch", e, nil) })
	for _, set := range fleet.Msg.GetSets() {
		if name := set.GetCursor().GetSet(); strings.HasPrefix(name, "tag:") && name != "tag:team=web" {
			t.Fatalf("the set %s shows", name)
		}
		stream, err := a.bans.WatchReceipts(ctx, connect.NewRequest(operatorv1.WatchReceiptsRequest_builder{Cursor: set.GetCursor()}.Build()))
		if err != nil {
			t.Fatal(err)
		}
		if stream.Receive() {
			add("WatchReceipts", stream.Msg(), nil)
		}
		_ = stream.Close()
	}
	return out
}

// watched gives what a watch from the first event on shows, up to a ban that the caller makes after it began.
func watched(ctx context.Context, t *rapid.T, a api, each func(*operatorv1.WatchResponse)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	last := fmt.Sprintf("web-last-%d", time.Now().UnixNano())
	if _, err := a.bans.Ban(ctx, connect.NewRequest(operatorv1.BanRequest_builder{
		Prefixes: []string{fmt.Sprintf("203.0.113.%d", 100+time.Now().UnixNano()%100)}, DurationS: 366 * 86400, Tag: "team=web", Reason: last,
	}.Build())); err != nil {
		t.Fatal(err)
	}
	stream, err := a.fleet.Watch(ctx, connect.NewRequest(operatorv1.WatchRequest_builder{After: "0-0"}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	for stream.Receive() {
		if stream.Msg().GetEvent() == nil {
			continue
		}
		each(stream.Msg())
		if stream.Msg().GetEvent().GetKind() == operatorv1.FleetEventKind_FLEET_EVENT_KIND_BANNED && stream.Msg().GetEvent().GetReason() == last {
			return
		}
	}
	t.Fatal(stream.Err())
}
