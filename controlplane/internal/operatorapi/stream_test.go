package operatorapi_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/operatorapi/apitest"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestReceipts(t *testing.T) {
	t.Parallel()
	ctx := soon(t)
	cp := apitest.Start(t)
	a := with(cp, cp.Token)
	web, db := cp.Enrol("web-1", nil).Attach(), cp.Enrol("db-1", nil).Attach()
	cp.Enrol("off-1", nil)
	banned := ask(t, a.bans.Ban, ban(3600, "203.0.113.9"))
	stream, err := a.bans.WatchReceipts(ctx, connect.NewRequest(operatorv1.WatchReceiptsRequest_builder{
		Cursor: banned.GetCursor(), Prefixes: []string{"203.0.113.9"},
	}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	next := func() *operatorv1.WatchReceiptsResponse {
		t.Helper()
		if !stream.Receive() {
			t.Fatalf("the stream ended: %v", stream.Err())
		}
		return stream.Msg()
	}
	if m := next(); m.GetInScope() != 2 || m.GetEnforced() != 0 || m.GetOffline() != 1 || m.GetComplete() || len(m.GetMissing()) != 3 {
		t.Fatalf("at first %v", m)
	}
	web.Ack(fleetbanv1.Ack_builder{})
	if m := next(); m.GetEnforced() != 1 || m.GetComplete() {
		t.Fatalf("after one %v", m)
	}
	db.Ack(fleetbanv1.Ack_builder{Inert: fleetbanv1.Inert_INERT_OFF})
	m := next()
	if m.GetEnforced() != 1 || m.GetInert() != 1 || !m.GetComplete() || len(m.GetMissing()) != 2 {
		t.Fatalf("after both %v", m)
	}
	if stream.Receive() || stream.Err() != nil {
		t.Fatalf("complete, and it goes on: %v, %v", stream.Msg(), stream.Err())
	}
	// A version that never was would be waited for without end.
	future := banned.GetCursor()
	future.SetVersion(future.GetVersion() + 1000)
	for _, bad := range []*operatorv1.WatchReceiptsRequest{
		operatorv1.WatchReceiptsRequest_builder{Cursor: future}.Build(),
		{},
		operatorv1.WatchReceiptsRequest_builder{Cursor: fleetbanv1.SetCursor_builder{}.Build()}.Build(),
	} {
		s, err := a.bans.WatchReceipts(ctx, connect.NewRequest(bad))
		if err == nil {
			for s.Receive() {
			}
			err = s.Err()
			_ = s.Close()
		}
		if apierr.ReasonOf(err) != invalidField {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// open starts a watch and reads from it in the background.
func open(ctx context.Context, t *testing.T, a api, req *operatorv1.WatchRequest) (events <-chan *operatorv1.WatchResponse, ended <-chan error) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	stream, err := a.fleet.Watch(ctx, connect.NewRequest(req)) // returns when the server has let it in
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	out, done, stopped := make(chan *operatorv1.WatchResponse, 100), make(chan error, 1), make(chan struct{})
	go func() {
		defer close(stopped)
		for stream.Receive() {
			out <- stream.Msg()
		}
		done <- stream.Err()
	}()
	t.Cleanup(func() {
		cancel()
		<-stopped
		_ = stream.Close()
	})
	return out, done
}

func TestWatch(t *testing.T) {
	t.Parallel()
	ctx := soon(t)
	cp := apitest.Start(t)
	a := with(cp, cp.Token)
	ask(t, a.bans.Ban, ban(3600, "203.0.113.1"))
	web := cp.Enrol("web-1", nil).Attach()
	events, ended := open(ctx, t, a, &operatorv1.WatchRequest{})
	would, _ := open(ctx, t, a, operatorv1.WatchRequest_builder{Would: true}.Build())
	wait := func(from <-chan *operatorv1.WatchResponse) *operatorv1.WatchResponse {
		t.Helper()
		select {
		case m := <-from:
			return m
		case err := <-ended:
			t.Fatalf("the stream ended: %v", err)
			return nil
		case <-ctx.Done():
			t.Fatal("no event came")
			return nil
		}
	}
	ask(t, a.bans.Ban, ban(3600, "203.0.113.2"))
	m := wait(events)
	if m.GetEvent().GetPrefix() != "203.0.113.2" || m.GetEvent().GetKind() != operatorv1.FleetEventKind_FLEET_EVENT_KIND_BANNED || m.GetGap() ||
		m.GetEvent().GetActor() != "first administrator" {
		t.Fatalf("the first event is %v", m)
	}
	after := m.GetEvent().GetId()
	web.Report(sets.Event{
		Seq: 1, Kind: sets.EventBan, Jail: "sshd", Prefix: netip.MustParsePrefix("203.0.113.3/32"), Duration: time.Hour,
		Set: "all", Unpromoted: operatorv1.Unpromoted_UNPROMOTED_WATCH_MODE,
	})
	for _, from := range []<-chan *operatorv1.WatchResponse{events, would} {
		if m := wait(from); m.GetEvent().GetPrefix() != "203.0.113.3" || m.GetEvent().GetHostName() != "web-1" || m.GetEvent().GetJail() != "sshd" {
			t.Fatalf("observed %v", m)
		}
	}
	// Taken up where it ended: what came since, once.
	ask(t, a.bans.Ban, ban(3600, "203.0.113.4"))
	var resumed <-chan *operatorv1.WatchResponse
	resumed, ended = open(ctx, t, a, operatorv1.WatchRequest_builder{After: after}.Build())
	if first, second := wait(resumed), wait(resumed); first.GetEvent().GetPrefix() != "203.0.113.3" || second.GetEvent().GetPrefix() != "203.0.113.4" || first.GetGap() {
		t.Fatalf("resumed with %v, %v", first, second)
	}
	// Redis away for a moment ends no stream.
	cp.Redis.Kill()
	cp.Redis.Start()
	ask(t, a.bans.Ban, ban(3600, "203.0.113.5"))
	for m := wait(resumed); m.GetEvent().GetPrefix() != "203.0.113.5"; m = wait(resumed) {
	}
	stream, err := a.fleet.Watch(ctx, connect.NewRequest(operatorv1.WatchRequest_builder{After: "nonsense"}.Build()))
	if err == nil {
		stream.Receive()
		err = stream.Err()
		_ = stream.Close()
	}
	if apierr.ReasonOf(err) != invalidField {
		t.Errorf("a watch after nonsense: %v", err)
	}
}

// A watch may begin with what happened before it, of what the caller sees.
func TestWatchBeginsWithRecent(t *testing.T) {
	t.Parallel()
	ctx := soon(t)
	cp := apitest.Start(t)
	cp.Enrol("web-1", map[string]string{"team": "web"})
	cp.Enrol("db-1", map[string]string{"team": "db"})
	all, web := with(cp, cp.Token), team(t, cp, "web")
	banFor := func(tag, address string) {
		t.Helper()
		ask(t, all.bans.Ban, operatorv1.BanRequest_builder{Prefixes: []string{address}, DurationS: 600, Tag: tag, Reason: "r"}.Build())
	}
	for i, tag := range []string{"team=web", "team=db", "team=web", "team=db", "team=db"} {
		banFor(tag, fmt.Sprintf("203.0.113.%d", i+1))
	}
	request := func(recent uint32, after string) *operatorv1.WatchRequest {
		return operatorv1.WatchRequest_builder{Recent: recent, After: after}.Build()
	}
	// watched gives the addresses that come first, up to that of a ban that is made once the watch stands, and the ids.
	made := 100
	watched := func(a api, request *operatorv1.WatchRequest) (addresses, ids []string) {
		t.Helper()
		events, ended := open(ctx, t, a, request)
		made++
		last := fmt.Sprintf("203.0.113.%d", made)
		banFor("team=web", last)
		for {
			select {
			case m := <-events:
				ids = append(ids, m.GetEvent().GetId())
				if m.GetGap() {
					t.Errorf("a gap before %v", m)
				}
				if m.GetEvent().GetPrefix() == last {
					return addresses, ids
				}
				addresses = append(addresses, m.GetEvent().GetPrefix())
			case err := <-ended:
				t.Fatalf("the stream ended: %v", err)
			case <-ctx.Done():
				t.Fatalf("only %v came", addresses)
			}
		}
	}
	const one, two, three, four, five, later = "203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4", "203.0.113.5", "203.0.113.101"
	got, ids := watched(all, request(2, ""))
	if !slices.Equal(got, []string{four, five}) {
		t.Errorf("the newest two are %v", got)
	}
	// A team's newest are behind what others did.
	if got, _ := watched(web, request(3, "")); !slices.Equal(got, []string{one, three, later}) {
		t.Errorf("the team's newest three are %v", got)
	}
	if got, _ := watched(all, request(200, "")); len(got) < 7 || !slices.Contains(got, two) {
		t.Errorf("more than there are: %v", got)
	}
	if got, _ := watched(all, request(200, ids[0])); got[0] != five {
		t.Errorf("after an event, and with those before it: %v", got)
	}
	if got, _ := watched(all, request(0, "")); len(got) != 0 {
		t.Errorf("none asked for, and %v", got)
	}
	stream, err := all.fleet.Watch(ctx, connect.NewRequest(request(201, "")))
	if err == nil {
		stream.Receive()
		err = stream.Err()
		_ = stream.Close()
	}
	if apierr.ReasonOf(err) != invalidField {
		t.Errorf("more than 200: %v", err)
	}
}

// A replica that goes tells its streams so, and doesn't wait for them.
func TestStreamsEndWithTheReplica(t *testing.T) {
	t.Parallel()
	ctx := soon(t)
	cp := apitest.Start(t)
	a := with(cp, cp.Token)
	cp.Enrol("web-1", nil).Attach()
	_, ended := open(ctx, t, a, &operatorv1.WatchRequest{})
	banned := ask(t, a.bans.Ban, ban(3600, "203.0.113.1"))
	receipts, err := a.bans.WatchReceipts(ctx, connect.NewRequest(operatorv1.WatchReceiptsRequest_builder{Cursor: banned.GetCursor()}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = receipts.Close() }()
	if !receipts.Receive() {
		t.Fatal(receipts.Err())
	}
	cp.Drain()
	for receipts.Receive() {
	}
	for _, err := range []error{<-ended, receipts.Err()} {
		if apierr.ReasonOf(err) != fleetbanv1.Reason_REASON_SHUTTING_DOWN || connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("a stream ended with %v", err)
		}
	}
}

// calls are all RPCs with a request that passes every check of its form.
func calls() map[string]func(context.Context, api) error {
	return map[string]func(context.Context, api) error{
		"Ban":      unary(func(a api) call[operatorv1.BanRequest, operatorv1.BanResponse] { return a.bans.Ban }, ban(60, "203.0.113.200")),
		"Unban":    unary(func(a api) call[operatorv1.UnbanRequest, operatorv1.UnbanResponse] { return a.bans.Unban }, operatorv1.UnbanRequest_builder{Prefixes: []string{"203.0.113.200"}}.Build()),
		"ListBans": unary(func(a api) call[operatorv1.ListBansRequest, operatorv1.ListBansResponse] { return a.bans.ListBans }, &operatorv1.ListBansRequest{}),
		"Explain":  unary(func(a api) call[operatorv1.ExplainRequest, operatorv1.ExplainResponse] { return a.bans.Explain }, operatorv1.ExplainRequest_builder{Address: "203.0.113.200"}.Build()),
		"Allow":    unary(func(a api) call[operatorv1.AllowRequest, operatorv1.AllowResponse] { return a.allow.Allow }, operatorv1.AllowRequest_builder{Prefixes: []string{"192.0.2.1"}}.Build()),
		"Disallow": unary(func(a api) call[operatorv1.DisallowRequest, operatorv1.DisallowResponse] { return a.allow.Disallow }, operatorv1.DisallowRequest_builder{Prefixes: []string{"192.0.2.1"}}.Build()),
		"ListAllowed": unary(func(a api) call[operatorv1.ListAllowedRequest, operatorv1.ListAllowedResponse] {
			return a.allow.ListAllowed
		}, &operatorv1.ListAllowedRequest{}),
		"GetFleet":  unary(func(a api) call[operatorv1.GetFleetRequest, operatorv1.GetFleetResponse] { return a.fleet.GetFleet }, &operatorv1.GetFleetRequest{}),
		"Pause":     unary(func(a api) call[operatorv1.PauseRequest, operatorv1.PauseResponse] { return a.fleet.Pause }, operatorv1.PauseRequest_builder{DurationS: 60}.Build()),
		"Resume":    unary(func(a api) call[operatorv1.ResumeRequest, operatorv1.ResumeResponse] { return a.fleet.Resume }, &operatorv1.ResumeRequest{}),
		"SetMode":   unary(func(a api) call[operatorv1.SetModeRequest, operatorv1.SetModeResponse] { return a.fleet.SetMode }, operatorv1.SetModeRequest_builder{Mode: 2}.Build()),
		"ListHosts": unary(func(a api) call[operatorv1.ListHostsRequest, operatorv1.ListHostsResponse] { return a.hosts.ListHosts }, &operatorv1.ListHostsRequest{}),
		"GetHost":   unary(func(a api) call[operatorv1.GetHostRequest, operatorv1.GetHostResponse] { return a.hosts.GetHost }, operatorv1.GetHostRequest_builder{Host: "web-1"}.Build()),
		"ReleaseHost": unary(func(a api) call[operatorv1.ReleaseHostRequest, operatorv1.ReleaseHostResponse] {
			return a.hosts.ReleaseHost
		}, operatorv1.ReleaseHostRequest_builder{Host: "web-1"}.Build()),
		"ListCommands": unary(func(a api) call[operatorv1.ListCommandsRequest, operatorv1.ListCommandsResponse] {
			return a.hosts.ListCommands
		},
			operatorv1.ListCommandsRequest_builder{Host: "web-1"}.Build()),
		"DeleteHost": unary(func(a api) call[operatorv1.DeleteHostRequest, operatorv1.DeleteHostResponse] {
			return a.hosts.DeleteHost
		}, operatorv1.DeleteHostRequest_builder{Host: "gone-1"}.Build()),
		"CreateJoinToken": unary(func(a api) call[operatorv1.CreateJoinTokenRequest, operatorv1.CreateJoinTokenResponse] {
			return a.join.CreateJoinToken
		}, &operatorv1.CreateJoinTokenRequest{}),
		"ListJoinTokens": unary(func(a api) call[operatorv1.ListJoinTokensRequest, operatorv1.ListJoinTokensResponse] {
			return a.join.ListJoinTokens
		}, &operatorv1.ListJoinTokensRequest{}),
		"RevokeJoinToken": unary(func(a api) call[operatorv1.RevokeJoinTokenRequest, operatorv1.RevokeJoinTokenResponse] {
			return a.join.RevokeJoinToken
		},
			operatorv1.RevokeJoinTokenRequest_builder{Id: "fbj_00000000"}.Build()),
		"Watch": func(ctx context.Context, a api) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			s, err := a.fleet.Watch(ctx, connect.NewRequest(operatorv1.WatchRequest_builder{After: "0-1"}.Build())) // from the oldest
			if err != nil {
				return err
			}
			s.Receive()
			err = s.Err()
			cancel()
			_ = s.Close()
			return err
		},
		"WatchReceipts": func(ctx context.Context, a api) error {
			s, err := a.bans.WatchReceipts(ctx, connect.NewRequest(operatorv1.WatchReceiptsRequest_builder{
				Cursor: fleetbanv1.SetCursor_builder{Set: "all"}.Build(),
			}.Build()))
			if err != nil {
				return err
			}
			s.Receive()
			return errors.Join(s.Err(), s.Close())
		},
	}
}

type call[Req, Res any] = func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error)

func unary[Req, Res any](method func(api) call[Req, Res], message *Req) func(context.Context, api) error {
	return func(ctx context.Context, a api) error {
		_, err := method(a)(ctx, connect.NewRequest(message))
		return err
	}
}

// needs is written here once more, apart from the protos: a permission that is loosened there by accident is seen.
var needs = map[optionsv1.Permission][]string{
	optionsv1.Permission_PERMISSION_FLEET_READ: {
		"ListBans", "Explain", "WatchReceipts", "ListAllowed", "GetFleet", "Watch", "ListHosts", "GetHost", "ListCommands",
	},
	optionsv1.Permission_PERMISSION_BANS_WRITE:      {"Ban", "Unban"},
	optionsv1.Permission_PERMISSION_ALLOWLIST_WRITE: {"Allow", "Disallow"},
	optionsv1.Permission_PERMISSION_POLICY_WRITE:    {"Pause", "Resume", "SetMode"},
	optionsv1.Permission_PERMISSION_HOSTS_WRITE:     {"DeleteHost", "ReleaseHost", "CreateJoinToken", "ListJoinTokens", "RevokeJoinToken"},
}

// Each RPC with a token that holds exactly its permission, with one that holds all others, with none.
func TestPermissionMatrix(t *testing.T) {
	t.Parallel()
	ctx := soon(t)
	cp := apitest.Start(t)
	cp.Enrol("web-1", nil)
	tested := 0
	for permission, methods := range needs {
		var others []optionsv1.Permission
		for _, p := range orgs.AllPermissions() {
			if p != permission {
				others = append(others, p)
			}
		}
		holder, lacking, nobody := with(cp, cp.NewToken(cp.Org.ID, permission)), with(cp, cp.NewToken(cp.Org.ID, others...)), with(cp, "fbt_nothing")
		for _, name := range methods {
			tested++
			run := calls()[name]
			if err := run(ctx, nobody); apierr.ReasonOf(err) != fleetbanv1.Reason_REASON_BAD_CREDENTIAL {
				t.Errorf("%s with no credential: %v", name, err)
			}
			if err := run(ctx, lacking); apierr.ReasonOf(err) != fleetbanv1.Reason_REASON_PERMISSION_DENIED || connect.CodeOf(err) != connect.CodePermissionDenied {
				t.Errorf("%s without %v: %v", name, permission, err)
			}
			err := run(ctx, holder)
			if reason := apierr.ReasonOf(err); err != nil && reason != notFound {
				t.Errorf("%s with %v: %v", name, permission, err)
			}
		}
	}
	if tested != len(calls()) {
		t.Errorf("%d RPCs are in the matrix, there are %d", tested, len(calls()))
	}
}

// What one organisation has, another neither sees nor changes, whatever it names.
func TestOrganisationsAreApart(t *testing.T) {
	t.Parallel()
	ctx := soon(t)
	cp := apitest.Start(t)
	mine := with(cp, cp.Token)
	web := cp.Enrol("web-1", map[string]string{"role": "web"}, "198.51.100.7/32").Attach()
	banned := ask(t, mine.bans.Ban, ban(3600, "203.0.113.9"))
	ask(t, mine.allow.Allow, operatorv1.AllowRequest_builder{Prefixes: []string{"192.0.2.1"}}.Build())
	token := ask(t, mine.join.CreateJoinToken, &operatorv1.CreateJoinTokenRequest{}).GetJoinToken()
	_, secret := cp.NewOrg("Others")
	theirs := with(cp, secret)
	events, _ := open(ctx, t, theirs, &operatorv1.WatchRequest{})

	if n := len(ask(t, theirs.bans.ListBans, operatorv1.ListBansRequest_builder{IncludeUnpromoted: true}.Build()).GetBans()); n != 0 {
		t.Errorf("others see %d bans", n)
	}
	if n := len(ask(t, theirs.allow.ListAllowed, &operatorv1.ListAllowedRequest{}).GetAllowed()); n != 0 {
		t.Errorf("others see %d allowed prefixes", n)
	}
	if n := len(ask(t, theirs.hosts.ListHosts, &operatorv1.ListHostsRequest{}).GetHosts()); n != 0 {
		t.Errorf("others see %d hosts", n)
	}
	if n := len(ask(t, theirs.join.ListJoinTokens, &operatorv1.ListJoinTokensRequest{}).GetJoinTokens()); n != 0 {
		t.Errorf("others see %d join tokens", n)
	}
	if m := ask(t, theirs.bans.Explain, operatorv1.ExplainRequest_builder{Address: "203.0.113.9"}.Build()); m.GetBanned() || len(m.GetBans())+len(m.GetEvents())+len(m.GetHosts()) != 0 {
		t.Errorf("others are told %v", m)
	}
	for _, by := range []string{web.ID, "web-1"} {
		refused(t, theirs.hosts.GetHost, operatorv1.GetHostRequest_builder{Host: by}.Build(), notFound, "host", "")
		refused(t, theirs.hosts.DeleteHost, operatorv1.DeleteHostRequest_builder{Host: by}.Build(), notFound, "host", "")
		refused(t, theirs.hosts.ReleaseHost, operatorv1.ReleaseHostRequest_builder{Host: by}.Build(), notFound, "host", "")
		refused(t, theirs.hosts.ListCommands, operatorv1.ListCommandsRequest_builder{Host: by}.Build(), notFound, "host", "")
		refused(t, theirs.bans.ListBans, operatorv1.ListBansRequest_builder{Host: by}.Build(), notFound, "host", "")
	}
	refused(t, theirs.bans.Ban, operatorv1.BanRequest_builder{Prefixes: []string{"203.0.113.9"}, DurationS: 60, Tag: "role=web"}.Build(), notFound, "tag", "")
	refused(t, theirs.join.RevokeJoinToken, operatorv1.RevokeJoinTokenRequest_builder{Id: token.GetId()}.Build(), notFound, "id", "")
	// My host's address is none of theirs: they may ban it on their own hosts.
	ask(t, theirs.bans.Ban, ban(60, "198.51.100.7"))
	ask(t, theirs.bans.Unban, operatorv1.UnbanRequest_builder{Prefixes: []string{"203.0.113.9"}}.Build())
	ask(t, theirs.allow.Disallow, operatorv1.DisallowRequest_builder{Prefixes: []string{"192.0.2.1"}}.Build())
	ask(t, theirs.fleet.Pause, operatorv1.PauseRequest_builder{DurationS: 60}.Build())

	if list := ask(t, mine.bans.ListBans, &operatorv1.ListBansRequest{}); len(list.GetBans()) != 1 || list.GetTotal() != 1 {
		t.Errorf("after all that I have %v", list)
	}
	if fleet := ask(t, mine.fleet.GetFleet, &operatorv1.GetFleetRequest{}); fleet.GetPausedUntilUnixMs() != 0 || fleet.GetOrganisationName() != "Acme" {
		t.Errorf("my fleet is %v", fleet)
	}
	if n := len(ask(t, mine.allow.ListAllowed, &operatorv1.ListAllowedRequest{}).GetAllowed()); n != 1 {
		t.Errorf("I have %d allowed prefixes", n)
	}
	s, err := theirs.bans.WatchReceipts(ctx, connect.NewRequest(operatorv1.WatchReceiptsRequest_builder{Cursor: banned.GetCursor()}.Build()))
	if err == nil {
		for s.Receive() {
			if s.Msg().GetInScope()+s.Msg().GetOffline() != 0 || len(s.Msg().GetMissing()) != 0 {
				t.Errorf("others are told of my hosts: %v", s.Msg())
			}
		}
		_ = s.Close()
	}
	// Of all that happened they are told of their own alone.
	for range 2 {
		m := <-events
		if e := m.GetEvent(); e.GetPrefix() == "203.0.113.9" && e.GetKind() == operatorv1.FleetEventKind_FLEET_EVENT_KIND_BANNED || e.GetHostName() == "web-1" {
			t.Errorf("others are told %v", e)
		}
	}
}
