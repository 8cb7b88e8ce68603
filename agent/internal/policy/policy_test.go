package policy_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"

	"github.com/fleetban/fleetban/agent/internal/policy"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

func TestExampleIsTheDefault(t *testing.T) {
	t.Parallel()
	got, err := policy.Parse(policy.Example, "policy.example.toml")
	if err != nil {
		t.Fatal(err)
	}
	if !got.Equal(policy.Default()) {
		t.Fatalf("the example says %+v, the default is %+v", got, policy.Default())
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	got, err := policy.Parse([]byte(`
level = "tune"
never_ban = ["198.51.100.0/24", "2001:db8::1"]
allow_reserved = ["10.20.0.0/16"]
largest_prefix_v4 = 24
largest_total_v4 = 8
commands_per_minute = 0
proxied = true
enforcer = "none"
`), "p.toml")
	if err != nil {
		t.Fatal(err)
	}
	want := policy.Default()
	want.Level = policy.LevelTune
	want.NeverBan = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::1/128")}
	want.AllowReserved = []netip.Prefix{netip.MustParsePrefix("10.20.0.0/16")}
	want.LargestPrefix4, want.LargestTotal4, want.CommandsPerMinute = 24, 8, 0
	want.Proxied, want.Enforcer = true, policy.EnforcerNone
	if !got.Equal(want) {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	if got.MaxAddresses4() != 1<<24 || !got.TooWide(netip.MustParsePrefix("203.0.0.0/16")) || got.TooWide(netip.MustParsePrefix("2001:db8::/32")) {
		t.Errorf("derived: %d", got.MaxAddresses4())
	}
}

func TestErrorsNameTheLineAndTheFix(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		text string
		line int
		says string
	}{
		"unknown key":      {"level = \"ban\"\nlvl = \"observe\"\n", 2, `"lvl" is not a setting; the settings are level,`},
		"unknown table":    {"\n[limits]\nx = 1\n", 2, `is not a setting`},
		"level":            {"# x\n\nlevel = \"root\"\n", 3, `write "observe"`},
		"type":             {"proxied = 1\n", 1, "see the example"},
		"syntax":           {"level = \"ban\"\nnever_ban = [\n", 2, ""},
		"network":          {"never_ban = [\n  \"198.51.100.0/24\",\n  \"198.51.100.1/24\",\n]\n", 3, "did you mean 198.51.100.0/24"},
		"number":           {"largest_prefix_v4 = 0\n", 1, "from 8 to 32"},
		"negative":         {"commands_per_minute = -1\n", 1, "from 0 to"},
		"enforcer":         {"enforcer = \"pf\"\n", 1, `write "nftables"`},
		"of two the first": {"largest_prefix_v4 = 0\nlevel = \"root\"\n", 1, "from 8 to 32"},
		"not in quotes":    {"\nlevel = ban\n", 2, "no string in quotes"},
		"behind":           {"proxied = true false\n", 1, "something behind the value of proxied"},
		"comma":            {"never_ban = [\n\"::1\"\n\"::2\"]\n", 3, "misses a comma"},
		"open":             {"level = \"ban\nproxied = true\n", 1, "doesn't end on its line"},
		"twice":            {"proxied = true\nproxied = false\n", 2, ""},
		"not utf-8":        {"level = \"\xff\"\n", 1, ""},
		"too many bytes":   {strings.Repeat("#\n", 1<<20), 0, "larger"},
	} {
		_, err := policy.Parse([]byte(tc.text), "p.toml")
		var e *policy.Error
		if !errors.As(err, &e) {
			t.Errorf("%s: %v is not an *Error", name, err)
			continue
		}
		if e.File != "p.toml" || (tc.line != 0 && e.Line != tc.line) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v (line %d, want %d and %q)", name, err, e.Line, tc.line, tc.says)
		}
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if got, err := policy.Load(filepath.Join(dir, "absent.toml")); err != nil || !got.Equal(policy.Default()) {
		t.Errorf("absent: %+v, %v", got, err)
	}
	loose := filepath.Join(dir, "loose.toml")
	if err := os.WriteFile(loose, []byte("level = \"configure\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := policy.Load(loose); err != nil || got.Level != policy.LevelConfigure {
		t.Errorf("good: %+v, %v", got, err)
	}
	if err := os.Chmod(loose, 0o666); err != nil { //nolint:gosec // the mistake under test
		t.Fatal(err)
	}
	var e *policy.Error
	if _, err := policy.Load(loose); !errors.As(err, &e) || !strings.Contains(e.Fix, "chmod") {
		t.Errorf("writable by others: %v", err)
	}
	if _, err := policy.Load(dir); !errors.As(err, &e) {
		t.Errorf("a folder: %v", err)
	}
}

// What is accepted must mean the same to a parser of all of TOML.
func FuzzAgreesWithTOML(f *testing.F) {
	f.Add(policy.Example)
	for _, text := range []string{
		"level = 'tune' # so\r\nnever_ban = [ # none\n  \"198.51.100.0/24\" , '2001:db8::1',\n]\n\tproxied=true",
		"largest_prefix_v4 = 024", "largest_prefix_v4 = +24", "commands_per_minute = -0", "commands_per_minute = 1_0",
		"level = \"\"\"ban\"\"\"", "level = \"b\\u0061n\"", "never_ban = [\"::1\",,]", "never_ban = []\nlevel = \"ban\" x",
		"level = \"ban\"level = \"ban\"", "proxied = true\rproxied = false", "level.x = \"ban\"", "\"level\" = \"ban\"", "[a]\n",
		"level = \"ban\t\"", "# \x00", "level\n= \"ban\"", "proxied = \ntrue", "never_ban = [\"::1\"\n\"::2\"]", "=", "[", "level", "level =",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := policy.Parse(data, "p.toml")
		if err != nil {
			return
		}
		d := policy.Default()
		want := struct {
			Level         string   `toml:"level"`
			NeverBan      []string `toml:"never_ban"`
			AllowReserved []string `toml:"allow_reserved"`
			Largest4      int      `toml:"largest_prefix_v4"`
			Largest6      int      `toml:"largest_prefix_v6"`
			Total4        int      `toml:"largest_total_v4"`
			Total6        int      `toml:"largest_total_v6"`
			Commands      int      `toml:"commands_per_minute"`
			Send          bool     `toml:"send_matched_lines"`
			Proxied       bool     `toml:"proxied"`
			Enforcer      string   `toml:"enforcer"`
		}{
			Level: d.Level.String(), Largest4: d.LargestPrefix4, Largest6: d.LargestPrefix6, Total4: d.LargestTotal4, Total6: d.LargestTotal6,
			Commands: d.CommandsPerMinute, Enforcer: d.Enforcer,
		}
		meta, err := toml.Decode(string(data), &want)
		if err != nil || len(meta.Undecoded()) > 0 {
			t.Fatalf("accepted, and it is no TOML or has more: %v %v", err, meta.Undecoded())
		}
		level, err := policy.ParseLevel(want.Level)
		if err != nil || got.Level != level || len(got.NeverBan) != len(want.NeverBan) || len(got.AllowReserved) != len(want.AllowReserved) ||
			got.LargestPrefix4 != want.Largest4 || got.LargestPrefix6 != want.Largest6 || got.LargestTotal4 != want.Total4 || got.LargestTotal6 != want.Total6 ||
			got.CommandsPerMinute != want.Commands || got.SendMatchedLines != want.Send || got.Proxied != want.Proxied || got.Enforcer != want.Enforcer {
			t.Fatalf("read as %+v, it is %+v", got, want)
		}
		for i, text := range want.NeverBan {
			if p, err := prefix.Parse(text); err != nil || p != got.NeverBan[i] {
				t.Fatalf("read as %v, it is %q", got.NeverBan[i], text)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(policy.Example)
	f.Add([]byte("level = \"observe\"\nnever_ban = [\"::/0\"]\n"))
	f.Add([]byte("[a.b]\nc = 1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := policy.Parse(data, "p.toml")
		if err != nil {
			var e *policy.Error
			if !errors.As(err, &e) {
				t.Fatalf("untyped error: %v", err)
			}
			return
		}
		if p.LargestPrefix4 < 8 || p.LargestTotal4 < 1 || p.MaxAddresses4() == 0 || p.MaxNetworks6() == 0 || p.Level < policy.LevelObserve {
			t.Fatalf("out of bounds: %+v", p)
		}
	})
}
