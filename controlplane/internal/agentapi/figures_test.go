package agentapi_test

import (
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// What a replica tells Prometheus is what happened on its streams.
func TestFigures(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one")
	want := func(when string, values map[string]float64) {
		t.Helper()
		var differs string
		deadline := time.Now().Add(within)
		for {
			got := one.scrape()
			differs = ""
			for name, v := range values {
				if is, ok := got[name]; !ok || is != v {
					differs = name
				}
			}
			if differs == "" {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %s is %v, want %v", when, differs, got[differs], values[differs])
			}
			time.Sleep(3 * time.Millisecond)
		}
	}
	h := one.enrol("a", nil)
	_, err := h.dial(one, fleetbanv1.Hello_builder{Protocol: 99})
	wantReason(t, err, connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_PROTOCOL_UNSUPPORTED)
	want("a refusal", map[string]float64{`fleetban_streams_refused_total{reason="protocol_unsupported"}`: 1, "fleetban_streams_attached_total": 0, "fleetban_streams": 0})

	s, err := h.dial(one, fleetbanv1.Hello_builder{Health: fleetbanv1.Health_builder{
		Spool:    fleetbanv1.SpoolHealth_builder{Waiting: 7, Bytes: 700, Lost: 1}.Build(),
		Fail2Ban: fleetbanv1.Fail2BanHealth_builder{State: fleetbanv1.Fail2BanHealth_STATE_DOWN}.Build(),
		Enforcer: fleetbanv1.EnforcerHealth_builder{Repairs: 3}.Build(),
	}.Build()})
	if err != nil {
		t.Fatal(err)
	}
	want("a stream", map[string]float64{
		"fleetban_streams": 1, "fleetban_stream_organisations": 1, "fleetban_streams_attached_total": 1,
		"fleetban_spool_events": 7, "fleetban_spool_events_max": 7, "fleetban_spool_bytes": 700, "fleetban_spool_lost_events": 1,
		"fleetban_hosts_fail2ban_down": 1, "fleetban_hosts_table_repairs": 3, `fleetban_hosts_inert{why="off"}`: 0,
	})
	// What it begins with is no change that was just heard.
	s.next("the empty set", func(m *fleetbanv1.ConnectResponse) bool {
		return m.GetSetSync().GetCursor().GetSet() == "all" || m.GetSnapshot().GetSet() == "all"
	})
	want("the beginning", map[string]float64{"fleetban_fanout_seconds_count": 0, "fleetban_receipts_oldest_seconds": 0})

	// From here on the doorbell is heard.
	testwait.For(t, "a ring is heard", func() bool {
		if err := one.store.Ring(t.Context(), f.org, store.Bell{Kind: store.BellEvents}); err != nil {
			t.Fatal(err)
		}
		return one.scrape()[`fleetban_doorbell_rings_total{kind="events"}`] > 0
	})
	s.ban(1, "sshd", "203.0.113.9", time.Hour)
	// Its acknowledgement may come before or after.
	cursor := s.delta("all", "203.0.113.9", present)
	series := `fleetban_set_version{organisation="` + f.org + `",set="all"}`
	want("a ban", map[string]float64{
		"fleetban_events_total": 1, "fleetban_event_batches_total": 1, "fleetban_promotions_total": 1, "fleetban_event_store_seconds_count": 1,
		"fleetban_fanout_seconds_count": 1, "fleetban_receipt_seconds_count": 0, `fleetban_doorbell_rings_total{kind="delta"}`: 1,
		series: float64(cursor.GetVersion()), "fleetban_set_lag_versions": 0, "fleetban_doorbell_gaps_total": 0,
	})
	if owed := one.scrape()["fleetban_receipts_oldest_seconds"]; owed <= 0 {
		t.Errorf("an acknowledgement is owed since %v", owed)
	}
	s.send(fleetbanv1.ConnectRequest_builder{Ack: fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{cursor}, Inert: fleetbanv1.Inert_INERT_OFF}.Build()})
	want("its acknowledgement", map[string]float64{
		"fleetban_receipt_seconds_count": 1, "fleetban_receipts_oldest_seconds": 0, "fleetban_receipts_owing": 0,
		"fleetban_acks_stored_total": 1, "fleetban_ack_store_seconds_count": 1, "fleetban_acks_waiting": 0, `fleetban_hosts_inert{why="off"}`: 1,
	})

	// A host that says twice that it holds something else.
	wrong := fleetbanv1.SetCursor_builder{Set: "all", Epoch: cursor.GetEpoch(), Version: cursor.GetVersion(), Digest: cursor.GetDigest() + 1}.Build()
	say := func() {
		s.send(fleetbanv1.ConnectRequest_builder{Heartbeat: fleetbanv1.AgentHeartbeat_builder{Cursors: []*fleetbanv1.SetCursor{wrong}}.Build()})
	}
	say()
	// An event of a jail that concerns nobody else, behind it: acknowledged, the heartbeat was looked at.
	s.ban(2, "some-jail", "203.0.113.10", time.Hour)
	s.eventAck(2)
	say()
	want("a repair", map[string]float64{"fleetban_digests_repaired_total": 1})

	again, err := h.dial(one, fleetbanv1.Hello_builder{})
	if err != nil {
		t.Fatal(err)
	}
	want("a newer stream", map[string]float64{`fleetban_streams_ended_total{cause="displaced"}`: 1, "fleetban_streams_attached_total": 2, "fleetban_streams": 1})
	again.close()
	want("its end", map[string]float64{"fleetban_streams": 0, "fleetban_spool_events": 0})
}
