package peer_test

import (
	"slices"
	"testing"

	"github.com/fleetban/fleetban/scripts/fleetsim/internal/peer"
)

// TestMeasure: each peer delivers every message, and where subscribers can answer, the publisher gets all answers.
func TestMeasure(t *testing.T) {
	t.Parallel()
	peers := peer.All()
	if !slices.ContainsFunc(peers, func(p peer.Peer) bool { return p.Name == peer.NATS }) {
		t.Error("nats-server is missing: run make setup")
	}
	for _, p := range peers {
		t.Run(p.Name, func(t *testing.T) {
			t.Parallel()
			m, err := p.Measure(t.Context(), t.TempDir(), 20, 50)
			if err != nil {
				t.Fatal(err)
			}
			if m.Last.TotalCount() != peer.Rounds || m.Last.ValueAtQuantile(50) == 0 || m.PerSecond <= 0 {
				t.Errorf("%d messages were measured, %.0f deliveries a second", m.Last.TotalCount(), m.PerSecond)
			}
			want := int64(0)
			if p.Name == peer.NATS {
				want = peer.Rounds
			}
			if m.Answered.TotalCount() != want {
				t.Errorf("%d messages were answered by all, want %d", m.Answered.TotalCount(), want)
			}
		})
	}
}
