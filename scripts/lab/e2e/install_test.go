package e2e

import (
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// The line that `fleetban join-token create` prints, pasted on a host that has nothing of Fleetban.
func TestInstaller(t *testing.T) {
	t.Parallel()
	f := newFleet(t, lab.Options{Name: "install", Hosts: 1, Bare: true})
	ctx := limited(t, 3*limit)
	host := f.Node("a")
	before, err := host.Exec(ctx, "sh", "-c", "cd /etc/fail2ban && find . -type f | sort | xargs sha256sum")
	if err != nil {
		t.Fatal(err)
	}

	printed, err := f.CLI(ctx, "join-token", "create")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^\s*(curl .*install\.sh.*\| *(?:sudo )?sh.*)$`).FindStringSubmatch(printed)
	token := regexp.MustCompile(`\bfbj_[0-9A-Za-z]+\b`).FindString(printed)
	if line == nil || token == "" {
		t.Fatalf("no line to paste, or no token, in:\n%s", printed)
	}
	if strings.Contains(line[1], token) {
		t.Fatalf("the line to paste has the token in it, where every user of the host could read it: %s", line[1])
	}
	command := strings.ReplaceAll(line[1], "sudo ", "")

	if output, err := host.ExecEnv(ctx, []string{"FLEETBAN_JOIN_TOKEN=" + token + "x"}, "sh", "-c", command); err == nil {
		t.Errorf("a wrong token was taken:\n%s", output)
	}
	output, err := host.ExecEnv(ctx, []string{"FLEETBAN_JOIN_TOKEN=" + token}, "sh", "-c", command)
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	t.Logf("the installer prints:\n%s", output)
	for _, word := range []string{"fail2ban", "sshd", "fleetban-agent off", "fleetban-agent uninstall"} {
		if !strings.Contains(output, word) {
			t.Errorf("the installer doesn't tell of %q:\n%s", word, output)
		}
	}
	if strings.Contains(output, token) {
		t.Errorf("the installer prints the token:\n%s", output)
	}

	// There is no systemd here: what the installer says must be done is done to the letter, and the lab's supervisor keeps
	// the two running.
	said := regexp.MustCompile(`(?m)^\s*(install -d .*)$`).FindAllStringSubmatch(output, -1)
	if len(said) == 0 {
		t.Errorf("the installer doesn't say which folders the agent needs:\n%s", output)
	}
	for _, command := range said {
		if _, err := host.Exec(ctx, "sh", "-c", command[1]); err != nil {
			t.Error(err)
		}
	}
	if err := host.StartAgent(ctx); err != nil {
		t.Fatal(err)
	}
	if err := f.AwaitOnline(ctx); err != nil {
		t.Fatal(err)
	}
	from := source(t)
	f.ban(ctx, time.Hour, from.String())
	f.enforced(ctx, from, host)

	// Again: an upgrade that keeps the identity and needs no token.
	identity := read(t, host.Path("/var/lib/fleetban-agent/identity.json"))
	if output, err := host.Exec(ctx, "sh", "-c", command); err != nil {
		t.Errorf("the second time: %v\n%s", err, output)
	} else {
		t.Logf("the second time:\n%s", output)
	}
	if read(t, host.Path("/var/lib/fleetban-agent/identity.json")) != identity {
		t.Error("the second time made another identity")
	}

	for _, service := range []string{lab.ServiceAgent, lab.ServiceHelper} {
		if err := host.Stop(ctx, service, 0); err != nil {
			t.Fatal(err)
		}
	}
	if output, err := host.Exec(ctx, "fleetban-agent", "uninstall", "--yes"); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	after, err := host.Exec(ctx, "sh", "-c", "cd /etc/fail2ban && find . -type f | sort | xargs sha256sum")
	if err != nil {
		t.Fatal(err)
	}
	if after != before {
		t.Error("fail2ban's configuration isn't as it was found")
	}
	if rules, err := host.Exec(ctx, "nft", "list", "tables"); err != nil || strings.Contains(rules, "fleetban") {
		t.Errorf("tables after uninstall: %q, %v", rules, err)
	}
	for _, path := range []string{"/usr/local/bin/fleetban-agent", lab.AgentState, lab.HelperState} {
		if _, err := os.Lstat(host.Path(path)); err == nil {
			t.Errorf("%s is left after uninstall", path)
		}
	}
	if _, err := host.Fail2ban(ctx, "status", "sshd"); err != nil {
		t.Error(err)
	}
}
