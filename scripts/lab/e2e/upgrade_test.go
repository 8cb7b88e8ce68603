package e2e

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// TestTwoBuildsServeOneFleet upgrades a fleet of the previous commit to this one, one program at a time, and takes a
// replica back again, as an operator does whom the new one displeases. In every mixture bans of hosts and of people are in
// force on every host, and nothing that was made under the one build is lost under the other.
func TestTwoBuildsServeOneFleet(t *testing.T) {
	t.Parallel()
	f := newFleet(t, lab.Options{Name: "upgrade", Hosts: 2, PreviousDir: previousBuild(t)})
	a, b := f.Node("a"), f.Node("b")
	ctx := limited(t, 4*time.Minute)
	desired := map[netip.Prefix]bool{}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	works := func(mixture string) {
		t.Helper()
		for i := range 2 {
			must(f.AwaitReplica(ctx, i+1))
		}
		must(f.AwaitOnline(ctx))
		for _, host := range []*lab.Node{a, b} {
			addr := source(t)
			f.jailBan(ctx, host, addr)
			desired[single(addr)] = true
			f.enforced(ctx, addr, a, b)
			f.observedOnce(ctx, addr, host.Name)
		}
		made, lifted := source(t), source(t)
		f.ban(ctx, time.Hour, made.String(), lifted.String())
		f.enforced(ctx, lifted, a, b)
		f.unban(ctx, lifted.String())
		desired[single(made)] = true
		f.holds(ctx, desired, a, b)
		if t.Failed() {
			t.Fatalf("that was with %s", mixture)
		}
	}

	works("this build alone")
	for _, host := range []*lab.Node{a, b} {
		must(host.RunAgent(ctx, lab.PreviousBuild))
	}
	for i := range 2 {
		must(f.RunReplica(ctx, i+1, lab.PreviousBuild))
	}
	works("the previous build alone")
	must(f.RunReplica(ctx, 1, lab.ThisBuild))
	works("one replica upgraded")
	must(a.RunAgent(ctx, lab.ThisBuild))
	works("one replica and one agent upgraded")
	must(f.RunReplica(ctx, 2, lab.ThisBuild))
	must(f.RunReplica(ctx, 1, lab.PreviousBuild))
	works("the other replica upgraded and the first taken back")
	must(f.RunReplica(ctx, 1, lab.ThisBuild))
	must(b.RunAgent(ctx, lab.ThisBuild))
	works("everything upgraded")
}

// previousBuild builds the programs of the commit before this one.
func previousBuild(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	run := func(in, name string, args ...string) {
		t.Helper()
		command := exec.CommandContext(t.Context(), name, args...) //nolint:gosec // a test's own words
		command.Dir = in
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%s %s: %v\n%s\n(the commit before this one is needed: git fetch --unshallow)", name, strings.Join(args, " "), err, out)
		}
	}
	root, err := exec.CommandContext(t.Context(), "git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		t.Fatalf("git rev-parse: %v; the test builds the commit before this one", err)
	}
	archive := filepath.Join(dir, "source.tar")
	run(strings.TrimSpace(string(root)), "git", "archive", "--output", archive, "HEAD~1")
	if err := os.Mkdir(source, 0o700); err != nil {
		t.Fatal(err)
	}
	run(source, "tar", "-xf", archive)
	run(filepath.Join(source, "controlplane"), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "fleetban-controlplane"), "./cmd/fleetban-controlplane")
	run(source, "scripts/build-agent", filepath.Join(dir, "fleetban-agent"))
	return dir
}
