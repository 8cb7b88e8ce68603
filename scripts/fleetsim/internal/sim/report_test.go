package sim_test

import (
	"strings"
	"testing"

	"github.com/fleetban/fleetban/scripts/fleetsim/internal/sim"
)

// TestRatios: a peer's figures stand beside what was measured in the same run, and its answers beside receipts alone.
func TestRatios(t *testing.T) {
	t.Parallel()
	r := &sim.Report{
		Scenarios: []*sim.Part{{Name: "single", Hists: []sim.Distribution{
			{Name: "ban made -> on the last host", P50: 60}, {Name: "ban ordered -> every receipt", P50: 80},
		}}},
		Peers: []sim.Peer{
			{Name: "plain", Last: sim.Distribution{P50: 20}, PerSecond: 1000},
			{Name: "answering", Last: sim.Distribution{P50: 10}, Answered: &sim.Distribution{P50: 40, Max: 50}},
		},
	}
	var out strings.Builder
	r.Print(&out)
	for _, want := range []string{
		"single, ban made -> on the last host, p50: times that of plain: 3.00\n",
		"single, ban ordered -> every receipt, p50: times the last delivery of plain: 4.00\n",
		"single, ban ordered -> every receipt, p50: times the last delivery of answering: 8.00\n",
		"\nanswering, each subscriber answering: last answer to one message p50 40.0 ms, max 50.0 ms\n" +
			"  single, ban ordered -> every receipt, p50: times the last answer of answering, each subscriber answering: 2.00\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("nothing says %q in\n%s", want, &out)
		}
	}
	if n := strings.Count(out.String(), "last answer"); n != 2 {
		t.Errorf("answers are told of %d times:\n%s", n, &out)
	}
}
