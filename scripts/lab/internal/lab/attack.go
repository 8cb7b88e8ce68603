package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/await"
)

// sshOptions make ssh ask for a password once, remember nothing and give up soon: a login cut in mid-handshake would else
// wait out minutes.
var sshOptions = []string{
	"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "NumberOfPasswordPrompts=1",
	"-o", "PreferredAuthentications=password", "-o", "ConnectTimeout=2", "-o", "ConnectionAttempts=1",
	"-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=3",
}

// SSH prepares an SSH login from this machine, from one of its addresses, to another one with a password. Without a command
// it logs in only.
func (n *Node) SSH(ctx context.Context, from, to netip.Addr, user, password string, command ...string) *exec.Cmd {
	argv := append([]string{"ssh"}, sshOptions...)
	argv = append(argv, "-b", from.String(), "-l", user, to.String())
	if len(command) == 0 {
		command = []string{"true"}
	}
	cmd := n.Command(ctx, append(argv, command...)...)
	cmd.Env = append(cmd.Env, "SSH_ASKPASS="+askpassPath, "SSH_ASKPASS_REQUIRE=force", "LAB_PASSWORD="+password)
	return cmd
}

// Ban is one ban of a host's fail2ban.
type Ban struct {
	Addr netip.Addr
	// Attempts is how many passwords were tried, Took how long from the first to the line in fail2ban's log.
	Attempts int
	Took     time.Duration
	// Line is what fail2ban logged, and At the time that stands in it, to the millisecond.
	Line string
	At   time.Time
}

// timeOf reads the time of a line of the host's fail2ban; a line without one has the time of now.
func (n *Node) timeOf(line string) time.Time {
	const layout = "2006-01-02 15:04:05,000"
	zone := time.Local
	if n.fail2ban.TZ != "" {
		if z, err := time.LoadLocation(n.fail2ban.TZ); err == nil {
			zone = z
		}
	}
	if len(line) < len(layout) {
		return time.Now()
	}
	at, err := time.ParseInLocation(layout, line[:len(layout)], zone)
	if err != nil {
		return time.Now()
	}
	return at
}

// maxAttempts is far more than any jail of the lab allows.
const maxAttempts = 25

// Attack tries wrong SSH passwords on a host, from one address of the attacker, until the host's fail2ban bans it.
func (l *Lab) Attack(ctx context.Context, host *Node, from netip.Addr) (Ban, error) {
	to := host.Addr
	if from.Is6() {
		to = host.Addr6
	}
	log, err := host.followFail2ban()
	if err != nil {
		return Ban{}, err
	}
	defer log.close()
	begin := time.Now()
	banned := make(chan Ban, 1)
	watching, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		pattern := regexp.MustCompile(`\[sshd\] Ban ` + regexp.QuoteMeta(from.String()) + `\s`)
		line, err := log.await(watching, pattern)
		if err == nil {
			banned <- Ban{Addr: from, Took: time.Since(begin), Line: line, At: host.timeOf(line)}
		}
		stop()
	}()
	attempts := 0
	for ; attempts < maxAttempts && watching.Err() == nil; attempts++ {
		_ = l.Node(Attacker).SSH(watching, from, to, SSHUser, fmt.Sprintf("guess-%d", attempts)).Run() // it is meant to fail
	}
	// The last line may be in the log before its ban is.
	err = await.Within(ctx, 10*time.Second, fmt.Sprintf("fail2ban on %s to ban %s", host.Name, from), func() error {
		if watching.Err() == nil {
			return fmt.Errorf("not banned after %d attempts", attempts)
		}
		return nil
	})
	select {
	case ban := <-banned:
		ban.Attempts = attempts
		return ban, nil
	default:
		return Ban{}, errors.Join(err, ctx.Err(), host.explain(errors.New("fail2ban's output"), ServiceFail2ban))
	}
}

// AwaitFail2ban waits until fail2ban has started its sshd jail. It must have been started just before.
func (n *Node) AwaitFail2ban(ctx context.Context) error {
	err := await.Until(ctx, "fail2ban's sshd jail on "+n.Name, func() error {
		content, err := os.ReadFile(n.Path(n.fail2ban.LogPath()))
		if err != nil {
			return err
		}
		if !strings.Contains(string(content), "Jail 'sshd' started") {
			return fmt.Errorf("its log %s doesn't say that the jail has started", n.fail2ban.LogPath())
		}
		return nil
	})
	return n.explain(err, ServiceFail2ban)
}

// Fail2ban asks the host's fail2ban through its own client.
func (n *Node) Fail2ban(ctx context.Context, args ...string) (string, error) {
	return n.Exec(ctx, append([]string{"fail2ban-client"}, args...)...)
}

// Fail2banLog is where the host's fail2ban logs, seen from outside.
func (n *Node) Fail2banLog() string { return n.Path(n.fail2ban.LogPath()) }

// follower reads what is added to a log.
type follower struct {
	file *os.File
	rest string
}

func (n *Node) followFail2ban() (*follower, error) {
	f, err := os.Open(n.Fail2banLog())
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, 2); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &follower{file: f}, nil
}

func (f *follower) close() { _ = f.file.Close() }

func (f *follower) await(ctx context.Context, pattern *regexp.Regexp) (line string, err error) {
	buf := make([]byte, 64<<10)
	err = await.Until(ctx, "a line like "+pattern.String(), func() error {
		for {
			n, err := f.file.Read(buf)
			f.rest += string(buf[:n])
			for {
				text, rest, ok := strings.Cut(f.rest, "\n")
				if !ok {
					break
				}
				f.rest = rest
				if pattern.MatchString(text + "\n") {
					line = text
					return nil
				}
			}
			if err != nil || n == 0 {
				return errors.New("not in the log yet")
			}
		}
	})
	return line, err
}
