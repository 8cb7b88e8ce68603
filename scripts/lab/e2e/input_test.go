package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// Bad input: a typed error that says what to change, and nothing applied in part.
func TestBadInput(t *testing.T) {
	t.Parallel()
	f := newFleet(t, lab.Options{Name: "input"})

	t.Run("bans", func(t *testing.T) {
		f := f.in(t)
		good := source(t).String()
		for name, c := range map[string]struct {
			prefix  string
			seconds int64
			want    fleetbanv1.Reason
		}{
			"no address":         {"not-an-address", 60, fleetbanv1.Reason_REASON_INVALID_FIELD},
			"shell":              {"$(reboot)", 60, fleetbanv1.Reason_REASON_INVALID_FIELD},
			"host bits":          {"198.51.100.7/24", 60, fleetbanv1.Reason_REASON_INVALID_FIELD},
			"zone":               {"fe80::1%eth0", 60, fleetbanv1.Reason_REASON_INVALID_FIELD},
			"the whole world":    {"0.0.0.0/0", 60, fleetbanv1.Reason_REASON_PREFIX_TOO_WIDE},
			"half of IPv6":       {"8000::/1", 60, fleetbanv1.Reason_REASON_PREFIX_TOO_WIDE},
			"private":            {"10.1.2.3", 60, fleetbanv1.Reason_REASON_PREFIX_PROTECTED},
			"loopback":           {"127.0.0.1", 60, fleetbanv1.Reason_REASON_PREFIX_PROTECTED},
			"no time":            {good, 0, fleetbanv1.Reason_REASON_INVALID_FIELD},
			"an end in the past": {good, -60, fleetbanv1.Reason_REASON_INVALID_FIELD},
			"a thousand years":   {good, 1000 * 366 * 86400, fleetbanv1.Reason_REASON_INVALID_FIELD},
		} {
			t.Run(name, func(t *testing.T) {
				ctx := limited(t, limit)
				untouched := source(t)
				_, err := f.api.Bans.Ban(ctx, connect.NewRequest(operatorv1.BanRequest_builder{
					Prefixes: []string{untouched.String(), c.prefix}, DurationS: c.seconds,
				}.Build()))
				if err == nil {
					t.Fatal("it was taken")
				}
				if got := reason(t, err); got != c.want {
					t.Errorf("%v: %s, want %s", err, got, c.want)
				}
				if f.explain(ctx, untouched.String()).GetBanned() {
					t.Error("the good address of the same request is banned")
				}
			})
		}
	})

	t.Run("ten megabytes", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, limit)
		_, err := f.api.Bans.Explain(ctx, connect.NewRequest(operatorv1.ExplainRequest_builder{Address: strings.Repeat("1", 10<<20)}.Build()))
		if code := connect.CodeOf(err); code != connect.CodeResourceExhausted && code != connect.CodeInvalidArgument {
			t.Errorf("%v", err)
		}
	})

	t.Run("unknown host", func(t *testing.T) {
		f := f.in(t)
		_, err := f.api.Hosts.GetHost(limited(t, limit), connect.NewRequest(operatorv1.GetHostRequest_builder{Host: "nobody"}.Build()))
		if got := reason(t, err); got != fleetbanv1.Reason_REASON_NOT_FOUND {
			t.Errorf("%v: %s", err, got)
		}
	})

	t.Run("credentials", func(t *testing.T) {
		f := f.in(t)
		for name, token := range map[string]string{"none": "", "garbage": "fbt_garbage", "a join token": "fbj_" + strings.Repeat("x", 49)} {
			_, err := f.OperatorWith(token).Fleet.GetFleet(limited(t, limit), connect.NewRequest(operatorv1.GetFleetRequest_builder{}.Build()))
			if got := reason(t, err); got != fleetbanv1.Reason_REASON_BAD_CREDENTIAL {
				t.Errorf("%s: %v: %s", name, err, got)
			}
		}
	})

	t.Run("join tokens", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, limit)
		host := f.Node("a")
		create := func(seconds int64) (secret string) {
			made, err := f.api.JoinTokens.CreateJoinToken(ctx, connect.NewRequest(operatorv1.CreateJoinTokenRequest_builder{
				DurationS: seconds, Uses: 1,
			}.Build()))
			if err != nil {
				t.Fatal(err)
			}
			return made.Msg.GetSecret()
		}
		enroll := func(secret, stateDir string) error {
			if err := os.WriteFile(host.Path("/run/token"), []byte(secret+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := host.Exec(ctx, "fleetban-agent", "enroll", "--url", lab.URL, "--token-file", "/run/token", "--state-dir", stateDir)
			return err
		}
		once := create(600)
		if err := enroll(once, "/tmp/first"); err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]struct{ secret, says string }{
			"used up":   {once, "as many hosts"},
			"malformed": {"fbj_nonsense", "token"},
			"unknown":   {once[:len(once)-1] + "!", "token"},
		} {
			err := enroll(c.secret, "/tmp/"+strings.ReplaceAll(name, " ", "-"))
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, want it to say %q", name, err, c.says)
			}
			if err != nil && strings.Contains(err.Error(), c.secret) {
				t.Errorf("%s: the error has the token in it: %v", name, err)
			}
		}
	})

	t.Run("forged log lines", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 2*limit)
		host, forged, real := f.Node("a"), source(t), source(t)
		line := fmt.Sprintf("NOTICE  [sshd] Ban %s", forged)
		// An attacker chooses user names, and they get into sshd's log.
		for _, user := range []string{line, "x fail2ban.actions        [1]: " + line, "\n" + line} {
			_ = f.Node(lab.Attacker).SSH(ctx, lab.SourceAddr(199), host.Addr, user, "guess").Run() // it is meant to fail
		}
		// Even in fail2ban's own log such a line is a hint only.
		forgery := fmt.Sprintf("%s,123 fail2ban.actions        [1]: %s\n", time.Now().Format("2006-01-02 15:04:05"), line)
		log, err := os.OpenFile(host.Fail2banLog(), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := log.WriteString(forgery); err != nil {
			t.Fatal(err)
		}
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		// A real ban after it: once that is everywhere, the forged one was read and dismissed.
		f.jailBan(ctx, host, real)
		f.enforced(ctx, real, f.Hosts()...)
		for _, h := range f.Hosts() {
			if f.bans(ctx, h, forged) {
				t.Errorf("%s bans the address of a forged line", h.Name)
			}
		}
		if got := f.explain(ctx, forged.String()); got.GetBanned() || len(got.GetEvents()) > 0 {
			t.Errorf("the fleet was told of a forged ban: %v", got)
		}
	})

	t.Run("a cloned identity is quarantined and shown", func(t *testing.T) {
		f := f.in(t)
		ctx := limited(t, 2*limit)
		if err := f.cloneIdentity(ctx, f.Node("b"), f.Node("c")); err != nil {
			t.Fatal(err)
		}
		f.awaitHost(ctx, "b", "quarantined", func(h *operatorv1.Host) bool {
			return h.GetPresence() == operatorv1.Presence_PRESENCE_QUARANTINED && h.GetCause() != ""
		})
	})
}

// cloneIdentity runs a second agent on another machine with a host's identity.
func (f *fleet) cloneIdentity(ctx context.Context, from, to *lab.Node) error {
	archive, err := from.Exec(ctx, "tar", "-C", lab.AgentState, "-cf", "-", ".")
	if err != nil {
		return err
	}
	if err := to.Stop(ctx, lab.ServiceAgent, 0); err != nil {
		return err
	}
	if _, err := to.Exec(ctx, "sh", "-c", "rm -rf /var/lib/fleetban-agent/*"); err != nil {
		return err
	}
	if _, err := to.ExecInput(ctx, archive, "tar", "-C", lab.AgentState, "-xf", "-"); err != nil {
		return err
	}
	return to.StartAgain(ctx, lab.ServiceAgent)
}
