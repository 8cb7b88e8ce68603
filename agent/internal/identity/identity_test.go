package identity_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/agent/internal/identity"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

// enroller answers Enroll, after so many refusals of a replica that goes.
type enroller struct {
	fleetbanv1connect.UnimplementedAgentServiceHandler
	refusals atomic.Int32
	keys     chan [sha256.Size]byte
}

func (e *enroller) Enroll(_ context.Context, req *connect.Request[fleetbanv1.EnrollRequest]) (*connect.Response[fleetbanv1.EnrollResponse], error) {
	if e.refusals.Add(-1) >= 0 {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("going"))
	}
	if req.Msg.GetJoinToken() != "good" {
		return nil, connect.NewError(connect.CodeUnauthenticated, errors.New("the join token is unknown"))
	}
	e.keys <- sha256.Sum256(req.Msg.GetPublicKey())
	return connect.NewResponse(fleetbanv1.EnrollResponse_builder{HostId: "H1", Name: "web-1", OrganisationName: "Acme", Grant: "g", Audience: "a"}.Build()), nil
}

func serve(t *testing.T) (*enroller, *httptest.Server, string) {
	t.Helper()
	e := &enroller{keys: make(chan [sha256.Size]byte, 8)}
	mux := http.NewServeMux()
	mux.Handle(fleetbanv1connect.NewAgentServiceHandler(e))
	s := httptest.NewTLSServer(mux)
	t.Cleanup(s.Close)
	return e, s, identity.PinOf(s.Certificate())
}

// The key is written as others write it, and theirs can be read.
func TestKeyFile(t *testing.T) {
	t.Parallel()
	_, s, pin := serve(t)
	r := identity.Request{Dir: t.TempDir(), URL: s.URL, Pin: pin, Token: "good", Name: "web-1", UID: -1, GID: -1}
	res, err := identity.Enroll(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(r.Dir, "identity.key")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		t.Fatalf("no PEM: %q", b)
	}
	if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err != nil || !res.Identity.Key.Equal(key) {
		t.Errorf("crypto/x509 reads %v, %v", key, err)
	}
	_, other, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(other)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		der  []byte
		good bool
	}{"whole": {der, true}, "cut": {der[:len(der)-1], false}, "longer": {append(der[:len(der):len(der)], 0), false}, "empty": {nil, false}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: c.der}), 0o600); err != nil {
			t.Fatal(err)
		}
		id, err := identity.Load(r.Dir)
		if c.good != (err == nil) || c.good && !id.Key.Equal(other) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEnroll(t *testing.T) {
	t.Parallel()
	e, s, pin := serve(t)
	e.refusals.Store(2) // it is tried again
	r := identity.Request{Dir: filepath.Join(t.TempDir(), "state"), URL: s.URL, Pin: pin, Token: "good", Name: "web-1", UID: -1, GID: -1}
	res, err := identity.Enroll(t.Context(), r)
	if err != nil || res.Already || res.Identity.HostID != "H1" {
		t.Fatalf("%+v, %v", res, err)
	}
	for _, f := range []string{"identity.key", "identity.json"} {
		if fi, err := os.Stat(filepath.Join(r.Dir, f)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, fi, err)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(r.Dir, "identity.json")); strings.Contains(string(b), "good") { //nolint:gosec // a test's
		t.Error("the join token was kept")
	}
	first := <-e.keys
	if res, err := identity.Enroll(t.Context(), r); err != nil || !res.Already {
		t.Errorf("again: %+v, %v", res, err)
	}
	// Interrupted before the answer was saved: the same key asks again, which is the same host.
	_ = os.Remove(filepath.Join(r.Dir, "identity.json"))
	if _, err := identity.Load(r.Dir); !errors.Is(err, identity.ErrNotEnrolled) {
		t.Errorf("Load: %v", err)
	}
	if _, err := identity.Enroll(t.Context(), r); err != nil || <-e.keys != first {
		t.Errorf("the key changed, or %v", err)
	}
	var other *identity.OtherURLError
	elsewhere := r
	elsewhere.URL = "https://elsewhere.example"
	if _, err := identity.Enroll(t.Context(), elsewhere); !errors.As(err, &other) || !strings.Contains(err.Error(), "--force") {
		t.Errorf("elsewhere: %v", err)
	}
	r.Force = true
	if _, err := identity.Enroll(t.Context(), r); err != nil || <-e.keys == first {
		t.Errorf("--force kept the key, or %v", err)
	}
}

func TestOnlyThePinnedKey(t *testing.T) {
	t.Parallel()
	_, s, pin := serve(t)
	try := func(pin string) error {
		_, err := identity.Enroll(t.Context(), identity.Request{Dir: t.TempDir(), URL: s.URL, Pin: pin, Token: "good", Name: "x", UID: -1, GID: -1})
		return err
	}
	if err := try(pin); err != nil {
		t.Error(err)
	}
	if err := try(identity.PinPrefix + "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="); err == nil || !strings.Contains(err.Error(), "not the pinned one") {
		t.Errorf("another key: %v", err)
	}
	if err := try(""); err == nil || !strings.Contains(err.Error(), "--pin") {
		t.Errorf("no pin and an unknown authority: %v", err)
	}
	if err := try("md5//x"); err == nil {
		t.Error("a malformed pin passed")
	}
}

func TestParseURL(t *testing.T) {
	t.Parallel()
	for in, ok := range map[string]bool{
		"https://fleet.example": true, "http://10.0.0.1:8080": true, "https://fleet.example/base/": true,
		"": false, "fleet.example": false, "ftp://x": false, "https://u:p@x": false, "https://x?y": false,
	} {
		if _, err := identity.ParseURL(in); (err == nil) != ok {
			t.Errorf("ParseURL(%q): %v", in, err)
		}
	}
}
