package cli_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/fleetban/fleetban/controlplane/internal/operatorapi/apitest"
)

// What a link says of the control plane is taken from it: the URL, and the key to pin. Nobody is asked for a password
// before the link is whole.
func TestSetup(t *testing.T) {
	cp := apitest.Start(t)
	ada := someone(t, cp)
	delete(ada.env, "FLEETBAN_URL")
	delete(ada.env, "FLEETBAN_PIN")
	pin, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(cp.Pin, "sha256//"))
	if err != nil {
		t.Fatal(err)
	}
	link := func(url, fragment string) string { return url + "/setup#" + fragment }
	whole := "fbs_" + strings.Repeat("A", 43) + "." + base64.RawURLEncoding.EncodeToString(pin)
	for what, args := range map[string][]string{
		"nothing":     {"setup", "--email", adaEmail, "--password-stdin"},
		"no secret":   {"setup", link(cp.URL, ""), "--email", adaEmail, "--password-stdin"},
		"a torn pin":  {"setup", link(cp.URL, whole[:len(whole)-1]), "--email", adaEmail, "--password-stdin"},
		"another one": {"setup", cp.URL + "/invitation#fbi_x", "--email", adaEmail, "--password-stdin"},
		"no scheme":   {"setup", link("fleet.example.com", whole), "--email", adaEmail, "--password-stdin"},
		"no address":  {"setup", link(cp.URL, whole), "--password-stdin"},
		"no terminal": {"setup", link(cp.URL, whole), "--email", adaEmail},
	} {
		if code, _, errs := ada.run(t.Context(), args...); code != 2 {
			t.Errorf("%s: %d %s", what, code, errs)
		}
	}
	// The pin leads to the control plane, which was set up before.
	_, errs := ada.types(adaPassword+"\n", 1, "setup", link(cp.URL, whole), "--email", adaEmail, "--password-stdin")
	if !strings.Contains(errs, "set up before") {
		t.Error(errs)
	}
	pin[0] ^= 1
	wrong := whole[:48] + base64.RawURLEncoding.EncodeToString(pin)
	if _, errs = ada.types(adaPassword+"\n", 5, "setup", link(cp.URL, wrong), "--email", adaEmail, "--password-stdin"); !strings.Contains(errs, "pin") {
		t.Error(errs)
	}
}
