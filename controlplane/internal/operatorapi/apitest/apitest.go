// Package apitest runs the operator API for tests: real Redis, real domain packages, real interceptors, TLS. Hosts are
// played at the level of package hosts: they enrol, attach, and acknowledge what they are given.
package apitest

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/approvals"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/factors"
	"github.com/fleetban/fleetban/controlplane/internal/feed"
	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/installer"
	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/leases"
	"github.com/fleetban/fleetban/controlplane/internal/operatorapi"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/sessions"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/setup"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// ControlPlane is one replica with one organisation and its administrator.
type ControlPlane struct {
	t testing.TB

	Redis *redistest.Server
	Store *store.Store
	Sets  *sets.Sets
	Hosts *hosts.Hosts
	Orgs  *orgs.Orgs
	Audit *audit.Log
	// People are the organisation's, who may sign in.
	People *people.People

	Org   orgs.Organisation
	Token string // the administrator's
	URL   string
	Pin   string
	// HTTP trusts the server's certificate.
	HTTP *http.Client
	// Drain makes streams end as before a replica goes.
	Drain func()
}

// Start starts one and ends it with the test.
func Start(t testing.TB) *ControlPlane {
	t.Helper()
	ctx := context.Background()
	cp := &ControlPlane{t: t, Redis: redistest.Start(t)}
	cp.Store = cp.Redis.Open()
	logger := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	cp.Sets = sets.New(cp.Store, sets.Options{})
	t.Cleanup(cp.Sets.Close)
	cp.Hosts = hosts.New(cp.Store, cp.Sets, logger)
	sealer := seal.New(keys.New([keys.SecretLen]byte{1}), seal.Options{Logger: logger})
	cp.Orgs = orgs.New(cp.Store, sealer)
	first, err := cp.Orgs.First(ctx, "Acme", fleetbanv1.Mode_MODE_ENFORCE)
	if err != nil {
		t.Fatal(err)
	}
	cp.Org, cp.Token = first.Organisation, first.AdminToken
	feeds := feed.New(feed.Options{
		// The API sends no records to hosts.
		Store: cp.Store, Sets: cp.Sets, Logger: logger, Sign: func(string, string, sets.Record) []byte { return make([]byte, 16) },
	})
	t.Cleanup(feeds.Close)

	mux := http.NewServeMux()
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	cp.URL, cp.HTTP, cp.Pin = server.URL, server.Client(), installer.Pin(server.Certificate().RawSubjectPublicKeyInfo)

	install, err := installer.New(installer.Options{PublicURL: cp.URL, Pin: cp.Pin})
	if err != nil {
		t.Fatal(err)
	}
	install.Register(mux)
	cp.People = people.New(cp.Store, sealer)
	second, err := factors.New(factors.Options{Store: cp.Store, Keys: keys.New([keys.SecretLen]byte{1}), PublicURL: cp.URL, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	signedIn := sessions.New(sessions.Options{Factors: second, Store: cp.Store, Keys: keys.New([keys.SecretLen]byte{1}), People: cp.People, Logger: logger})
	following, unfollow := context.WithCancel(ctx)
	var background sync.WaitGroup
	background.Go(func() { signedIn.Run(following) })
	t.Cleanup(func() {
		unfollow()
		background.Wait()
	})
	cp.Audit = audit.New(audit.Options{Store: cp.Store, Signer: keys.New([keys.SecretLen]byte{1}), Logger: logger})
	recorder, err := operatorapi.NewRecorder(cp.Audit, operatorapi.Services(), nil, logger)
	if err != nil {
		t.Fatal(err)
	}
	guard, err := auth.NewInterceptor(auth.Options{
		Denied:   recorder.Denied,
		Services: operatorapi.Services(), People: auth.Callers{Programs: auth.Tokens{Orgs: cp.Orgs, Members: cp.People}, People: signedIn}, Limiter: auth.NewLimiter(cp.Store, auth.Limits{}, logger),
	})
	if err != nil {
		t.Fatal(err)
	}
	validation, err := auth.NewValidation()
	if err != nil {
		t.Fatal(err)
	}
	draining := make(chan struct{})
	cp.Drain = sync.OnceFunc(func() { close(draining) })
	t.Cleanup(cp.Drain) // before the server closes: it waits for streams
	operators := operatorapi.New(operatorapi.Options{
		Sets: cp.Sets, Hosts: cp.Hosts, Orgs: cp.Orgs, Feeds: feeds, Audit: cp.Audit, InstallLine: install.Line(), Draining: draining, Logger: logger,
		Durability: func(context.Context) string { return "always" },
		Leases: func(ctx context.Context) []leases.State {
			jobs, err := leases.Read(ctx, cp.Store, "jobs")
			if err != nil {
				t.Error(err)
			}
			return []leases.State{jobs}
		},
	})
	approving, err := operatorapi.NewApprovals(operatorapi.ApprovalOptions{
		Approvals: approvals.New(cp.Store, sealer), People: cp.People, Tokens: auth.Tokens{Orgs: cp.Orgs, Members: cp.People}, API: operators,
		Recorder: recorder, Validation: validation, Logger: logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	accounts := operatorapi.NewPeople(operatorapi.PeopleOptions{People: cp.People, Sessions: signedIn, Factors: second, PublicURL: cp.URL, Logger: logger})
	options := []connect.HandlerOption{
		connect.WithInterceptors(&apierr.Interceptor{Now: time.Now, Logger: logger}, guard, operatorapi.NewProofs(accounts, operatorapi.Services()), approving, recorder, validation), connect.WithReadMaxBytes(1 << 20),
	}
	operators.Register(mux, options...)
	approving.Register(mux, options...)
	accounts.Register(mux, options...)
	(&operatorapi.SetupAPI{
		Fleet:  setup.New(setup.Options{Store: cp.Store, Orgs: cp.Orgs, People: cp.People, Audit: cp.Audit, Seal: sealer, Logger: logger}),
		People: accounts, Organisation: "default", Mode: fleetbanv1.Mode_MODE_ENFORCE,
	}).Register(mux, options...)
	operatorapi.NewTokens(operatorapi.TokenOptions{Orgs: cp.Orgs, People: cp.People, Ended: signedIn.TokenRevoked}).Register(mux, options...)
	return cp
}

// NewToken makes another token of the organisation.
func (cp *ControlPlane) NewToken(org string, permissions ...optionsv1.Permission) string {
	cp.t.Helper()
	token, err := cp.Orgs.CreateToken(context.Background(), org, "test", permissions)
	if err != nil {
		cp.t.Fatal(err)
	}
	return token.Secret
}

// NewOrg makes another organisation and its administrator's token.
func (cp *ControlPlane) NewOrg(name string) (orgs.Organisation, string) {
	cp.t.Helper()
	org, err := cp.Orgs.Create(context.Background(), name, fleetbanv1.Mode_MODE_ENFORCE)
	if err != nil {
		cp.t.Fatal(err)
	}
	return org, cp.NewToken(org.ID, orgs.AllPermissions()...)
}

// Host is a played host.
type Host struct {
	cp    *ControlPlane
	ID    string
	Name  string
	fence hosts.Fence
	tags  map[string]string
}

// Enrol enrols a host, never connected.
func (cp *ControlPlane) Enrol(name string, tags map[string]string, addresses ...string) *Host {
	cp.t.Helper()
	ctx := context.Background()
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		cp.t.Fatal(err)
	}
	facts := fleetbanv1.HostFacts_builder{Hostname: name, Os: "Debian 12", Kernel: "6.1", Arch: "amd64", AgentVersion: "1.0.0"}.Build()
	id, err := cp.Hosts.Enrol(ctx, cp.Org.ID, name, public, tags, facts)
	if err != nil {
		cp.t.Fatal(err)
	}
	var own []netip.Prefix
	for _, a := range addresses {
		own = append(own, netip.MustParsePrefix(a))
	}
	if len(own) > 0 {
		if err := cp.Sets.PutHostAddresses(ctx, cp.Org.ID, id.ID, own); err != nil {
			cp.t.Fatal(err)
		}
	}
	h := &Host{cp: cp, ID: id.ID, Name: id.Name, tags: tags}
	h.fence.Host = string(public) // until attached
	return h
}

// Attach opens the host's stream.
func (h *Host) Attach() *Host {
	h.cp.t.Helper()
	a, err := h.cp.Hosts.Attach(context.Background(), h.cp.Org.ID, h.ID, "instance", "replica-1", []byte(h.fence.Host), nil, time.Time{})
	if err != nil {
		h.cp.t.Fatal(err)
	}
	h.fence = a.Fence
	return h
}

// Ack acknowledges the current version of every set the host holds, with what else is in ack.
func (h *Host) Ack(ack fleetbanv1.Ack_builder) {
	h.cp.t.Helper()
	if err := h.ack(ack); err != nil {
		h.cp.t.Fatal(err)
	}
}

func (h *Host) ack(ack fleetbanv1.Ack_builder) error {
	ctx := context.Background()
	states, err := h.cp.Sets.States(ctx, h.cp.Org.ID)
	if err != nil {
		return err
	}
	write := hosts.AckWrite{Fence: h.fence, Inert: ack.Inert}
	for _, set := range hosts.Sets(h.tags) {
		write.Cursors = append(write.Cursors, states.Set(set).Cursor)
	}
	if ack.ExceptionsChanged {
		write.Exceptions = ack.Build()
	}
	_, err = h.cp.Hosts.StoreAcks(ctx, h.cp.Org.ID, []hosts.AckWrite{write})
	return err
}

// Health tells the host's state.
func (h *Host) Health(health fleetbanv1.Health_builder) {
	h.cp.t.Helper()
	if err := h.cp.Hosts.SetHealth(context.Background(), h.fence, health.Build()); err != nil {
		h.cp.t.Fatal(err)
	}
}

// Report stores events of the host's fail2ban.
func (h *Host) Report(events ...sets.Event) {
	h.cp.t.Helper()
	// The host's own fence, for what is written under it is checked.
	_, err := h.cp.Sets.RecordEvents(context.Background(), h.cp.Org.ID, sets.EventsInput{
		HostID: h.ID, Fence: h.fence.N, Spool: "spool", Events: events,
	})
	if err != nil {
		h.cp.t.Fatal(err)
	}
}

// Follow makes hosts acknowledge whatever changes, as connected agents do, until the test ends.
func (cp *ControlPlane) Follow(followers ...*Host) {
	cp.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	sub := cp.Store.Client().SSubscribe(ctx, store.BellChannel(cp.Org.ID))
	if _, err := sub.Receive(ctx); err != nil {
		cp.t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			for _, h := range followers {
				if err := h.ack(fleetbanv1.Ack_builder{}); err != nil && ctx.Err() == nil {
					cp.t.Errorf("%s can't acknowledge: %v", h.Name, err)
					return
				}
			}
			for {
				m, err := sub.ReceiveMessage(ctx)
				if err != nil {
					return
				}
				if b, err := store.ParseBell(m.Payload); err == nil && b.Kind == store.BellDelta {
					break
				}
			}
		}
	})
	cp.t.Cleanup(func() {
		cancel()
		_ = sub.Close()
		wg.Wait()
	})
}
