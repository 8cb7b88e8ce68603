package cli_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/fleetban/fleetban/controlplane/internal/operatorapi/apitest"
	"github.com/fleetban/fleetban/controlplane/internal/store"
)

func TestAuditCommand(t *testing.T) {
	cp := apitest.Start(t)
	p := at(t, cp)
	if out, _ := p.want(0, "audit"); !strings.Contains(out, "No such entry") {
		t.Errorf("of nothing: %s", out)
	}
	p.want(0, "ban", "203.0.113.9", "--for", "1h", "--reason", "red \x1b[31m and \u202e back", "--no-wait")
	p.want(0, "mode", "watch")
	out, _ := p.want(0, "audit")
	for _, want := range []string{"ban", "203.0.113.9", "first administrator", "127.0.0.1", "ok", "mode enforce→watch", `\x1b[31m and \u202e back`} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.ContainsAny(out, "\x1b\u202e") {
		t.Errorf("hostile text reaches the terminal: %q", out)
	}
	if out, _ := p.want(0, "audit", "--action", "mode", "--since", "1h"); strings.Contains(out, "203.0.113.9") || !strings.Contains(out, "mode") {
		t.Errorf("filtered: %s", out)
	}
	if out, _ := p.want(0, "audit", "--until", "2020-01-31T15:04"); !strings.Contains(out, "No such entry") {
		t.Errorf("until: %s", out)
	}
	p.want(2, "audit", "--since", "yesterday")
	for _, args := range [][]string{{"audit", "-o", "jsonl"}, {"audit", "export"}} {
		out, _ := p.want(0, args...)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		for _, line := range lines {
			var entry struct{ Number, Action, Hash string }
			if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Number == "" || entry.Action == "" || len(entry.Hash) != 40 {
				t.Errorf("%v: %s: %v", args, line, err)
			}
		}
		if len(lines) != 3 {
			t.Errorf("%v: %d lines", args, len(lines))
		}
	}
	var verdict struct {
		Intact               bool
		HeadNumber, HeadHash string
	}
	out, _ = p.want(0, "audit", "verify", "-o", "json")
	if err := json.Unmarshal([]byte(out), &verdict); err != nil || !verdict.Intact || verdict.HeadNumber != "3" {
		t.Fatalf("%s: %v", out, err)
	}
	if out, _ := p.want(0, "audit", "verify", "--head", verdict.HeadNumber+":"+verdict.HeadHash); !strings.Contains(out, "Intact") || !strings.Contains(out, verdict.HeadHash) {
		t.Errorf("verify: %s", out)
	}
	p.want(2, "audit", "verify", "--head", "3:x")
	if out, errs := p.want(1, "audit", "verify", "--head", verdict.HeadNumber+":"+strings.Repeat("0", 40)); !strings.Contains(out, "gap") || !strings.Contains(errs, "not intact") {
		t.Errorf("another head: %s%s", out, errs)
	}
	if err := cp.Store.Client().XDel(t.Context(), store.Key(cp.Org.ID, "audit"), "2-0").Err(); err != nil {
		t.Fatal(err)
	}
	if out, _ := p.want(1, "audit", "verify"); !strings.Contains(out, "removed") || !strings.Contains(out, "entries 2 to 2 are missing") {
		t.Errorf("damaged: %s", out)
	}
}
