package agentapi_test

import (
	"context"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/agentapi"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/hostauth"
)

// TestSlowLine: a host that takes what it is sent, but so slowly that it is always behind, isn't taken for one that takes nothing.
func TestSlowLine(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	// Who takes nothing for 2.5 s is cut off.
	one := f.replica("one", heartbeat(time.Second))
	const bans, each = 40, 1000
	for i := range bans {
		prefixes := make([]netip.Prefix, each)
		for j := range prefixes {
			prefixes[j] = netip.PrefixFrom(netip.AddrFrom4([4]byte{45, byte(i), byte(j >> 8), byte(j)}), 32)
		}
		if _, err := one.sets.Ban(t.Context(), f.org, sets.BanInput{Prefixes: prefixes, Set: banset.All, Duration: time.Hour, Actor: "test"}); err != nil {
			t.Fatal(err)
		}
	}
	host := one.enrol("slow", nil)
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
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
	// As an agent's, whatever it receives meanwhile: the snapshot may take the replica a while.
	beats, ended := time.NewTicker(200*time.Millisecond), make(chan struct{})
	t.Cleanup(func() { beats.Stop(); close(ended) })
	go func() {
		for {
			select {
			case <-ended:
				return
			case <-beats.C:
				_ = slow.Send(fleetbanv1.ConnectRequest_builder{Heartbeat: &fleetbanv1.AgentHeartbeat{}}.Build())
			}
		}
	}()
	// The line's pace.
	line := time.NewTicker(130 * time.Millisecond)
	defer line.Stop()
	for {
		m, err := slow.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetSnapshot().GetSet() == banset.All && m.GetSnapshot().GetLast() {
			return
		}
		<-line.C
	}
}

// panics is an interceptor with a bug.
type panics struct{}

func (panics) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc { return next }

func (panics) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (panics) WrapStreamingHandler(connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(context.Context, connect.StreamingHandlerConn) error { panic("a bug") }
}

// TestPanic: a bug that one stream meets ends that stream, not the process.
func TestPanic(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one")
	host := one.enrol("a", nil)
	one.Handler(panics{})
	for range 2 {
		if _, err := host.dial(one, fleetbanv1.Hello_builder{}); err == nil {
			t.Error("it was served")
		}
	}
}
