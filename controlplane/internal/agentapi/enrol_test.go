package agentapi_test

import (
	"crypto/ed25519"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/hostauth"
)

func TestEnrol(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one, two := f.replica("one"), f.replica("two")
	public, private, _ := ed25519.GenerateKey(nil)
	other, _, _ := ed25519.GenerateKey(nil)
	enrol := func(r *replica, token string, key []byte) (*fleetbanv1.EnrollResponse, error) {
		res, err := client(t, r.url).Enroll(t.Context(), connect.NewRequest(fleetbanv1.EnrollRequest_builder{
			JoinToken: token, PublicKey: key, Name: "web", Facts: fleetbanv1.HostFacts_builder{Hostname: "web.example"}.Build(),
		}.Build()))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	token := f.joinToken(orgs.NewJoinToken{Tags: map[string]string{"role": "web"}})
	first, err := enrol(one, token, public)
	if err != nil {
		t.Fatal(err)
	}
	if first.GetOrganisationName() != "test" || first.GetMode() != fleetbanv1.Mode_MODE_ENFORCE || first.GetAudience() != f.keys.Audience() {
		t.Errorf("%v", first)
	}
	// The answer was lost; the token has no use left, and the other replica is asked.
	again, err := enrol(two, token, public)
	if err != nil || again.GetHostId() != first.GetHostId() || again.GetName() != first.GetName() {
		t.Errorf("a repeated enrolment: %v, %v", again, err)
	}
	grant, err := hostauth.VerifyGrant(again.GetGrant(), f.keys.GrantPublicKey(), f.keys.Audience())
	if err != nil || grant.HostID != first.GetHostId() || grant.OrganisationID != f.org || grant.Tags["role"] != "web" || !grant.PublicKey.Equal(private.Public()) {
		t.Errorf("grant %+v, %v", grant, err)
	}
	_, err = enrol(two, token, other)
	wantReason(t, err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_JOIN_TOKEN_USED_UP)
	_, err = enrol(one, token[:len(token)-2], other)
	wantReason(t, err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_JOIN_TOKEN_UNKNOWN)
	if strings.Contains(err.Error(), token[4:20]) {
		t.Errorf("the error shows the token: %v", err)
	}
	_, err = enrol(one, token, []byte("short"))
	wantReason(t, err, connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD)
	// As a token looks when its time is over.
	late := f.joinToken(orgs.NewJoinToken{Life: time.Minute})
	where, err := one.store.Client().Keys(t.Context(), store.Key(f.org, "join", "*")).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range where {
		if strings.HasPrefix(late, key[strings.LastIndex(key, ":")+1:]) {
			one.store.Client().HSet(t.Context(), key, "expires", "1")
		}
	}
	_, err = enrol(one, late, other)
	wantReason(t, err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_JOIN_TOKEN_EXPIRED)

	f.server.Kill()
	_, err = enrol(one, token, other)
	if connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("with Redis away: %v", err)
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one, two := f.replica("one"), f.replica("two")
	h := one.enrol("web", nil)
	sign := func(key ed25519.PrivateKey, id, audience string, at time.Time) string {
		t.Helper()
		a, err := hostauth.Sign(key, id, audience, at)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	good := sign(h.key, h.id, h.audience, time.Now())
	s, err := h.dialWith(one, good, fleetbanv1.Hello_builder{})
	if err != nil {
		t.Fatal(err)
	}
	if s.welcome.GetHostId() != h.id || s.welcome.GetHostName() != "web" || s.welcome.GetReplica() != "one" || len(s.welcome.GetSets()) != 3 || s.welcome.GetHeartbeatMs() > 25_000 {
		t.Errorf("%v", s.welcome)
	}
	_, otherKey, _ := ed25519.GenerateKey(nil)
	for name, tc := range map[string]struct {
		assertion string
		reason    fleetbanv1.Reason
	}{
		"replayed on the other replica": {good, fleetbanv1.Reason_REASON_ASSERTION_REPLAYED},
		"clock an hour off":             {sign(h.key, h.id, h.audience, time.Now().Add(-time.Hour)), fleetbanv1.Reason_REASON_CLOCK_SKEW},
		"another key":                   {sign(otherKey, h.id, h.audience, time.Now()), fleetbanv1.Reason_REASON_WRONG_KEY},
		"another fleet":                 {sign(h.key, h.id, "fleetban:other", time.Now()), fleetbanv1.Reason_REASON_BAD_CREDENTIAL},
		"another host":                  {sign(h.key, "01J", h.audience, time.Now()), fleetbanv1.Reason_REASON_BAD_CREDENTIAL},
		"nonsense":                      {"a.b.c", fleetbanv1.Reason_REASON_BAD_CREDENTIAL},
	} {
		_, err := h.dialWith(two, tc.assertion, fleetbanv1.Hello_builder{})
		t.Log(name, err)
		wantReason(t, err, connect.CodeUnauthenticated, tc.reason)
	}
	_, err = h.dial(two, fleetbanv1.Hello_builder{Protocol: 2})
	wantReason(t, err, connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_PROTOCOL_UNSUPPORTED)
	forged, err := hostauth.SignGrant(otherKey, h.audience, hostauth.Grant{HostID: h.id, OrganisationID: f.org, PublicKey: h.key.Public().(ed25519.PublicKey)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = (&host{f: f, key: h.key, id: h.id, grant: forged, audience: h.audience}).dial(two, fleetbanv1.Hello_builder{})
	wantReason(t, err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL)
}
