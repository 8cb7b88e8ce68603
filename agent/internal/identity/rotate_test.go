package identity_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/agent/internal/identity"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
	"github.com/fleetban/fleetban/proto/wire/hostauth"
)

// swapper answers as the control plane does: it verifies what a host presents and proves, by the same code, and keeps which
// key is the host's.
type swapper struct {
	fleetbanv1connect.UnimplementedAgentServiceHandler
	t        *testing.T
	grantKey ed25519.PrivateKey

	mu            sync.Mutex
	key, former   ed25519.PublicKey
	seen          map[string]bool
	lose, refuse  int // answers that are lost after the swap; calls that never arrive
	swaps         int
	clock         time.Duration
	formerAtEnrol ed25519.PublicKey
}

const fleetAudience = "fleetban:test"

func (s *swapper) grant(key ed25519.PublicKey) string {
	g, err := hostauth.SignGrant(s.grantKey, fleetAudience, hostauth.Grant{HostID: "H1", OrganisationID: "O1", Name: "web", PublicKey: key, IssuedAt: time.Now()})
	if err != nil {
		s.t.Error(err)
	}
	return g
}

func (s *swapper) Enroll(_ context.Context, req *connect.Request[fleetbanv1.EnrollRequest]) (*connect.Response[fleetbanv1.EnrollResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key = req.Msg.GetPublicKey()
	s.formerAtEnrol = nil
	if hostauth.Verify(req.Msg.GetFormerKey(), hostauth.Reenrolment(fleetAudience, req.Msg.GetFormerKey(), s.key), req.Msg.GetFormerProof()) {
		s.formerAtEnrol = req.Msg.GetFormerKey()
	}
	return connect.NewResponse(fleetbanv1.EnrollResponse_builder{HostId: "H1", Name: "web", OrganisationName: "Acme", Grant: s.grant(s.key), Audience: fleetAudience}.Build()), nil
}

func refuse(code connect.Code, info *fleetbanv1.ErrorInfo) error {
	e := connect.NewError(code, errors.New(info.GetReason().String()))
	if d, err := connect.NewErrorDetail(info); err == nil {
		e.AddDetail(d)
	}
	return e
}

func (s *swapper) RotateKey(_ context.Context, req *connect.Request[fleetbanv1.RotateKeyRequest]) (*connect.Response[fleetbanv1.RotateKeyResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse > 0 {
		s.refuse--
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("going"))
	}
	now := time.Now().Add(s.clock)
	grant, err := hostauth.VerifyGrant(req.Header().Get(hostauth.GrantHeader), s.grantKey.Public().(ed25519.PublicKey), fleetAudience)
	if err != nil {
		return nil, err
	}
	a, err := hostauth.VerifyAssertion(strings.TrimPrefix(req.Header().Get("Authorization"), "Bearer "), grant.PublicKey, "H1", fleetAudience, now)
	if errors.Is(err, hostauth.ErrTime) {
		return nil, refuse(connect.CodeUnauthenticated, fleetbanv1.ErrorInfo_builder{Reason: fleetbanv1.Reason_REASON_CLOCK_SKEW, ServerUnixMs: now.UnixMilli()}.Build())
	}
	if err != nil || s.seen[a.ID] {
		return nil, refuse(connect.CodeUnauthenticated, fleetbanv1.ErrorInfo_builder{Reason: fleetbanv1.Reason_REASON_ASSERTION_REPLAYED}.Build())
	}
	s.seen[a.ID] = true
	next := ed25519.PublicKey(req.Msg.GetPublicKey())
	if !hostauth.Verify(next, hostauth.Rotation(fleetAudience, "H1", grant.PublicKey, next), req.Msg.GetProof()) {
		return nil, refuse(connect.CodeInvalidArgument, fleetbanv1.ErrorInfo_builder{Reason: fleetbanv1.Reason_REASON_INVALID_FIELD}.Build())
	}
	switch {
	case s.key.Equal(grant.PublicKey):
		s.former, s.key = s.key, next
		s.swaps++
	case s.key.Equal(next) && s.former.Equal(grant.PublicKey):
	default:
		return nil, refuse(connect.CodeUnauthenticated, fleetbanv1.ErrorInfo_builder{Reason: fleetbanv1.Reason_REASON_WRONG_KEY}.Build())
	}
	if s.lose > 0 {
		s.lose--
		return nil, connect.NewError(connect.CodeAborted, errors.New("the answer is lost"))
	}
	return connect.NewResponse(fleetbanv1.RotateKeyResponse_builder{Grant: s.grant(next)}.Build()), nil
}

// good reports whether an identity would be let in.
func (s *swapper) good(id *identity.Identity) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	grant, err := hostauth.VerifyGrant(id.Grant, s.grantKey.Public().(ed25519.PublicKey), fleetAudience)
	return err == nil && grant.PublicKey.Equal(s.key) && id.Key.Public().(ed25519.PublicKey).Equal(s.key)
}

func enrolled(t *testing.T) (*swapper, string, identity.Request) {
	t.Helper()
	_, grantKey, _ := ed25519.GenerateKey(nil)
	s := &swapper{t: t, grantKey: grantKey, seen: map[string]bool{}}
	mux := http.NewServeMux()
	mux.Handle(fleetbanv1connect.NewAgentServiceHandler(s))
	server := httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	dir := t.TempDir()
	r := identity.Request{Dir: dir, URL: server.URL, Pin: identity.PinOf(server.Certificate()), Token: "good", Name: "web", UID: -1, GID: -1}
	if _, err := identity.Enroll(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	return s, dir, r
}

func files(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for _, name := range []string{"identity.key", "identity.key.next", "identity.json"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		out[name] = b
	}
	return out
}

func restore(t *testing.T, dir string, state map[string][]byte) {
	t.Helper()
	for name, b := range state {
		path := filepath.Join(dir, name)
		var err error
		if b == nil {
			if err = os.Remove(path); errors.Is(err, os.ErrNotExist) {
				err = nil
			}
		} else {
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestRotate(t *testing.T) {
	t.Parallel()
	s, dir, r := enrolled(t)
	before, err := identity.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	s.refuse, s.clock = 1, time.Hour // a replica that goes, and a host whose clock is off
	now, err := identity.Rotate(t.Context(), dir, -1, -1)
	if err != nil || !s.good(now) || s.good(before) {
		t.Fatalf("%v, good now: %v, before: %v", err, s.good(now), s.good(before))
	}
	loaded, err := identity.Load(dir)
	if err != nil || !s.good(loaded) || files(t, dir)["identity.key.next"] != nil {
		t.Errorf("on disk: %v", err)
	}
	// Enrolled anew by force, it proves which host it was.
	r.Force = true
	again, err := identity.Enroll(t.Context(), r)
	if err != nil || !s.good(again.Identity) || !s.formerAtEnrol.Equal(now.Key.Public()) {
		t.Errorf("%v; it proved %x", err, s.formerAtEnrol)
	}
}

// Killed between any two of its steps, the host is let in by what it finds on its disk.
func TestRotateKilled(t *testing.T) {
	t.Parallel()
	s, dir, _ := enrolled(t)
	start := files(t, dir)
	s.lose = 1
	if _, err := identity.Rotate(t.Context(), dir, -1, -1); err == nil {
		t.Fatal("the answer was lost, and that is no error")
	}
	lost := files(t, dir)
	if lost["identity.key.next"] == nil || !bytes.Equal(lost["identity.key"], start["identity.key"]) {
		t.Fatal("the next key isn't on disk before the control plane has it")
	}
	settle := func(what string, reach bool) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if !reach {
			cancel()
		}
		id, err := identity.Settle(ctx, dir)
		if err != nil || s.good(id) != reach {
			t.Errorf("%s: %v, good: %v", what, err, err == nil && s.good(id))
		}
	}
	settle("swapped, the control plane away", false)
	settle("swapped, the answer lost", true)
	done := files(t, dir)
	if done["identity.key.next"] != nil || !bytes.Equal(done["identity.key"], lost["identity.key.next"]) || s.swaps != 1 {
		t.Errorf("settled after %d swaps", s.swaps)
	}
	restore(t, dir, map[string][]byte{"identity.json": done["identity.json"], "identity.key": start["identity.key"], "identity.key.next": lost["identity.key.next"]})
	settle("saved, not renamed", true)
	settle("once more", true)
	// Before the swap: the next key is on disk, and the present one is good.
	next := files(t, dir)
	s.refuse = 100
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := identity.Rotate(ctx, dir, -1, -1); err == nil {
		t.Fatal("refused, and that is no error")
	}
	if id, err := identity.Load(dir); err != nil || !s.good(id) || files(t, dir)["identity.key.next"] == nil || !bytes.Equal(files(t, dir)["identity.key"], next["identity.key"]) {
		t.Errorf("before the swap: %v", err)
	}
	s.mu.Lock()
	s.refuse = 0
	s.mu.Unlock()
	settle("and then", true)
	if s.swaps != 2 {
		t.Errorf("%d swaps", s.swaps)
	}
}

// Several at once, the agent and a person, change it as often as they are, one after the other.
func TestRotateAtOnce(t *testing.T) {
	t.Parallel()
	s, dir, _ := enrolled(t)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, err := identity.Rotate(t.Context(), dir, -1, -1); err != nil {
				t.Error(err)
			}
			if id, err := identity.Settle(t.Context(), dir); err != nil || id == nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if id, err := identity.Load(dir); err != nil || !s.good(id) || s.swaps != 4 {
		t.Errorf("%v, %d swaps", err, s.swaps)
	}
}
