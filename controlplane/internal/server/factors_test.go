package server_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/descope/virtualwebauthn"
	"github.com/go-redis/redis_rate/v10"
	"github.com/golang-jwt/jwt/v5"
	"github.com/pquerna/otp/totp"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/mail/mailtest"
	"github.com/fleetban/fleetban/controlplane/internal/server"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

const publicURL = "https://fleet.example.com"

// postHouse is a house with a name, and a mail server.
type postHouse struct {
	*house

	post *mailtest.Server
}

func newPostHouse(t *testing.T) *postHouse {
	t.Helper()
	redis, post := redistest.Start(t), mailtest.Start(t, mailtest.Options{How: mailtest.Plain})
	h := &house{t: t, redis: redis, backend: server.Backend{RedisURL: redis.URL(), SecretFile: secretFile(t, secretFill), PublicURL: publicURL}}
	if out, err := setupOwner(t, h.backend, ownerEmail, ownerPassword); err != nil {
		t.Fatal(out, err)
	}
	for range 2 {
		p := serve(t, server.Config{
			Backend: h.backend, TLSOff: true, TrustedProxies: []string{"127.0.0.0/8"}, MetricsListen: "off",
			SMTPURL: "smtp://127.0.0.1:" + post.Port, MailFrom: "fleet@example.com",
		})
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
	return &postHouse{house: h, post: post}
}

func (h *house) account(i int, token string) operatorv1connect.AccountServiceClient {
	return operatorv1connect.NewAccountServiceClient(http.DefaultClient, h.url(i), h.as(token))
}

func (h *house) factors(i int, token string) operatorv1connect.SecondFactorServiceClient {
	return operatorv1connect.NewSecondFactorServiceClient(http.DefaultClient, h.url(i), h.as(token))
}

func codeOf(t *testing.T, secret string, at time.Time) string {
	t.Helper()
	code, err := totp.GenerateCode(secret, at)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// nextCode is a code that is good now, of a later time step than at, however long that is ago.
func nextCode(t *testing.T, secret string, at time.Time) string {
	t.Helper()
	if at = at.Add(30 * time.Second); at.Before(time.Now()) {
		at = time.Now()
	}
	return codeOf(t, secret, at)
}

// enrol gives who holds a token codes: the secret, when the code that was used is of, and recovery codes.
func (h *house) enrol(token string) (secret string, at time.Time, recovery []string) {
	h.t.Helper()
	begun, err := h.factors(0, token).BeginTotp(h.t.Context(), connect.NewRequest(&operatorv1.BeginTotpRequest{}))
	if err != nil {
		h.t.Fatal(err)
	}
	at = time.Now()
	res, err := h.factors(1, token).ConfirmTotp(h.t.Context(), connect.NewRequest(operatorv1.ConfirmTotpRequest_builder{
		Enrolment: begun.Msg.GetEnrolment(), Code: codeOf(h.t, begun.Msg.GetSecret(), at),
	}.Build()))
	if err != nil || len(res.Msg.GetRecoveryCodes()) != 10 {
		h.t.Fatal(res, err)
	}
	return begun.Msg.GetSecret(), at, res.Msg.GetRecoveryCodes()
}

func (h *house) complete(i int, challenge, code string) (*operatorv1.SignInResponse, error) {
	req := operatorv1.CompleteSignInRequest_builder{Challenge: challenge}
	if len(code) == 6 {
		req.TotpCode = &code
	} else {
		req.RecoveryCode = &code
	}
	res, err := h.sessions(i, "").CompleteSignIn(h.t.Context(), connect.NewRequest(req.Build()))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// challenge signs in with a password that isn't enough.
func (h *house) challenge(i int, email, password string) string {
	h.t.Helper()
	in := h.signIn(i, email, password)
	if in.GetTokens() != nil || in.GetPerson() != nil || in.GetDevice() != "" || in.GetSecondFactor().GetChallenge() == "" {
		h.t.Fatalf("signed in with a password alone: %v", in)
	}
	return in.GetSecondFactor().GetChallenge()
}

// longAgo is an access token of the same session whose owner proved who they are an hour ago.
func longAgo(t *testing.T, access string) string {
	t.Helper()
	return provedAt(t, access, time.Now().Add(-time.Hour))
}

// provedAt is an access token whose person last proved then who they are.
func provedAt(t *testing.T, access string, at time.Time) string {
	t.Helper()
	header, claims := parts(t, access)
	claims["auth"] = at.Unix()
	period, err := strconv.ParseInt(header["kid"].(string), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	seed := keys.New([keys.SecretLen]byte(bytes.Repeat([]byte{secretFill}, keys.SecretLen))).SessionSeed(period)
	return forge(t, jwt.SigningMethodEdDSA, ed25519.NewKeyFromSeed(seed[:]), header, claims)
}

func hasReason(err error, want fleetbanv1.Reason) bool { return apierr.ReasonOf(err) == want }

func TestSecondFactor(t *testing.T) {
	t.Parallel()
	h := newPostHouse(t)
	ctx := t.Context()
	ada, other := h.signIn(0, ownerEmail, ownerPassword), h.signIn(1, ownerEmail, ownerPassword)
	h.join(ada.GetTokens().GetAccessToken(), "bob@example.com", operatorv1.Role_ROLE_ADMIN)
	token := ada.GetTokens().GetAccessToken()
	if _, err := h.factors(0, longAgo(t, token)).BeginTotp(ctx, connect.NewRequest(&operatorv1.BeginTotpRequest{})); !hasReason(err, fleetbanv1.Reason_REASON_PROOF_NEEDED) {
		t.Errorf("an hour after signing in: %v", err)
	}
	if _, err := h.factors(0, token).SetSecondFactorPolicy(ctx, connect.NewRequest(operatorv1.SetSecondFactorPolicyRequest_builder{Required: true}.Build())); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("who has none asks others for one: %v", err)
	}
	secret, at, recovery := h.enrol(token)
	h.post.Wait(ownerEmail, "second factor was changed")
	testwait.For(t, "the other session ended", func() bool {
		_, err := h.sessions(0, other.GetTokens().GetAccessToken()).GetMe(ctx, connect.NewRequest(&operatorv1.GetMeRequest{}))
		return refused(err)
	})
	// Somebody else's challenge, and a challenge twice.
	bob := h.signIn(0, "bob@example.com", ownerPassword)
	_, _, bobs := h.enrol(bob.GetTokens().GetAccessToken())
	if _, err := h.complete(0, h.challenge(1, "bob@example.com", ownerPassword), recovery[0]); !refused(err) {
		t.Errorf("another person's recovery code: %v", err)
	}
	asked := h.challenge(0, ownerEmail, ownerPassword)
	if _, err := h.complete(1, asked, codeOf(t, secret, at)); !refused(err) {
		t.Errorf("the code that enabled it: %v", err)
	}
	code := nextCode(t, secret, at)
	in, err := h.complete(1, asked, code)
	if err != nil || in.GetPerson().GetEmail() != ownerEmail || in.GetDevice() == "" {
		t.Fatal(in, err)
	}
	if _, err := h.complete(0, asked, recovery[1]); !refused(err) {
		t.Errorf("a challenge twice: %v", err)
	}
	if _, err := h.complete(0, h.challenge(1, ownerEmail, ownerPassword), code); !refused(err) {
		t.Errorf("a code twice: %v", err)
	}
	// Once, of many who use one recovery code at two replicas.
	var won atomic.Int64
	var all sync.WaitGroup
	for i := range 4 {
		asked := h.challenge(i%2, ownerEmail, ownerPassword)
		all.Go(func() {
			if _, err := h.complete(i%2, asked, recovery[2]); err == nil {
				won.Add(1)
			} else if !refused(err) {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 {
		t.Errorf("a recovery code let %d in", won.Load())
	}
	// The password alone changes no factor of a session that is open for long.
	late := h.factors(0, longAgo(t, in.GetTokens().GetAccessToken()))
	for name, proof := range map[string]*operatorv1.Proof{
		"nothing": nil, "the password alone": operatorv1.Proof_builder{Password: new(ownerPassword)}.Build(),
	} {
		if _, err := late.DisableTotp(ctx, connect.NewRequest(operatorv1.DisableTotpRequest_builder{Proof: proof}.Build())); !hasReason(err, fleetbanv1.Reason_REASON_PROOF_NEEDED) {
			t.Errorf("disabled with %s: %v", name, err)
		}
	}
	wrong := operatorv1.Proof_builder{RecoveryCode: &bobs[0]}.Build()
	if _, err := late.DisableTotp(ctx, connect.NewRequest(operatorv1.DisableTotpRequest_builder{Proof: wrong}.Build())); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("disabled with another's recovery code: %v", err)
	}
	// The organisation asks for one.
	h.join(in.GetTokens().GetAccessToken(), "cleo@example.com", operatorv1.Role_ROLE_VIEWER)
	if _, err := h.factors(1, in.GetTokens().GetAccessToken()).SetSecondFactorPolicy(ctx, connect.NewRequest(operatorv1.SetSecondFactorPolicyRequest_builder{Required: true}.Build())); err != nil {
		t.Fatal(err)
	}
	cleo := h.signIn(0, "cleo@example.com", ownerPassword)
	if !cleo.GetPerson().GetMustEnrolSecondFactor() {
		t.Fatal("signed in without")
	}
	for i := range 2 {
		if _, err := h.fleet(i, cleo.GetTokens().GetAccessToken()).GetFleet(ctx, connect.NewRequest(&operatorv1.GetFleetRequest{})); connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("without a second factor: %v", err)
		}
	}
	h.enrol(cleo.GetTokens().GetAccessToken())
	next, err := h.refresh(1, cleo.GetTokens().GetRefreshToken())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.fleet(0, next.GetAccessToken()).GetFleet(ctx, connect.NewRequest(&operatorv1.GetFleetRequest{})); err != nil {
		t.Errorf("with one: %v", err)
	}
	right := operatorv1.Proof_builder{RecoveryCode: &recovery[3]}.Build()
	if _, err := late.DisableTotp(ctx, connect.NewRequest(operatorv1.DisableTotpRequest_builder{Proof: right}.Build())); err != nil {
		t.Error(err)
	}
	// What happened is in the log, with what each signed in.
	var with []string
	res, err := operatorv1connect.NewAuditServiceClient(http.DefaultClient, h.url(1), h.as(in.GetTokens().GetAccessToken())).ListAudit(ctx, connect.NewRequest(&operatorv1.ListAuditRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range res.Msg.GetEntries() {
		for _, d := range e.GetDetails() {
			if d.GetName() == "with" {
				with = append(with, d.GetAfter())
			}
		}
		if strings.Contains(e.String(), secret) || strings.Contains(e.String(), recovery[2]) {
			t.Errorf("a secret is in the log: %v", e)
		}
	}
	for _, want := range []string{"password", "password+totp", "password+recovery-code"} {
		if !strings.Contains(" "+strings.Join(with, " ")+" ", " "+want+" ") {
			t.Errorf("no sign-in with %s in the log: %v", want, with)
		}
	}
}

func TestPasskeySignIn(t *testing.T) {
	t.Parallel()
	h := newPostHouse(t)
	ctx := t.Context()
	token := h.signIn(0, ownerEmail, ownerPassword).GetTokens().GetAccessToken()
	begun, err := h.factors(0, token).BeginPasskey(ctx, connect.NewRequest(&operatorv1.BeginPasskeyRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	options, err := virtualwebauthn.ParseAttestationOptions(string(begun.Msg.GetPasskeyOptionsJson()))
	if err != nil {
		t.Fatal(err)
	}
	rp := virtualwebauthn.RelyingParty{ID: "fleet.example.com", Name: "Fleetban", Origin: publicURL}
	device := virtualwebauthn.NewAuthenticatorWithOptions(virtualwebauthn.AuthenticatorOptions{UserHandle: []byte(options.UserID)})
	cred := passkey()
	made, err := h.factors(1, token).FinishPasskey(ctx, connect.NewRequest(operatorv1.FinishPasskeyRequest_builder{
		Challenge: begun.Msg.GetChallenge(), Name: "laptop", PasskeyResponseJson: []byte(virtualwebauthn.CreateAttestationResponse(rp, device, cred, *options)),
	}.Build()))
	if err != nil || len(made.Msg.GetRecoveryCodes()) != 10 {
		t.Fatal(made, err)
	}
	signs := func(challenge string, options []byte) (*operatorv1.SignInResponse, error) {
		parsed, err := virtualwebauthn.ParseAssertionOptions(string(options))
		if err != nil {
			t.Fatal(err)
		}
		cred.Counter++
		res, err := h.sessions(1, "").CompleteSignIn(ctx, connect.NewRequest(operatorv1.CompleteSignInRequest_builder{
			Challenge: challenge, PasskeyResponseJson: []byte(virtualwebauthn.CreateAssertionResponse(rp, device, cred, *parsed)),
		}.Build()))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	in := h.signIn(0, ownerEmail, ownerPassword)
	if in, err := signs(in.GetSecondFactor().GetChallenge(), in.GetSecondFactor().GetPasskeyOptionsJson()); err != nil || in.GetPerson().GetEmail() != ownerEmail {
		t.Fatal(in, err)
	}
	asked, err := h.sessions(0, "").BeginPasskeySignIn(ctx, connect.NewRequest(&operatorv1.BeginPasskeySignInRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if in, err = signs(asked.Msg.GetChallenge(), asked.Msg.GetPasskeyOptionsJson()); err != nil || in.GetPerson().GetEmail() != ownerEmail {
		t.Fatal(in, err)
	}
	if _, err := signs(asked.Msg.GetChallenge(), asked.Msg.GetPasskeyOptionsJson()); !refused(err) {
		t.Errorf("a challenge twice: %v", err)
	}
	// A terminal, which can use no passkey, is signed in by it too.
	code := h.asks(0, "")
	if err := h.lets(1, in.GetTokens().GetAccessToken(), code); err != nil {
		t.Error(err)
	}
	if got, err := h.takes(0, code, terminalVerifier); err != nil || got.GetPerson().GetEmail() != ownerEmail {
		t.Error(got, err)
	}
	listed, err := h.factors(0, in.GetTokens().GetAccessToken()).GetFactors(ctx, connect.NewRequest(&operatorv1.GetFactorsRequest{}))
	if err != nil || len(listed.Msg.GetPasskeys()) != 1 || listed.Msg.GetPasskeys()[0].GetUsedUnixMs() == 0 {
		t.Errorf("%v, %v", listed, err)
	}
}

func (h *house) requestReset(i int, email string) error {
	_, err := h.account(i, "").RequestPasswordReset(h.t.Context(), connect.NewRequest(operatorv1.RequestPasswordResetRequest_builder{Email: email}.Build()))
	return err
}

func (h *house) reset(i int, secret, password string) (*operatorv1.ResetPasswordResponse, error) {
	res, err := h.account(i, "").ResetPassword(h.t.Context(), connect.NewRequest(operatorv1.ResetPasswordRequest_builder{Reset: secret, NewPassword: password}.Build()))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// secretIn is the secret of the link in a letter.
func secretIn(t *testing.T, l mailtest.Letter, path string) string {
	t.Helper()
	_, rest, found := strings.Cut(l.Text, "  "+publicURL+path+"#")
	if !found {
		t.Fatalf("no link to %s in %q", path, l.Text)
	}
	secret, _, _ := strings.Cut(rest, "\n")
	return secret
}

func TestPasswordReset(t *testing.T) {
	t.Parallel()
	h := newPostHouse(t)
	ctx := t.Context()
	ada := h.signIn(0, ownerEmail, ownerPassword).GetTokens()
	_, _, recovery := h.enrol(ada.GetAccessToken())
	pending := h.challenge(1, ownerEmail, ownerPassword)
	// An address without an account is answered as one with, whatever its case; look-alikes are none.
	for i, email := range []string{"nobody@example.com", "ADA@Example.COM", ownerEmail} {
		if err := h.requestReset(i%2, email); err != nil {
			t.Errorf("%s: %v", email, err)
		}
	}
	for _, email := range []string{"ad\u0430@example.com", "ada@example.com\r\nBcc: eve@example.com", "\uff41da@example.com"} {
		if err := h.requestReset(0, email); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%q: %v", email, err)
		}
	}
	first := secretIn(t, h.post.Wait(ownerEmail, "new Fleetban password"), "/reset")
	second := secretIn(t, h.post.Wait(ownerEmail, "new Fleetban password"), "/reset")
	if _, err := h.reset(0, first, "password1234"); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("a common password: %v", err)
	}
	// Of many who use one link at once, one does.
	var won atomic.Int64
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			switch _, err := h.reset(i%2, first, nextPassword); {
			case err == nil:
				won.Add(1)
			case !refused(err):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 {
		t.Errorf("%d used the link", won.Load())
	}
	for name, secret := range map[string]string{"used": first, "of before the change": second, "made up": "fbp_" + strings.Repeat("A", 43), "cut": first[:20], "of another kind": "fbe_" + first[4:]} {
		if _, err := h.reset(1, secret, "another-password-entirely"); !refused(err) {
			t.Errorf("a link that is %s: %v", name, err)
		}
	}
	for i := range 2 {
		testwait.For(t, "all sessions ended", func() bool {
			_, err := h.sessions(i, ada.GetAccessToken()).GetMe(ctx, connect.NewRequest(&operatorv1.GetMeRequest{}))
			return refused(err)
		})
	}
	if _, err := h.refresh(0, ada.GetRefreshToken()); !refused(err) {
		t.Errorf("a session of before goes on: %v", err)
	}
	if _, err := h.complete(0, pending, recovery[0]); !refused(err) {
		t.Errorf("a sign-in that began with the former password was completed: %v", err)
	}
	if _, err := h.complete(0, h.challenge(1, ownerEmail, nextPassword), recovery[1]); err != nil {
		t.Errorf("the second factor after a reset: %v", err)
	}
	h.post.Wait(ownerEmail, "set anew")
	for _, l := range h.post.Letters() {
		if l.To != ownerEmail {
			t.Errorf("a letter to %s", l.To)
		}
	}
	// One that is old.
	if err := h.requestReset(0, ownerEmail); err != nil {
		t.Fatal(err)
	}
	old := secretIn(t, h.post.Wait(ownerEmail, "new Fleetban password"), "/reset")
	client := h.redis.Open().Client()
	pattern := "fb:link:" + strings.Repeat("?", 64)
	links := redistest.Keys(t, client, pattern)
	if len(links) == 0 {
		t.Fatal("no link waits")
	}
	for _, key := range links {
		if ttl, err := client.PTTL(ctx, key).Result(); err != nil || ttl <= 0 || ttl > 30*time.Minute {
			t.Errorf("%s lives %v (%v)", key, ttl, err)
		}
		if err := client.PExpire(ctx, key, time.Millisecond).Err(); err != nil {
			t.Fatal(err)
		}
	}
	testwait.For(t, "the link expired", func() bool { return len(redistest.Keys(t, client, pattern)) == 0 })
	if _, err := h.reset(0, old, "another-password-entirely"); !refused(err) {
		t.Errorf("an expired link: %v", err)
	}
	// Somebody's mailbox isn't filled; nobody is told.
	for range 8 {
		if err := h.requestReset(1, ownerEmail); err != nil {
			t.Fatal(err)
		}
	}
	// And by who runs it, without mail.
	var out bytes.Buffer
	b := h.backend
	b.DataDir = t.TempDir()
	if err := server.ResetLink(ctx, server.ResetLinkOptions{Backend: b, Email: "Ada@example.com", RemoveFactors: true}, slog.New(slog.DiscardHandler), &out); err != nil {
		t.Fatal(err)
	}
	_, secret, _ := strings.Cut(strings.TrimSpace(out.String()), "/reset#")
	if _, err := h.reset(1, secret, ownerPassword); err != nil {
		t.Fatal(err)
	}
	if in := h.signIn(0, ownerEmail, ownerPassword); in.GetTokens() == nil {
		t.Error("the second factor stands")
	}
	b.DataDir = t.TempDir()
	if err := server.ResetLink(ctx, server.ResetLinkOptions{Backend: b, Email: "nobody@example.com"}, slog.New(slog.DiscardHandler), &out); err == nil {
		t.Error("a link for nobody")
	}
	sent := len(h.post.Letters())
	if sent > 8 {
		t.Errorf("%d letters", sent)
	}
}

// Whoever knows an address can't keep its owner out.
func TestOwnersAreNotLockedOut(t *testing.T) {
	t.Parallel()
	h := newPostHouse(t)
	ctx := t.Context()
	at := func(i int, from, device, password string) (*operatorv1.SignInResponse, error) {
		client := operatorv1connect.NewSessionServiceClient(http.DefaultClient, h.url(i))
		req := connect.NewRequest(operatorv1.SignInRequest_builder{Email: ownerEmail, Password: password, Device: device}.Build())
		req.Header().Set("X-Forwarded-For", from)
		res, err := client.SignIn(ctx, req)
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	home, err := at(0, "203.0.113.1", "", ownerPassword)
	if err != nil || home.GetDevice() == "" {
		t.Fatal(home, err)
	}
	limited := func(err error) bool { return hasReason(err, fleetbanv1.Reason_REASON_RATE_LIMITED) }
	// What all strangers have is used up at this moment, as a flood from many addresses does it.
	used := redis_rate.NewLimiter(h.redis.Open().Client())
	account := sha256.Sum256([]byte(ownerEmail))
	flood := func() {
		if _, err := used.AllowAtMost(ctx, store.Global("signin", "account", hex.EncodeToString(account[:])), redis_rate.PerMinute(10), 10); err != nil {
			t.Fatal(err)
		}
	}
	flood()
	if _, err := at(0, "192.0.2.77", "", ownerPassword); !limited(err) {
		t.Errorf("a stranger: %v", err)
	}
	if _, err := at(1, "203.0.113.1", "", ownerPassword); err != nil {
		t.Errorf("from home: %v", err)
	}
	if _, err := at(1, "192.0.2.78", home.GetDevice(), ownerPassword); err != nil {
		t.Errorf("on a known device, elsewhere: %v", err)
	}
	// Neither place nor device may guess for long.
	for name, c := range map[string]struct{ from, device string }{"home": {"203.0.113.1", ""}, "device": {"192.0.2.79", home.GetDevice()}} {
		bounded := false
		for i := range 40 { // ten at once, and one more every 6 s
			if _, err := at(i%2, c.from, c.device, nextPassword); limited(err) {
				bounded = true
				break
			}
		}
		if !bounded {
			t.Errorf("%s: it may guess without end", name)
		}
	}
	// Who has neither follows a link.
	if err := h.requestReset(0, ownerEmail); err != nil {
		t.Fatal(err)
	}
	set, err := h.reset(1, secretIn(t, h.post.Wait(ownerEmail, "new Fleetban password"), "/reset"), nextPassword)
	if err != nil {
		t.Fatal(err)
	}
	flood()
	if _, err := at(0, "192.0.2.80", set.GetDevice(), nextPassword); err != nil {
		t.Errorf("after a reset, on its device: %v", err)
	}
	flood()
	known, err := at(1, "192.0.2.81", home.GetDevice(), nextPassword)
	if !limited(err) {
		t.Errorf("a device of before the reset is known: %v, %v", known, err)
	}
}

func TestChangeEmail(t *testing.T) {
	t.Parallel()
	h := newPostHouse(t)
	ctx := t.Context()
	const next = "lovelace@example.com"
	ada := h.signIn(0, ownerEmail, ownerPassword).GetTokens().GetAccessToken()
	h.join(ada, "bob@example.com", operatorv1.Role_ROLE_ADMIN)
	h.post.Wait("bob@example.com", "invited")
	change := func(token, to string, proof *operatorv1.Proof) error {
		_, err := h.account(0, token).ChangeEmail(ctx, connect.NewRequest(operatorv1.ChangeEmailRequest_builder{NewEmail: to, Proof: proof}.Build()))
		return err
	}
	confirm := func(i int, secret string) error {
		_, err := h.account(i, "").ConfirmEmail(ctx, connect.NewRequest(operatorv1.ConfirmEmailRequest_builder{Confirmation: secret}.Build()))
		return err
	}
	if err := change(longAgo(t, ada), next, nil); !hasReason(err, fleetbanv1.Reason_REASON_PROOF_NEEDED) {
		t.Errorf("without a proof: %v", err)
	}
	if err := change(longAgo(t, ada), next, operatorv1.Proof_builder{Password: new(nextPassword)}.Build()); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("with another password: %v", err)
	}
	if err := change(ada, "ADA@example.com", nil); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("to one's own in another case: %v", err)
	}
	if err := change(ada, "lovelac\u0435@example.com", nil); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("to a look-alike: %v", err)
	}
	// Whether there is an account shows to who has its mailbox, and to nobody else.
	if err := change(ada, "BOB@example.com", nil); err != nil {
		t.Fatal(err)
	}
	if err := confirm(1, secretIn(t, h.post.Wait("bob@example.com", "Confirm"), "/email")); connect.CodeOf(err) != connect.CodeAlreadyExists {
		t.Errorf("to another's: %v", err)
	}
	if err := change(longAgo(t, ada), next, operatorv1.Proof_builder{Password: new(ownerPassword)}.Build()); err != nil {
		t.Fatal(err)
	}
	h.post.Wait(ownerEmail, "about to change")
	voided := secretIn(t, h.post.Wait(next, "Confirm"), "/email")
	// A changed password voids it: so does who was warned.
	if _, err := h.account(1, ada).ChangePassword(ctx, connect.NewRequest(operatorv1.ChangePasswordRequest_builder{Password: ownerPassword, NewPassword: nextPassword}.Build())); err != nil {
		t.Fatal(err)
	}
	h.post.Wait(ownerEmail, "password was changed")
	if err := confirm(0, voided); !refused(err) {
		t.Errorf("after a change of password: %v", err)
	}
	if err := change(ada, next, nil); err != nil {
		t.Fatal(err)
	}
	secret := secretIn(t, h.post.Wait(next, "Confirm"), "/email")
	if err := confirm(1, secret); err != nil {
		t.Fatal(err)
	}
	if err := confirm(0, secret); !refused(err) {
		t.Errorf("a link twice: %v", err)
	}
	h.post.Wait(ownerEmail, "was changed")
	if in := h.signIn(1, strings.ToUpper(next), nextPassword); in.GetPerson().GetEmail() != next || in.GetPerson().GetRole() != operatorv1.Role_ROLE_OWNER {
		t.Errorf("%v", in)
	}
	if _, err := h.sessions(0, "").SignIn(ctx, connect.NewRequest(operatorv1.SignInRequest_builder{Email: ownerEmail, Password: nextPassword}.Build())); !refused(err) {
		t.Errorf("with the former address: %v", err)
	}
	members, err := h.members(1, ada).ListMembers(ctx, connect.NewRequest(&operatorv1.ListMembersRequest{}))
	if err != nil || len(members.Msg.GetMembers()) != 2 || members.Msg.GetMembers()[0].GetEmail() != next {
		t.Errorf("%v, %v", members, err)
	}
	// The former address is free.
	h.join(ada, ownerEmail, operatorv1.Role_ROLE_VIEWER)
}

func TestNoMail(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	for _, email := range []string{ownerEmail, "nobody@example.com"} {
		if err := h.requestReset(0, email); !hasReason(err, fleetbanv1.Reason_REASON_MAIL_OFF) {
			t.Errorf("%s: %v", email, err)
		}
	}
	// A build without the console names the command instead.
	for path, want := range map[string]string{"/reset": "password reset", "/email": "email confirm"} {
		u, err := url.JoinPath(h.url(0), path)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.Get(u)
		if err != nil {
			t.Fatal(err)
		}
		var body bytes.Buffer
		_, err = body.ReadFrom(res.Body)
		if err = errors.Join(err, res.Body.Close()); err != nil || res.StatusCode != http.StatusOK ||
			!strings.Contains(body.String(), want) && !strings.Contains(body.String(), "<title>Fleetban</title>") {
			t.Errorf("%s: %s %q, %v", path, res.Status, body.String(), err)
		}
	}
}

// passkey is what a device makes. The library leaves out the zeros that one in 128 keys begins with, which no device does and
// is refused: such a key, shorter than others, isn't used.
func passkey() virtualwebauthn.Credential {
	const whole = 77 // bytes of CBOR
	for {
		if c := virtualwebauthn.NewCredential(virtualwebauthn.KeyTypeEC2); len(c.Key.AttestationData()) == whole {
			return c
		}
	}
}
