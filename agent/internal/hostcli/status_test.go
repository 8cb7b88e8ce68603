package hostcli

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"regexp"
	"testing"
	"time"

	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// Addresses in status -o json are text, and what others named can't change what the JSON says.
func TestStatusJSON(t *testing.T) {
	t.Parallel()
	const hostile = "x\"prefix\": \"ywBxCSA=\"\\"
	pack := func(s string) []byte { return prefix.Pack(netip.MustParsePrefix(s)) }
	var out bytes.Buffer
	c := &cli{out: &out}
	err := c.printJSON(report{
		agentErr: errors.New("away"),
		helper: hostv1.StatusResponse_builder{
			Fail2Ban: fleetbanv1.Fail2BanHealth_builder{Jails: []*fleetbanv1.JailHealth{fleetbanv1.JailHealth_builder{Name: hostile}.Build()}}.Build(),
			Exceptions: []*fleetbanv1.SetException{
				fleetbanv1.SetException_builder{Set: hostile, Prefix: pack("203.0.113.9/32")}.Build(),
				fleetbanv1.SetException_builder{Set: "all", Prefix: pack("2001:db8::/64")}.Build(),
			},
			LocalAllows: []*hostv1.LocalAllow{hostv1.LocalAllow_builder{Prefix: pack("198.51.100.0/24")}.Build()},
		}.Build(),
	})
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Agent  any
		Helper struct {
			Fail2ban struct {
				Jails []struct{ Name string }
			}
			Exceptions  []struct{ Set, Prefix string }
			LocalAllows []struct{ Prefix string } `json:"local_allows"`
		}
		Findings []any
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v in\n%s", err, &out)
	}
	h := got.Helper
	if got.Agent != nil || got.Findings == nil || h.Exceptions[0].Prefix != "203.0.113.9" || h.Exceptions[1].Prefix != "2001:db8::/64" ||
		h.LocalAllows[0].Prefix != "198.51.100.0/24" {
		t.Errorf("got %+v", got)
	}
	if h.Exceptions[0].Set != hostile || h.Fail2ban.Jails[0].Name != hostile {
		t.Errorf("hostile names came out as %q and %q", h.Exceptions[0].Set, h.Fail2ban.Jails[0].Name)
	}
}

// Nothing that a control plane or a log says steers the terminal of who looks at it.
func TestHostileTextIsPlain(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	c := &cli{out: plain{&out}, colour: true}
	c.printAgent(report{agent: hostv1.RunStatusResponse_builder{
		HostName: "\x1b]0;gone\a\x1b[2J", OrganisationName: "\u009b31m\xff", Stream: hostv1.StreamStatus_builder{Problem: "a\rb"}.Build(),
	}.Build()})
	for _, bad := range []string{"\x1b]", "\x1b[2J", "\a", "\r", "\u009b", "\xff"} {
		if bytes.Contains(out.Bytes(), []byte(bad)) {
			t.Errorf("%q came through: %q", bad, &out)
		}
	}
	if !bytes.Contains(out.Bytes(), []byte("\x1b[31mdown\x1b[0m")) {
		t.Errorf("no colour: %q", &out)
	}
}

// Who looks at a host that enforces nothing is told why, and until when.
func TestWhyNothingIsEnforced(t *testing.T) {
	t.Parallel()
	const day = 1_700_000_000_000
	c := &cli{}
	for want, e := range map[string]fleetbanv1.EnforcerHealth_builder{
		"enforcing by nftables":                                                            {Backend: "nftables"},
		"off, by a person on this host until fleetban-agent on":                            {Inert: fleetbanv1.Inert_INERT_OFF, OffUntilUnixMs: banset.Never},
		"off, by a person on this host until " + time.UnixMilli(day).Format(time.DateTime): {Inert: fleetbanv1.Inert_INERT_OFF, OffUntilUnixMs: day},
		"paused for the whole fleet until " + time.UnixMilli(day).Format(time.DateTime):    {Inert: fleetbanv1.Inert_INERT_PAUSED},
		"observing only, as this host's policy file says":                                  {Inert: fleetbanv1.Inert_INERT_OBSERVE},
		"not enforcing (unable)":                                                           {Inert: fleetbanv1.Inert_INERT_UNABLE},
	} {
		h := hostv1.StatusResponse_builder{Enforcer: e.Build(), Settings: fleetbanv1.Settings_builder{PausedUntilUnixMs: day}.Build()}.Build()
		if got := c.enforcing(h); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// What mended itself is in status for who didn't read the log just then: how often, and how long ago.
func TestStatusTellsWhatMendedItself(t *testing.T) {
	t.Parallel()
	incident := func(code, what string, count uint64, ago time.Duration) *hostv1.Incident {
		return hostv1.Incident_builder{Code: code, What: what, Count: count, LastUnixMs: time.Now().Add(-ago).UnixMilli()}.Build()
	}
	agent := hostv1.RunStatusResponse_builder{Incidents: []*hostv1.Incident{incident("helper-away", "the helper was away", 1, 90*time.Second)}}.Build()
	helper := hostv1.StatusResponse_builder{Incidents: []*hostv1.Incident{incident("nftables-changed", "rules were flushed\x1b[2J", 12, time.Hour)}}.Build()
	var out bytes.Buffer
	c := &cli{out: plain{&out}}
	c.printLately(agent.GetIncidents(), helper.GetIncidents())
	// Written a moment later, which on a busy machine is a while.
	want := regexp.MustCompile(`^Lately        the helper was away \(once, \dm\d+s ago\)\n {14}rules were flushed\x{FFFD}\[2J \(12 times, last 1h\dm\d+s ago\)\n$`)
	if !want.Match(out.Bytes()) {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
	out.Reset()
	if c.printLately(); out.Len() != 0 {
		t.Errorf("nothing happened, and it says %q", &out)
	}
	if err := c.printJSON(report{agent: agent, helper: helper}); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Agent, Helper struct {
			Incidents []struct{ Code, Count string }
		}
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Agent.Incidents[0].Code != "helper-away" || got.Helper.Incidents[0].Count != "12" {
		t.Errorf("%+v", got)
	}
}
