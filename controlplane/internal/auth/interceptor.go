package auth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// HostAuthenticator verifies an enrolled host's assertion and puts the host in the context. Its errors reach the host
// as they are: it makes them with apierr.
type HostAuthenticator interface {
	AuthenticateHost(ctx context.Context, header http.Header) (context.Context, error)
}

// Options make an Interceptor.
type Options struct {
	// Services are all that it will guard.
	Services []protoreflect.ServiceDescriptor
	// People authenticates callers of the operator API.
	People Authenticator
	// Hosts authenticates agents; needed where a service declares PERMISSION_HOST.
	Hosts HostAuthenticator
	// HostOf is whom Hosts put in the context, so that one host's connections are limited; nil limits none.
	HostOf func(ctx context.Context) (org, host string, ok bool)
	// Limiter bounds how often anyone calls or fails; nil bounds nothing.
	Limiter *Limiter
	// ClientAddr is the caller's address for rate limits; default the connection's peer. Give one that knows the
	// balancers in front, for behind one every caller has its address.
	ClientAddr func(peer connect.Peer, header http.Header) netip.Addr
	// Denied, where it is given, is told of each call whose caller lacks the permission, with the refusal.
	Denied func(ctx context.Context, p Principal, procedure string, addr netip.Addr, header http.Header, err error)
	// Recheck is how often the credential of an open stream is looked at again, so that a revoked one loses it. Default 30 s.
	Recheck time.Duration
}

// Interceptor is the whole of connect.Interceptor, for one that wraps unary calls only lets every stream through.
type Interceptor struct {
	options Options
	table   map[string]optionsv1.Permission
	// unscoped are the RPCs that show or change more than a part of the fleet.
	unscoped map[string]bool
	// A program that calls often at once costs one look at its token for all of them.
	looks shared[Principal]
}

var _ connect.Interceptor = (*Interceptor)(nil)

// NewInterceptor refuses services with an RPC that doesn't say what it asks of its caller.
func NewInterceptor(o Options) (*Interceptor, error) {
	table, err := procedures(o.Services)
	if err != nil {
		return nil, err
	}
	for procedure, permission := range table {
		switch {
		case permission == optionsv1.Permission_PERMISSION_NONE:
		case permission == optionsv1.Permission_PERMISSION_HOST && o.Hosts == nil:
			return nil, errors.New(procedure + " is for hosts, and no HostAuthenticator is given")
		case permission != optionsv1.Permission_PERMISSION_HOST && o.People == nil:
			return nil, errors.New(procedure + " is for people, and no Authenticator is given")
		}
	}
	if o.ClientAddr == nil {
		o.ClientAddr = func(peer connect.Peer, _ http.Header) netip.Addr { return PeerAddr(peer) }
	}
	if o.Recheck <= 0 {
		o.Recheck = 30 * time.Second
	}
	return &Interceptor{options: o, table: table, unscoped: unscopedOf(o.Services)}, nil
}

// PeerAddr is the address at the other end of the connection; the zero Addr on a Unix socket.
func PeerAddr(peer connect.Peer) netip.Addr {
	if ap, err := netip.ParseAddrPort(peer.Addr); err == nil {
		return ap.Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// WrapUnary implements connect.Interceptor.
func (i *Interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if req.Spec().IsClient {
			return next(ctx, req)
		}
		addr := i.options.ClientAddr(req.Peer(), req.Header())
		ctx, err := i.admit(WithAddress(ctx, addr), req.Spec().Procedure, addr, req.Header())
		if err != nil {
			return nil, err
		}
		res, err := next(ctx, req)
		return res, i.count(ctx, req.Spec().Procedure, addr, err)
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (i *Interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		addr := i.options.ClientAddr(conn.Peer(), conn.RequestHeader())
		ctx, err := i.admit(WithAddress(ctx, addr), conn.Spec().Procedure, addr, conn.RequestHeader())
		if err != nil {
			return err
		}
		principal, isPerson := From(ctx)
		if !isPerson {
			return i.count(ctx, conn.Spec().Procedure, addr, next(ctx, conn))
		}
		ctx, cancel := context.WithCancelCause(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			i.recheck(ctx, cancel, principal, i.table[conn.Spec().Procedure], conn.RequestHeader())
		}()
		err = next(ctx, conn)
		cancel(nil)
		<-done
		if revoked := context.Cause(ctx); err != nil && errors.Is(revoked, errRevoked) {
			return revoked
		}
		return err
	}
}

// WrapStreamingClient implements connect.Interceptor: it guards servers.
func (*Interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// admit authenticates and authorises one call.
func (i *Interceptor) admit(ctx context.Context, procedure string, addr netip.Addr, header http.Header) (context.Context, error) {
	permission, known := i.table[procedure]
	if !known {
		return ctx, apierr.New(connect.CodeUnimplemented, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "",
			"this control plane has no such procedure", "use a client of its release")
	}
	switch permission {
	case optionsv1.Permission_PERMISSION_NONE:
		// What the request carries is the credential: who failed too often isn't heard.
		return ctx, i.options.Limiter.mayTry(ctx, addr)
	case optionsv1.Permission_PERMISSION_HOST:
		ctx, err := i.options.Hosts.AuthenticateHost(ctx, header)
		if err == nil && i.options.HostOf != nil {
			if org, host, ok := i.options.HostOf(ctx); ok {
				err = i.options.Limiter.connect(ctx, org, host)
			}
		}
		return ctx, err
	default:
	}
	principal, err := i.authenticate(ctx, addr, header)
	if err != nil {
		return ctx, err
	}
	if !principal.May(permission) {
		err := lacks(principal, permission)
		if i.options.Denied != nil {
			i.options.Denied(ctx, principal, procedure, addr, header, err)
		}
		return ctx, err
	}
	if !principal.Tags.Whole() && i.unscoped[procedure] {
		err := beyondTags(principal)
		if i.options.Denied != nil {
			i.options.Denied(ctx, principal, procedure, addr, header, err)
		}
		return ctx, err
	}
	if err := i.options.Limiter.call(ctx, principal); err != nil {
		return ctx, err
	}
	return With(ctx, principal), nil
}

func (i *Interceptor) authenticate(ctx context.Context, addr netip.Addr, header http.Header) (Principal, error) {
	credential, err := bearer(header)
	if err != nil {
		return Principal{}, err
	}
	principal, err := i.looks.do(ctx, credential, func(ctx context.Context) (Principal, error) {
		return i.options.People.Authenticate(ctx, credential)
	})
	if err == nil {
		return principal, nil
	}
	if !errors.Is(err, ErrBadCredential) {
		return Principal{}, err
	}
	// A good credential is never refused for what others at the same address did; a bad one counts against it.
	if limited := i.options.Limiter.failed(ctx, addr); limited != nil {
		return Principal{}, limited
	}
	return Principal{}, bad(err)
}

// count counts a refused credential of an RPC that authenticates by what its request carries.
func (i *Interceptor) count(ctx context.Context, procedure string, addr netip.Addr, err error) error {
	if err == nil {
		return nil
	}
	// One that says itself how long to wait: of passwords, say.
	var wait interface{ Wait() time.Duration }
	if errors.As(err, &wait) {
		retryAfter(ctx, wait.Wait())
	}
	if i.table[procedure] != optionsv1.Permission_PERMISSION_NONE {
		return err
	}
	switch apierr.ReasonOf(err) {
	case fleetbanv1.Reason_REASON_BAD_CREDENTIAL, fleetbanv1.Reason_REASON_JOIN_TOKEN_UNKNOWN:
		if limited := i.options.Limiter.failed(ctx, addr); limited != nil {
			return limited
		}
	default:
	}
	return err
}

// errRevoked is wrapped by the end of a stream whose credential was revoked.
var errRevoked = errors.New("the credential was revoked")

// recheck ends a stream whose credential is no longer good, until ctx ends. Redis being away ends nothing.
func (i *Interceptor) recheck(
	ctx context.Context, cancel context.CancelCauseFunc, was Principal, permission optionsv1.Permission, header http.Header,
) {
	standing, _ := i.options.People.(Standing)
	every, looked := i.options.Recheck, time.Now()
	if standing != nil {
		every = min(every, standingEvery)
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if standing != nil {
			err := standing.Standing(was)
			// What isn't known of a person counts as ended: its client comes back, to this replica or another one.
			if err != nil && (was.Session.ID != "" || errors.Is(err, ErrBadCredential)) {
				cancel(ended(was, err))
				return
			}
			if was.Session.ID != "" || time.Since(looked) < i.options.Recheck {
				continue
			}
		}
		looked = time.Now()
		credential, err := bearer(header)
		if err != nil {
			return
		}
		principal, err := i.options.People.Authenticate(ctx, credential)
		if errors.Is(err, ErrBadCredential) ||
			err == nil && (principal.Org != was.Org || !principal.May(permission) || !slices.Equal(principal.Tags, was.Tags)) {
			cancel(ended(was, ErrBadCredential))
			return
		}
	}
}

// standingEvery is how often it is looked at whether an open stream's caller still is one: it costs nothing.
const standingEvery = 200 * time.Millisecond

// ended is how a stream ends whose caller is one no more.
func ended(was Principal, err error) error {
	if !errors.Is(err, ErrBadCredential) {
		return fmt.Errorf("%w: %w", errRevoked, err)
	}
	message, fix := "the session or its role ended while the stream was open", "open it again with a new access token; if there is none to be had: fleetban login"
	if was.Session.ID == "" {
		message, fix = "the API token ended, or what it may changed, while the stream was open", "open it again; if the token was revoked: make another"
	}
	return apierr.Wrap(errRevoked, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "", message, fix)
}

func bearer(header http.Header) (string, error) {
	values := header.Values("Authorization")
	if len(values) == 0 {
		return "", apierr.New(connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "",
			"no credential was sent", "set FLEETBAN_TOKEN or run fleetban login; programs send `authorization: Bearer TOKEN`")
	}
	scheme, credential, found := strings.Cut(values[0], " ")
	if len(values) > 1 || !found || !strings.EqualFold(scheme, "Bearer") {
		return "", apierr.New(connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "",
			"the authorization header is not one `Bearer TOKEN`", "send `authorization: Bearer TOKEN`")
	}
	return strings.TrimSpace(credential), nil
}

func lacks(p Principal, permission optionsv1.Permission) error {
	name := strings.ToLower(strings.TrimPrefix(permission.String(), "PERMISSION_"))
	return apierr.New(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "",
		"the token "+quote(p.Name)+" may not do this: it lacks "+name, "use a token that holds "+name+", or ask an administrator for one")
}
