package cli_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/fleetban/fleetban/controlplane/internal/operatorapi/apitest"
)

const (
	adaEmail    = "ada@example.com"
	adaPassword = "plinth-verandah-oxbow"
	newPassword = "gasket.tundra.mulberry"
)

// someone is a person at a computer of their own, without any credential.
func someone(t *testing.T, cp *apitest.ControlPlane) *person {
	t.Helper()
	return &person{t: t, env: map[string]string{"FLEETBAN_URL": cp.URL, "FLEETBAN_PIN": cp.Pin, "HOME": t.TempDir()}}
}

func (p *person) types(stdin string, code int, args ...string) (stdout, stderr string) {
	p.t.Helper()
	p.stdin = stdin
	defer func() { p.stdin = "" }()
	return p.want(code, args...)
}

func (p *person) configFile() string {
	return filepath.Join(p.env["HOME"], ".config", "fleetban", "config.json")
}

// outdate makes the access token one that is to be renewed.
func (p *person) outdate() {
	p.t.Helper()
	raw, err := os.ReadFile(p.configFile())
	if err != nil {
		p.t.Fatal(err)
	}
	var cfg map[string]any
	if err := json.Unmarshal(raw, &cfg); err != nil {
		p.t.Fatal(err)
	}
	cfg["session"].(map[string]any)["until"] = 0
	if raw, err = json.Marshal(cfg); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(p.configFile(), raw, 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *person) has(code int, want string, args ...string) {
	p.t.Helper()
	if out, errs := p.want(code, args...); !strings.Contains(out+errs, want) {
		p.t.Errorf("fleetban %s says %q, not %q", strings.Join(args, " "), out+errs, want)
	}
}

// Neither of these is parallel: hashing passwords would take the processor from tests that measure time.

// A person's way: in, someone else invited, changed, removed, out.
func TestPeople(t *testing.T) {
	cp := apitest.Start(t)
	if _, err := cp.People.FirstOwner(t.Context(), cp.Org.ID, adaEmail, adaPassword); err != nil {
		t.Fatal(err)
	}
	ada, bob := someone(t, cp), someone(t, cp)
	ada.has(5, "nobody is signed in", "whoami")
	ada.types(newPassword+"\n", 5, "login", "--email", adaEmail, "--password-stdin")
	ada.types(adaPassword+"\n", 0, "login", "--email", "ADA@example.com", "--password-stdin")
	info, err := os.Stat(ada.configFile())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	if raw, _ := os.ReadFile(ada.configFile()); strings.Contains(string(raw), adaPassword) {
		t.Error("the password is kept")
	}
	ada.has(0, adaEmail+", owner of Acme (", "whoami")
	ada.has(0, "You have no API token. Make one: fleetban tokens create NAME", "tokens")
	ada.has(2, "see fleetban members --help", "members", "role", "x@example.com", "chief")
	ada.has(2, "see fleetban accept --help", "accept", "x")
	ada.has(0, "this one\n", "sessions")
	ada.has(0, "They join with: fleetban accept --pin "+cp.Pin+"\n", "members", "invite", "carol@example.com", "--role", "viewer")
	out, _ := ada.want(0, "members", "invite", "bob@example.com", "--role", "admin", "-o", "json")
	var invited struct{ Link string }
	if err := json.Unmarshal([]byte(out), &invited); err != nil || !strings.HasPrefix(invited.Link, cp.URL+"/invitation#fbi_") {
		t.Fatal(out, err)
	}
	bob.types(invited.Link+"\npassword1234\n", 2, "accept", "--password-stdin")
	if out, _ := bob.types(invited.Link+"\n"+newPassword+"\n", 0, "accept", "--password-stdin"); !strings.Contains(out, "fleetban login --url "+cp.URL+" --pin "+cp.Pin+" --email bob@example.com") {
		t.Errorf("who has joined is told %q", out)
	}
	bob.types(invited.Link+"\n"+newPassword+"\n", 5, "accept", "--password-stdin")
	bob.types(newPassword+"\n", 0, "login", "--email", "bob@example.com", "--password-stdin")
	bob.has(0, "bob@example.com", "members")
	bob.has(5, "only owners", "members", "role", adaEmail, "viewer")
	// A role that changed: the next command gets a new token by itself, and may less.
	ada.has(0, "viewer now", "members", "role", "bob@example.com", "viewer")
	bob.has(5, "lacks members_write", "members", "invite", "x@example.com", "--role", "viewer")
	bob.has(0, "viewer", "whoami")
	ada.has(1, "last owner", "members", "remove", adaEmail)
	ada.types(adaPassword+"\n"+adaPassword+"x\n", 0, "password", "--password-stdin")
	ada.want(0, "members", "remove", "bob@example.com")
	bob.want(5, "whoami")
	ada.want(0, "logout")
	ada.has(5, "nobody is signed in", "members")
	// A program has no account.
	at(t, cp).has(0, "API token of Acme", "whoami")
	at(t, cp).want(2, "logout")
}

// Many commands at once, all of whose access token is about to end: one renews it, and all go on.
func TestCommandsAtOnceRefreshOnce(t *testing.T) {
	cp := apitest.Start(t)
	if _, err := cp.People.FirstOwner(t.Context(), cp.Org.ID, adaEmail, adaPassword); err != nil {
		t.Fatal(err)
	}
	ada := someone(t, cp)
	ada.types(adaPassword+"\n", 0, "login", "--email", adaEmail, "--password-stdin")
	for range 3 {
		ada.outdate()
		var all sync.WaitGroup
		for range 6 {
			all.Go(func() {
				if code, out, errs := ada.run(context.Background(), "whoami"); code != 0 {
					t.Errorf("%d %s%s", code, out, errs)
				}
			})
		}
		all.Wait()
	}
	ada.has(0, "owner", "whoami")
}
