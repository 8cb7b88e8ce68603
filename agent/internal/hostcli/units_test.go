package hostcli_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const unitDir = "../../../infra/systemd"

// TestUnits has systemd itself read the units, and say how exposed what they run is (0 to 10, less is better).
func TestUnits(t *testing.T) {
	t.Parallel()
	for unit, most := range map[string]float64{
		"fleetban-helper.service": 2.6, "fleetban-agent.service": 1.6, "fleetban-controlplane.service": 1.8,
	} {
		t.Run(unit, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(filepath.Join(unitDir, unit))
			if err != nil {
				t.Fatal(err)
			}
			// What it runs need not be installed here.
			path := filepath.Join(t.TempDir(), unit)
			installed := strings.NewReplacer("/usr/local/bin/fleetban-agent", "/bin/true", "/usr/local/bin/fleetban-controlplane", "/bin/true")
			if err := os.WriteFile(path, []byte(installed.Replace(string(text))), 0o600); err != nil {
				t.Fatal(err)
			}
			// It ends with 0 on a key that it doesn't know, and says so.
			out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", path).CombinedOutput()
			if err != nil || strings.Contains(string(out), unit+":") {
				t.Errorf("systemd-analyze verify: %v\n%s", err, out)
			}
			out, err = exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=yes", "--no-pager", path).CombinedOutput()
			m := regexp.MustCompile(`Overall exposure level for [^:]*: ([0-9.]+)`).FindSubmatch(out)
			if m == nil {
				t.Fatalf("systemd-analyze security: %v\n%s", err, out)
			}
			if level, err := strconv.ParseFloat(string(m[1]), 64); err != nil || level > most {
				t.Errorf("exposure %s, at most %.1f is wanted", m[1], most)
			}
		})
	}
}
