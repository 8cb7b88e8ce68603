package auth_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

// Every RPC of every service that the network reaches says what it asks.
func TestEveryMethodDeclaresAPermission(t *testing.T) {
	t.Parallel()
	methods := 0
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		pkg := string(file.Package())
		// fleetban.host.v1 is spoken over a Unix socket on one host, which checks the peer's uid.
		if !strings.HasPrefix(pkg, "fleetban.") || strings.HasPrefix(pkg, "fleetban.host.") {
			return true
		}
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				methods++
				if _, err := auth.PermissionOf(service.Methods().Get(j)); err != nil {
					t.Error(err)
				}
			}
		}
		return true
	})
	if methods < 20 {
		t.Fatalf("only %d methods were found: the test looks at the wrong files", methods)
	}
}

// service is BanService with one more method of the given options.
func service(t *testing.T, permission *optionsv1.Permission) protoreflect.ServiceDescriptor {
	t.Helper()
	options := &descriptorpb.MethodOptions{}
	if permission != nil {
		proto.SetExtension(options, optionsv1.E_Permission, *permission)
	}
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("x.proto"), Package: proto.String("x"), Syntax: proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String("M")}},
		Service: []*descriptorpb.ServiceDescriptorProto{{Name: proto.String("S"), Method: []*descriptorpb.MethodDescriptorProto{{
			Name: proto.String("Do"), InputType: proto.String(".x.M"), OutputType: proto.String(".x.M"), Options: options,
		}}}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return file.Services().Get(0)
}

func TestNewInterceptorRefuses(t *testing.T) {
	t.Parallel()
	unspecified, unknown, host, read := optionsv1.Permission_PERMISSION_UNSPECIFIED, optionsv1.Permission(77),
		optionsv1.Permission_PERMISSION_HOST, optionsv1.Permission_PERMISSION_FLEET_READ
	for name, tc := range map[string]struct {
		permission *optionsv1.Permission
		people     auth.Authenticator
	}{
		"no declaration":         {nil, auth.Tokens{}},
		"an unspecified one":     {&unspecified, auth.Tokens{}},
		"an unknown one":         {&unknown, auth.Tokens{}},
		"hosts, no one to ask":   {&host, auth.Tokens{}},
		"persons, no one to ask": {&read, nil},
	} {
		_, err := auth.NewInterceptor(auth.Options{Services: []protoreflect.ServiceDescriptor{service(t, tc.permission)}, People: tc.people})
		if err == nil || !strings.Contains(err.Error(), "Do") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := auth.NewInterceptor(auth.Options{Services: []protoreflect.ServiceDescriptor{service(t, &read)}, People: auth.Tokens{}}); err != nil {
		t.Error(err)
	}
}

// fleet answers what the tests call: who it was, and a stream that lasts until its client or credential ends.
type fleet struct {
	operatorv1connect.UnimplementedFleetServiceHandler

	watching chan struct{}
}

func (fleet) GetFleet(ctx context.Context, _ *connect.Request[operatorv1.GetFleetRequest]) (*connect.Response[operatorv1.GetFleetResponse], error) {
	p, _ := auth.From(ctx)
	return connect.NewResponse(operatorv1.GetFleetResponse_builder{OrganisationId: p.Org, OrganisationName: p.Name}.Build()), nil
}

func (f fleet) Watch(ctx context.Context, _ *connect.Request[operatorv1.WatchRequest], stream *connect.ServerStream[operatorv1.WatchResponse]) error {
	if err := stream.Send(nil); err != nil { // the headers, so that the client knows it is let in
		return err
	}
	f.watching <- struct{}{}
	<-ctx.Done()
	return ctx.Err()
}

type enroller struct {
	fleetbanv1connect.UnimplementedAgentServiceHandler
}

func (enroller) Enroll(context.Context, *connect.Request[fleetbanv1.EnrollRequest]) (*connect.Response[fleetbanv1.EnrollResponse], error) {
	return nil, apierr.New(connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_JOIN_TOKEN_UNKNOWN, "join_token", "no such token", "ask for one")
}

type noHosts struct{}

func (noHosts) AuthenticateHost(ctx context.Context, _ http.Header) (context.Context, error) {
	return ctx, apierr.New(connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_WRONG_KEY, "", "no", "no")
}

type rig struct {
	redis    *redistest.Server
	orgs     *orgs.Orgs
	org      orgs.Organisation
	url      string
	logs     *bytes.Buffer
	watching chan struct{}
}

func start(t *testing.T, limits auth.Limits, recheck time.Duration) *rig {
	t.Helper()
	r := &rig{redis: redistest.Start(t), logs: &bytes.Buffer{}, watching: make(chan struct{}, 10)}
	st := r.redis.Open()
	r.orgs = orgs.New(st, seal.New(keys.New([keys.SecretLen]byte{1}), seal.Options{Logger: slog.New(slog.DiscardHandler)}))
	var err error
	if r.org, err = r.orgs.Create(context.Background(), "Acme", fleetbanv1.Mode_MODE_ENFORCE); err != nil {
		t.Fatal(err)
	}
	logger := slog.New(slog.NewJSONHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	guard, err := auth.NewInterceptor(auth.Options{
		Services: []protoreflect.ServiceDescriptor{
			operatorv1.File_fleetban_operator_v1_operator_proto.Services().ByName("FleetService"),
			fleetbanv1.File_fleetban_v1_agent_proto.Services().ByName("AgentService"),
		},
		People: auth.Tokens{Orgs: r.orgs}, Hosts: noHosts{}, Limiter: auth.NewLimiter(st, limits, logger), Recheck: recheck,
		ClientAddr: func(peer connect.Peer, header http.Header) netip.Addr {
			if a, err := netip.ParseAddr(header.Get("test-from")); err == nil {
				return a
			}
			return auth.PeerAddr(peer)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	validation, err := auth.NewValidation()
	if err != nil {
		t.Fatal(err)
	}
	options := connect.WithInterceptors(&apierr.Interceptor{Now: time.Now, Logger: logger}, guard, validation)
	mux := http.NewServeMux()
	mux.Handle(operatorv1connect.NewFleetServiceHandler(fleet{watching: r.watching}, options))
	mux.Handle(fleetbanv1connect.NewAgentServiceHandler(enroller{}, options))
	// A service that the interceptor was not told of.
	mux.Handle(operatorv1connect.NewHostServiceHandler(operatorv1connect.UnimplementedHostServiceHandler{}, options))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		mux.ServeHTTP(w, req.WithContext(auth.WithAnswer(req.Context(), w.Header())))
	}))
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

func (r *rig) fleet() operatorv1connect.FleetServiceClient {
	return operatorv1connect.NewFleetServiceClient(http.DefaultClient, r.url)
}

func (r *rig) token(t *testing.T, permissions ...optionsv1.Permission) orgs.Token {
	t.Helper()
	token, err := r.orgs.CreateToken(context.Background(), r.org.ID, "ci", permissions)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func request[T any](message *T, authorization ...string) *connect.Request[T] {
	req := connect.NewRequest(message)
	for _, a := range authorization {
		req.Header().Add("Authorization", a)
	}
	return req
}

func wantError(t *testing.T, err error, code connect.Code, reason fleetbanv1.Reason) {
	t.Helper()
	info := apierr.Info(err)
	if connect.CodeOf(err) != code || info.GetReason() != reason || info.GetFix() == "" {
		t.Errorf("got %v (%v, fix %q), want %v %v with a fix", err, info.GetReason(), info.GetFix(), code, reason)
	}
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := start(t, auth.Limits{}, 0)
	reader := r.token(t, optionsv1.Permission_PERMISSION_FLEET_READ)
	banner := r.token(t, optionsv1.Permission_PERMISSION_BANS_WRITE)
	gone := r.token(t, optionsv1.Permission_PERMISSION_FLEET_READ)
	if err := r.orgs.RevokeToken(ctx, r.org.ID, gone.ID); err != nil {
		t.Fatal(err)
	}
	join, err := r.orgs.CreateJoinToken(ctx, r.org.ID, orgs.NewJoinToken{})
	if err != nil {
		t.Fatal(err)
	}
	client := r.fleet()
	res, err := client.GetFleet(ctx, request(&operatorv1.GetFleetRequest{}, "bearer "+reader.Secret))
	if err != nil || res.Msg.GetOrganisationId() != r.org.ID {
		t.Fatal(res, err)
	}
	for name, headers := range map[string][]string{
		"nothing": nil, "empty": {""}, "no scheme": {reader.Secret}, "basic": {"Basic " + reader.Secret}, "cut": {"Bearer " + reader.Secret[:30]},
		"join token": {"Bearer " + join.Secret}, "revoked": {"Bearer " + gone.Secret}, "two": {"Bearer " + reader.Secret, "Bearer " + gone.Secret},
	} {
		_, err := client.GetFleet(ctx, request(&operatorv1.GetFleetRequest{}, headers...))
		t.Log(name, err)
		wantError(t, err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL)
		stream, err := client.Watch(ctx, request(&operatorv1.WatchRequest{}, headers...))
		if err == nil {
			stream.Receive()
			err = stream.Err()
			_ = stream.Close()
		}
		wantError(t, err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL)
	}
	_, err = client.GetFleet(ctx, request(&operatorv1.GetFleetRequest{}, "Bearer "+banner.Secret))
	wantError(t, err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED)
	_, err = operatorv1connect.NewHostServiceClient(http.DefaultClient, r.url).ListHosts(ctx,
		request(&operatorv1.ListHostsRequest{}, "Bearer "+reader.Secret))
	wantError(t, err, connect.CodeUnimplemented, fleetbanv1.Reason_REASON_PERMISSION_DENIED)
	_, err = client.SetMode(ctx, request(&operatorv1.SetModeRequest{}, "Bearer "+r.token(t, orgs.AllPermissions()...).Secret))
	wantError(t, err, connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD)
	if field := apierr.Info(err).GetField(); field != "mode" {
		t.Errorf("the field at fault is %q", field)
	}
	for _, secret := range []string{reader.Secret, gone.Secret, join.Secret, reader.Secret[:30]} {
		if strings.Contains(r.logs.String(), secret) {
			t.Errorf("a secret stands in the log: %s", r.logs)
		}
	}
}

// A revoked token loses the stream it holds.
func TestRevokedTokenLosesItsStream(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r := start(t, auth.Limits{}, 10*time.Millisecond)
	token := r.token(t, optionsv1.Permission_PERMISSION_FLEET_READ)
	stream, err := r.fleet().Watch(ctx, request(&operatorv1.WatchRequest{}, "Bearer "+token.Secret))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Close() }()
	<-r.watching
	if err := r.orgs.RevokeToken(ctx, r.org.ID, token.ID); err != nil {
		t.Fatal(err)
	}
	if stream.Receive() {
		t.Fatal("a message came")
	}
	wantError(t, stream.Err(), connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL)
}

func TestFailuresAreLimited(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := start(t, auth.Limits{Failures: 5}, 0)
	good := r.token(t, optionsv1.Permission_PERMISSION_FLEET_READ)
	try := func(from, token string) error {
		req := request(&operatorv1.GetFleetRequest{}, "Bearer "+token)
		req.Header().Set("test-from", from)
		_, err := r.fleet().GetFleet(ctx, req)
		return err
	}
	for range 5 {
		wantError(t, try("2001:db8::1", "fbt_x"), connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL)
	}
	wantError(t, try("2001:db8::2", "fbt_x"), connect.CodeResourceExhausted, fleetbanv1.Reason_REASON_RATE_LIMITED)
	if err := try("2001:db8::1", good.Secret); err != nil {
		t.Errorf("a good token is refused for what others did: %v", err)
	}
	wantError(t, try("2001:db8:0:1::1", "fbt_x"), connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL)
	enroll := func(from string) error {
		req := connect.NewRequest(fleetbanv1.EnrollRequest_builder{JoinToken: "x", Name: "a", PublicKey: make([]byte, 32)}.Build())
		req.Header().Set("test-from", from)
		_, err := fleetbanv1connect.NewAgentServiceClient(http.DefaultClient, r.url).Enroll(ctx, req)
		return err
	}
	for range 5 {
		wantError(t, enroll("203.0.113.1"), connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_JOIN_TOKEN_UNKNOWN)
	}
	wantError(t, enroll("203.0.113.1"), connect.CodeResourceExhausted, fleetbanv1.Reason_REASON_RATE_LIMITED)
	// With Redis away, neither says anything about the credential.
	r.redis.Kill()
	wantError(t, try("198.51.100.1", "fbt_x"), connect.CodeUnavailable, fleetbanv1.Reason_REASON_STORE_UNAVAILABLE)
	wantError(t, enroll("198.51.100.1"), connect.CodeUnavailable, fleetbanv1.Reason_REASON_STORE_UNAVAILABLE)
}

func TestCallsAreLimited(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := start(t, auth.Limits{Calls: rate}, 0)
	token := r.token(t, optionsv1.Permission_PERMISSION_FLEET_READ)
	began := time.Now()
	done := 0
	var err error
	for err == nil && done < 10_000 {
		_, err = r.fleet().GetFleet(ctx, request(&operatorv1.GetFleetRequest{}, "Bearer "+token.Secret))
		done++
	}
	wantError(t, err, connect.CodeResourceExhausted, fleetbanv1.Reason_REASON_RATE_LIMITED)
	if most := rate + int(time.Since(began).Seconds()*rate) + 2; done < rate || done > most {
		t.Errorf("%d calls in %s were let through at %d a second", done, time.Since(began), rate)
	}
}
