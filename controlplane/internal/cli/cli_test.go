package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/fleetban/fleetban/controlplane/internal/cli"
	"github.com/fleetban/fleetban/controlplane/internal/leases"
	"github.com/fleetban/fleetban/controlplane/internal/operatorapi/apitest"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

var update = flag.Bool("update", false, "write testdata anew from what the commands print")

// person runs command lines as one person at one control plane.
type person struct {
	t        *testing.T
	env      map[string]string
	stdin    string
	terminal bool
}

func at(t *testing.T, cp *apitest.ControlPlane) *person {
	t.Helper()
	return &person{t: t, env: map[string]string{"FLEETBAN_URL": cp.URL, "FLEETBAN_TOKEN": cp.Token, "FLEETBAN_PIN": cp.Pin, "HOME": t.TempDir()}}
}

func (p *person) run(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	p.t.Helper()
	var out, errs bytes.Buffer
	code = cli.Run(ctx, args, &cli.Env{
		Stdin: strings.NewReader(p.stdin), Stdout: &out, Stderr: &errs, Terminal: p.terminal, Now: func() time.Time { return time.Now().UTC() },
		Getenv: func(name string) string { return p.env[name] },
	})
	return code, out.String(), errs.String()
}

func (p *person) want(wantCode int, args ...string) (stdout, stderr string) {
	p.t.Helper()
	code, out, errs := p.run(context.Background(), args...)
	if code != wantCode {
		p.t.Errorf("fleetban %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), code, wantCode, out, errs)
	}
	return out, errs
}

// What differs from run to run.
var varying = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`\b[0-9A-HJKMNP-TV-Z]{26}\b`), "ULID"},
	{regexp.MustCompile(`https://127\.0\.0\.1:\d+`), "https://SERVER"},
	{regexp.MustCompile(`sha256//[A-Za-z0-9+/]{43}=`), "sha256//PIN"},
	{regexp.MustCompile(`fbj_[0-9A-Za-z]{49}`), "fbj_SECRET"},
	{regexp.MustCompile(`fbj_[0-9A-Za-z]{8}\b`), "fbj_ID"},
	// A moment is told with its day unless that is today: which one it is depends on when the test runs.
	{regexp.MustCompile(`\b(\d{4}-\d\d-\d\d )?\d\d:\d\d\b`), "TIME"},
	// Spans of time begin where a command does. A machine that is busy may take minutes from one to the next.
	{regexp.MustCompile(`, (\d+ ms|\d+m \d+s|\d+[sm])\n`), ", N ms\n"},
	{regexp.MustCompile(`\b(just now|\d+[sm] ago)\b`), "AGO"},
	{regexp.MustCompile(`\bin 23h\b`), "in 1d"},
	{regexp.MustCompile(`\bin (5\dm|1h \dm|1h)\b`), "in 1h"},
	{regexp.MustCompile(`\bin 1?\dm\b`), "in 10m"},
	{regexp.MustCompile(`"elapsedMs": \d+`), `"elapsedMs": 0`},
	{regexp.MustCompile(`("(?:epoch|digest|[a-zA-Z]*UnixMs)": )"1?\d+"`), `$1"N"`},
	{regexp.MustCompile(`("(?:id)": )"\d+-\d+"`), `$1"N"`},
	{regexp.MustCompile(`\b[0-9a-f]{16}\b`), "DIGEST"},
	{regexp.MustCompile(`\b1\d{12}\b`), "TERM"},
}

var blanks = regexp.MustCompile(` {2,}`)

func golden(t *testing.T, name, got string) {
	t.Helper()
	for _, v := range varying {
		got = v.pattern.ReplaceAllString(got, v.with)
	}
	// Columns are as wide as what varies: their alignment is another test's.
	got = blanks.ReplaceAllString(got, "  ")
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test -update writes it)", err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update accepts it):\n--- got\n%s--- want\n%s", name, got, want)
	}
}

// work has two replicas do periodic work, one after the other.
func work(t *testing.T, cp *apitest.ControlPlane) {
	t.Helper()
	for i, name := range []string{"replica1", "replica2"} {
		l := leases.New(cp.Store, "jobs", name, time.Hour)
		if held, _, err := l.Hold(t.Context()); !held || err != nil {
			t.Fatal(held, err)
		}
		runs := []leases.Run{{Name: "expiry", Began: time.Now(), Took: 12 * time.Millisecond}, {Name: "presence", Began: time.Now(), Took: 0, Problem: "failed\x1b[2J"}}
		if err := l.Ran(t.Context(), runs[:2-i]...); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := l.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Each verb's answer, for people and for programs.
func TestAnswers(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	web := cp.Enrol("web-1", map[string]string{"role": "web"}, "198.51.100.7/32").Attach()
	db := cp.Enrol("db-1", nil).Attach()
	web.Health(fleetbanv1.Health_builder{
		PolicyLevel: "ban",
		Fail2Ban: fleetbanv1.Fail2BanHealth_builder{
			State: fleetbanv1.Fail2BanHealth_STATE_UP, Version: "1.0.2", Source: fleetbanv1.EventSource_EVENT_SOURCE_LOG, DelayMs: 5,
			Jails: []*fleetbanv1.JailHealth{fleetbanv1.JailHealth_builder{
				Name: "sshd", Banned: 2, BannedTotal: 9, Failed: 3, BantimeS: 600, FindtimeS: 86400, Maxretry: 5,
			}.Build()},
		}.Build(),
		Enforcer: fleetbanv1.EnforcerHealth_builder{Backend: "nftables", Enforced: 12, Refused: 1}.Build(),
		Findings: []*fleetbanv1.Finding{fleetbanv1.Finding_builder{
			Severity: fleetbanv1.Finding_SEVERITY_WARNING, Code: "x", Problem: "docker's userland proxy hides sources", Fix: "set userland-proxy false",
		}.Build()},
	})
	cp.Follow(web, db)
	p := at(t, cp)
	show := func(name string, code int, args ...string) {
		t.Helper()
		out, errs := p.want(code, args...)
		golden(t, name, out+errs)
	}
	show("empty-bans", 0, "bans")
	show("empty-allowed", 0, "allowed")
	show("ban", 0, "ban", "203.0.113.9", "2001:db8:1::/64", "--for", "1h", "--reason", "trying it out")
	show("ban-longer", 0, "ban", "203.0.113.9", "--for", "2h")
	show("ban-shorter.json", 0, "ban", "203.0.113.9", "--for", "1m", "-o", "json")
	show("ban-no-wait", 0, "ban", "203.0.113.10", "--for", "1h", "--no-wait")
	show("ban-tag", 0, "ban", "203.0.113.11", "--for", "1h", "--tag", "role=web")
	web.Report(sets.Event{Seq: 1, Kind: sets.EventBan, Jail: "sshd", Prefix: netip.MustParsePrefix("203.0.113.9/32"), Duration: time.Hour, Set: "all", Failures: 5})
	show("status", 0, "status")
	show("jobs-nobody", 0, "jobs")
	work(t, cp)
	show("jobs", 0, "jobs")
	show("jobs.json", 0, "jobs", "-o", "json")
	show("hosts", 0, "hosts")
	show("host", 0, "host", "web-1")
	show("jails", 0, "jails")
	show("jails.json", 0, "jails", "-o", "json")
	show("allow", 0, "allow", "203.0.113.10", "--for", "1h", "--reason", "office")
	show("ban-suppressed", 3, "ban", "203.0.113.10", "--for", "1h")
	show("allowed", 0, "allowed")
	show("disallow", 0, "disallow", "203.0.113.10")
	show("ban-wide", 0, "ban", "203.0.113.0/24", "--for", "1h")
	show("unban-covered", 3, "unban", "203.0.113.9")
	show("explain", 0, "explain", "203.0.113.9")
	show("unban", 0, "unban", "203.0.113.0/24")
	show("commands", 0, "commands", "web-1")
	show("pause", 0, "pause", "--for", "10m", "--reason", "drill")
	show("resume", 0, "resume")
	show("mode", 0, "mode", "watch")
	show("join-create", 0, "join-token", "create", "--uses", "5", "--for", "24h", "--tag", "role=web", "--note", "rack 3")
	show("join-list", 0, "join-token", "list")
	out, _ := p.want(0, "join-token", "list", "-o", "jsonl")
	var token struct{ ID string }
	if err := json.Unmarshal([]byte(out), &token); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	show("join-revoke", 0, "join-token", "revoke", token.ID)
	show("forget", 0, "forget", "db-1")
	show("version", 0, "version")

	for _, args := range [][]string{
		{"bans"}, {"hosts"}, {"host", "web-1"}, {"status"}, {"jobs"}, {"allowed"}, {"explain", "203.0.113.9"}, {"jails"}, {"commands", "web-1"}, {"join-token", "list"},
	} {
		out, _ := p.want(0, append(args, "-o", "json")...)
		var whole map[string]any
		if err := json.Unmarshal([]byte(out), &whole); err != nil {
			t.Errorf("%v -o json: %v\n%s", args, err, out)
		}
		out, _ = p.want(0, append(args, "-o", "jsonl")...)
		for line := range strings.Lines(out) {
			if err := json.Unmarshal([]byte(line), &whole); err != nil {
				t.Errorf("%v -o jsonl: %v\n%s", args, err, line)
			}
		}
	}
}

// What is wrong is said with what to do, and the exit code says of which kind it is.
func TestFailures(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	p := at(t, cp)
	with := func(changes ...string) *person {
		q := &person{t: t, env: map[string]string{}}
		for k, v := range p.env {
			q.env[k] = v
		}
		for i := 0; i < len(changes); i += 2 {
			q.env[changes[i]] = changes[i+1]
		}
		return q
	}
	reader := cp.NewToken(cp.Org.ID, optionsv1.Permission_PERMISSION_FLEET_READ)
	otherPin := strings.Replace(cp.Pin, "sha256//", "sha256//AAAA", 1)
	otherPin = otherPin[:len(cp.Pin)-1] + "="
	for _, tc := range []struct {
		name   string
		person *person
		code   int
		args   string
		says   []string
	}{
		{"no verb", p, 2, "frobnicate", []string{"frobnicate", "--help"}},
		{"half a verb", p, 2, "join-token", nil},
		{"no time span", p, 2, "ban 203.0.113.9", []string{"--for"}},
		{"bad time span", p, 2, "ban 203.0.113.9 --for soon", []string{"soon", "1h30m"}},
		{"negative time span", p, 2, "ban 203.0.113.9 --for -5m", nil},
		{"bad address", p, 2, "ban 203.0.113.9 203.0.113.999 --for 1h", []string{"203.0.113.999", "prefixes[1]"}},
		{"too wide", p, 2, "ban 203.0.0.0/8 --for 1h", []string{"203.0.0.0/8", "/16 is the widest"}},
		{"protected", p, 2, "ban 10.0.0.1 --for 1h", []string{"10.0.0.0/8"}},
		{"unknown host", p, 4, "host nobody", []string{"no such host", "fleetban hosts"}},
		{"unknown tag", p, 4, "ban 203.0.113.9 --for 1h --tag a=b", []string{"a=b"}},
		{"no host to enforce", p, 3, "ban 203.0.113.9 --for 1h", nil},
		{"missing permission", with("FLEETBAN_TOKEN", reader), 5, "ban 203.0.113.9 --for 1h", []string{"bans_write"}},
		{"mistyped token", with("FLEETBAN_TOKEN", cp.Token[:20]), 5, "hosts", []string{"malformed"}},
		{"no token", with("FLEETBAN_TOKEN", ""), 5, "hosts", []string{"FLEETBAN_TOKEN", "login"}},
		{"no control plane", with("FLEETBAN_URL", ""), 2, "hosts", []string{"FLEETBAN_URL"}},
		{"bad URL", with("FLEETBAN_URL", "localhost:1"), 2, "hosts", []string{"https://HOST"}},
		{"nobody there", with("FLEETBAN_URL", "https://127.0.0.1:1"), 6, "ban 203.0.113.9 --for 1h", []string{"127.0.0.1:1", "refused"}},
		{"not trusted", with("FLEETBAN_PIN", ""), 5, "hosts", []string{"isn't trusted", "--pin"}},
		{"another server", with("FLEETBAN_PIN", otherPin), 5, "hosts", []string{"isn't the pinned server"}},
		{"malformed pin", with("FLEETBAN_PIN", "sha256//x"), 2, "hosts", []string{"pin"}},
		{"other mode", p, 2, "mode sleep", []string{"enforce"}},
		{"other output", p, 2, "hosts -o yaml", []string{"json"}},
	} {
		code, out, errs := tc.person.run(context.Background(), strings.Fields(tc.args)...)
		if code != tc.code || tc.code != 3 && errs == "" {
			t.Errorf("%s: exit code %d, want %d\n%s%s", tc.name, code, tc.code, out, errs)
		}
		for _, s := range tc.says {
			if !strings.Contains(errs, s) {
				t.Errorf("%s doesn't say %q:\n%s", tc.name, s, errs)
			}
		}
		if strings.Contains(out+errs, tc.person.env["FLEETBAN_TOKEN"]) && tc.person.env["FLEETBAN_TOKEN"] != "" {
			t.Errorf("%s shows the token", tc.name)
		}
	}
	_, errs := p.want(4, "host", "nobody", "-o", "json")
	var f struct {
		Error, Fix, Reason, Field string
		Exit                      int
	}
	if err := json.Unmarshal([]byte(errs), &f); err != nil || f.Reason != "NOT_FOUND" || f.Field != "host" || f.Exit != 4 || f.Fix == "" {
		t.Errorf("an error as JSON: %q, %v", errs, err)
	}
}

func TestMissingReceipts(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	web, slow := cp.Enrol("web-1", nil).Attach(), cp.Enrol("slow-1", nil).Attach()
	inert, refusing := cp.Enrol("inert-1", nil).Attach(), cp.Enrol("refusing-1", nil).Attach()
	cp.Enrol("new-1", nil)
	cp.Follow(web)
	slow.Ack(fleetbanv1.Ack_builder{})
	p := at(t, cp)
	p.want(3, "ban", "203.0.113.9", "--for", "1h", "--wait", "50ms")
	inert.Ack(fleetbanv1.Ack_builder{Inert: fleetbanv1.Inert_INERT_OFF})
	refusing.Ack(fleetbanv1.Ack_builder{ExceptionsChanged: true, ExceptionsTotal: 1, Exceptions: []*fleetbanv1.SetException{
		fleetbanv1.SetException_builder{Set: "all", Prefix: prefix.Pack(netip.MustParsePrefix("203.0.113.9/32")), Refusal: fleetbanv1.Refusal_REFUSAL_SSH_PEER}.Build(),
	}})
	out, _ := p.want(0, "explain", "203.0.113.9")
	golden(t, "explain-missing", out)
	// slow-1 never answers, so the command stays as long as it may; how long web-1 takes is the machine's to say.
	for wait := 300 * time.Millisecond; wait < testwait.Patience; wait *= 3 {
		out, _ = p.want(3, "ban", "203.0.113.9", "--for", "2h", "--wait", wait.String())
		if strings.Contains(out, "enforced 1/5") {
			break
		}
	}
	if !strings.Contains(out, "enforced 1/5") || !strings.Contains(out, "slow-1") || !strings.Contains(out, "pending") || !strings.Contains(out, "new-1") {
		t.Errorf("the receipts:\n%s", out)
	}
}

func TestLogin(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	p := at(t, cp)
	home := p.env["HOME"]
	p.env = map[string]string{"HOME": home}
	p.stdin = cp.Token + "\n"
	out, _ := p.want(0, "login", "--url", cp.URL, "--pin", cp.Pin, "--token-stdin")
	if !strings.Contains(out, "Acme") || strings.Contains(out, cp.Token) {
		t.Errorf("login says %q", out)
	}
	path := filepath.Join(home, ".config/fleetban/config.json")
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("configuration: %v, %v", info, err)
	}
	p.want(0, "hosts")
	// The token of one server isn't sent to another.
	if _, errs := p.want(5, "hosts", "--url", "https://203.0.113.1"); !strings.Contains(errs, "no API token for https://203.0.113.1") {
		t.Error(errs)
	}
	if err := os.Chmod(path, 0o644); err != nil { //nolint:gosec // what is tested
		t.Fatal(err)
	}
	if _, errs := p.want(5, "hosts"); !strings.Contains(errs, "chmod 600") {
		t.Error(errs)
	}
	// A token that isn't good isn't kept.
	p.env["HOME"] = t.TempDir()
	p.stdin = "fbt_nonsense\n"
	p.want(5, "login", "--url", cp.URL, "--pin", cp.Pin, "--token-stdin")
	if _, err := os.Stat(filepath.Join(p.env["HOME"], ".config")); err == nil {
		t.Error("a bad token was written")
	}
}

// syncBuffer is written by a watch and read by the test.
type syncBuffer struct {
	mu   sync.Mutex
	text strings.Builder
	grew chan struct{}
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer func() {
		select {
		case b.grew <- struct{}{}:
		default:
		}
	}()
	return b.text.Write(p)
}

// await waits until the buffer holds s, while again is called now and then.
func (b *syncBuffer) await(ctx context.Context, t *testing.T, s string) string {
	t.Helper()
	for {
		b.mu.Lock()
		text := b.text.String()
		b.mu.Unlock()
		if strings.Contains(text, s) {
			return text
		}
		select {
		case <-b.grew:
		case <-ctx.Done():
			t.Fatalf("%q never came:\n%s", s, text)
		}
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cp := apitest.Start(t)
	p := at(t, cp)
	p.want(3, "ban", "203.0.113.1", "--for", "1h")
	out, _ := p.want(0, "explain", "203.0.113.1", "-o", "json")
	var explained struct{ Events []struct{ ID string } }
	if err := json.Unmarshal([]byte(out), &explained); err != nil || len(explained.Events) == 0 {
		t.Fatalf("%v\n%s", err, out)
	}
	watching, stop := context.WithCancel(ctx)
	buffer := &syncBuffer{grew: make(chan struct{}, 1)}
	done := make(chan int)
	go func() {
		done <- cli.Run(watching, []string{"watch", "--after", explained.Events[0].ID}, &cli.Env{
			Stdin: strings.NewReader(""), Stdout: buffer, Stderr: &syncBuffer{grew: make(chan struct{}, 1)}, Now: time.Now,
			Getenv: func(name string) string { return p.env[name] },
		})
	}()
	p.want(3, "ban", "203.0.113.2", "--for", "1h", "--reason", "evil\x1b[2J\u202e")
	text := buffer.await(ctx, t, "203.0.113.2")
	if strings.Contains(text, "203.0.113.1 ") || !strings.Contains(text, "banned") {
		t.Errorf("watch shows\n%s", text)
	}
	assertHarmless(t, text)
	stop()
	if code := <-done; code != 0 {
		t.Errorf("a watch that was ended exits with %d", code)
	}
}

func assertHarmless(t *testing.T, text string) {
	t.Helper()
	for _, r := range text {
		if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Zl, r) || unicode.Is(unicode.Zp, r) || r == unicode.ReplacementChar) {
			t.Errorf("%U reached the terminal:\n%q", r, text)
			return
		}
	}
}

// Names that hosts make up can't act on the terminal of whoever looks, in no format.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	hostile := "a\x1b[31mred\x1b]0;title\x07\u202egnp\u2066\u200b\u0085\u009b2J\r\n\tx\x00" + strings.Repeat("長", 300)
	hostile = hostile[:120]
	hostile = strings.ToValidUTF8(hostile, "")
	web := cp.Enrol("web-1", nil).Attach()
	web.Health(fleetbanv1.Health_builder{
		PolicyLevel: "\x1b[5m",
		Fail2Ban: fleetbanv1.Fail2BanHealth_builder{
			State: fleetbanv1.Fail2BanHealth_STATE_UP, Version: hostile[:40], Problem: hostile,
			Jails: []*fleetbanv1.JailHealth{fleetbanv1.JailHealth_builder{Name: hostile}.Build()},
		}.Build(),
		Enforcer: fleetbanv1.EnforcerHealth_builder{Backend: "\x1b[5mnft", Problem: hostile}.Build(),
		Findings: []*fleetbanv1.Finding{fleetbanv1.Finding_builder{Problem: hostile, Fix: hostile}.Build()},
	})
	web.Report(sets.Event{Seq: 1, Kind: sets.EventBan, Jail: hostile, Prefix: netip.MustParsePrefix("203.0.113.9/32"), Duration: time.Hour, Set: "all"})
	web.Ack(fleetbanv1.Ack_builder{})
	p := at(t, cp)
	for _, format := range []string{"table", "json", "jsonl"} {
		for _, args := range [][]string{{"hosts"}, {"host", "web-1"}, {"jails"}, {"bans"}, {"explain", "203.0.113.9"}, {"status"}} {
			out, _ := p.want(0, append(args, "-o", format)...)
			assertHarmless(t, out)
			if format != "table" {
				for _, r := range out {
					if r == 0x7f || r >= 0x80 && r < 0xa0 {
						t.Errorf("%v: %U in JSON", args, r)
					}
				}
			}
		}
	}
	out, _ := p.want(0, "jails", "-o", "json")
	var jails struct{ Jails []struct{ Jail string } }
	if err := json.Unmarshal([]byte(out), &jails); err != nil || len(jails.Jails) != 1 || jails.Jails[0].Jail != hostile {
		t.Errorf("JSON changed the name: %v, %+q, want %+q", err, jails, hostile)
	}
	if _, errs := p.want(4, "host", "x\x1b[31m"); strings.Contains(errs, "\x1b") {
		t.Errorf("an error: %q", errs)
	}
}

func TestColour(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	cp.Enrol("web-1", nil).Attach()
	p := at(t, cp)
	for _, tc := range []struct {
		terminal bool
		noColor  string
		want     bool
	}{{false, "", false}, {true, "", true}, {true, "1", false}} {
		p.terminal, p.env["NO_COLOR"] = tc.terminal, tc.noColor
		if out, _ := p.want(0, "hosts"); strings.Contains(out, "\x1b[32monline") != tc.want {
			t.Errorf("terminal %v, NO_COLOR=%q: %q", tc.terminal, tc.noColor, out)
		}
	}
}
