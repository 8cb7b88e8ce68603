package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/await"
	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

func TestAttackIsBanned(t *testing.T) {
	variants := map[string]struct {
		fail2ban lab.Fail2ban
		// shows is a command that prints the ban where the variant's firewall keeps it.
		shows []string
	}{
		"nftables":            {lab.Fail2ban{}, []string{"nft", "list", "ruleset"}},
		"iptables":            {lab.Fail2ban{Action: "iptables"}, []string{"sh", "-c", "iptables-save; ip6tables-save"}},
		"polling-syslog":      {lab.Fail2ban{Backend: "polling", Log: "syslog"}, []string{"nft", "list", "ruleset"}},
		"contained-stdout-tz": {lab.Fail2ban{Contained: true, Log: "stdout", TZ: "Asia/Tokyo"}, []string{"nft", "list", "ruleset"}},
	}
	for name, variant := range variants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := up(t, lab.Options{Name: "att-" + name, Hosts: 1, Fail2ban: map[string]lab.Fail2ban{"a": variant.fail2ban}})
			host := l.Node("a")
			ctx := limited(t, time.Minute)
			for _, from := range []netip.Addr{lab.AttackerAddr, lab.AttackerAddr6} {
				ban, err := l.Attack(ctx, host, from)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%s: banned after %d passwords, %s", from, ban.Attempts, ban.Took)
				banned, err := host.Fail2ban(ctx, "get", "sshd", "banip")
				if err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(banned, from.String()) {
					t.Errorf("fail2ban says that %q is banned, not %s", banned, from)
				}
				err = await.Until(ctx, "the ban in the firewall", func() error {
					rules, err := host.Exec(ctx, variant.shows...)
					if err == nil && !strings.Contains(rules, from.String()) {
						err = fmt.Errorf("%s is not in\n%s", from, rules)
					}
					return err
				})
				if err != nil {
					t.Error(err)
				}
				to := netip.AddrPortFrom(host.Addr, lab.SSHPort)
				if from.Is6() {
					to = netip.AddrPortFrom(host.Addr6, lab.SSHPort)
				}
				if conn, err := l.Node(lab.Attacker).Dial(limited(t, time.Second), "tcp", to.String(), from); err == nil {
					t.Errorf("%s reaches %s though it is banned", from, to)
					_ = conn.Close()
				}
				if out, err := l.Node(lab.Admin).SSH(ctx, lab.AdminAddr, host.Addr, lab.SSHUser, lab.Password, "hostname").Output(); err != nil {
					t.Errorf("the admin can't log in: %v", err)
				} else if strings.TrimSpace(string(out)) != host.Name {
					t.Errorf("the admin is on %q, not on %s", out, host.Name)
				}
			}
		})
	}
}

// The numbers of a dead lab's networks may be another's by now: that one's machines aren't what it left behind.
func TestDeadLabsNetworksAreAnothers(t *testing.T) {
	l := up(t, lab.Options{Name: "alive", Hosts: 1})
	pid := os.Getpid()
	dead := fmt.Sprintf("dead-%d", pid)
	state, err := os.ReadFile(filepath.Join(lab.BaseDir(), fmt.Sprintf("alive-%d", pid), "lab.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(lab.BaseDir(), dead), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(lab.BaseDir(), dead, "lab.json"), state, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := lab.Down(t.Context(), dead); err != nil {
		t.Fatal(err)
	}
	for _, machine := range []string{"a", lab.Attacker, lab.Admin} {
		if _, err := l.Node(machine).Exec(limited(t, 10*time.Second), "true"); err != nil {
			t.Errorf("%s died with a lab that isn't its own: %v", machine, err)
		}
	}
}

func TestHostsReachAsInTheDrawing(t *testing.T) {
	l := up(t, lab.Options{Name: "reach", Hosts: 2, Box: true})
	ctx := limited(t, 30*time.Second)
	attacker := l.Node(lab.Attacker)
	b := l.Node("b")
	for _, to := range []string{
		netip.AddrPortFrom(b.Addr, lab.EchoPort).String(), netip.AddrPortFrom(b.Addr, lab.BoxEchoPort).String(),
		netip.AddrPortFrom(b.Addr6, lab.EchoPort).String(), netip.AddrPortFrom(b.Addr6, lab.BoxEchoPort).String(),
	} {
		from := lab.SourceAddr(7)
		if netip.MustParseAddrPort(to).Addr().Is6() {
			from = lab.SourceAddr6(7)
		}
		conn, err := attacker.Dial(ctx, "tcp", to, from)
		if err != nil {
			t.Fatalf("from %s to %s: %v", from, to, err)
		}
		if err := echo(conn); err != nil {
			t.Errorf("from %s to %s: %v", from, to, err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, path := range []string{"/proc/sys/kernel/random/boot_id", "/etc/machine-id", "/etc/hostname"} {
		seen := map[string]string{"the machine the lab is on": read(t, path)}
		for _, n := range l.Nodes() {
			content := read(t, n.Path(path))
			for other, theirs := range seen {
				if content == theirs {
					t.Errorf("%s and %s have the same %s: %q", n.Name, other, path, content)
				}
			}
			seen[n.Name] = content
		}
	}
}

func echo(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(conn, "ping"); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && line != "ping\n" {
		err = fmt.Errorf("echo of \"ping\" is %q", line)
	}
	return err
}

func TestServiceIsRestartedAsSystemdWould(t *testing.T) {
	l := up(t, lab.Options{Name: "restart", Hosts: 1})
	ctx := limited(t, 30*time.Second)
	host := l.Node("a")
	if err := host.Signal(ctx, lab.ServiceWeb, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	err := await.Until(ctx, "the web server to be started again", func() error {
		state, err := host.Service(ctx, lab.ServiceWeb)
		if err == nil && (state.Starts != 2 || state.PID == 0) {
			err = fmt.Errorf("it is %+v", state)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Stop(ctx, lab.ServiceWeb, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if state, err := host.Service(ctx, lab.ServiceWeb); err != nil || state.PID != 0 || state.LastExit != "killed by killed" {
		t.Errorf("a stopped service is %+v, %v", state, err)
	}
	if err := host.StartAgain(ctx, lab.ServiceWeb); err != nil {
		t.Fatal(err)
	}
	if state, err := host.Service(ctx, lab.ServiceWeb); err != nil || state.PID == 0 {
		t.Errorf("a service that was started again is %+v, %v", state, err)
	}
}

// surroundings is what a lab must leave as it was: links, rules and mounts of this network and mount namespace, processes
// and files of labs.
func surroundings(t *testing.T, ours string) string {
	t.Helper()
	var b strings.Builder
	for _, argv := range [][]string{{"ip", "-br", "link"}, {"ip", "route"}, {"ip", "netns"}} {
		out, err := exec.Command(argv[0], argv[1:]...).Output()
		if err != nil {
			t.Fatalf("%v: %v", argv, err)
		}
		b.Write(out)
	}
	var lines []string
	for _, line := range strings.Split(read(t, "/proc/self/mountinfo"), "\n") {
		if strings.Contains(line, ours) {
			lines = append(lines, "mount "+line)
		}
	}
	paths, err := filepath.Glob(filepath.Join(lab.BaseDir(), ours+"*"))
	if err != nil {
		t.Fatal(err)
	}
	lines = append(lines, paths...)
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range commands {
		if content, err := os.ReadFile(path); err == nil && strings.Contains(string(content), filepath.Join(lab.BaseDir(), ours)) {
			lines = append(lines, strings.ReplaceAll(string(content), "\x00", " "))
		}
	}
	sort.Strings(lines)
	return b.String() + strings.Join(lines, "\n")
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// alone runs the test again in network and mount namespaces where nobody else changes anything, and tells whether it does.
func alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv("LAB_TEST_ALONE") != "" {
		return true
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// What other tests name there comes and goes.
	const hide = `mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && exec "$@"`
	cmd := exec.CommandContext(t.Context(), "unshare", "--net", "--mount", "--", "sh", "-c", hide, "sh", self, "-test.v", "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), "LAB_TEST_ALONE=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
	return false
}

func TestDownLeavesNothing(t *testing.T) {
	if !alone(t) {
		return
	}
	ctx := limited(t, time.Minute)
	const prefix = "down-"
	name := fmt.Sprintf("%s%d", prefix, os.Getpid())
	before := surroundings(t, name)
	l, err := lab.Up(ctx, lab.Options{Name: name, Hosts: 2, Box: true})
	if err != nil {
		t.Fatal(err)
	}
	if during := surroundings(t, name); during == before {
		t.Fatal("the surroundings don't show a lab that is up")
	}
	if _, err := lab.Up(ctx, lab.Options{Name: name, Hosts: 1}); !errors.Is(err, lab.ErrUp) {
		t.Errorf("a second lab of that name: %v, want ErrUp", err)
	}
	pids := inNamespaces(t, l)
	if len(pids) < 10 {
		t.Fatalf("only %d processes are in the lab's networks", len(pids))
	}
	// A crash: some machines die, with what ran on them, and the lab is not told.
	for _, n := range []string{"a", lab.ControlPlane} {
		if err := syscall.Kill(l.Node(n).PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	// Someone from outside is still in a network of it.
	stranger := exec.CommandContext(ctx, "nsenter", "-t", fmt.Sprint(l.Node("b").PID), "-n", "--", "sleep", "600")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	strangerEnded := make(chan error, 1)
	go func() { strangerEnded <- stranger.Wait() }()
	for range 2 { // it can be repeated
		if err := l.Down(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-strangerEnded:
	case <-ctx.Done():
		t.Error("a process from outside is still in the lab's network")
	}
	if after := surroundings(t, name); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); err == nil {
			t.Errorf("process %d of the lab is still there: %s", pid, read(t, fmt.Sprintf("/proc/%d/status", pid)))
		}
	}
}

// inNamespaces lists the processes in the lab's networks.
func inNamespaces(t *testing.T, l *lab.Lab) (pids []int) {
	t.Helper()
	networks := map[string]bool{}
	for _, n := range l.Nodes() {
		network, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", n.PID))
		if err != nil {
			t.Fatal(err)
		}
		networks[network] = true
	}
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		var pid int
		if _, err := fmt.Sscanf(link, "/proc/%d/ns/net", &pid); err != nil {
			t.Fatal(err)
		}
		if network, err := os.Readlink(link); err == nil && networks[network] {
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestLeasedLabEndsWithItsMaker(t *testing.T) {
	if name := os.Getenv("LAB_TO_BE_ABANDONED"); name != "" {
		if _, err := lab.Up(t.Context(), lab.Options{Name: name, Hosts: 1, Leased: true}); err != nil {
			t.Fatal(err)
		}
		fmt.Println("up")
		<-t.Context().Done() // never: this process is killed
	}
	name := fmt.Sprintf("leased-%d", os.Getpid())
	ctx := limited(t, time.Minute)
	maker := exec.CommandContext(ctx, "/proc/self/exe", "-test.run", "^TestLeasedLabEndsWithItsMaker$")
	maker.Env = append(os.Environ(), "LAB_TO_BE_ABANDONED="+name)
	out, err := maker.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := maker.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		t.Fatalf("the maker says %q, %v", line, err)
	}
	if err := maker.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = maker.Wait() // it was killed
	err = await.Until(ctx, "the abandoned lab's machines to end", func() error {
		labs, err := lab.List()
		for _, l := range labs {
			if l.Name == name && len(l.Machines) > 0 {
				return fmt.Errorf("still there: %v", l.Machines)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	// Its folder is what the next lab of that name clears away.
	l, err := lab.Up(ctx, lab.Options{Name: name, Hosts: 1, Leased: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Down(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}

func TestUpThatFailsLeavesNothing(t *testing.T) {
	if !alone(t) {
		return
	}
	name := fmt.Sprintf("failing-%d", os.Getpid())
	before := surroundings(t, name)
	// Its time ends while it is being made.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := lab.Up(ctx, lab.Options{Name: name, Hosts: 2})
	if !errors.Is(err, context.DeadlineExceeded) && err == nil {
		t.Fatal("a lab came up in a third of a second: shorten the test's limit")
	}
	if after := surroundings(t, name); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}
