package server_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/golang-jwt/jwt/v5"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/server"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
	"github.com/fleetban/fleetban/proto/wire/hostauth"
)

const (
	ownerEmail    = "ada@example.com"
	ownerPassword = "plinth-verandah-oxbow"
	nextPassword  = "gasket.tundra.mulberry"
	secretFill    = 5
	// soon is what is promised of what ends sessions, tokens and roles.
	soon = time.Second
)

// house is two replicas over one Redis, and an owner.
type house struct {
	t        *testing.T
	redis    *redistest.Server
	backend  server.Backend
	replicas []*process
	calls    atomic.Uint32
}

func setupOwner(t *testing.T, b server.Backend, email, password string) (string, error) {
	t.Helper()
	b.DataDir = t.TempDir()
	var out bytes.Buffer
	err := server.Setup(t.Context(), server.SetupOptions{Backend: b, Organisation: "test", Mode: "enforce", Email: email, PasswordStdin: true},
		slog.New(slog.NewTextHandler(t.Output(), nil)), strings.NewReader(password+"\n"), &out)
	return out.String(), err
}

func newHouse(t *testing.T) *house {
	t.Helper()
	redis := redistest.Start(t)
	h := &house{t: t, redis: redis, backend: server.Backend{RedisURL: redis.URL(), SecretFile: secretFile(t, secretFill)}}
	if out, err := setupOwner(t, h.backend, ownerEmail, ownerPassword); err != nil || strings.Contains(out, ownerPassword) {
		t.Fatal(out, err)
	}
	for range 2 {
		p := serve(t, server.Config{Backend: h.backend, TLSOff: true, TrustedProxies: []string{"127.0.0.0/8"}, MetricsListen: "off"})
		testwait.For(t, "the replica is ready", func() bool {
			res, err := http.Get("http://" + p.addr() + "/readyz")
			if err != nil {
				return false
			}
			defer res.Body.Close()
			return res.StatusCode == http.StatusOK
		})
		h.replicas = append(h.replicas, p)
	}
	return h
}

func (h *house) url(i int) string { return "http://" + h.replicas[i].addr() }

// as is a caller with a token, from an address of its own each time: what one test tries must not limit the next.
type as struct {
	token string
	calls *atomic.Uint32
}

func (a as) set(header http.Header) {
	n := a.calls.Add(1)
	header.Set("X-Forwarded-For", fmt.Sprintf("198.51.%d.%d", n>>8&0xff, n&0xff))
	if a.token != "" {
		header.Set("Authorization", "Bearer "+a.token)
	}
}

func (a as) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		a.set(req.Header())
		return next(ctx, req)
	}
}

func (a as) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		a.set(conn.RequestHeader())
		return conn
	}
}

func (as) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func (h *house) as(token string) connect.Option {
	return connect.WithInterceptors(as{token, &h.calls})
}

func (h *house) sessions(i int, token string) operatorv1connect.SessionServiceClient {
	return operatorv1connect.NewSessionServiceClient(http.DefaultClient, h.url(i), h.as(token))
}

func (h *house) members(i int, token string) operatorv1connect.MemberServiceClient {
	return operatorv1connect.NewMemberServiceClient(http.DefaultClient, h.url(i), h.as(token))
}

func (h *house) fleet(i int, token string) operatorv1connect.FleetServiceClient {
	return operatorv1connect.NewFleetServiceClient(http.DefaultClient, h.url(i), h.as(token))
}

func (h *house) signIn(i int, email, password string) *operatorv1.SignInResponse {
	h.t.Helper()
	res, err := h.sessions(i, "").SignIn(h.t.Context(), connect.NewRequest(operatorv1.SignInRequest_builder{Email: email, Password: password}.Build()))
	if err != nil {
		h.t.Fatal(err)
	}
	return res.Msg
}

// join invites someone and accepts, each at another replica.
func (h *house) join(owner, email string, role operatorv1.Role) {
	h.t.Helper()
	res, err := h.members(0, owner).Invite(h.t.Context(), connect.NewRequest(operatorv1.InviteRequest_builder{Email: email, Role: role}.Build()))
	if err != nil {
		h.t.Fatal(err)
	}
	_, secret, _ := strings.Cut(res.Msg.GetLink(), "#")
	if _, err := h.members(1, "").AcceptInvitation(h.t.Context(), connect.NewRequest(operatorv1.AcceptInvitationRequest_builder{
		Invitation: secret, Password: ownerPassword,
	}.Build())); err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) refresh(i int, token string) (*operatorv1.Tokens, error) {
	res, err := h.sessions(i, "").Refresh(h.t.Context(), connect.NewRequest(operatorv1.RefreshRequest_builder{RefreshToken: token}.Build()))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetTokens(), nil
}

func refused(err error) bool {
	return connect.CodeOf(err) == connect.CodeUnauthenticated && apierr.ReasonOf(err) == fleetbanv1.Reason_REASON_BAD_CREDENTIAL
}

// Of many that set up at once, on machines of their own, one makes the owner.
func TestSetupMakesOneOwner(t *testing.T) {
	t.Parallel()
	backend := server.Backend{RedisURL: redistest.Start(t).URL(), SecretFile: secretFile(t, secretFill)}
	var won, stood atomic.Int64
	var all sync.WaitGroup
	for i := range 6 {
		all.Go(func() {
			_, err := setupOwner(t, backend, fmt.Sprintf("owner%d@example.com", i%3), ownerPassword)
			switch {
			case err == nil:
				won.Add(1)
			case errors.Is(err, people.ErrOwnerStands):
				stood.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 || stood.Load() != 5 {
		t.Errorf("%d won, %d heard that one stands", won.Load(), stood.Load())
	}
	if _, err := setupOwner(t, backend, "", ownerPassword); err == nil {
		t.Error("a password without an address was taken")
	}
}

// forge signs claims with key, as header says.
func forge(t *testing.T, method jwt.SigningMethod, key any, header map[string]any, claims jwt.MapClaims) string {
	t.Helper()
	token := jwt.NewWithClaims(method, claims)
	for k, v := range header {
		token.Header[k] = v
	}
	text, err := token.SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func parts(t *testing.T, token string) (header map[string]any, claims jwt.MapClaims) {
	t.Helper()
	claims = jwt.MapClaims{}
	parsed, _, err := jwt.NewParser().ParseUnverified(token, claims)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Header, claims
}

func with[M ~map[string]any](m M, k string, v any) M {
	out := M{}
	for name, value := range m {
		out[name] = value
	}
	if v == nil {
		delete(out, k)
	} else {
		out[k] = v
	}
	return out
}

// Nothing but what this fleet signed, for people, lately, opens anything, on either replica.
func TestForgedTokens(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	good := h.signIn(0, ownerEmail, ownerPassword).GetTokens().GetAccessToken()
	for i := range h.replicas {
		if _, err := h.sessions(i, good).GetMe(t.Context(), connect.NewRequest(&operatorv1.GetMeRequest{})); err != nil {
			t.Fatal(err)
		}
	}
	header, claims := parts(t, good)
	k, other := keys.New([keys.SecretLen]byte(bytes.Repeat([]byte{secretFill}, keys.SecretLen))), keys.New([keys.SecretLen]byte{9})
	period, err := strconv.ParseInt(header["kid"].(string), 10, 64) // that of now may be the next already
	if err != nil {
		t.Fatal(err)
	}
	key := func(k *keys.Keys, period int64) ed25519.PrivateKey {
		seed := k.SessionSeed(period)
		return ed25519.NewKeyFromSeed(seed[:])
	}
	mine := key(k, period)
	eddsa, now := jwt.SigningMethodEdDSA, time.Now()
	sign := func(claims jwt.MapClaims) string { return forge(t, eddsa, mine, header, claims) }
	if _, err := h.fleet(0, sign(claims)).GetFleet(t.Context(), connect.NewRequest(&operatorv1.GetFleetRequest{})); err != nil {
		t.Fatal("what the test forges is good where nothing is changed: ", err)
	}
	_, hostKey, _ := ed25519.GenerateKey(rand.Reader)
	assertion, err := hostauth.Sign(hostKey, "01ARZ3NDEKTSV4RRFFQ69G5FAV", k.Audience(), now)
	if err != nil {
		t.Fatal(err)
	}
	none := base64.RawURLEncoding.EncodeToString([]byte(fmt.Sprintf(`{"alg":"none","typ":"fleetban-session+jwt","kid":"%d"}`, period)))
	split := strings.Split(good, ".")
	forged := map[string]string{
		"alg none":                  none + "." + split[1] + ".",
		"alg none with a signature": none + "." + split[1] + "." + split[2],
		"HS256 with the public key": forge(t, jwt.SigningMethodHS256, []byte(mine.Public().(ed25519.PublicKey)), with(header, "alg", "HS256"), claims),
		"no kid":                    forge(t, eddsa, mine, with(header, "kid", ""), claims),
		"kid of another key":        forge(t, eddsa, mine, with(header, "kid", fmt.Sprint(period-1)), claims),
		"kid long ago":              forge(t, eddsa, key(k, period-2), with(header, "kid", fmt.Sprint(period-2)), claims),
		"kid far ahead":             forge(t, eddsa, key(k, period+3), with(header, "kid", fmt.Sprint(period+3)), claims),
		"kid with a blank":          forge(t, eddsa, mine, with(header, "kid", fmt.Sprintf("+%d", period)), claims),
		"kid is a path":             forge(t, eddsa, mine, with(header, "kid", "../../dev/null"), claims),
		"another fleet's key":       forge(t, eddsa, key(other, period), header, claims),
		"the key of grants":         forge(t, eddsa, k.GrantKey(), header, claims),
		"another kind":              forge(t, eddsa, mine, with(header, "typ", "JWT"), claims),
		"another iss":               sign(with(claims, "iss", "evil")),
		"no iss":                    sign(with(claims, "iss", nil)),
		"aud of agents":             sign(with(claims, "aud", k.Audience())),
		"no aud":                    sign(with(claims, "aud", nil)),
		"expired":                   sign(with(with(claims, "exp", now.Add(-time.Minute).Unix()), "iat", now.Add(-6*time.Minute).Unix())),
		"no exp":                    sign(with(claims, "exp", nil)),
		"lives too long":            sign(with(claims, "exp", now.Add(time.Hour).Unix())),
		"from the future":           sign(with(with(claims, "iat", now.Add(time.Hour).Unix()), "exp", now.Add(time.Hour+time.Minute).Unix())),
		"not yet":                   sign(with(claims, "nbf", now.Add(time.Hour).Unix())),
		"no iat":                    sign(with(claims, "iat", nil)),
		"no sub":                    sign(with(claims, "sub", nil)),
		"no session":                sign(with(claims, "sid", nil)),
		"no organisation":           sign(with(claims, "org", nil)),
		"a session that is over":    sign(with(claims, "ends", now.Add(-time.Second).UnixMilli())),
		"organisation changed":      split[0] + "." + swap(t, split[1], claims["org"].(string), "01ARZ3NDEKTSV4RRFFQ69G5FAV") + "." + split[2],
		"tags in a token without":   sign(with(claims, "tags", []string{"team=web"})),
		"a kind of tags without":    forge(t, eddsa, mine, with(header, "typ", "fleetban-scoped-session+jwt"), claims),
		"tags that are none":        forge(t, eddsa, mine, with(header, "typ", "fleetban-scoped-session+jwt"), with(claims, "tags", []string{"x"})),
		"cut":                       good[:len(good)-3],
		"cut in the claims":         good[:len(good)/2],
		"cut before the signature":  split[0] + "." + split[1],
		"kid is a number":           forge(t, eddsa, mine, with(header, "kid", period), claims),
		"kid of many digits":        forge(t, eddsa, mine, with(header, "kid", strings.Repeat("9", 400)), claims),
		"without a signature":       split[0] + "." + split[1] + ".",
		"too long":                  good + strings.Repeat("A", 4096),
		"an agent's assertion":      assertion,
		"not base64":                "a.b.c",
		"dots":                      "..",
		"a refresh token":           h.signIn(1, ownerEmail, ownerPassword).GetTokens().GetRefreshToken(),
	}
	for name, token := range forged {
		for i := range h.replicas {
			if _, err := h.fleet(i, token).GetFleet(t.Context(), connect.NewRequest(&operatorv1.GetFleetRequest{})); !refused(err) {
				t.Errorf("%s, replica %d: %v", name, i, err)
			}
		}
	}
	// A role that isn't grants nothing, though it is signed.
	if _, err := h.fleet(1, sign(with(claims, "role", 9))).GetFleet(t.Context(), connect.NewRequest(&operatorv1.GetFleetRequest{})); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("an unknown role: %v", err)
	}
	// And a person's token opens no agent's stream.
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	for i := range h.replicas {
		agents := fleetbanv1connect.NewAgentServiceClient(&http.Client{Transport: transport}, h.url(i), h.as(good), connect.WithGRPC())
		conn := agents.Connect(t.Context())
		_ = conn.Send(nil)
		if _, err := conn.Receive(); connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("a person's token at an agent's stream, replica %d: %v", i, err)
		}
		if _, err := agents.RotateKey(t.Context(), connect.NewRequest(&fleetbanv1.RotateKeyRequest{})); connect.CodeOf(err) != connect.CodeUnauthenticated {
			t.Errorf("a person's token where agents change keys, replica %d: %v", i, err)
		}
	}
}

// swap replaces a text in a part of a token.
func swap(t *testing.T, part, old, text string) string {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil || !bytes.Contains(raw, []byte(old)) {
		t.Fatalf("%s: %v", raw, err)
	}
	return base64.RawURLEncoding.EncodeToString(bytes.ReplaceAll(raw, []byte(old), []byte(text)))
}

// API tokens are programs': they don't act as people.
func TestProgramsAreNoPeople(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	backend := server.Backend{RedisURL: redis.URL(), SecretFile: secretFile(t, secretFill)}
	token := setup(t, backend)
	p := serve(t, server.Config{Backend: backend, TLSOff: true, MetricsListen: "off"})
	h := &house{t: t, backend: backend, replicas: []*process{p}}
	testwait.For(t, "the token works", func() bool {
		_, err := h.fleet(0, token).GetFleet(t.Context(), connect.NewRequest(&operatorv1.GetFleetRequest{}))
		return err == nil
	})
	_, err := h.sessions(0, token).ListSessions(t.Context(), connect.NewRequest(&operatorv1.ListSessionsRequest{}))
	if connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("a token lists sessions: %v", err)
	}
	_, err = h.members(0, token).Invite(t.Context(), connect.NewRequest(operatorv1.InviteRequest_builder{Email: "x@example.com", Role: people.Viewer}.Build()))
	if connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("a token invites: %v", err)
	}
}

// Whatever ends a session or changes a role does so on the other replica too, at once and on open streams.
func TestSessionsEndEverywhere(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	ctx := t.Context()
	owner := h.signIn(0, ownerEmail, ownerPassword)
	admin := owner.GetTokens().GetAccessToken()
	h.join(admin, "bob@example.com", people.Operator)
	h.join(admin, "eve@example.com", people.Operator)
	// Two people, for one may try a password ten times a minute.
	bob := func(what string) *operatorv1.SignInResponse {
		t.Helper()
		email := "bob@example.com"
		if what == "removal" {
			email = "eve@example.com"
		}
		res := h.signIn(0, email, ownerPassword)
		if _, err := h.fleet(1, res.GetTokens().GetAccessToken()).GetFleet(ctx, connect.NewRequest(&operatorv1.GetFleetRequest{})); err != nil {
			t.Fatal(what, err)
		}
		return res
	}
	for _, tc := range []struct {
		what string
		do   func(b *operatorv1.SignInResponse) error
		// stays: the refresh token is good for another access token.
		stays bool
	}{
		{"another session is revoked", func(b *operatorv1.SignInResponse) error {
			again := h.signIn(1, "bob@example.com", ownerPassword)
			res, err := h.sessions(0, again.GetTokens().GetAccessToken()).RevokeSession(ctx, connect.NewRequest(operatorv1.RevokeSessionRequest_builder{Id: b.GetPerson().GetSessionId()}.Build()))
			if err == nil && res.Msg.GetEnded() != 1 {
				return errors.New("it ended none")
			}
			return err
		}, false},
		{"sign-out", func(b *operatorv1.SignInResponse) error {
			_, err := h.sessions(0, b.GetTokens().GetAccessToken()).SignOut(ctx, connect.NewRequest(&operatorv1.SignOutRequest{}))
			return err
		}, false},
		{"role change", func(*operatorv1.SignInResponse) error {
			_, err := h.members(0, admin).SetRole(ctx, connect.NewRequest(operatorv1.SetRoleRequest_builder{Member: "bob@example.com", Role: people.Viewer}.Build()))
			return err
		}, true},
		{"password change", func(*operatorv1.SignInResponse) error {
			again := h.signIn(1, "bob@example.com", ownerPassword)
			accounts := operatorv1connect.NewAccountServiceClient(http.DefaultClient, h.url(0), h.as(again.GetTokens().GetAccessToken()))
			_, err := accounts.ChangePassword(ctx, connect.NewRequest(operatorv1.ChangePasswordRequest_builder{Password: nextPassword, NewPassword: nextPassword}.Build()))
			if connect.CodeOf(err) != connect.CodePermissionDenied {
				return fmt.Errorf("without the present password: %w", err)
			}
			if _, err = accounts.ChangePassword(ctx, connect.NewRequest(operatorv1.ChangePasswordRequest_builder{Password: ownerPassword, NewPassword: nextPassword}.Build())); err != nil {
				return err
			}
			// The session that changed it goes on.
			_, err = h.fleet(1, again.GetTokens().GetAccessToken()).GetFleet(ctx, connect.NewRequest(&operatorv1.GetFleetRequest{}))
			if err != nil {
				return err
			}
			_, err = accounts.ChangePassword(ctx, connect.NewRequest(operatorv1.ChangePasswordRequest_builder{Password: nextPassword, NewPassword: ownerPassword}.Build()))
			return err
		}, false},
		{"removal", func(*operatorv1.SignInResponse) error {
			_, err := h.members(0, admin).RemoveMember(ctx, connect.NewRequest(operatorv1.RemoveMemberRequest_builder{Member: "eve@example.com"}.Build()))
			return err
		}, false},
	} {
		b := bob(tc.what)
		access := b.GetTokens().GetAccessToken()
		ended := make([]chan error, len(h.replicas))
		for i := range h.replicas {
			streaming, err := h.fleet(i, access).Watch(ctx, connect.NewRequest(&operatorv1.WatchRequest{}))
			if err != nil {
				t.Fatal(tc.what, err)
			}
			ended[i] = make(chan error, 1)
			go func() {
				for streaming.Receive() { //nolint:revive // whatever it tells
				}
				ended[i] <- streaming.Err()
			}()
		}
		if err := tc.do(b); err != nil {
			t.Fatal(tc.what, ": ", err)
		}
		since := testwait.StartStopwatch(t)
		for i := range h.replicas {
			select {
			case err := <-ended[i]:
				if !refused(err) {
					t.Errorf("%s: the stream of replica %d ended with %v", tc.what, i, err)
				}
			case <-time.After(testwait.Patience):
				t.Errorf("%s: the stream of replica %d goes on", tc.what, i)
			}
			if _, err := h.fleet(i, access).GetFleet(ctx, connect.NewRequest(&operatorv1.GetFleetRequest{})); !refused(err) {
				t.Errorf("%s: replica %d still lets it in: %v", tc.what, i, err)
			}
		}
		since.Within(t, tc.what+", over on both replicas", soon)
		next, err := h.refresh(1, b.GetTokens().GetRefreshToken())
		switch {
		case tc.stays && err != nil:
			t.Errorf("%s: %v", tc.what, err)
		case !tc.stays && !refused(err):
			t.Errorf("%s: the refresh token is good still: %v", tc.what, err)
		case tc.stays:
			if _, err := h.fleet(0, next.GetAccessToken()).Pause(ctx, connect.NewRequest(operatorv1.PauseRequest_builder{DurationS: 60}.Build())); connect.CodeOf(err) != connect.CodePermissionDenied {
				t.Errorf("%s: with the new role: %v", tc.what, err)
			}
		}
	}
}

// A refresh token is good once; twice at once is the same caller, and later a thief, of whom and whose victim neither goes on.
func TestRefreshOnce(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	first := h.signIn(0, ownerEmail, ownerPassword).GetTokens()
	var all sync.WaitGroup
	got := make([]*operatorv1.Tokens, 8)
	for i := range got {
		all.Go(func() {
			var err error
			if got[i], err = h.refresh(i%2, first.GetRefreshToken()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for _, tokens := range got {
		if tokens.GetRefreshToken() != got[0].GetRefreshToken() || tokens.GetRefreshToken() == first.GetRefreshToken() {
			t.Fatal("callers at once got different tokens, or the same again")
		}
	}
	third, err := h.refresh(1, got[0].GetRefreshToken())
	if err != nil {
		t.Fatal(err)
	}
	// Two turns old: a copy.
	if _, err := h.refresh(0, first.GetRefreshToken()); !refused(err) {
		t.Errorf("a replayed token: %v", err)
	}
	for i := range h.replicas {
		if _, err := h.refresh(i, third.GetRefreshToken()); !refused(err) {
			t.Errorf("the family goes on after a replay: %v", err)
		}
		testwait.For(t, "the access token is refused", func() bool {
			_, err := h.fleet(i, third.GetAccessToken()).GetFleet(t.Context(), connect.NewRequest(&operatorv1.GetFleetRequest{}))
			return refused(err)
		})
	}
	for name, token := range map[string]string{
		"cut": third.GetRefreshToken()[:60], "changed": third.GetRefreshToken()[:40] + "A" + third.GetRefreshToken()[41:], "an access token": third.GetAccessToken()[:100],
		"an API token": "fbt_" + strings.Repeat("a", 49), "empty of its kind": "fbr_", "of another fleet": "fbr_" + strings.Repeat("A", 96),
	} {
		if _, err := h.refresh(0, token); !refused(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Members of one organisation are nobody in another, whatever they name.
func TestOtherOrganisations(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	owner := h.signIn(0, ownerEmail, ownerPassword)
	_, err := h.sessions(1, "").SignIn(t.Context(), connect.NewRequest(operatorv1.SignInRequest_builder{
		Email: ownerEmail, Password: ownerPassword, OrganisationId: "01ARZ3NDEKTSV4RRFFQ69G5FAV",
	}.Build()))
	if connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("signed in to a foreign organisation: %v", err)
	}
	h.join(owner.GetTokens().GetAccessToken(), "bob@example.com", people.Admin)
	bob := h.signIn(1, "bob@example.com", ownerPassword)
	_, err = h.sessions(0, bob.GetTokens().GetAccessToken()).RevokeSession(t.Context(), connect.NewRequest(operatorv1.RevokeSessionRequest_builder{Id: owner.GetPerson().GetSessionId()}.Build()))
	if connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("ended another person's session: %v", err)
	}
	list, err := h.sessions(0, bob.GetTokens().GetAccessToken()).ListSessions(t.Context(), connect.NewRequest(&operatorv1.ListSessionsRequest{}))
	if err != nil || len(list.Msg.GetSessions()) != 1 || !list.Msg.GetSessions()[0].GetCurrent() {
		t.Errorf("%v, %v", list, err)
	}
	_, err = h.members(0, bob.GetTokens().GetAccessToken()).SetRole(t.Context(), connect.NewRequest(operatorv1.SetRoleRequest_builder{Member: ownerEmail, Role: people.Viewer}.Build()))
	if connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("an admin changed an owner: %v", err)
	}
}

// An unknown address and a wrong password are answered alike, word for word.
func TestSignInTellsNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	answer := func(i int, email string) string {
		_, err := h.sessions(i, "").SignIn(t.Context(), connect.NewRequest(operatorv1.SignInRequest_builder{Email: email, Password: nextPassword}.Build()))
		if !refused(err) {
			t.Errorf("%s: %v", email, err)
		}
		info := apierr.Info(err)
		return fmt.Sprint(err, info.GetFix(), info.GetField(), info.GetReason())
	}
	for i := range h.replicas {
		if known, unknown := answer(i, ownerEmail), answer(i, "nobody@example.com"); known != unknown {
			t.Errorf("replica %d:\n%s\n%s", i, known, unknown)
		}
	}
	for _, p := range h.replicas {
		if strings.Contains(p.log.String(), nextPassword) || strings.Contains(p.log.String(), ownerPassword) {
			t.Error("a password stands in the log")
		}
	}
}
