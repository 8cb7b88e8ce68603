package agentapi_test

import (
	"errors"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/agentapi"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/hostauth"
)

// TestSlowConsumer: a host that takes nothing holds nobody up and has nothing piled up for it: once it reads it gets what was on its
// way, and the rest from Redis: by its log, or as a snapshot.
func TestSlowConsumer(t *testing.T) {
	f := newFleet(t)
	one := f.replica("one", heartbeat(20*time.Second))
	quick := one.enrol("quick", nil).connect(one)
	host := one.enrol("slow", nil)
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	// Little is sent before it is read.
	transport := &http.Transport{Protocols: protocols, HTTP2: &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 64 << 10}}
	t.Cleanup(transport.CloseIdleConnections)
	slow := fleetbanv1connect.NewAgentServiceClient(&http.Client{Transport: transport}, one.streams, connect.WithGRPC()).Connect(t.Context())
	t.Cleanup(func() {
		_ = slow.CloseRequest()
		_ = slow.CloseResponse()
	})
	assertion, err := hostauth.Sign(host.key, host.id, host.audience, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	slow.RequestHeader().Set("Authorization", "Bearer "+assertion)
	slow.RequestHeader().Set(hostauth.GrantHeader, host.grant)
	_ = slow.Send(fleetbanv1.ConnectRequest_builder{Hello: fleetbanv1.Hello_builder{
		Protocol: agentapi.Protocol, Instance: "instance", Spool: "spool",
	}.Build()}.Build())
	first, err := slow.Receive()
	if err != nil || first.GetWelcome() == nil {
		t.Fatalf("%v, %v", first, err)
	}
	// More than a replica keeps for who is behind.
	const bans, each = 30, 1000
	var last sets.Cursor
	for i := range bans {
		prefixes := make([]netip.Prefix, each)
		for j := range prefixes {
			prefixes[j] = netip.PrefixFrom(netip.AddrFrom4([4]byte{45, byte(i), byte(j >> 8), byte(j)}), 32)
		}
		done, err := one.sets.Ban(t.Context(), f.org, sets.BanInput{Prefixes: prefixes, Set: banset.All, Duration: time.Hour, Actor: "test"})
		if err != nil {
			t.Fatal(err)
		}
		last = done.Cursor
		quick.next("the ban on the quick host", func(m *fleetbanv1.ConnectResponse) bool {
			d, s := m.GetDelta(), m.GetSnapshot()
			return d.GetSet() == banset.All && d.GetVersion() >= last.Version || s.GetSet() == banset.All && s.GetVersion() >= last.Version
		})
	}
	again := func() float64 {
		all := one.scrape()
		return all[`fleetban_resumes_total{way="log"}`] + all[`fleetban_resumes_total{way="snapshot"}`]
	}
	before := again()
	for at := uint64(0); at != last.Version; {
		m, err := slow.Receive()
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case m.GetDelta().GetSet() == banset.All:
			at = m.GetDelta().GetVersion()
		case m.GetSnapshot().GetSet() == banset.All && m.GetSnapshot().GetLast():
			at = m.GetSnapshot().GetVersion()
		}
	}
	// What the replica no longer kept was read anew.
	if again() == before {
		t.Error("all that the slow host missed was kept for it")
	}
}

// TestPace: a replica that has no time sends a host the next changes when it has answered for those before, or after a while; one that has
// time waits for nothing. However the stream is served.
func TestPace(t *testing.T) {
	t.Parallel()
	for _, overHTTP := range []bool{false, true} {
		t.Run(map[bool]string{false: "link", true: "http"}[overHTTP], func(t *testing.T) {
			t.Parallel()
			f := newFleet(t)
			f.overHTTP = overHTTP
			one := f.replica("one")
			h := one.enrol("a", nil)
			s := h.connect(one)
			// What it begins with is no change: from the one after it is followed.
			one.manual("203.0.113.1", time.Hour)
			s.ack(s.delta("all", "203.0.113.1", present))
			for _, text := range []string{"203.0.113.2", "203.0.113.3", "203.0.113.4"} {
				one.manual(text, time.Hour)
				s.delta("all", text, present)
			}

			one.Slow(f.org, time.Hour)
			one.manual("203.0.113.5", time.Hour)
			testwait.Until(t, "the next change is held back", func() error {
				if !one.HoldsBack(f.org, h.id) {
					return errors.New("it isn't")
				}
				return nil
			})
			at := one.manual("203.0.113.6", time.Hour)
			// The answer, to what was sent of these.
			at.Version -= 2
			s.ack(at.Proto())
			s.ack(s.delta("all", "203.0.113.5", present))
			s.ack(s.delta("all", "203.0.113.6", present))
			one.manual("203.0.113.7", time.Hour)
			s.delta("all", "203.0.113.7", present)

			// Another doesn't answer.
			two := f.replica("two")
			s = two.enrol("b", nil).connect(two)
			s.delta("all", "203.0.113.7", present)
			two.Slow(f.org, 100*time.Millisecond)
			for _, text := range []string{"203.0.113.8", "203.0.113.9"} {
				two.manual(text, time.Hour)
				s.delta("all", text, present)
			}
		})
	}
}
