package enforce_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/fleetban/fleetban/agent/internal/enforce"
	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// login puts a live SSH session from peer into the machine's /proc; no peer ends it.
func (h *host) login(peer string) {
	h.t.Helper()
	table := "  sl  local_address rem_address   st\n"
	if peer != "" {
		a := netip.MustParseAddr(peer).As4()
		table += fmt.Sprintf("   0: 076433C6:0016 %08X:C001 01 0:0 00:0 0 0 0 4711 1\n", binary.NativeEndian.Uint32(a[:]))
	}
	h.file(table, "root", "proc/net/tcp")
	h.file("sshd\n", "root", "proc/99/comm")
	h.file("sshd: root@pts/0\x00", "root", "proc/99/cmdline")
	fd := filepath.Join(h.dir, "root", "proc/99/fd")
	if err := os.MkdirAll(fd, 0o700); err != nil {
		h.t.Fatal(err)
	}
	if err := os.Symlink("socket:[4711]", filepath.Join(fd, "3")); err != nil && !os.IsExist(err) {
		h.t.Fatal(err)
	}
}

// TestNobodyIsLockedOut: the peer of an SSH session isn't banned while it lasts, and is afterwards; a session that a
// ban in force would cut lifts it.
func TestNobodyIsLockedOut(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.login("203.0.113.9")
	h.run()
	h.delta("all", ban, change{"203.0.113.0/24", present, time.Hour}, change{"192.0.2.1/32", present, time.Hour})
	h.wantKernel("logged in", "192.0.2.1/32")
	h.wantExceptions("logged in", "all 203.0.113.0/24 SSH_PEER")
	h.login("")
	h.until("enforced once the session is over", func() bool { return len(h.kernel()) == 2 })
	h.wantExceptions("logged out")
	h.login("203.0.113.200")
	h.until("lifted for a session", func() bool { return len(h.kernel()) == 1 })
	h.wantExceptions("logged in again", "all 203.0.113.0/24 SSH_PEER")
}

// TestLoginSinceTheLastLook: a ban is let through by an old look at the connections and taken back, before it is
// acknowledged, for the sake of a session that began since. Nothing but Apply looks here.
func TestLoginSinceTheLastLook(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.delta("all", ban, change{"192.0.2.1/32", present, time.Hour})
	h.login("203.0.113.9")
	longer := time.Duration(0)
	h.until("refused once the look is old", func() bool {
		longer += time.Second
		return h.delta("all", ban, change{"203.0.113.0/24", present, time.Hour + longer}).GetExceptionsChanged()
	})
	h.wantKernel("logged in since", "192.0.2.1/32")
	h.wantExceptions("logged in since", "all 203.0.113.0/24 SSH_PEER")
}

// TestWithoutNftables: what is held is held, and it is said why nothing is enforced.
func TestWithoutNftables(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	dir := t.TempDir()
	e, err := enforce.Open(t.Context(), enforce.Config{
		StateDir: dir, PolicyPath: filepath.Join(dir, "policy.toml"), NetNS: filepath.Join(dir, "no-namespace"),
		Root: filepath.Join(h.dir, "root"), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close() //nolint:errcheck // a test's end
	h.e = e
	resp := h.delta("all", ban, change{"203.0.113.9/32", present, time.Hour})
	if resp.GetCursor().GetVersion() != 1 {
		t.Errorf("response %v", resp)
	}
	got := e.Health()
	if got.GetInert() != fleetbanv1.Inert_INERT_UNABLE || got.GetProblem() == "" || got.GetEnforced() != 0 || got.GetBackend() != "none" {
		t.Errorf("health %v", got)
	}
	if len(e.Findings()) != 1 {
		t.Errorf("findings %v", e.Findings())
	}
}

// TestReplaysExtendNothing: an old delta again, and a delta of the past after a gap, leave the kernel alone.
func TestReplaysExtendNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.delta("all", ban, change{"203.0.113.9/32", present, time.Hour})
	first := h.sets["all"].ends[netip.MustParsePrefix("203.0.113.9/32")]
	replay := fleetbanv1.Delta_builder{Set: "all", Kind: ban, Epoch: 7, FromVersion: 0, Version: 1, Digest: h.sets["all"].digest, Records: []*fleetbanv1.Record{
		fleetbanv1.Record_builder{Prefix: []byte{203, 0, 113, 9, 32}, Kind: present, SinceUnixMs: 1, ExpiresUnixMs: first}.Build(),
	}}.Build()
	h.delta("all", ban, change{"203.0.113.9/32", retracted, time.Hour})
	resp, err := h.e.Apply(t.Context(), hostv1.ApplyRequest_builder{Delta: replay, ServerUnixMs: h.now()}.Build())
	if err != nil || resp.GetOutcome() != hostv1.ApplyResponse_OUTCOME_SKIPPED {
		t.Fatal(resp, err)
	}
	h.wantKernel("a replay of what was retracted")
	// What has ended by the server's clock is never enforced, though it is held until the server says so.
	h.delta("all", ban, change{"203.0.113.11/32", present, -time.Second})
	h.wantKernel("ended on arrival")
	if got := h.e.Sets()[0].GetRecords(); got != 1 {
		t.Errorf("%d records held", got)
	}
}

func (h *host) says(server time.Duration) {
	h.t.Helper()
	_, err := h.e.SetSession(h.t.Context(), hostv1.SetSessionRequest_builder{ServerUnixMs: time.Now().Add(server).UnixMilli()}.Build())
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) finds(code string) bool {
	for _, f := range h.e.Findings() {
		if f.GetCode() == code {
			return true
		}
	}
	return false
}

// A clock that a control plane, or who poses as it, sets back extends nothing.
func TestClockSetBackExtendsNothing(t *testing.T) {
	t.Parallel()
	const name, year = "203.0.113.9/32", 365 * 24 * time.Hour
	h := newHost(t)
	h.ahead = -10 * time.Hour // the first word is taken, however wrong this host's clock is
	h.delta("all", ban, change{name, present, 30 * time.Minute})
	within := func(step string) {
		t.Helper()
		// Words may differ by two seconds.
		if r := h.kernel()[name]; r > 30*time.Minute+2*time.Second || r < 29*time.Minute {
			t.Fatalf("%s: it had half an hour, the kernel says %s", step, r)
		}
	}
	within("first word")

	h.says(h.ahead - year)
	within("a year back")
	if !h.finds("control-plane-clock") {
		t.Error("nobody is told")
	}
	for back := time.Second; back < 2*time.Hour; back *= 2 {
		h.says(h.ahead - back)
	}
	for i := range 100 {
		h.says(h.ahead - time.Duration(i)*1900*time.Millisecond)
	}
	within("step by step")
	// Not through a restart either, nor by the table being made anew.
	_ = h.e.Close()
	h.open()
	h.says(h.ahead - year)
	within("a year back after a restart")

	// What was wrongly set forward comes back, but no further back than it was.
	h.says(h.ahead + year)
	h.wantKernel("a year on, it has ended")
	h.says(h.ahead - year)
	h.wantKernel("a year on and two back")
	h.says(h.ahead + 2*year)
	h.says(h.ahead - time.Minute)
	h.wantKernel("another year on, and a minute back")
	h.says(h.ahead)
	within("back to the truth")
	if h.finds("control-plane-clock") {
		t.Error("it is over and still told")
	}
}

// Who took the other half over can't have half the world protected, nor fill the memory with it.
func TestControlPlaneOfManyAddresses(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	var addresses [][]byte
	for i := range 10_000 {
		addresses = append(addresses, binary.BigEndian.AppendUint32(nil, 0xcb007100+uint32(i)))
	}
	if _, err := h.e.SetSession(t.Context(), hostv1.SetSessionRequest_builder{ServerUnixMs: h.now(), ControlPlane: addresses}.Build()); err != nil {
		t.Fatal(err)
	}
	h.delta("all", ban, change{"203.0.113.1/32", present, time.Hour}, change{"203.0.115.1/32", present, time.Hour})
	h.wantKernel("the first are protected, the rest isn't", "203.0.115.1/32")
}

// A control plane that lost its Redis counts its settings from the beginning: a pause of before ends all the same.
func TestSettingsOfAControlPlaneThatLostItsRedis(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.delta("all", ban, change{"203.0.113.9/32", present, time.Hour})
	told := func(version uint64, paused time.Duration, sets ...*fleetbanv1.SetInfo) {
		t.Helper()
		b := fleetbanv1.Settings_builder{Version: version}
		if paused > 0 {
			b.PausedUntilUnixMs = h.now() + paused.Milliseconds()
		}
		if _, err := h.e.SetSession(t.Context(), hostv1.SetSessionRequest_builder{ServerUnixMs: h.now(), Settings: b.Build(), Sets: sets}.Build()); err != nil {
			t.Fatal(err)
		}
	}
	all := fleetbanv1.SetInfo_builder{Set: "all", Kind: ban}.Build()
	told(90, 24*time.Hour, all)
	h.wantKernel("paused")
	told(1, 0) // late, of a stream that ends
	h.wantKernel("paused still")
	told(1, 0, all) // a Welcome
	h.wantKernel("no longer paused", "203.0.113.9/32")
}

// A host whose own clock was set while its helper was down, as a hardware clock in local time is at boot, believes the
// server's first word: its bans last as long as everywhere.
func TestHostClockSetAheadWhileDown(t *testing.T) {
	t.Parallel()
	const name = "203.0.113.9/32"
	h := newHost(t)
	h.ahead = -time.Hour
	h.delta("all", ban, change{name, present, 30 * time.Minute})
	if err := h.e.Close(); err != nil {
		t.Fatal(err)
	}
	// What is saved is the difference to the host's clock as it was: right then, an hour behind what it is now.
	saved := filepath.Join(h.dir, "state", "switches.json")
	content, err := os.ReadFile(saved)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(content, &fields); err != nil {
		t.Fatal(err)
	}
	offset, _ := fields["clock_offset_ms"].(float64) // left out where it is 0
	fields["clock_offset_ms"] = offset + float64(time.Hour.Milliseconds())
	if content, err = json.Marshal(fields); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(saved, content, 0o600); err != nil {
		t.Fatal(err)
	}
	h.open()
	h.wantKernel("by the host's clock it has ended")
	h.says(h.ahead)
	if r := h.kernel()[name]; r > 30*time.Minute || r < 29*time.Minute {
		t.Errorf("the server said what time it is; the ban has half an hour, the kernel says %s", r)
	}
	if h.finds("control-plane-clock") {
		t.Error("the server's word is doubted")
	}
}

// BenchmarkResident prints the memory of this process with 10,000 and 100,000 bans enforced; a test binary's own 6 MB or
// so are in it.
func BenchmarkResident(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			h := newHost(b)
			h.crowd(n)
			_ = h.e.Close()
			debug.FreeOSMemory()
			for b.Loop() {
				h.open()
				debug.FreeOSMemory()
				b.ReportMetric(resident(b), "MB-resident")
				b.StopTimer()
				_ = h.e.Close()
				h.e = nil
				b.StartTimer()
			}
		})
	}
}

func resident(b *testing.B) float64 {
	b.Helper()
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var kb float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kb); n == 1 {
			return kb / 1024
		}
	}
	b.Fatal("no VmRSS")
	return 0
}
