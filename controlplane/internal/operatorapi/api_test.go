package operatorapi_test

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/operatorapi/apitest"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// api is the operator API as the holder of one token calls it.
type api struct {
	bans  operatorv1connect.BanServiceClient
	allow operatorv1connect.AllowlistServiceClient
	fleet operatorv1connect.FleetServiceClient
	hosts operatorv1connect.HostServiceClient
	join  operatorv1connect.JoinTokenServiceClient
}

type bearer string

func (b bearer) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		req.Header().Set("Authorization", "Bearer "+string(b))
		return next(ctx, req)
	}
}

func (b bearer) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		conn.RequestHeader().Set("Authorization", "Bearer "+string(b))
		return conn
	}
}

func (bearer) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func with(cp *apitest.ControlPlane, token string) api {
	client := connect.HTTPClient(&http.Client{Transport: cp.HTTP.Transport})
	o := connect.WithInterceptors(bearer(token))
	return api{
		bans: operatorv1connect.NewBanServiceClient(client, cp.URL, o), allow: operatorv1connect.NewAllowlistServiceClient(client, cp.URL, o),
		fleet: operatorv1connect.NewFleetServiceClient(client, cp.URL, o), hosts: operatorv1connect.NewHostServiceClient(client, cp.URL, o),
		join: operatorv1connect.NewJoinTokenServiceClient(client, cp.URL, o),
	}
}

func ask[Req, Res any](t *testing.T, call func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), message *Req) *Res {
	t.Helper()
	res, err := call(context.Background(), connect.NewRequest(message))
	if err != nil {
		t.Fatalf("%T: %v", message, err)
	}
	return res.Msg
}

func refused[Req, Res any](
	t *testing.T, call func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), message *Req, reason fleetbanv1.Reason, field, contains string,
) {
	t.Helper()
	_, err := call(context.Background(), connect.NewRequest(message))
	info := apierr.Info(err)
	if err == nil || info.GetReason() != reason || info.GetField() != field || info.GetFix() == "" || !strings.Contains(err.Error(), contains) {
		t.Errorf("%v: got %v (%v, field %q, fix %q), want %v, field %q, %q", message, err, info.GetReason(), info.GetField(), info.GetFix(), reason, field, contains)
	}
}

func ban(seconds int64, prefixes ...string) *operatorv1.BanRequest {
	return operatorv1.BanRequest_builder{Prefixes: prefixes, DurationS: seconds, Reason: "test"}.Build()
}

const (
	invalidField = fleetbanv1.Reason_REASON_INVALID_FIELD
	tooWide      = fleetbanv1.Reason_REASON_PREFIX_TOO_WIDE
	protected    = fleetbanv1.Reason_REASON_PREFIX_PROTECTED
	notFound     = fleetbanv1.Reason_REASON_NOT_FOUND
)

func TestBanRefusals(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	a := with(cp, cp.Token)
	cp.Enrol("web-1", map[string]string{"role": "web"}, "198.51.100.7/32", "2001:db8::7/128")
	for _, tc := range []struct {
		request         *operatorv1.BanRequest
		reason          fleetbanv1.Reason
		field, contains string
	}{
		{ban(60), invalidField, "prefixes", ""},
		{ban(60, slices.Repeat([]string{"203.0.113.9"}, 1001)...), invalidField, "prefixes", ""},
		{ban(60, "203.0.113.9", "203.0.113.300"), invalidField, "prefixes[1]", "203.0.113.300"},
		{ban(60, "203.0.113.9", "nonsense"), invalidField, "prefixes[1]", "nonsense"},
		{ban(60, "203.0.113.9/24"), invalidField, "prefixes[0]", "203.0.113.0/24"},
		{ban(60, "fe80::1%eth0"), invalidField, "prefixes[0]", "zone"},
		{ban(60, "203.0.113.9\x1b[31m"), invalidField, "prefixes[0]", `\x1b`},
		{ban(60, strings.Repeat("1", 65)), invalidField, "prefixes[0]", ""},
		{ban(0, "203.0.113.9"), invalidField, "duration_s", ""},
		{ban(-1, "203.0.113.9"), invalidField, "duration_s", ""},
		{ban(31_622_401, "203.0.113.9"), invalidField, "duration_s", ""},
		{ban(60, "203.0.113.9", "203.0.0.0/15"), tooWide, "prefixes[1]", "203.0.0.0/15"},
		{ban(60, "0.0.0.0/0"), tooWide, "prefixes[0]", ""},
		{ban(60, "2001:db8::/31"), tooWide, "prefixes[0]", ""},
		{ban(60, "10.1.2.3"), protected, "prefixes[0]", "10.0.0.0/8"},
		{ban(60, "203.0.113.9", "127.0.0.1"), protected, "prefixes[1]", "127.0.0.0/8"},
		{ban(60, "::1"), protected, "prefixes[0]", ""},
		{ban(60, "::ffff:192.168.0.1"), protected, "prefixes[0]", "192.168.0.0/16"},
		{ban(60, "203.0.113.9", "198.51.100.0/24"), protected, "prefixes[1]", "web-1"},
		{ban(60, "2001:db8::/64"), protected, "prefixes[0]", "web-1"},
		{operatorv1.BanRequest_builder{Prefixes: []string{"203.0.113.9"}, DurationS: 60, Tag: "role"}.Build(), invalidField, "tag", "k=v"},
		{operatorv1.BanRequest_builder{Prefixes: []string{"203.0.113.9"}, DurationS: 60, Tag: "role=\x00"}.Build(), invalidField, "tag", ""},
		{operatorv1.BanRequest_builder{Prefixes: []string{"203.0.113.9"}, DurationS: 60, Tag: "role=db"}.Build(), notFound, "tag", "role=db"},
		{operatorv1.BanRequest_builder{Prefixes: []string{"203.0.113.9"}, DurationS: 60, Reason: strings.Repeat("x", 501)}.Build(), invalidField, "reason", ""},
	} {
		refused(t, a.bans.Ban, tc.request, tc.reason, tc.field, tc.contains)
	}
	// All or nothing: not even the good ones among them stand.
	if list := ask(t, a.bans.ListBans, &operatorv1.ListBansRequest{}); len(list.GetBans()) != 0 || list.GetTotal() != 0 {
		t.Fatalf("refused bans left %v", list)
	}
	big := make([]string, 1000)
	for i := range big {
		big[i] = "203.0.113.9" + strings.Repeat(" ", 1100)
	}
	_, err := a.bans.Ban(context.Background(), connect.NewRequest(ban(60, big...)))
	if connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("a message over a megabyte: %v", err)
	}
}

func TestBanListUnban(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	a := with(cp, cp.Token)
	web := cp.Enrol("web-1", map[string]string{"role": "web"}).Attach()
	cp.Enrol("new-1", nil)
	before := time.Now()
	res := ask(t, a.bans.Ban, ban(3600, "203.0.113.9", " 203.0.113.9 ", "2001:db8:1::/64"))
	if len(res.GetPrefixes()) != 2 || res.GetPrefixes()[0].GetPrefix() != "203.0.113.9" || res.GetPrefixes()[1].GetPrefix() != "2001:db8:1::/64" {
		t.Fatalf("banned %v", res.GetPrefixes())
	}
	for _, p := range res.GetPrefixes() {
		if p.GetEffect() != operatorv1.BannedPrefix_EFFECT_BANNED {
			t.Errorf("%v", p)
		}
	}
	if e := time.UnixMilli(res.GetExpiresUnixMs()); e.Before(before.Add(59*time.Minute)) || e.After(time.Now().Add(61*time.Minute)) {
		t.Errorf("until %s", e)
	}
	if c := res.GetCursor(); c.GetSet() != "all" || c.GetVersion() == 0 || c.GetEpoch() == 0 {
		t.Errorf("cursor %v", c)
	}
	tagged := ask(t, a.bans.Ban, operatorv1.BanRequest_builder{Prefixes: []string{"203.0.113.77"}, DurationS: 60, Tag: "role=web"}.Build())
	if tagged.GetCursor().GetSet() != "tag:role=web" {
		t.Errorf("cursor %v", tagged.GetCursor())
	}
	web.Report(sets.Event{Seq: 1, Kind: sets.EventBan, Jail: "sshd", Prefix: netip.MustParsePrefix("203.0.113.9/32"), Duration: time.Hour, Set: "all", Failures: 5})

	list := ask(t, a.bans.ListBans, &operatorv1.ListBansRequest{})
	if len(list.GetBans()) != 3 || list.GetTotal() != 3 {
		t.Fatalf("listed %v", list)
	}
	byJail := ask(t, a.bans.ListBans, operatorv1.ListBansRequest_builder{Jail: "sshd", Host: "WEB-1"}.Build())
	if len(byJail.GetBans()) != 1 || len(byJail.GetBans()[0].GetClaims()) != 2 {
		t.Fatalf("by jail and host %v", byJail)
	}
	for _, c := range byJail.GetBans()[0].GetClaims() {
		if c.GetSource() == operatorv1.ClaimSource_CLAIM_SOURCE_JAIL && (c.GetHostName() != "web-1" || c.GetJail() != "sshd" || c.GetFailures() != 5) {
			t.Errorf("claim %v", c)
		}
		if c.GetSource() == operatorv1.ClaimSource_CLAIM_SOURCE_PERSON && (c.GetActor() != "first administrator" || c.GetReason() != "test") {
			t.Errorf("claim %v", c)
		}
	}
	refused(t, a.bans.ListBans, operatorv1.ListBansRequest_builder{Host: "nobody"}.Build(), notFound, "host", "")
	refused(t, a.bans.ListBans, operatorv1.ListBansRequest_builder{PageToken: "x\x00y"}.Build(), invalidField, "page_token", "")
	refused(t, a.bans.ListBans, operatorv1.ListBansRequest_builder{PageSize: 5001}.Build(), invalidField, "page_size", "")

	// A wider ban still covers the address after its own is gone.
	ask(t, a.bans.Ban, ban(3600, "203.0.113.0/24"))
	un := ask(t, a.bans.Unban, operatorv1.UnbanRequest_builder{Prefixes: []string{"203.0.113.9"}}.Build())
	if len(un.GetPrefixes()) != 1 || len(un.GetCursors()) == 0 {
		t.Fatalf("unbanned %v", un)
	}
	p := un.GetPrefixes()[0]
	if len(p.GetRetracted()) != 2 || !slices.Equal(p.GetOrderedHosts(), []string{"web-1"}) ||
		len(p.GetStillCoveredBy()) != 1 || p.GetStillCoveredBy()[0].GetPrefix() != "203.0.113.0/24" {
		t.Errorf("unbanned %v", p)
	}
	commands := ask(t, a.hosts.ListCommands, operatorv1.ListCommandsRequest_builder{Host: "web-1"}.Build()).GetCommands()
	if len(commands) != 1 || commands[0].GetActor() != "first administrator" ||
		!slices.EqualFunc(commands[0].GetCommand().GetUnbanInJails().GetPrefixes(), [][]byte{prefix.Pack(netip.MustParsePrefix("203.0.113.9/32"))}, slices.Equal) {
		t.Errorf("commands %v", commands)
	}
	// Once more: nothing is left, nobody is ordered.
	un = ask(t, a.bans.Unban, operatorv1.UnbanRequest_builder{Prefixes: []string{"203.0.113.9"}}.Build())
	if p := un.GetPrefixes()[0]; len(p.GetRetracted()) != 0 || len(p.GetOrderedHosts()) != 0 || len(p.GetStillCoveredBy()) != 1 {
		t.Errorf("unbanned twice %v", p)
	}
	refused(t, a.bans.Unban, operatorv1.UnbanRequest_builder{Prefixes: []string{"203.0.113.9", "?!"}}.Build(), invalidField, "prefixes[1]", "")
	refused(t, a.hosts.ListCommands, operatorv1.ListCommandsRequest_builder{Host: "nobody"}.Build(), notFound, "host", "")
}

// Every ban once, however the pages are cut.
func TestListBansInPages(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	a := with(cp, cp.Token)
	var all []string
	for i := range 250 {
		all = append(all, fmt.Sprintf("203.0.%d.%d", 112+i/200, i%200+1))
	}
	ask(t, a.bans.Ban, ban(3600, all...))
	seen := map[string]int{}
	pages := 0
	for token := ""; ; pages++ {
		res := ask(t, a.bans.ListBans, operatorv1.ListBansRequest_builder{PageSize: 40, PageToken: token}.Build())
		for _, b := range res.GetBans() {
			seen[b.GetPrefix()]++
		}
		if res.GetTotal() != 250 {
			t.Fatalf("total %d", res.GetTotal())
		}
		if token = res.GetNextPageToken(); token == "" {
			break
		}
	}
	for _, p := range all {
		if seen[p] != 1 {
			t.Errorf("%s was listed %d times", p, seen[p])
		}
	}
	if len(seen) != 250 || pages < 2 {
		t.Errorf("%d bans in %d pages", len(seen), pages)
	}
}

func TestAllowlist(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	a := with(cp, cp.Token)
	ask(t, a.bans.Ban, ban(3600, "203.0.113.9"))
	res := ask(t, a.allow.Allow, operatorv1.AllowRequest_builder{Prefixes: []string{"203.0.113.0/24"}, Reason: "office"}.Build())
	if !slices.Equal(res.GetSuppresses(), []string{"203.0.113.9"}) || res.GetCursor().GetSet() != "allow" {
		t.Fatalf("allowed %v", res)
	}
	if b := ask(t, a.bans.Ban, ban(3600, "203.0.113.10")).GetPrefixes()[0]; b.GetEffect() != operatorv1.BannedPrefix_EFFECT_SUPPRESSED || b.GetSuppressedBy() != "203.0.113.0/24" {
		t.Errorf("banned %v", b)
	}
	explained := ask(t, a.bans.Explain, operatorv1.ExplainRequest_builder{Address: "203.0.113.9"}.Build())
	if explained.GetBanned() || len(explained.GetAllowedBy()) != 1 || explained.GetAllowedBy()[0].GetReason() != "office" {
		t.Errorf("explained %v", explained)
	}
	list := ask(t, a.allow.ListAllowed, &operatorv1.ListAllowedRequest{}).GetAllowed()
	if len(list) != 1 || list[0].GetPrefix() != "203.0.113.0/24" || list[0].GetExpiresUnixMs() != 253402300799000 || list[0].GetActor() != "first administrator" {
		t.Errorf("listed %v", list)
	}
	back := ask(t, a.allow.Disallow, operatorv1.DisallowRequest_builder{Prefixes: []string{"203.0.113.0/24"}}.Build())
	if !slices.Equal(slices.Sorted(slices.Values(back.GetReinstates())), []string{"203.0.113.10", "203.0.113.9"}) {
		t.Errorf("disallowed %v", back)
	}
	refused(t, a.allow.Allow, operatorv1.AllowRequest_builder{Prefixes: []string{"x!"}}.Build(), invalidField, "prefixes[0]", "")
	refused(t, a.allow.Allow, operatorv1.AllowRequest_builder{Prefixes: []string{"203.0.113.9"}, DurationS: -1}.Build(), invalidField, "duration_s", "")
	refused(t, a.allow.Disallow, &operatorv1.DisallowRequest{}, invalidField, "prefixes", "")
}

func TestExplain(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	a := with(cp, cp.Token)
	web, db := cp.Enrol("web-1", map[string]string{"role": "web"}).Attach(), cp.Enrol("db-1", nil).Attach()
	cp.Enrol("off-1", nil)
	web.Report(
		sets.Event{Seq: 1, Kind: sets.EventBan, Jail: "sshd", Prefix: netip.MustParsePrefix("203.0.113.9/32"), Duration: time.Hour, Set: "all", Failures: 5},
		sets.Event{
			Seq: 2, Kind: sets.EventBan, Jail: "nginx", Prefix: netip.MustParsePrefix("203.0.113.50/32"), Duration: time.Hour,
			Unpromoted: operatorv1.Unpromoted_UNPROMOTED_LOCAL_JAIL,
		},
	)
	ask(t, a.bans.Ban, operatorv1.BanRequest_builder{Prefixes: []string{"203.0.113.0/24"}, DurationS: 60, Tag: "role=web"}.Build())
	web.Ack(fleetbanv1.Ack_builder{})
	db.Ack(fleetbanv1.Ack_builder{ExceptionsChanged: true, ExceptionsTotal: 1, Exceptions: []*fleetbanv1.SetException{
		fleetbanv1.SetException_builder{
			Set: "all", Prefix: prefix.Pack(netip.MustParsePrefix("203.0.113.9/32")), Refusal: fleetbanv1.Refusal_REFUSAL_SSH_PEER,
		}.Build(),
	}})
	m := ask(t, a.bans.Explain, operatorv1.ExplainRequest_builder{Address: "203.0.113.9"}.Build())
	if !m.GetBanned() || m.GetAddress() != "203.0.113.9" || len(m.GetBans()) != 2 || m.GetBans()[0].GetPrefix() != "203.0.113.9" || m.GetBans()[1].GetPrefix() != "203.0.113.0/24" {
		t.Fatalf("explained %v", m)
	}
	states := map[string]operatorv1.EnforcementState{}
	for _, h := range m.GetHosts() {
		states[h.GetHostName()] = h.GetState()
		if h.GetHostName() == "web-1" && !slices.Equal(h.GetJails(), []string{"sshd"}) {
			t.Errorf("jails of web-1: %v", h)
		}
		if h.GetHostName() == "db-1" && h.GetRefusal() != fleetbanv1.Refusal_REFUSAL_SSH_PEER {
			t.Errorf("refusal of db-1: %v", h)
		}
	}
	if states["web-1"] != operatorv1.EnforcementState_ENFORCEMENT_STATE_ENFORCED || states["db-1"] != operatorv1.EnforcementState_ENFORCEMENT_STATE_REFUSED ||
		states["off-1"] != operatorv1.EnforcementState_ENFORCEMENT_STATE_OFFLINE {
		t.Errorf("enforcement %v", states)
	}
	if len(m.GetEvents()) == 0 || m.GetEvents()[0].GetPrefix() != "203.0.113.9" {
		t.Errorf("events %v", m.GetEvents())
	}
	local := ask(t, a.bans.Explain, operatorv1.ExplainRequest_builder{Address: "203.0.113.50"}.Build())
	// The /24 holds for web-1 only, and covers it too.
	if !local.GetBanned() || len(local.GetBans()) != 2 || local.GetBans()[0].GetClaims()[0].GetUnpromoted() != operatorv1.Unpromoted_UNPROMOTED_LOCAL_JAIL {
		t.Errorf("explained %v", local)
	}
	ask(t, a.bans.Unban, operatorv1.UnbanRequest_builder{Prefixes: []string{"203.0.113.9", "203.0.113.0/24"}}.Build())
	m = ask(t, a.bans.Explain, operatorv1.ExplainRequest_builder{Address: "203.0.113.9"}.Build())
	if m.GetBanned() || len(m.GetTombstones()) == 0 || m.GetTombstones()[0].GetActor() != "first administrator" {
		t.Errorf("after the unban %v", m)
	}
	nothing := ask(t, a.bans.Explain, operatorv1.ExplainRequest_builder{Address: "192.0.2.1"}.Build())
	if nothing.GetBanned() || len(nothing.GetBans())+len(nothing.GetHosts())+len(nothing.GetEvents()) != 0 {
		t.Errorf("of an address nobody knows: %v", nothing)
	}
	refused(t, a.bans.Explain, operatorv1.ExplainRequest_builder{Address: "web-1"}.Build(), invalidField, "address", "web-1")
}

func TestFleet(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	a := with(cp, cp.Token)
	cp.Enrol("web-1", nil).Attach()
	cp.Enrol("web-2", nil)
	ask(t, a.bans.Ban, ban(3600, "203.0.113.9"))
	m := ask(t, a.fleet.GetFleet, &operatorv1.GetFleetRequest{})
	if m.GetOrganisationId() != cp.Org.ID || m.GetOrganisationName() != "Acme" || m.GetMode() != fleetbanv1.Mode_MODE_ENFORCE || m.GetBans() != 1 ||
		m.GetHosts() != 2 || m.GetHostsOnline() != 1 || m.GetDurability() != "always" || m.GetServerUnixMs() == 0 || m.GetPausedUntilUnixMs() != 0 {
		t.Fatalf("fleet %v", m)
	}
	paused := ask(t, a.fleet.Pause, operatorv1.PauseRequest_builder{DurationS: 600, Reason: "drill"}.Build())
	if m = ask(t, a.fleet.GetFleet, &operatorv1.GetFleetRequest{}); m.GetPausedUntilUnixMs() != paused.GetPausedUntilUnixMs() || m.GetPausedUntilUnixMs() == 0 {
		t.Errorf("paused until %d, fleet says %d", paused.GetPausedUntilUnixMs(), m.GetPausedUntilUnixMs())
	}
	ask(t, a.fleet.Resume, &operatorv1.ResumeRequest{})
	ask(t, a.fleet.Resume, &operatorv1.ResumeRequest{})
	ask(t, a.fleet.SetMode, operatorv1.SetModeRequest_builder{Mode: fleetbanv1.Mode_MODE_WATCH}.Build())
	if m = ask(t, a.fleet.GetFleet, &operatorv1.GetFleetRequest{}); m.GetPausedUntilUnixMs() != 0 || m.GetMode() != fleetbanv1.Mode_MODE_WATCH {
		t.Errorf("fleet %v", m)
	}
	events, err := cp.Sets.LatestEvents(context.Background(), cp.Org.ID, netip.Prefix{}, 50)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[operatorv1.FleetEventKind]int{}
	for _, e := range events {
		kinds[e.Kind]++
	}
	for _, kind := range []operatorv1.FleetEventKind{
		operatorv1.FleetEventKind_FLEET_EVENT_KIND_PAUSED, operatorv1.FleetEventKind_FLEET_EVENT_KIND_RESUMED, operatorv1.FleetEventKind_FLEET_EVENT_KIND_MODE,
	} {
		if kinds[kind] != 1 {
			t.Errorf("%v was told %d times", kind, kinds[kind])
		}
	}
	refused(t, a.fleet.Pause, operatorv1.PauseRequest_builder{DurationS: 0}.Build(), invalidField, "duration_s", "")
	refused(t, a.fleet.Pause, operatorv1.PauseRequest_builder{DurationS: 604801}.Build(), invalidField, "duration_s", "")
	refused(t, a.fleet.SetMode, &operatorv1.SetModeRequest{}, invalidField, "mode", "")
	refused(t, a.fleet.SetMode, operatorv1.SetModeRequest_builder{Mode: 9}.Build(), invalidField, "mode", "")
}

func TestHosts(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	a := with(cp, cp.Token)
	web := cp.Enrol("web-1", map[string]string{"role": "web"}, "198.51.100.7/32").Attach()
	cp.Enrol("web-2", nil)
	ask(t, a.bans.Ban, ban(3600, "203.0.113.9"))
	web.Ack(fleetbanv1.Ack_builder{})
	web.Health(fleetbanv1.Health_builder{PolicyLevel: "ban"})
	list := ask(t, a.hosts.ListHosts, &operatorv1.ListHostsRequest{}).GetHosts()
	if len(list) != 2 || list[0].GetName() != "web-1" || list[0].GetPresence() != operatorv1.Presence_PRESENCE_ONLINE || list[1].GetPresence() != operatorv1.Presence_PRESENCE_NEW {
		t.Fatalf("hosts %v", list)
	}
	page := ask(t, a.hosts.ListHosts, operatorv1.ListHostsRequest_builder{PageSize: 1}.Build())
	if len(page.GetHosts()) != 1 || page.GetNextPageToken() == "" {
		t.Fatalf("first page %v", page)
	}
	if page = ask(t, a.hosts.ListHosts, operatorv1.ListHostsRequest_builder{PageSize: 1, PageToken: page.GetNextPageToken()}.Build()); len(page.GetHosts()) != 1 || page.GetHosts()[0].GetName() != "web-2" {
		t.Fatalf("second page %v", page)
	}
	for _, by := range []string{"web-1", "WEB-1", web.ID} {
		h := ask(t, a.hosts.GetHost, operatorv1.GetHostRequest_builder{Host: by}.Build()).GetHost()
		if h.GetHostId() != web.ID || h.GetTags()["role"] != "web" || h.GetHealth().GetPolicyLevel() != "ban" || len(h.GetSets()) != 4 {
			t.Fatalf("by %s: %v", by, h)
		}
		for _, s := range h.GetSets() {
			if s.GetSet() == "all" && (s.GetCurrent() == 0 || s.GetAcknowledged() != s.GetCurrent()) {
				t.Errorf("progress %v", s)
			}
		}
	}
	ask(t, a.hosts.ReleaseHost, operatorv1.ReleaseHostRequest_builder{Host: "web-1"}.Build())
	ask(t, a.hosts.DeleteHost, operatorv1.DeleteHostRequest_builder{Host: "web-1"}.Build())
	refused(t, a.hosts.GetHost, operatorv1.GetHostRequest_builder{Host: "web-1"}.Build(), notFound, "host", "")
	refused(t, a.hosts.DeleteHost, operatorv1.DeleteHostRequest_builder{Host: "web-1"}.Build(), notFound, "host", "")
	refused(t, a.hosts.ReleaseHost, operatorv1.ReleaseHostRequest_builder{Host: "web-1"}.Build(), notFound, "host", "")
	refused(t, a.hosts.GetHost, &operatorv1.GetHostRequest{}, invalidField, "host", "")
	// Its address is nobody's now.
	ask(t, a.bans.Ban, ban(60, "198.51.100.7"))
}

func TestJoinTokens(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	a := with(cp, cp.Token)
	created := ask(t, a.join.CreateJoinToken, operatorv1.CreateJoinTokenRequest_builder{Uses: 5, DurationS: 3600, Tags: map[string]string{"role": "web"}, Note: "rack 3"}.Build())
	if !strings.HasPrefix(created.GetSecret(), "fbj_") || created.GetJoinToken().GetUses() != 5 || !strings.HasPrefix(created.GetSecret(), created.GetJoinToken().GetId()) {
		t.Fatalf("created %v", created)
	}
	line := created.GetInstallLine()
	if !strings.Contains(line, cp.URL+"/install.sh") || !strings.Contains(line, cp.Pin) || strings.Contains(line, "fbj_") {
		t.Errorf("install line %q", line)
	}
	list := ask(t, a.join.ListJoinTokens, &operatorv1.ListJoinTokensRequest{}).GetJoinTokens()
	if len(list) != 1 || list[0].GetUsesLeft() != 5 || list[0].GetTags()["role"] != "web" || list[0].GetActor() != "first administrator" {
		t.Errorf("listed %v", list)
	}
	ask(t, a.join.RevokeJoinToken, operatorv1.RevokeJoinTokenRequest_builder{Id: created.GetJoinToken().GetId()}.Build())
	refused(t, a.join.RevokeJoinToken, operatorv1.RevokeJoinTokenRequest_builder{Id: created.GetJoinToken().GetId()}.Build(), notFound, "id", "")
	refused(t, a.join.CreateJoinToken, operatorv1.CreateJoinTokenRequest_builder{DurationS: 59}.Build(), invalidField, "duration_s", "")
	refused(t, a.join.CreateJoinToken, operatorv1.CreateJoinTokenRequest_builder{Uses: 100001}.Build(), invalidField, "uses", "")
	refused(t, a.join.CreateJoinToken, operatorv1.CreateJoinTokenRequest_builder{Tags: map[string]string{"Role": "web"}}.Build(), invalidField, `tags["Role"]`, "")
}
