// Package systemd tests what runs under systemd, on booted machines: the units, the installer's line as a newcomer pastes
// it, reboots, the journal, and what is left after an uninstall.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/await"
	"github.com/fleetban/fleetban/scripts/lab/internal/machine"
)

const (
	repository = "../../.."
	// limit is for one step: anything that takes this long is broken, on however busy a machine.
	limit = 60 * time.Second

	controlPlaneAddr = "192.0.2.10"
	hostAddr         = "192.0.2.21"
	url              = "https://" + controlPlaneAddr + ":8443"
)

// fleet is a control plane on a machine of its own, installed by its unit, and a host with Debian's fail2ban.
type fleet struct {
	*testing.T
	site     *machine.Site
	cp, host *machine.Machine
	env      []string // of the operator
}

// limited is a context that ends in time for the test to say what it waited for.
func (f *fleet) limited() context.Context {
	ctx, cancel := context.WithTimeout(f.Context(), limit)
	f.Cleanup(cancel)
	return ctx
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{T: t}
	ctx := f.limited()
	bin := os.Getenv("FLEETBAN_BIN")
	if bin == "" {
		bin = filepath.Join(repository, "bin")
	}
	unit, err := os.ReadFile(filepath.Join(repository, "infra/systemd/fleetban-controlplane.service"))
	if err != nil {
		t.Fatal(err)
	}
	site, err := machine.New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	f.site = site
	t.Cleanup(func() {
		if t.Failed() {
			for _, m := range []*machine.Machine{f.cp, f.host} {
				if m != nil {
					t.Logf("%s's console:\n%s\nthe end of its journal:\n%s", m.Name, m.Console(), m.Journal(context.WithoutCancel(t.Context()), 60))
				}
			}
		}
		if err := site.Close(); err != nil {
			t.Error(err)
		}
	})
	var wg sync.WaitGroup
	var errs [2]error
	boot := func(i int, m **machine.Machine, options machine.Options) {
		wg.Go(func() {
			if *m, errs[i] = site.Boot(ctx, options); errs[i] == nil {
				errs[i] = (*m).AwaitUp(ctx, "")
			}
		})
	}
	boot(0, &f.cp, machine.Options{
		Name: "control", Addr: netip.MustParseAddr(controlPlaneAddr),
		Programs: map[string]string{"fleetban": filepath.Join(bin, "fleetban"), "fleetban-controlplane": filepath.Join(bin, "fleetban-controlplane")},
		Files: map[string]string{
			"/etc/systemd/system/fleetban-controlplane.service": string(unit),
			"/etc/fleetban/controlplane.env":                    "FLEETBAN_PUBLIC_URL=" + url + "\n",
		},
		Enable: []string{"fleetban-controlplane.service"},
	})
	boot(1, &f.host, machine.Options{
		Name: "web", Addr: netip.MustParseAddr(hostAddr),
		Files: map[string]string{
			// Debian's sshd logs to the journal.
			"/etc/fail2ban/jail.d/journal.local": "[sshd]\nbackend = systemd\n",
			// Units that may write nowhere can't write there either, but for a quirk of systemd in a container.
			"/etc/systemd/system/fleetban-.service.d/run.conf": "[Service]\nReadOnlyPaths=/run\n",
			"/root/secret": "",
		},
		Enable: []string{"fail2ban.service", "ssh.service"},
	})
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	return f
}

var (
	setupLink = regexp.MustCompile(`https://\S+/setup#fbs_[0-9A-Za-z_.-]+`)
	joinToken = regexp.MustCompile(`\bfbj_[0-9A-Za-z]+\b`)
	toPaste   = regexp.MustCompile(`(?m)^\s*(curl .*install\.sh.*\| *(?:sudo )?sh.*)$`)
)

// logIn sets the control plane up with the link that it printed at its first start, as the operator would.
func (f *fleet) logIn() {
	f.Helper()
	ctx := f.limited()
	var link string
	err := await.Until(ctx, "the control plane to print a set-up link", func() error {
		if link = setupLink.FindString(f.cp.Journal(ctx, 1000, "fleetban-controlplane.service")); link == "" {
			return errors.New("there is no set-up link in its journal")
		}
		return nil
	})
	if err != nil {
		f.Fatal(err)
	}
	f.env = []string{"HOME=/root"}
	const line = `printf '%s\n' plinth-verandah-oxbow | fleetban setup "$1" --email ada@example.com --password-stdin`
	if out, err := f.cp.ExecEnv(ctx, f.env, "sh", "-c", line, "sh", link); err != nil {
		f.Fatalf("%v\n%s", err, out)
	}
}

// cli runs the operator's program on the control plane's machine.
func (f *fleet) cli(args ...string) string {
	f.Helper()
	out, err := f.cp.ExecEnv(f.limited(), f.env, append([]string{"fleetban"}, args...)...)
	if err != nil {
		f.Fatalf("%v\n%s", err, out)
	}
	return out
}

// on runs a program on the host and fails the test if that does.
func (f *fleet) on(args ...string) string {
	f.Helper()
	out, err := f.host.Exec(f.limited(), args...)
	if err != nil {
		f.Fatalf("%v\n%s", err, out)
	}
	return strings.TrimSpace(out)
}

// until waits for something on the host.
func (f *fleet) until(what string, cond func(ctx context.Context) error) {
	f.Helper()
	// The last look isn't cut off, so that it says what was missing.
	ctx, begin := f.limited(), time.Now()
	defer func() { f.Logf("%s took %s", what, time.Since(begin).Round(time.Millisecond)) }()
	if err := await.Within(ctx, limit/2, what, func() error { return cond(ctx) }); err != nil {
		f.Fatal(err)
	}
}

// says is a condition: a program of the host prints this.
func (f *fleet) says(want string, args ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		out, err := f.host.Exec(ctx, args...)
		if err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("%s doesn't say %q, but:\n%s", strings.Join(args, " "), want, out)
		}
		return err
	}
}
