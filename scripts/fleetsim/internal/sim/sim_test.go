package sim_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleetban/fleetban/scripts/fleetsim/internal/sim"
)

// binDir is where `make build` puts the control plane.
func binDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("FLEETBAN_BIN")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "..", "bin")
	}
	if _, err := os.Stat(filepath.Join(dir, "fleetban-controlplane")); err != nil {
		t.Fatalf("%v: run make build", err)
	}
	return dir
}

// TestAll plays every scenario on one small fleet.
func TestAll(t *testing.T) {
	t.Parallel()
	report, err := sim.Run(t.Context(), sim.Options{
		Scenario: "all", Hosts: 100, Replicas: 2, Bans: 50, Duration: 1200 * time.Millisecond, Seed: 20, TLS: true, Addressed: 20,
		BinDir: binDir(t), SettleWithin: time.Minute, Progress: t.Logf,
	})
	if err != nil {
		var out strings.Builder
		if report != nil {
			report.Print(&out)
		}
		t.Fatalf("%v\n%s", err, &out)
	}
	if report.Events < 100 {
		t.Errorf("%d events were read of a history of several hundred", report.Events)
	}
	for _, s := range report.Scenarios {
		if s.Bans == 0 {
			t.Errorf("%s measured no ban", s.Name)
		}
	}
}

// TestSabotage: a check that doesn't find faults proves nothing.
func TestSabotage(t *testing.T) {
	t.Parallel()
	report, err := sim.Run(t.Context(), sim.Options{
		Scenario: "steady", Hosts: 10, Replicas: 1, Bans: 60, Duration: 1500 * time.Millisecond, Seed: 3, Addressed: 3,
		BinDir: binDir(t), SettleWithin: 5 * time.Second, Sabotage: sim.Sabotages(), Progress: t.Logf,
	})
	if !errors.Is(err, sim.ErrViolated) {
		t.Fatalf("what was sabotaged passes: %v", err)
	}
	found := strings.Join(report.Violations, "\n")
	for fault, told := range map[string]string{
		sim.SabotageDelta:  "h00000 doesn't ban",
		sim.SabotageUnban:  "h00001 bans",
		sim.SabotageTwice:  "happened 1 times and is recorded 2 times",
		sim.SabotageNever:  "the control plane doesn't list",
		sim.SabotageSilent: "happened 1 times and is recorded 0 times",
	} {
		if !strings.Contains(found, told) {
			t.Errorf("%s isn't found: nothing says %q in\n%s", fault, told, found)
		}
	}
}
