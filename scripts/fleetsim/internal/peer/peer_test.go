package peer_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/fleetban/fleetban/scripts/fleetsim/internal/peer"
)

// TestMeasure: each peer delivers every message, and where subscribers can answer, the publisher gets all answers.
func TestMeasure(t *testing.T) {
	t.Parallel()
	peers := peer.All()
	for _, name := range []string{peer.NATS, peer.SecureNATS} {
		if !slices.ContainsFunc(peers, func(p peer.Peer) bool { return p.Name == name }) {
			t.Errorf("%s is missing: run make setup for nats-server", name)
		}
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
			if p.Name == peer.NATS || p.Name == peer.SecureNATS {
				want = peer.Rounds
			}
			if secure := p.Name == peer.SecureNATS; secure && !strings.HasPrefix(m.Suite, "TLS_AES_") && !strings.HasPrefix(m.Suite, "TLS_CHACHA20_") || !secure && m.Suite != "" {
				t.Errorf("connections use %q: streams have one of TLS 1.3", m.Suite)
			}
			if m.Answered.TotalCount() != want {
				t.Errorf("%d messages were answered by all, want %d", m.Answered.TotalCount(), want)
			}
		})
	}
}
