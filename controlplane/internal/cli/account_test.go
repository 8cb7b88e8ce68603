package cli_test

import (
	"encoding/json"
	"io"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/totp"

	"github.com/fleetban/fleetban/controlplane/internal/cli"
	"github.com/fleetban/fleetban/controlplane/internal/operatorapi/apitest"
)

// enrols runs account totp enable like somebody with a phone: who types what it shows once it is told the secret.
func (p *person) enrols(at time.Time) (secret string, recovery []string) {
	p.t.Helper()
	shown, typed := &screen{asked: make(chan string, 1)}, make(chan string, 1)
	var out strings.Builder
	code := make(chan int, 1)
	go func() {
		code <- cli.Run(p.t.Context(), []string{"account", "totp", "enable", "-o", "json"}, &cli.Env{
			Stdin: keyboard(typed), Stdout: &out, Stderr: shown, Now: time.Now, Getenv: func(name string) string { return p.env[name] },
		})
	}()
	var text string
	select {
	case text = <-shown.asked:
	case n := <-code:
		p.t.Fatalf("it ended with %d: %s", n, shown.text.String())
	}
	for _, word := range strings.Fields(text) {
		if u, err := url.Parse(word); err == nil && u.Scheme == "otpauth" {
			secret = u.Query().Get("secret")
		}
	}
	now, err := totp.GenerateCode(secret, at)
	if err != nil {
		p.t.Fatal(err)
	}
	typed <- now + "\n"
	close(typed)
	if n := <-code; n != 0 {
		p.t.Fatalf("exit code %d: %s", n, shown.text.String())
	}
	var answer struct {
		RecoveryCodes []string `json:"recoveryCodes"`
	}
	if err := json.Unmarshal([]byte(out.String()), &answer); err != nil || len(answer.RecoveryCodes) != 10 {
		p.t.Fatalf("%q: %v", out.String(), err)
	}
	return secret, answer.RecoveryCodes
}

// screen says when a code is asked for.
type screen struct {
	text  strings.Builder
	asked chan string
}

func (s *screen) Write(b []byte) (int, error) {
	s.text.Write(b)
	if strings.Contains(string(b), "otpauth://") {
		s.asked <- s.text.String()
	}
	return len(b), nil
}

// keyboard is what is typed, when it is.
func keyboard(typed chan string) io.Reader {
	r, w := io.Pipe()
	go func() {
		for text := range typed {
			_, _ = io.WriteString(w, text)
		}
		_ = w.Close()
	}()
	return r
}

func TestAccount(t *testing.T) {
	cp := apitest.Start(t)
	if _, err := cp.People.FirstOwner(t.Context(), cp.Org.ID, adaEmail, adaPassword); err != nil {
		t.Fatal(err)
	}
	ada := someone(t, cp)
	ada.types(adaPassword+"\n", 0, "login", "--email", adaEmail, "--password-stdin")
	ada.has(0, "no", "account")
	ada.has(1, "no second factor yourself", "members", "second-factor", "required")
	at := time.Now()
	secret, recovery := ada.enrols(at)
	ada.has(0, "10", "account", "factors")
	ada.has(0, "required now", "members", "second-factor", "required")
	ada.has(0, "is required", "members", "second-factor")
	// A code on the next line, in the environment, or none.
	if _, errs := ada.types(adaPassword+"\n", 2, "login", "--email", adaEmail, "--password-stdin"); !strings.Contains(errs, "--code-stdin") {
		t.Errorf("without a code: %q", errs)
	}
	ada.types(adaPassword+"\n000000\n", 5, "login", "--email", adaEmail, "--password-stdin", "--code-stdin")
	// Of the time step after the one that enabled it, or of now if that is later still.
	if at = at.Add(30 * time.Second); at.Before(time.Now()) {
		at = time.Now()
	}
	next, err := totp.GenerateCode(secret, at)
	if err != nil {
		t.Fatal(err)
	}
	ada.types(adaPassword+"\n"+next+"\n", 0, "login", "--email", adaEmail, "--password-stdin", "--code-stdin")
	ada.types(adaPassword+"\n"+next+"\n", 5, "login", "--email", adaEmail, "--password-stdin", "--code-stdin")
	ada.env["FLEETBAN_CODE"] = recovery[0]
	ada.types(adaPassword+"\n", 0, "login", "--email", adaEmail, "--password-stdin")
	ada.types(adaPassword+"\n", 5, "login", "--email", adaEmail, "--password-stdin")
	delete(ada.env, "FLEETBAN_CODE")
	ada.has(0, adaEmail, "whoami")
	raw, err := os.ReadFile(ada.configFile())
	if err != nil || !strings.Contains(string(raw), "fbd_") || strings.Contains(string(raw), recovery[0]) {
		t.Errorf("%s, %v", raw, err)
	}
	ada.has(0, "Recovery codes", "account", "recovery-codes")
	ada.types(recovery[1]+"\n", 5, "account", "totp", "disable", "--code-stdin")
	ada.has(0, "NAME", "account", "passkeys")
	ada.want(4, "account", "passkeys", "delete", "01ARZ3NDEKTSV4RRFFQ69G5FAV")
	ada.has(1, "sends no mail", "account", "email", "change", "lovelace@example.com")
	ada.has(1, "sends no mail", "password", "reset", "--email", adaEmail)
	ada.types(cp.URL+"/reset#fbp_nonsense\n"+newPassword+"\n", 5, "password", "reset", "--link-stdin")
	ada.types(cp.URL+"/email#fbe_nonsense\n", 5, "account", "email", "confirm", "--link-stdin")
	ada.types("nonsense\n", 2, "account", "email", "confirm", "--link-stdin")
	ada.has(0, "No code", "account", "totp", "disable")
	// The organisation asks for one: without, a session is good for nothing else.
	ada.types(adaPassword+"\n", 0, "login", "--email", adaEmail, "--password-stdin")
	ada.want(5, "status")
	ada.enrols(time.Now())
	ada.outdate()
	ada.has(0, "Acme", "status")
}
