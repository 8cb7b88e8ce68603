package server_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/server"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
)

func hasNote(r server.Report, code string) bool { return len(r.Notes) == 1 && r.Notes[0].Code == code }

// Redis lost everything while nobody looked, the secret stands: no second organisation is made, the hosts bring theirs
// back, and a person gets in again.
func TestTotalLossMakesNoSecondOrganisation(t *testing.T) {
	t.Parallel()
	dir, lb := t.TempDir(), newBalancer(t)
	base := "https://" + lb.l.Addr().String()
	config := server.Config{Backend: server.Backend{DataDir: dir, PublicURL: base}}
	p := serve(t, config)
	p.awaitReady(t)
	lb.send(p.addr())
	pin, token := p.Pin(), apiToken.FindString(p.notices.String())
	join, err := operatorv1connect.NewJoinTokenServiceClient(httpClient(t, pin), base, bearer(token)).
		CreateJoinToken(t.Context(), connect.NewRequest(&operatorv1.CreateJoinTokenRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	a := enrol(t, base, pin, join.Msg.GetSecret(), "a")
	a.source.ban("sshd", "203.0.113.9")
	until(t, "a holds its own ban", func() bool { return a.sink.holds("all", "203.0.113.9") })
	before, err := operatorv1connect.NewFleetServiceClient(httpClient(t, pin), base, bearer(token)).GetFleet(t.Context(), connect.NewRequest(&operatorv1.GetFleetRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	lb.send("127.0.0.1:1") // the agent finds nobody until the test has looked
	p.stop()
	<-p.done
	if err := os.RemoveAll(filepath.Join(dir, "redis")); err != nil {
		t.Fatal(err)
	}

	p = serve(t, config)
	until(t, "it waits, ready for the hosts", func() bool { _, r := ready(t, p); return r.Ready && hasNote(r, "no-organisation") })
	if shown := p.notices.String(); shown != "" || !strings.Contains(p.log.String(), "fleetban-controlplane setup") {
		t.Fatalf("it shows %q", shown)
	}
	lb.send(p.addr())
	until(t, "the organisation is back", func() bool { _, r := ready(t, p); return r.Ready && len(r.Notes) == 0 })

	var out bytes.Buffer
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	// The control plane runs, and its Redis with it.
	if err := server.CreateToken(t.Context(), server.TokenOptions{Backend: config.Backend, Organisation: before.Msg.GetOrganisationId(), Name: "again"}, logger, &out); err != nil {
		t.Fatal(err)
	}
	fleet := operatorv1connect.NewFleetServiceClient(httpClient(t, pin), base, bearer(apiToken.FindString(out.String())))
	until(t, "the ban is back", func() bool {
		after, err := fleet.GetFleet(t.Context(), connect.NewRequest(&operatorv1.GetFleetRequest{}))
		return err == nil && after.Msg.GetOrganisationId() == before.Msg.GetOrganisationId() && after.Msg.GetBans() == 1 && after.Msg.GetHostsOnline() == 1
	})
}

// A first start that died after it had made the secret is completed by the next.
func TestFirstStartIsCompleted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	nowhere := server.Backend{RedisURL: "unix://" + filepath.Join(dir, "none"), DataDir: dir}
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	if err := server.Setup(t.Context(), server.SetupOptions{Backend: nowhere, Organisation: "test", Mode: "watch"}, logger, nil, &bytes.Buffer{}); err == nil {
		t.Fatal("set up without Redis")
	}
	redis := redistest.Start(t)
	config := server.Config{Backend: server.Backend{RedisURL: redis.URL(), DataDir: dir}}
	p := serve(t, config)
	p.awaitReady(t)
	if !apiToken.MatchString(p.notices.String()) {
		t.Fatalf("the first start shows %q", p.notices)
	}
	p.stop()
	<-p.done
	redis.Empty()
	p = serve(t, config)
	until(t, "it waits", func() bool { _, r := ready(t, p); return r.Ready && hasNote(r, "no-organisation") })
	// A person decides to begin anew.
	if token := setupIn(t, config.Backend); token == "" {
		t.Error("set-up printed no token")
	}
	until(t, "it has seen the new one", func() bool { _, r := ready(t, p); return r.Ready && len(r.Notes) == 0 })
}

// A shared secret is no sign of a first start.
func TestSharedSecretNeedsSetup(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	p := serve(t, server.Config{Backend: server.Backend{RedisURL: redis.URL(), SecretFile: secretFile(t, 1)}})
	until(t, "it waits", func() bool { _, r := ready(t, p); return r.Ready && hasNote(r, "no-organisation") })
	if p.notices.String() != "" {
		t.Errorf("it shows %q", p.notices)
	}
}
