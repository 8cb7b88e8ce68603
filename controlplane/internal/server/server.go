// Package server is the control plane as a process: its configuration, listeners, health, background jobs and drain.
//
//	start ─▶ secret ─▶ Redis (given, or a child) ─▶ listeners ─▶ first start's work ─▶ ready
//	                                                                                     │ SIGTERM
//	  gone ◀─ child stopped ◀─ store closed ◀─ HTTP closed ◀─ agents sent elsewhere ◀─ unready
//
// Nothing is kept in this process that another replica would need.
package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/acmecert"
	"github.com/fleetban/fleetban/controlplane/internal/agentapi"
	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/approvals"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/browser"
	"github.com/fleetban/fleetban/controlplane/internal/embedded"
	"github.com/fleetban/fleetban/controlplane/internal/factors"
	"github.com/fleetban/fleetban/controlplane/internal/feed"
	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/installer"
	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/leases"
	"github.com/fleetban/fleetban/controlplane/internal/mail"
	"github.com/fleetban/fleetban/controlplane/internal/metrics"
	"github.com/fleetban/fleetban/controlplane/internal/operatorapi"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/sessions"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/setup"
	"github.com/fleetban/fleetban/controlplane/internal/sso"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/terminals"
	"github.com/fleetban/fleetban/controlplane/internal/version"
	"github.com/fleetban/fleetban/controlplane/internal/webconsole"
)

const (
	// drainGrace is how long after the drain window a stream may stay.
	drainGrace = 5 * time.Second
	// maxRequest bounds one message of the operator API.
	maxRequest = 1 << 20
	// compressFrom is where compressing an answer begins to save more than it costs, bytes.
	compressFrom = 4 << 10
)

// Server is one replica.
type Server struct {
	config Config
	logger *slog.Logger
	// notices is where people read what is shown once and never logged.
	notices io.Writer

	base   *base
	sets   *sets.Sets
	feeds  *feed.Feeds
	agents *agentapi.Service
	// sessions are those of people who signed in.
	sessions *sessions.Sessions
	// approvals keeps what needs a second person.
	approvals *operatorapi.Approvals
	mail      *mail.Mailer
	ready     *readiness
	jobs      *jobs
	turns     turns
	// figures are what is measured; served on the metrics listener.
	figures *metrics.Metrics

	draining chan struct{}
	main     *http.Server
	metrics  *http.Server
	listener net.Listener
	// tlsConfig is nil where TLS is off.
	tlsConfig *tls.Config
	metricsL  net.Listener
	pin       string
	// acme keeps the certificate where an authority makes it; else nil.
	acme *acmecert.Keeper
	// certificate is what the listener serves; nil without TLS.
	certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// clientCAs make hosts' client certificates; nil where none is asked for.
	clientCAs *authorities
	plain     plainHTTP

	setup *setup.Setup
	// gate lets nothing through before there is an organisation.
	gate *setup.Gate

	mu    sync.Mutex
	begun string // why the first start's work isn't done
}

// base is what every command needs: the secret and the store.
type base struct {
	keys *keys.Keys
	// firstStart is the file that says so where this is a fleet's first start, else empty.
	firstStart string
	child      *embedded.Server
	store      *store.Store
	seal       *seal.Sealer
	orgs       *orgs.Orgs
	people     *people.People
	audit      *audit.Log
}

// open opens what b says. The child, where there is one, answers when it returns; a Redis that is given may be away.
//
// observe, which may be nil, is told of each call to Redis.
func (b *Backend) open(ctx context.Context, logger *slog.Logger, observe func(string, time.Duration, error)) (*base, error) {
	if err := os.MkdirAll(b.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("make --data-dir: %w", err)
	}
	out := &base{}
	var err error
	switch {
	case b.SecretFile != "":
		out.keys, err = keys.Load(b.SecretFile)
	case !b.wrapped(): // else it is in Redis
		err = out.ownSecret(ctx, b.DataDir, logger)
	}
	if err != nil {
		return nil, err
	}
	redis.SetLogger(quiet{logger})
	url := b.RedisURL
	if url == "" {
		if out.child, err = embedded.Start(ctx, embedded.Options{Dir: b.redisDir(), Logger: logger}); err != nil {
			return nil, err
		}
		url = out.child.URL()
	}
	if out.store, err = store.Open(store.Options{URL: url, Logger: logger, Observe: observe}); err != nil {
		return nil, errors.Join(err, out.close()) //nolint:contextcheck // closed also when ctx is over
	}
	if b.wrapped() {
		if err := out.keptSecret(ctx, b, logger); err != nil {
			return nil, errors.Join(err, out.close()) //nolint:contextcheck // closed also when ctx is over
		}
	}
	out.audit = audit.New(audit.Options{Store: out.store, Signer: out.keys, Logger: logger, Keep: b.auditKeep, KeepNumber: b.auditKeepNumber})
	out.seal = seal.New(out.keys, seal.Options{AcceptUnsigned: b.AcceptUnsigned, Alarm: out.forged, Logger: logger})
	out.orgs, out.people = orgs.New(out.store, out.seal), people.New(out.store, out.seal)
	return out, nil
}

func (b *Backend) redisDir() string { return filepath.Join(b.DataDir, "redis") }

// ownSecret loads the secret in dir, or makes it. A fleet whose secret is made here never was before, and serve makes its
// organisation; a file says so until that is done, for this process may die before.
func (b *base) ownSecret(ctx context.Context, dir string, logger *slog.Logger) error {
	path, marker := filepath.Join(dir, "secret"), filepath.Join(dir, "first-start")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(marker, []byte(firstText), 0o600); err != nil {
			return fmt.Errorf("begin the first start: %w", err)
		}
	}
	var created bool
	var err error
	if b.keys, created, err = keys.LoadOrCreate(path); err != nil {
		return err
	}
	if created {
		logger.InfoContext(ctx, "the fleet's secret was made: keep a copy, hosts' identities hang on it", slog.String("path", path))
	}
	if _, err := os.Stat(marker); err == nil {
		b.firstStart = marker
	}
	return nil
}

// firstDone says that there is an organisation.
func (b *base) firstDone() error {
	if b.firstStart == "" {
		return nil
	}
	if err := os.Remove(b.firstStart); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("end the first start: %w", err)
	}
	return nil
}

func (b *base) close() error {
	var errs []error
	if b.store != nil {
		errs = append(errs, b.store.Close())
	}
	if b.child != nil {
		errs = append(errs, b.child.Stop(context.Background()))
	}
	return errors.Join(errs...)
}

// quiet passes on what go-redis says of its pool, which /readyz says better.
type quiet struct{ logger *slog.Logger }

func (q quiet) Printf(ctx context.Context, format string, v ...any) {
	q.logger.DebugContext(ctx, "redis client", slog.String("line", fmt.Sprintf(format, v...)))
}

// New opens everything and listens. config must be complete.
func New(ctx context.Context, config Config, logger *slog.Logger, notices io.Writer) (*Server, error) {
	s := &Server{config: config, logger: logger, notices: notices, draining: make(chan struct{}), begun: "the first look at Redis is to come", figures: NewMetrics()}
	var err error
	if s.base, err = config.open(ctx, logger, observeRedis(s.figures)); err != nil {
		return nil, err
	}
	if err := s.build(ctx); err != nil {
		return nil, errors.Join(err, s.base.close()) //nolint:contextcheck // closed also when ctx is over
	}
	return s, nil
}

func (s *Server) build(ctx context.Context) error {
	c, st, k := s.config, s.base.store, s.base.keys
	tlsConfig, err := s.tls(ctx)
	if err != nil {
		return err
	}
	clk := &clock{}
	accounts := s.base.people
	s.setup = setup.New(setup.Options{Store: st, Orgs: s.base.orgs, People: accounts, Audit: s.base.audit, Seal: s.base.seal, Logger: s.logger})
	s.gate = setup.NewGate(s.setup)
	mode, err := modeOf(c.Mode)
	if err != nil {
		return err
	}
	s.sets = sets.New(st, sets.Options{}) //nolint:contextcheck // mutations outlive the request that began them
	s.feeds = feed.New(feed.Options{Store: st, Sets: s.sets, Logger: s.logger, Metrics: s.figures, Sign: func(org, set string, r sets.Record) []byte {
		return k.Sign(org, set, r.Prefix, r.Kind, r.Since, r.Expires)
	}})
	h := hosts.New(st, s.sets, s.logger)
	var clientCAs func() *x509.CertPool
	if c.AgentClientCA != "" {
		if s.clientCAs, err = loadAuthorities(c.AgentClientCA, s.logger); err != nil {
			return err
		}
		clientCAs = s.clientCAs.get
	}
	s.agents = agentapi.New(agentapi.Options{
		ClientCAs: clientCAs,
		Replica:   c.Replica, Keys: k, Store: st, Sets: s.sets, Feeds: s.feeds, Hosts: h, Orgs: s.base.orgs,
		Now: clk.now, Told: clk.told, Logger: s.logger, Metrics: s.figures, Audit: s.base.audit,
	})
	s.turns = turns{newAdmission()}
	s.jobs = &jobs{lease: leases.New(st, jobsLease, c.Replica, leaseLife), sets: s.sets, hosts: h, orgs: s.base.orgs, audit: s.base.audit, logger: s.logger, now: clk.now, metrics: s.figures}
	s.ready = &readiness{store: st, keys: k, clock: clk, accept: c.AcceptDurability, replica: c.Replica, version: version.Version, begun: s.notBegun, bare: func() bool { return s.gate.Closed() && s.notBegun() == "" }, acme: s.acme != nil, logger: s.logger}
	install, err := installer.New(installer.Options{PublicURL: c.PublicURL, Pin: s.pin})
	if err != nil {
		return err
	}
	for _, arch := range install.Missing() {
		s.logger.WarnContext(ctx, "this build has no agent to serve for an architecture", slog.String("arch", arch))
	}
	operators := operatorapi.New(operatorapi.Options{
		Sets: s.sets, Hosts: h, Orgs: s.base.orgs, Feeds: s.feeds, Audit: s.base.audit, InstallLine: install.Line(), Draining: s.draining, Logger: s.logger,
		Durability: func(ctx context.Context) string { return s.ready.check(ctx).Durability },
		Leases:     func(ctx context.Context) []leases.State { return s.ready.check(ctx).leases() },
	})
	second, err := factors.New(factors.Options{Store: st, Keys: k, PublicURL: c.PublicURL, Now: clk.now, Logger: s.logger})
	if err != nil {
		return err
	}
	letters := c.mail()
	letters.Logger, letters.Store, letters.Keys = s.logger, st, k
	if s.mail, err = mail.New(letters); err != nil {
		return err
	}
	s.sessions = sessions.New(sessions.Options{Replayed: s.base.replayed, Store: st, Keys: k, People: accounts, Factors: second, Now: clk.now, Logger: s.logger})
	providers, err := c.identityProviders(sso.Options{
		Store: st, Keys: k, Seal: s.base.seal, People: accounts, Changed: s.sessions.MemberChanged, PublicURL: c.PublicURL, Now: clk.now, Logger: s.logger,
	})
	if err != nil {
		return err
	}
	signedIn := operatorapi.NewPeople(operatorapi.PeopleOptions{
		Orgs:   s.base.orgs,
		SSO:    providers,
		People: accounts, Sessions: s.sessions, Factors: second, Mail: s.mail, PublicURL: c.PublicURL, Audit: s.base.audit, Logger: s.logger,
	})
	apiTokens := operatorapi.NewTokens(operatorapi.TokenOptions{Orgs: s.base.orgs, People: accounts, Ended: s.sessions.TokenRevoked})
	interceptors, err := s.interceptors(clk, operators, signedIn)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(s.agents.Handler(interceptors...))
	operators.Register(mux, connect.WithInterceptors(interceptors...), connect.WithReadMaxBytes(maxRequest), connect.WithCompressMinBytes(compressFrom))
	s.approvals.Register(mux, connect.WithInterceptors(interceptors...), connect.WithReadMaxBytes(maxRequest), connect.WithCompressMinBytes(compressFrom))
	signedIn.Register(mux, connect.WithInterceptors(interceptors...), connect.WithReadMaxBytes(maxRequest), connect.WithCompressMinBytes(compressFrom))
	apiTokens.Register(mux, connect.WithInterceptors(interceptors...), connect.WithReadMaxBytes(maxRequest), connect.WithCompressMinBytes(compressFrom))
	trusted, err := parseProxies(c.TrustedProxies)
	if err != nil {
		return fmt.Errorf("--trusted-proxy: %w", err)
	}
	(&operatorapi.SSOAPI{SSO: providers, People: signedIn, Orgs: s.base.orgs, Store: st, ClientAddr: trusted.client, Logger: s.logger}).
		Register(mux, connect.WithInterceptors(interceptors...), connect.WithReadMaxBytes(maxRequest))
	waiting, err := terminals.New(terminals.Options{Store: st, Keys: k, Now: clk.now, Logger: s.logger})
	if err != nil {
		return err
	}
	(&operatorapi.TerminalAPI{Terminals: waiting, People: signedIn, PublicURL: c.PublicURL}).
		Register(mux, connect.WithInterceptors(interceptors...), connect.WithReadMaxBytes(maxRequest))
	setUp := &operatorapi.SetupAPI{Fleet: s.setup, People: signedIn, Organisation: c.Organisation, Mode: mode}
	setUp.Register(mux, connect.WithInterceptors(interceptors...), connect.WithReadMaxBytes(maxRequest))
	s.gate.Register(mux)
	install.Register(mux)
	s.health(mux)
	if console, err := webconsole.New(); err == nil {
		console.Register(mux)
	} else {
		s.logger.WarnContext(ctx, "people have no pages here", slog.Any("error", err))
		mux.HandleFunc("GET "+operatorapi.InvitationPath, invitation)
		mux.HandleFunc("GET "+operatorapi.ResetPath, linkPage("fleetban password reset --link-stdin"))
		mux.HandleFunc("GET "+operatorapi.EmailPath, linkPage("fleetban account email confirm --link-stdin"))
		mux.HandleFunc("GET /{$}", root)
	}
	s.observe()
	return s.listen(ctx, s.turns.mark(s.gate.Wrap(mux)), tlsConfig)
}

func (s *Server) interceptors(clk *clock, operators *operatorapi.API, signedIn *operatorapi.PeopleAPI) ([]connect.Interceptor, error) {
	trusted, err := parseProxies(s.config.TrustedProxies)
	if err != nil {
		return nil, fmt.Errorf("--trusted-proxy: %w", err)
	}
	recorder, err := operatorapi.NewRecorder(s.base.audit, operatorapi.Services(), trusted.client, s.logger)
	if err != nil {
		return nil, err
	}
	authn, err := auth.NewInterceptor(auth.Options{
		Denied:     recorder.Denied,
		Services:   append(operatorapi.Services(), agentapi.Descriptor()),
		People:     auth.Callers{Programs: auth.Tokens{Orgs: s.base.orgs, Members: s.base.people}, People: s.sessions},
		Hosts:      s.agents,
		HostOf:     agentapi.HostOf,
		Limiter:    auth.NewLimiter(s.base.store, auth.Limits{}, s.logger),
		ClientAddr: trusted.client,
	})
	if err != nil {
		return nil, err
	}
	validation, err := auth.NewValidation()
	if err != nil {
		return nil, err
	}
	if s.approvals, err = operatorapi.NewApprovals(operatorapi.ApprovalOptions{
		Approvals: approvals.New(s.base.store, s.base.seal), People: s.base.people, Tokens: auth.Tokens{Orgs: s.base.orgs, Members: s.base.people},
		API: operators, Recorder: recorder, Validation: validation, Logger: s.logger,
	}); err != nil {
		return nil, err
	}
	return []connect.Interceptor{metrics.Interceptor{Metrics: s.figures}, browser.Interceptor{}, &apierr.Interceptor{Now: clk.now, Logger: s.logger}, gate{s.ready}, s.turns, s.gate, authn, operatorapi.NewProofs(signedIn, operatorapi.Services()), s.approvals, recorder, validation}, nil
}

func (s *Server) listen(ctx context.Context, handler http.Handler, tlsConfig *tls.Config) error {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(tlsConfig == nil)
	console, err := browser.New(s.config.PublicURL)
	if err != nil {
		return err
	}
	s.tlsConfig = tlsConfig // the door's
	trusted, err := parseProxies(s.config.TrustedProxies)
	if err != nil {
		return fmt.Errorf("--trusted-proxy: %w", err)
	}
	tunnels, err := parseProxies(s.config.ProxyProtocol)
	if err != nil {
		return fmt.Errorf("--proxy-protocol: %w", err)
	}
	s.main = &http.Server{
		Handler: wrap(console.Handler(limitUnary(handler, maxRequest)), trusted, s.logger), Protocols: protocols,
		// No ReadTimeout or WriteTimeout: they would end streams. Requests that are none get theirs in wrap.
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: 1000},
		ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
	if s.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", s.config.Listen); err != nil {
		return fmt.Errorf("--listen %s: %w", s.config.Listen, err)
	}
	s.listener = tunnels.behind(s.listener)
	if err := s.listenPlain(ctx); err != nil {
		return errors.Join(err, s.listener.Close())
	}
	if s.config.MetricsListen == "" {
		return nil
	}
	s.metricsL, err = (&net.ListenConfig{}).Listen(ctx, "tcp", s.config.MetricsListen)
	if errors.Is(err, syscall.EADDRINUSE) && s.config.MetricsListen == defaultMetrics {
		// Nobody asked for it there, and another replica on this machine has it: no reason not to serve hosts.
		s.logger.WarnContext(ctx, "the default address of metrics is taken, going on without; give --metrics-listen another, or off",
			slog.String("address", defaultMetrics))
		return nil
	}
	if err != nil {
		return errors.Join(fmt.Errorf("--metrics-listen %s: %w", s.config.MetricsListen, err), s.listener.Close(), s.plain.close())
	}
	s.metrics = &http.Server{
		Handler: s.private(), ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
	return nil
}

// Addr is where the server listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// MetricsAddr is where metrics are served; nil where they aren't.
func (s *Server) MetricsAddr() net.Addr {
	if s.metricsL == nil {
		return nil
	}
	return s.metricsL.Addr()
}

// Pin is what clients are to pin, "" where the certificate is publicly trusted.
func (s *Server) Pin() string { return s.pin }

// Run serves until ctx ends, then drains and closes everything.
func (s *Server) Run(ctx context.Context) error {
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	var background sync.WaitGroup
	background.Go(func() { s.ready.loop(work) })
	background.Go(func() { s.begin(work) })
	background.Go(func() { s.jobs.run(work) })
	background.Go(func() { s.sessions.Run(work) })
	background.Go(func() { s.mail.Run(work) })
	// Before the first request: who disagrees with the peers must not answer it.
	s.ready.check(ctx)
	failed := make(chan error, 3)
	serve := func(server *http.Server, l net.Listener) {
		err := server.Serve(l)
		if !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("serve %s: %w", l.Addr(), err)
		}
	}
	secure, listener := s.tlsConfig != nil, s.listener
	if secure {
		d := newDoor(s.listener, s.tlsConfig, s.agents.ServeLink, s.logger)
		setTickets(d.first, s.base.keys, time.Now())
		background.Go(func() { rotateTickets(work, d.first, s.base.keys) })
		if s.acme != nil {
			d.challenge = s.acme.Challenge
		}
		if s.clientCAs != nil {
			d.askHosts()
		}
		listener = d.begin()
	}
	if s.acme != nil {
		background.Go(func() { s.acme.Run(work) })
	}
	if s.plain.server != nil {
		background.Go(func() { serve(s.plain.server, s.plain.listener) })
	}
	background.Go(func() { serve(s.main, listener) })
	if s.metrics != nil {
		background.Go(func() { serve(s.metrics, s.metricsL) })
	}
	s.logger.InfoContext(ctx, "control plane listens", slog.String("address", s.listener.Addr().String()), slog.String("public_url", s.config.PublicURL),
		slog.String("replica", s.config.Replica), slog.String("version", version.Version), slog.Bool("tls", secure),
		slog.Bool("embedded_redis", s.base.child != nil))
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	return errors.Join(err, s.shutdown(stopWork, &background)) //nolint:contextcheck // it begins when ctx is over
}

// shutdown goes in the order that loses nothing: unready, agents elsewhere, requests done, jobs, store, child.
func (s *Server) shutdown(stopWork context.CancelFunc, background *sync.WaitGroup) error {
	s.logger.Info("shutting down")
	s.ready.drain()
	close(s.draining)
	ctx, cancel := context.WithTimeout(context.Background(), s.config.DrainWindow+drainGrace+10*time.Second)
	defer cancel()
	window, grace := s.config.DrainWindow, drainGrace
	if s.base.child != nil {
		// With a Redis of its own there is no other replica to go to.
		window, grace = 0, 0
	}
	s.agents.Drain(ctx, window, grace)
	var errs []error
	if err := s.main.Shutdown(ctx); err != nil {
		errs = append(errs, s.main.Close())
	}
	s.agents.Close()
	if s.metrics != nil {
		errs = append(errs, s.metrics.Close())
	}
	errs = append(errs, s.plain.close())
	stopWork()
	background.Wait()
	s.sets.Close()
	s.feeds.Close()
	errs = append(errs, s.base.close())
	s.logger.Info("control plane stopped")
	return errors.Join(errs...)
}

// Close closes a server that was never run.
func (s *Server) Close() error {
	errs := []error{s.listener.Close(), s.plain.close()}
	if s.metricsL != nil {
		errs = append(errs, s.metricsL.Close())
	}
	s.agents.Close()
	s.sets.Close()
	s.feeds.Close()
	return errors.Join(append(errs, s.base.close())...)
}
