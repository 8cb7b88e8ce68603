package systemd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/await"
	"github.com/fleetban/fleetban/scripts/lab/internal/machine"
)

// units are what the installer brings.
var units = []string{"fleetban-helper.service", "fleetban-agent.service"}

// TestUnderSystemd is the life of the agent on one machine, from the line that a newcomer pastes to the uninstall: one
// machine, for each step stands on the one before.
func TestUnderSystemd(t *testing.T) {
	f := newFleet(t)
	f.logIn()
	f.until("fail2ban's sshd jail", f.says("sshd", "fail2ban-client", "status")) // systemd has started it before it listens
	f.on("fail2ban-client", "set", "sshd", "banip", "198.51.100.200")            // fail2ban's own, before and after us
	before := f.found()
	line := ""
	for _, step := range []struct {
		name string
		run  func()
	}{
		{"the line as a newcomer pastes it", func() { line = f.pastes() }},
		{"both halves run as their units say", f.sandboxed},
		{"what fail2ban bans is banned by the fleet", f.attacked},
		{"fail2ban logs to the journal", f.journalTarget},
		{"killed and hung halves are started again", f.restarted},
		{"the line a second time", func() { f.pastesAgain(line) }},
		{"a reboot enforces before the network is up", f.reboots},
		{"nothing is left after an uninstall", func() { f.uninstalls(before) }},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			outer := f.T
			f.T = t
			defer func() { f.T = outer }()
			step.run()
		}) {
			return
		}
	}
}

func (f *fleet) pastes() (line string) {
	printed := f.cli("join-token", "create")
	match := toPaste.FindStringSubmatch(printed)
	token := joinToken.FindString(printed)
	if match == nil || token == "" {
		f.Fatalf("no line to paste, or no token, in:\n%s", printed)
	}
	line = match[1]
	said, err := f.host.Terminal(f.limited(), line,
		machine.Answer{Prompt: "Install it? [Y/n] "}, machine.Answer{Prompt: "Join token (not shown): ", Type: token})
	if err != nil {
		f.Fatal(err)
	}
	f.Logf("the newcomer reads:\n%s", said)
	if strings.Contains(said, token) {
		f.Error("the token is on the screen")
	}
	if strings.Contains(said, "✗") || !strings.Contains(said, "Nothing is wrong.") {
		f.Error("the newcomer isn't told that nothing is wrong")
	}
	if journal := f.host.Journal(f.Context(), 10000); strings.Contains(journal, token) {
		f.Error("the token is in the journal")
	}
	f.active()
	f.until("the host to be online", f.well())
	return line
}

// active says that both units run and will at the next boot.
func (f *fleet) active() {
	f.Helper()
	for _, verb := range []string{"is-active", "is-enabled"} {
		if out, err := f.host.Exec(f.limited(), append([]string{"systemctl", verb}, units...)...); err != nil {
			f.Errorf("systemctl %s: %v: %s", verb, err, out)
		}
	}
}

// well is a condition: doctor finds nothing.
func (f *fleet) well() func(context.Context) error {
	return func(ctx context.Context) error {
		out, err := f.host.Exec(ctx, "fleetban-agent", "doctor")
		if err != nil || !strings.Contains(out, "Nothing is wrong.") {
			return fmt.Errorf("doctor says: %s: %w", out, err)
		}
		return nil
	}
}

// property is what systemd says of a unit.
func (f *fleet) property(unit, name string) string {
	f.Helper()
	return f.on("systemctl", "show", "--value", "--property="+name, unit)
}

// process is /proc/PID/status of what a unit runs.
func (f *fleet) process(unit string) map[string]string {
	f.Helper()
	fields := map[string]string{}
	for l := range strings.Lines(f.on("cat", "/proc/"+f.property(unit, "MainPID")+"/status")) {
		key, value, _ := strings.Cut(l, ":")
		fields[key] = strings.Join(strings.Fields(value), " ")
	}
	return fields
}

func (f *fleet) sandboxed() {
	uid := f.on("id", "-u", "fleetban")
	if uid == "0" {
		f.Fatal("fleetban is root")
	}
	const none = "0000000000000000"
	run := f.process("fleetban-agent.service")
	for field, want := range map[string]string{
		"Uid": strings.Join([]string{uid, uid, uid, uid}, " "), "CapEff": none, "CapPrm": none, "CapBnd": none, "CapAmb": none,
		"NoNewPrivs": "1", "Seccomp": "2", "Groups": f.on("id", "-g", "fleetban"),
	} {
		if run[field] != want {
			f.Errorf("run has %s %q, want %q", field, run[field], want)
		}
	}
	helper := f.process("fleetban-helper.service")
	for field, want := range map[string]string{
		// CAP_CHOWN, CAP_DAC_READ_SEARCH, CAP_NET_ADMIN, CAP_SYS_PTRACE
		"Uid": "0 0 0 0", "CapEff": "0000000000081005", "CapBnd": "0000000000081005", "NoNewPrivs": "1", "Seccomp": "2",
	} {
		if helper[field] != want {
			f.Errorf("helper has %s %q, want %q", field, helper[field], want)
		}
	}
	// What each sees of the machine: asked with all of root's rights, for the mounts alone must hold.
	for _, unit := range units {
		inside := []string{"nsenter", "--mount", "--target", f.property(unit, "MainPID"), "env", "-C", "/", "sh", "-c"}
		if out, err := f.host.Exec(f.limited(), append(inside, "touch /etc/x /usr/x /var/x /run/x 2>/dev/null; ls /etc/x /usr/x /var/x /run/x 2>/dev/null")...); err == nil {
			f.Errorf("%s can write: %s", unit, out)
		}
		if out, err := f.host.Exec(f.limited(), append(inside, "ls -A /root /home")...); err == nil && strings.Contains(out, "secret") {
			f.Errorf("%s sees people's folders: %s", unit, out)
		}
	}
	f.until("status to tell what is", func(ctx context.Context) error {
		out, err := f.host.Exec(ctx, "fleetban-agent", "status")
		for _, want := range []string{"up to " + url, "seen through its log", "enforcing by nftables", "1 jails, 1 banned"} {
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("it doesn't say %q, but:\n%s", want, out)
			}
		}
		return err
	})
}

// banned is a condition: the host's kernel drops what comes from an address.
func (f *fleet) banned(addr string, want bool) func(context.Context) error {
	return func(ctx context.Context) error {
		out, err := f.host.Exec(ctx, "nft", "list", "table", "inet", "fleetban")
		if err == nil && strings.Contains(out, addr+" timeout") != want {
			err = fmt.Errorf("whether it bans %s isn't %v:\n%s", addr, want, out)
		}
		return err
	}
}

func (f *fleet) attacked() {
	f.cli("ban", "198.51.100.1", "--for", "1h", "--reason", "a person")
	f.until("a person's ban to be in the kernel", f.banned("198.51.100.1", true))
	// A stranger who tries names that there aren't.
	ctx := f.limited()
	err := await.Until(ctx, "fail2ban to ban a stranger", func() error {
		// One that is cut off in the middle would wait for ever.
		attempt, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		_, _ = f.site.Exec(attempt, "ssh", "-b", machine.StrangerAddr, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
			"-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=2", "nobody-here@"+hostAddr, "true")
		return f.says(machine.StrangerAddr, "fail2ban-client", "status", "sshd")(ctx)
	})
	if err != nil {
		f.Fatal(err)
	}
	f.until("the fleet to ban who attacked this host", f.banned(machine.StrangerAddr, true))
	if why := f.cli("explain", machine.StrangerAddr); !strings.Contains(why, "sshd") || !strings.Contains(why, "web") {
		f.Errorf("explain doesn't name the host and its jail:\n%s", why)
	}
	f.cli("unban", machine.StrangerAddr)
	f.until("the unban to be in the kernel", f.banned(machine.StrangerAddr, false))
	f.until("the unban to be in fail2ban", func(ctx context.Context) error {
		if f.says(machine.StrangerAddr, "fail2ban-client", "status", "sshd")(ctx) == nil {
			return errors.New("its sshd jail still bans the address")
		}
		return nil
	})
}

// source is what status says of where events come from.
func (f *fleet) source(ctx context.Context) (source string, delay int, err error) {
	out, err := f.host.Exec(ctx, "fleetban-agent", "status", "-o", "json")
	if err != nil {
		return "", 0, err
	}
	var status struct {
		Helper struct {
			Fail2ban struct {
				Source  string `json:"source"`
				DelayMS int    `json:"delay_ms"`
			} `json:"fail2ban"`
		} `json:"helper"`
	}
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return "", 0, err
	}

	return status.Helper.Fail2ban.Source, status.Helper.Fail2ban.DelayMS, nil
}

func (f *fleet) journalTarget() {
	const settings = "/etc/fail2ban/fail2ban.d/journal.local"
	if err := f.host.WriteFile(settings, "[Definition]\nlogtarget = SYSTEMD-JOURNAL\n"); err != nil {
		f.Fatal(err)
	}
	f.on("systemctl", "restart", "fail2ban")
	f.until("status to say that fail2ban is polled", func(ctx context.Context) error {
		source, delay, err := f.source(ctx)
		if err == nil {
			err = f.says("up 1.", "fleetban-agent", "status")(ctx)
		}
		if err == nil && (!strings.Contains(strings.ToLower(source), "poll") || delay <= 0 || delay > 2000) {
			err = fmt.Errorf("it says %q, %d ms", source, delay)
		}
		return err
	})
	f.Log(regexp.MustCompile(`(?m)^fail2ban .*$`).FindString(f.on("fleetban-agent", "status")))
	f.on("fail2ban-client", "set", "sshd", "banip", "198.51.100.2")
	f.until("the fleet to ban what only the journal tells of", f.banned("198.51.100.2", true))
	if said := f.host.Journal(f.Context(), 200, "fail2ban.service"); !strings.Contains(said, "Ban 198.51.100.2") {
		f.Errorf("fail2ban's log isn't in the journal:\n%s", said)
	}
	f.on("rm", settings)
	f.on("systemctl", "restart", "fail2ban")
	f.until("status to say that the log is read again", func(ctx context.Context) error {
		source, _, err := f.source(ctx)
		if err == nil && !strings.Contains(strings.ToLower(source), "log") {
			err = fmt.Errorf("it says %q", source)
		}
		return err
	})
	f.on("fail2ban-client", "set", "sshd", "banip", "198.51.100.3")
	f.until("the fleet to ban what the log tells of", f.banned("198.51.100.3", true))
}

func (f *fleet) restarted() {
	gone := func(unit, pid string) {
		f.until(unit+" to be started again", func(context.Context) error {
			if now := f.property(unit, "MainPID"); now == pid || now == "0" {
				return errors.New("it hasn't been")
			}
			return nil
		})
	}
	for _, unit := range units {
		pid := f.property(unit, "MainPID")
		f.on("kill", "-KILL", pid)
		gone(unit, pid)
	}
	f.banned("198.51.100.1", true)
	f.until("all to be well", f.well())
	// A half that hangs: systemd misses its word. It is made to lose patience sooner than it would.
	for _, unit := range units {
		if err := f.host.WriteFile("/etc/systemd/system/"+unit+".d/patience.conf", "[Service]\nWatchdogSec=2\n"); err != nil {
			f.Fatal(err)
		}
	}
	f.on("systemctl", "daemon-reload")
	f.on(append([]string{"systemctl", "restart"}, units...)...)
	var pids []string
	for _, unit := range units {
		pids = append(pids, f.property(unit, "MainPID"))
	}
	f.on(append([]string{"kill", "-STOP"}, pids...)...)
	for i, unit := range units {
		gone(unit, pids[i])
		f.until("the journal to say why", func(ctx context.Context) error {
			return f.says("Watchdog timeout", "journalctl", "--unit="+unit)(ctx)
		})
		f.on("rm", "-r", "/etc/systemd/system/"+unit+".d")
	}
	f.on("systemctl", "daemon-reload")
	f.on(append([]string{"systemctl", "restart"}, units...)...)
	f.until("all to be well", f.well())
}

func (f *fleet) pastesAgain(line string) {
	identity, err := f.host.ReadFile("/var/lib/fleetban-agent/identity.json")
	if err != nil {
		f.Fatal(err)
	}
	said := f.on("sh", "-c", line) // nobody to ask, and nothing to be asked
	if !strings.Contains(said, "Nothing is wrong.") {
		f.Errorf("it doesn't say that all is well:\n%s", said)
	}
	if again, err := f.host.ReadFile("/var/lib/fleetban-agent/identity.json"); err != nil || again != identity {
		f.Errorf("the host has another identity: %v", err)
	}
	f.active()
	f.until("the host to be online", f.well())
	if hosts := f.cli("hosts", "-o", "jsonl"); strings.Count(hosts, "\n") != 1 {
		f.Errorf("there is one host, and the fleet has:\n%s", hosts)
	}
}

// beforeNetwork notes what the kernel enforces, and which addresses the machine has, when everything may begin to bring up
// the network.
const beforeNetwork = `[Unit]
DefaultDependencies=no
After=network-pre.target
Before=systemd-networkd.service network.target shutdown.target
Conflicts=shutdown.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'nft list ruleset >/run/before-network.rules; ip -brief address >/run/before-network.addresses'
[Install]
WantedBy=multi-user.target
`

func (f *fleet) reboots() {
	const unit = "/etc/systemd/system/before-network.service"
	if err := f.host.WriteFile(unit, beforeNetwork); err != nil {
		f.Fatal(err)
	}
	f.on("systemctl", "--quiet", "enable", "before-network.service")
	// With nobody to tell it.
	if out, err := f.cp.Exec(f.limited(), "systemctl", "stop", "fleetban-controlplane.service"); err != nil {
		f.Fatalf("%v: %s", err, out)
	}
	if err := f.host.Reboot(f.limited()); err != nil {
		f.Fatal(err)
	}
	rules := f.on("cat", "/run/before-network.rules")
	for _, addr := range []string{"198.51.100.1", "198.51.100.2", "198.51.100.3"} {
		if !strings.Contains(rules, addr+" timeout") {
			f.Errorf("when the network began, %s wasn't banned:\n%s", addr, rules)
		}
	}
	if addresses := f.on("cat", "/run/before-network.addresses"); strings.Contains(addresses, hostAddr) {
		f.Errorf("the network was up already:\n%s", addresses)
	}
	for _, unit := range units {
		if n := f.property(unit, "NRestarts"); n != "0" {
			f.Errorf("%s came up at its %s. retry:\n%s", unit, n, f.host.Journal(f.Context(), 50, unit))
		}
	}
	f.active()
	if out, err := f.cp.Exec(f.limited(), "systemctl", "start", "fleetban-controlplane.service"); err != nil {
		f.Fatalf("%v: %s", err, out)
	}
	f.until("the host to be online by itself", f.well())
	f.cli("ban", "198.51.100.4", "--for", "1h", "--reason", "after the reboot")
	f.until("a new ban to be in the kernel", f.banned("198.51.100.4", true))
	f.on("systemctl", "--quiet", "disable", "before-network.service")
	f.on("rm", unit, "/run/before-network.rules", "/run/before-network.addresses")
	f.on("systemctl", "daemon-reload")
}

// found is what is on the machine that an installer could have changed: files with their modes and sums, users, units,
// processes' names, rules of the firewall, and fail2ban's settings as it has them.
func (f *fleet) found() string {
	f.Helper()
	return f.on("sh", "-c", `
find /etc /opt /root /run /srv /usr/local /var/lib /var/spool -xdev \
	\( -path /run/systemd -o -path /run/udev -o -path /run/user -o -path /run/credentials -o -path /var/lib/systemd -o -path /run/host -o -path /run/log \
	-o -path '/etc/*-' -o -path /etc/.pwd.lock -o -path /usr/local/go -o -path /run/utmp -o -path /run/sshd.pid -o -path /run/dbus -o -path /run/xtables.lock \
	-o -path /etc/.updated -o -path /var/lib/fail2ban \) -prune -o -printf '%M %u %g %p\n' | sort
find /etc -xdev -type f ! -path '/etc/*-' ! -path /etc/.pwd.lock ! -path /etc/.updated | sort | xargs sha256sum
nft list tables | grep -v f2b
fail2ban-client get sshd ignoreip; fail2ban-client get sshd actions; fail2ban-client get sshd bantime; fail2ban-client get logtarget
systemctl list-unit-files --no-legend --no-pager
`)
}

func (f *fleet) uninstalls(before string) {
	f.on("fleetban-agent", "allow", "203.0.113.9", "--for", "1h")
	f.until("fail2ban to ignore who is allowed", f.says("203.0.113.9", "fail2ban-client", "get", "sshd", "ignoreip"))
	said, err := f.host.Terminal(f.limited(), "fleetban-agent uninstall", machine.Answer{Prompt: "Go on? [y/N] ", Type: "y"})
	if err != nil {
		f.Fatal(err)
	}
	f.Logf("uninstall says:\n%s", said)
	if after := f.found(); after != before {
		was, is := strings.Split(before, "\n"), strings.Split(after, "\n")
		f.Errorf("left by us:\n%s\nmissing since:\n%s", strings.Join(without(is, was), "\n"), strings.Join(without(was, is), "\n"))
	}
	for _, list := range []string{"passwd", "group", "shadow", "gshadow"} {
		if text, err := f.host.ReadFile("/etc/" + list); err != nil || strings.Contains(text, "fleetban") {
			f.Errorf("fleetban is in /etc/%s: %v", list, err)
		}
	}
	if processes := f.on("ps", "-e", "-o", "args"); strings.Contains(processes, "fleetban") {
		f.Errorf("something of ours runs:\n%s", processes)
	}
	if out, _ := f.host.Exec(f.limited(), "systemctl", "list-units", "--all", "--no-legend", "fleetban*"); out != "" {
		f.Errorf("systemd still knows:\n%s", out)
	}
	if err := f.says("198.51.100.200", "fail2ban-client", "status", "sshd")(f.limited()); err != nil {
		f.Errorf("fail2ban's own ban from before is gone: %v", err)
	}
}

// without are the lines that others don't have.
func without(lines, others []string) (rest []string) {
	have := map[string]bool{}
	for _, l := range others {
		have[l] = true
	}
	for _, l := range lines {
		if !have[l] {
			rest = append(rest, l)
		}
	}
	return rest
}
