package server_test

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/server"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
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
	pin, token := p.Pin(), setupIn(t, config.Backend)
	join, err := operatorv1connect.NewJoinTokenServiceClient(httpClient(t, pin), base, bearer(token)).
		CreateJoinToken(t.Context(), connect.NewRequest(&operatorv1.CreateJoinTokenRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	a := enrol(t, base, pin, join.Msg.GetSecret(), "a")
	a.source.ban("sshd", "203.0.113.9")
	testwait.For(t, "a holds its own ban", func() bool { return a.sink.holds("all", "203.0.113.9") })
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
	testwait.For(t, "it waits, ready for the hosts", func() bool { _, r := ready(t, p); return r.Ready && hasNote(r, "not-set-up") })
	if shown := p.notices.String(); !strings.Contains(shown, "lost its data") || strings.Contains(shown, "fbt_") || !strings.Contains(p.log.String(), "hosts bring it back") {
		t.Fatalf("it shows %q", shown)
	}
	lb.send(p.addr())
	testwait.For(t, "the organisation is back", func() bool { _, r := ready(t, p); return r.Ready && len(r.Notes) == 0 })

	var out bytes.Buffer
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	// The control plane runs, and its Redis with it.
	if err := server.CreateToken(t.Context(), server.TokenOptions{Backend: config.Backend, Organisation: before.Msg.GetOrganisationId(), Name: "again"}, logger, &out); err != nil {
		t.Fatal(err)
	}
	fleet := operatorv1connect.NewFleetServiceClient(httpClient(t, pin), base, bearer(apiToken.FindString(out.String())))
	testwait.For(t, "the ban is back", func() bool {
		after, err := fleet.GetFleet(t.Context(), connect.NewRequest(&operatorv1.GetFleetRequest{}))
		return err == nil && after.Msg.GetOrganisationId() == before.Msg.GetOrganisationId() && after.Msg.GetBans() == 1 && after.Msg.GetHostsOnline() == 1
	})
}

// A link that was shown is good for whichever process serves next, and another start shows another one.
func TestFirstStartAgain(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	config := server.Config{Backend: server.Backend{RedisURL: redis.URL(), DataDir: t.TempDir()}}
	var links []string
	for range 2 {
		p := serve(t, config)
		p.awaitReady(t)
		testwait.For(t, "it shows a link", func() bool { return setupLink.MatchString(p.notices.String()) })
		if strings.Contains(p.notices.String(), "lost its data") {
			t.Errorf("a first start shows %s", p.notices)
		}
		links = append(links, setupLink.FindString(p.notices.String()))
		p.stop()
		<-p.done
	}
	p := serve(t, config)
	testwait.For(t, "it waits", func() bool { _, r := ready(t, p); return r.Ready && hasNote(r, "not-set-up") })
	for _, old := range links {
		if _, err := useLink(t, p, old, ownerEmail); apierr.ReasonOf(err) != fleetbanv1.Reason_REASON_BAD_CREDENTIAL {
			t.Errorf("a link that was replaced: %v", err)
		}
	}
	if _, err := useLink(t, p, setupLink.FindString(p.notices.String()), ownerEmail); err != nil {
		t.Fatal(err)
	}
	testwait.For(t, "it has seen the organisation", func() bool { _, r := ready(t, p); return r.Ready && len(r.Notes) == 0 })
	p.stop()
	<-p.done
	redis.Empty()
	p = serve(t, config)
	testwait.For(t, "it waits", func() bool { _, r := ready(t, p); return r.Ready && hasNote(r, "not-set-up") })
	if !strings.Contains(p.notices.String(), "lost its data") {
		t.Errorf("after a loss it shows %s", p.notices)
	}
	// A person decides to begin anew, without the link.
	if token := setupIn(t, config.Backend); token == "" {
		t.Error("set-up printed no token")
	}
	testwait.For(t, "it has seen the new one", func() bool { _, r := ready(t, p); return r.Ready && len(r.Notes) == 0 })
}
