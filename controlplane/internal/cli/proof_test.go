package cli_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/fleetban/fleetban/controlplane/internal/operatorapi/apitest"
)

// What a person is told where they do something that asks for a proof, and about tokens, roles and sessions: in words that say
// what to do.
func TestPeoplesCommands(t *testing.T) {
	cp := apitest.Start(t)
	if _, err := cp.People.FirstOwner(t.Context(), cp.Org.ID, adaEmail, adaPassword); err != nil {
		t.Fatal(err)
	}
	ada, bob := someone(t, cp), someone(t, cp)
	ada.types(adaPassword+"\n", 0, "login", "--email", adaEmail, "--password-stdin")
	ada.types(newPassword+"\n", 5, "prove", "--password-stdin")
	if out, _ := ada.types(adaPassword+"\n", 0, "prove", "--password-stdin"); !strings.Contains(out, "Proved, for ten minutes.") {
		t.Error(out)
	}
	at(t, cp).has(2, "you are not signed in as a person", "prove")
	ada.has(2, "--fresh is for sign-ins with an identity provider", "login", "--fresh", "--email", adaEmail)

	// A restriction stays until somebody says that it ends.
	out, _ := ada.want(0, "members", "invite", "bob@example.com", "--role", "operator", "--tag", "team=web", "-o", "json")
	var invited struct{ Link string }
	if err := json.Unmarshal([]byte(out), &invited); err != nil {
		t.Fatal(out, err)
	}
	bob.types(invited.Link+"\n"+newPassword+"\n", 0, "accept", "--password-stdin")
	ada.has(0, "bob@example.com is viewer now", "members", "role", "bob@example.com", "viewer")
	ada.has(0, "team=web", "members")
	ada.has(1, "--whole-fleet", "members", "role", "bob@example.com", "admin")
	ada.has(2, "whole_fleet", "members", "role", "bob@example.com", "viewer", "--tag", "team=db", "--whole-fleet")
	ada.has(0, "of the whole fleet now", "members", "role", "bob@example.com", "viewer", "--whole-fleet")
	if out, _ := ada.want(0, "members"); strings.Contains(out, "team=web") {
		t.Error(out)
	}

	// Tokens: made, shown once, listed, revoked.
	bob.types(newPassword+"\n", 0, "login", "--email", "bob@example.com", "--password-stdin")
	out, _ = bob.want(0, "tokens", "create", "laptop", "--role", "viewer", "-o", "json")
	var token struct {
		Secret string
		Token  struct{ ID string }
	}
	if err := json.Unmarshal([]byte(out), &token); err != nil || !strings.HasPrefix(token.Secret, "fbp_") {
		t.Fatal(out, err)
	}
	if out, _ = bob.want(0, "tokens"); !strings.Contains(out, "laptop") || strings.Contains(out, token.Secret) {
		t.Error(out)
	}
	bob.want(0, "tokens", "revoke", token.Token.ID)
	bob.has(4, "no such API token", "tokens", "revoke", token.Token.ID)
	bob.has(0, "this one", "sessions")
	bob.has(2, "name a session", "sessions", "revoke")
	bob.has(4, "no such session", "sessions", "revoke", "01ARZ3NDEKTSV4RRFFQ69G5FAV")
	bob.has(5, "lacks", "audit", "verify")
	ada.want(0, "audit", "verify")
}
