package server_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/metrics/metricstest"
	"github.com/fleetban/fleetban/controlplane/internal/server"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// What a stranger may ask costs the same work and says the same, whether there is such an account or not, at each of two replicas.
// What takes the time is hashing a password, so that is counted: unlike a clock it doesn't depend on what else the machine does.
func TestSignInCostsTheSame(t *testing.T) {
	t.Parallel()
	h := &house{t: t, backend: server.Backend{RedisURL: redistest.Start(t).URL(), SecretFile: secretFile(t, secretFill)}}
	if out, err := setupOwner(t, h.backend, ownerEmail, ownerPassword); err != nil {
		t.Fatal(out, err)
	}
	for range 2 {
		p := serve(t, server.Config{Backend: h.backend, TLSOff: true, TrustedProxies: []string{"127.0.0.0/8"}, MetricsListen: "127.0.0.1:0"})
		testwait.For(t, "the replica is ready", func() bool {
			code, _ := get(t, http.DefaultClient, "http://"+p.addr()+"/readyz")
			return code == http.StatusOK
		})
		h.replicas = append(h.replicas, p)
	}
	hashed := func(i int) float64 {
		t.Helper()
		return metricstest.Get(t, h.replicas[i].MetricsAddr().String())["fleetban_password_hashes_total"]
	}
	owner := h.signIn(0, ownerEmail, ownerPassword).GetTokens().GetAccessToken()
	h.join(owner, "bob@example.com", operatorv1.Role_ROLE_VIEWER)
	secret, at, _ := h.enrol(h.signIn(0, "bob@example.com", ownerPassword).GetTokens().GetAccessToken())
	h.join(owner, "eve@example.com", operatorv1.Role_ROLE_VIEWER)
	if _, err := h.members(0, owner).RemoveMember(t.Context(), connect.NewRequest(operatorv1.RemoveMemberRequest_builder{Member: "eve@example.com"}.Build())); err != nil {
		t.Fatal(err)
	}
	// said is what a caller is told of an error, all of it.
	said := func(err error) string {
		info := apierr.Info(err)
		return fmt.Sprint(err, info.GetFix(), info.GetField(), info.GetReason())
	}
	signIn := func(i int, email string) error {
		_, err := h.sessions(i, "").SignIn(t.Context(), connect.NewRequest(operatorv1.SignInRequest_builder{Email: email, Password: nextPassword}.Build()))
		return err
	}
	for i := range h.replicas {
		first := ""
		for _, c := range []struct {
			what, email string
		}{
			{"nobody's address", "nobody@example.com"},
			{"an owner's, with a wrong password", ownerEmail},
			{"one with a second factor", "bob@example.com"},
			{"one of no organisation", "eve@example.com"},
			{"another domain", "ada@example.org"},
		} {
			before := hashed(i)
			err := signIn(i, c.email)
			if cost := hashed(i) - before; cost != 1 {
				t.Errorf("replica %d: %s costs %v hashes", i, c.what, cost)
			}
			if !refused(err) {
				t.Errorf("replica %d: %s: %v", i, c.what, err)
			}
			if first == "" {
				first = said(err)
			} else if got := said(err); got != first {
				t.Errorf("replica %d: %s is told\n%s\nand nobody's address\n%s", i, c.what, got, first)
			}
		}
		// Who knows the password and not the second factor: a code that was good, one that never was and a recovery code are one to them.
		answers := map[string]bool{}
		for _, code := range []string{codeOf(t, secret, at), codeOf(t, secret, at.Add(-time.Hour)), "aaaaa-bbbbb"} {
			asked, before := h.challenge(1-i, "bob@example.com", ownerPassword), hashed(i)
			_, err := h.complete(i, asked, code)
			if !refused(err) || hashed(i) != before {
				t.Errorf("replica %d: %q after a challenge: %v, %v hashes", i, code, err, hashed(i)-before)
			}
			answers[said(err)] = true
		}
		if len(answers) != 1 {
			t.Errorf("replica %d: wrong second factors are told apart: %v", i, answers)
		}
	}
}
