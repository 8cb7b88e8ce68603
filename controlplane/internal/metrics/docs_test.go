package metrics_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/fleetban/fleetban/controlplane/internal/metrics"
	"github.com/fleetban/fleetban/controlplane/internal/metrics/metricstest"
)

var update = flag.Bool("update", false, "write docs/metrics.md anew from what is declared")

const (
	root      = "../../.."
	docsFile  = root + "/docs/metrics.md"
	rulesFile = root + "/infra/prometheus/alerts.yml"
	casesFile = root + "/infra/prometheus/alerts_test.yml"
	dashboard = root + "/infra/grafana/fleetban.json"
)

const preface = `# Metrics

What each replica serves at ` + "`/metrics`" + ` on ` + "`--metrics-listen`" + ` (` + "`127.0.0.1:9464`" + ` unless you say otherwise; ` + "`off`" + ` for none), what it means,
and what to do when it is bad. Keep that address private: ` + "`/debug/pprof`" + ` is there too, and ` + "`/livez`" + ` and ` + "`/readyz`" + `.

` + "`infra/prometheus`" + ` has a scrape configuration and alert rules with tests, ` + "`infra/grafana/fleetban.json`" + ` a dashboard to import. Labels never hold an
address or the name of a host, a jail or an organisation. The Go runtime's and the process's own metrics (` + "`go_*`, `process_*`" + `) are there as well.

This file is made from the declarations in ` + "`controlplane/internal/metrics`" + `: ` + "`go test ./internal/metrics -run TestDocs -update`" + ` there writes it.
`

func document(all []metrics.Definition) string {
	var out strings.Builder
	out.WriteString(preface)
	section := ""
	for _, d := range all {
		if d.Section != section {
			section = d.Section
			out.WriteString("\n## " + section + "\n")
		}
		fmt.Fprintf(&out, "\n**`%s`** (%s)  \n%s\n", d.Name, d.Type, d.Help)
		for _, l := range d.Labels {
			fmt.Fprintf(&out, "Label `%s`: %s.\n", l.Name, strings.TrimSuffix(l.Values, "."))
		}
		if d.Bad != "" {
			fmt.Fprintf(&out, "*When it is bad:* %s\n", d.Bad)
		}
	}
	return out.String()
}

// The documentation is what is declared.
func TestDocs(t *testing.T) {
	t.Parallel()
	want := document(metrics.New(metrics.Options{}).Definitions())
	if *update {
		if err := os.WriteFile(docsFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if read(t, docsFile) != want {
		t.Errorf("%s isn't what is declared; go test ./internal/metrics -run TestDocs -update writes it", docsFile)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// known are the names of everything that is served, as PromQL uses them.
func known(t *testing.T) map[string]bool {
	t.Helper()
	m := metrics.New(metrics.Options{})
	out := map[string]bool{}
	for _, d := range m.Definitions() {
		out[d.Name] = d.Type != "histogram"
		if d.Type == "histogram" {
			for _, end := range []string{"_bucket", "_sum", "_count"} {
				out[d.Name+end] = true
			}
		}
	}
	for sample := range metricstest.Scrape(t, m.Handler(slog.New(slog.DiscardHandler))) {
		name, _, _ := strings.Cut(sample, "{")
		out[name] = true
	}
	return out
}

var metricName = regexp.MustCompile(`\b(fleetban|go|process)_[a-z0-9_]+\b`)

// uses checks that an expression names what exists, and returns how much.
func uses(t *testing.T, where, expression string, known map[string]bool) int {
	t.Helper()
	names := metricName.FindAllString(expression, -1)
	for _, name := range names {
		if !known[name] {
			t.Errorf("%s: there is no %s to ask for", where, name)
		}
	}
	return len(names)
}

// Each rule asks for what exists, is tried in a case of its own, and says what to do.
func TestAlerts(t *testing.T) {
	t.Parallel()
	known, rules, cases := known(t), read(t, rulesFile), read(t, casesFile)
	expressions := regexp.MustCompile(`(?m)^ +expr: (.+)$`).FindAllStringSubmatch(rules, -1)
	for _, e := range expressions {
		if uses(t, "alerts.yml", e[1], known) == 0 && !strings.HasPrefix(e[1], "up{") {
			t.Errorf("%s asks for no metric of Fleetban's", e[1])
		}
	}
	names := regexp.MustCompile(`(?m)^ +- alert: (\w+)$`).FindAllStringSubmatch(rules, -1)
	if len(names) < 20 || len(names) != len(expressions) {
		t.Fatalf("%d rules with %d expressions", len(names), len(expressions))
	}
	for _, name := range names {
		if !strings.Contains(cases, `{labels: '{alertname="`+name[1]+`"}', value: `) {
			t.Errorf("%s is never seen to fire: add a case to alerts_test.yml", name[1])
		}
	}
	for _, word := range []string{"summary: ", "description: ", "severity: "} {
		if n := strings.Count(rules, word); n != len(names) {
			t.Errorf("%d rules have %q %d times", len(names), word, n)
		}
	}
	// What descriptions mention exists too.
	uses(t, "alerts.yml", regexp.MustCompile(`(?m)^ +expr: .+$`).ReplaceAllString(strings.ReplaceAll(rules, "fleetban_streams_ended_total tells", ""), ""), withBases(known))
}

// withBases adds what people call a histogram: its name alone.
func withBases(known map[string]bool) map[string]bool {
	out := map[string]bool{}
	for name := range known {
		out[name] = true
		out[strings.TrimSuffix(name, "_bucket")] = true
	}
	return out
}

type panel struct {
	ID      int    `json:"id"`
	Type    string `json:"type"`
	Title   string `json:"title"`
	GridPos struct{ X, Y, W, H int }
	Targets []struct {
		RefID      string `json:"refId"`
		Expr       string `json:"expr"`
		Datasource struct{ Type, UID string }
	}
}

// Each panel of the dashboard has its place and asks for what exists, in PromQL that Prometheus understands.
func TestDashboard(t *testing.T) {
	t.Parallel()
	known := known(t)
	var d struct {
		UID, Title    string
		SchemaVersion int
		Panels        []panel
		Templating    struct{ List []struct{ Name string } }
	}
	if err := json.Unmarshal([]byte(read(t, dashboard)), &d); err != nil {
		t.Fatal(err)
	}
	if d.UID == "" || d.Title == "" || d.SchemaVersion == 0 || len(d.Panels) < 20 || len(d.Templating.List) != 2 {
		t.Fatalf("%+v", d)
	}
	ids, cells, asked := map[int]bool{}, map[[2]int]string{}, map[string]bool{}
	var rules strings.Builder
	rules.WriteString("groups:\n  - name: dashboard\n    rules:\n")
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" {
			t.Errorf("the panel %d, %q: its id is another's, or its title missing", p.ID, p.Title)
		}
		ids[p.ID] = true
		if p.GridPos.X < 0 || p.GridPos.X+p.GridPos.W > 24 || p.GridPos.W == 0 || p.GridPos.H == 0 {
			t.Errorf("%s is off the grid", p.Title)
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if there := cells[[2]int{x, y}]; there != "" {
					t.Fatalf("%s covers %s", p.Title, there)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
		if (p.Type == "row") != (len(p.Targets) == 0) {
			t.Errorf("%s asks for nothing", p.Title)
		}
		refs := map[string]bool{}
		for _, target := range p.Targets {
			if refs[target.RefID] || target.Datasource.UID != "${datasource}" {
				t.Errorf("%s: query %q", p.Title, target.RefID)
			}
			refs[target.RefID] = true
			if uses(t, p.Title, target.Expr, known) == 0 {
				t.Errorf("%s: %s asks for no metric", p.Title, target.Expr)
			}
			for _, name := range metricName.FindAllString(target.Expr, -1) {
				asked[name] = true
			}
			plain := strings.NewReplacer("$__rate_interval", "5m", "$instance", ".*").Replace(target.Expr)
			if strings.Contains(plain, "$") {
				t.Errorf("%s: %s has a variable that is not there", p.Title, target.Expr)
			}
			fmt.Fprintf(&rules, "      - {record: 'dashboard:%d:%s', expr: '%s'}\n", p.ID, strings.ToLower(target.RefID), strings.ReplaceAll(plain, "'", "''"))
		}
	}
	for _, d := range metrics.New(metrics.Options{}).Definitions() {
		if !asked[d.Name] && !asked[d.Name+"_bucket"] {
			t.Errorf("%s is on no panel", d.Name)
		}
	}
	path := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(path, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, nil, "check", "rules", path)
}

func promtool(t *testing.T, stdin []byte, args ...string) {
	t.Helper()
	cmd := exec.Command("promtool", args...)
	cmd.Stdin = strings.NewReader(string(stdin))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v (make setup installs it)\n%s", slices.Concat(args), err, out)
	}
}
