package server_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/descope/virtualwebauthn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/fleetban/fleetban/controlplane/internal/operatorapi"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/server"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// proofNeeded are the RPCs that declare that a proof must be new.
func proofNeeded() []protoreflect.MethodDescriptor {
	var out []protoreflect.MethodDescriptor
	for _, service := range operatorapi.Services() {
		for i := range service.Methods().Len() {
			method := service.Methods().Get(i)
			if asks, _ := proto.GetExtension(method.Options(), optionsv1.E_Proof).(bool); asks {
				out = append(out, method)
			}
		}
	}
	return out
}

func (h *house) prove(i int, token string, proof *operatorv1.Proof) error {
	_, err := h.sessions(i, token).Prove(h.t.Context(), connect.NewRequest(operatorv1.ProveRequest_builder{Proof: proof}.Build()))
	return err
}

func byPassword(password string) *operatorv1.Proof {
	return operatorv1.Proof_builder{Password: &password}.Build()
}

func byCode(code string) *operatorv1.Proof { return operatorv1.Proof_builder{TotpCode: &code}.Build() }

// Whoever has somebody's unlocked screen, or a stolen access token, makes no members, tokens or providers of it: each RPC
// that says so asks for a proof of the last ten minutes, which is given at one replica and counts at the other, for that
// session alone.
func TestProveAgain(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	fresh := h.signIn(0, ownerEmail, ownerPassword).GetTokens().GetAccessToken()
	mine, other := longAgo(t, fresh), longAgo(t, h.signIn(1, ownerEmail, ownerPassword).GetTokens().GetAccessToken())
	methods := proofNeeded()
	if len(methods) < 9 {
		t.Errorf("%d RPCs ask for a proof", len(methods))
	}
	// What is let through is refused for what it lacks: nothing changes.
	asked := func(token string, i int) (n int) {
		t.Helper()
		for _, method := range methods {
			code, body := h.ask(i, method, token, dynamicpb.NewMessage(method.Input()))
			if strings.Contains(body, "more than ten minutes") != (code == "permission_denied") {
				t.Errorf("%s: %s %s", method.FullName(), code, body)
			}
			if code == "permission_denied" {
				n++
			}
		}
		return n
	}
	for i := range h.replicas {
		if n := asked(fresh, i); n != 0 {
			t.Errorf("%d are refused to who has just signed in", n)
		}
		if n := asked(mine, i); n != len(methods) {
			t.Errorf("%d of %d are refused an hour later", n, len(methods))
		}
	}
	options, err := h.sessions(0, mine).GetProofOptions(t.Context(), connect.NewRequest(&operatorv1.GetProofOptionsRequest{}))
	if err != nil || !options.Msg.GetPassword() || options.Msg.GetTotp() || options.Msg.GetChallenge() != "" || options.Msg.GetProviderUrl() != "" {
		t.Errorf("%v, %v", options, err)
	}
	for name, proof := range map[string]*operatorv1.Proof{
		"another password": byPassword(nextPassword), "a code of nobody": byCode("123456"),
		"a passkey of nobody": operatorv1.Proof_builder{Passkey: operatorv1.PasskeyProof_builder{Challenge: "none", ResponseJson: []byte("{}")}.Build()}.Build(),
	} {
		if err := h.prove(0, mine, proof); !hasReason(err, fleetbanv1.Reason_REASON_BAD_CREDENTIAL) || connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := asked(mine, 1); n != len(methods) {
		t.Errorf("a wrong proof let %d through", len(methods)-n)
	}
	if err := h.prove(0, mine, byPassword(ownerPassword)); err != nil {
		t.Fatal(err)
	}
	if n := asked(mine, 1); n != 0 {
		t.Errorf("%d are refused after a proof at the other replica", n)
	}
	if n := asked(other, 1); n != len(methods) {
		t.Errorf("a proof in one session let %d through in another", len(methods)-n)
	}
	// Where there is a second factor, the password alone is none.
	secret, at, recovery := h.enrol(fresh) // ends the other session
	mine = longAgo(t, h.completed(secret, at))
	if err := h.prove(0, mine, byPassword(ownerPassword)); !hasReason(err, fleetbanv1.Reason_REASON_PROOF_NEEDED) {
		t.Errorf("the password of who has a second factor: %v", err)
	}
	if err := h.prove(1, mine, operatorv1.Proof_builder{RecoveryCode: &recovery[0]}.Build()); err != nil {
		t.Error(err)
	}
	if err := h.prove(1, mine, operatorv1.Proof_builder{RecoveryCode: &recovery[0]}.Build()); !hasReason(err, fleetbanv1.Reason_REASON_BAD_CREDENTIAL) {
		t.Errorf("a recovery code twice: %v", err)
	}
	if n := asked(mine, 0); n != 0 {
		t.Errorf("%d are refused after a recovery code", n)
	}
}

// completed signs the owner in with a code of the next time step.
func (h *house) completed(secret string, at time.Time) string {
	h.t.Helper()
	in, err := h.complete(1, h.challenge(0, ownerEmail, ownerPassword), nextCode(h.t, secret, at))
	if err != nil {
		h.t.Fatal(err)
	}
	return in.GetTokens().GetAccessToken()
}

// A passkey proves it too: each challenge once, and to the person that it was made for.
func TestProveByPasskey(t *testing.T) {
	t.Parallel()
	h := newPostHouse(t)
	ctx := t.Context()
	token := h.signIn(0, ownerEmail, ownerPassword).GetTokens().GetAccessToken()
	h.join(token, "bob@example.com", people.Admin)
	bob := longAgo(t, h.signIn(0, "bob@example.com", ownerPassword).GetTokens().GetAccessToken())
	begun, err := h.factors(0, token).BeginPasskey(ctx, connect.NewRequest(&operatorv1.BeginPasskeyRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	made, err := virtualwebauthn.ParseAttestationOptions(string(begun.Msg.GetPasskeyOptionsJson()))
	if err != nil {
		t.Fatal(err)
	}
	rp := virtualwebauthn.RelyingParty{ID: "fleet.example.com", Name: "Fleetban", Origin: publicURL}
	device := virtualwebauthn.NewAuthenticatorWithOptions(virtualwebauthn.AuthenticatorOptions{UserHandle: []byte(made.UserID)})
	cred := passkey()
	if _, err := h.factors(1, token).FinishPasskey(ctx, connect.NewRequest(operatorv1.FinishPasskeyRequest_builder{
		Challenge: begun.Msg.GetChallenge(), Name: "laptop", PasskeyResponseJson: []byte(virtualwebauthn.CreateAttestationResponse(rp, device, cred, *made)),
	}.Build())); err != nil {
		t.Fatal(err)
	}
	token = longAgo(t, token)
	options, err := h.sessions(0, token).GetProofOptions(ctx, connect.NewRequest(&operatorv1.GetProofOptionsRequest{}))
	if err != nil || options.Msg.GetChallenge() == "" || !options.Msg.GetRecoveryCode() || options.Msg.GetTotp() {
		t.Fatal(options, err)
	}
	parsed, err := virtualwebauthn.ParseAssertionOptions(string(options.Msg.GetPasskeyOptionsJson()))
	if err != nil {
		t.Fatal(err)
	}
	cred.Counter++
	proof := operatorv1.Proof_builder{Passkey: operatorv1.PasskeyProof_builder{
		Challenge: options.Msg.GetChallenge(), ResponseJson: []byte(virtualwebauthn.CreateAssertionResponse(rp, device, cred, *parsed)),
	}.Build()}.Build()
	if err := h.prove(1, bob, proof); !hasReason(err, fleetbanv1.Reason_REASON_BAD_CREDENTIAL) {
		t.Errorf("another person's passkey: %v", err)
	}
	if _, err := h.sessions(1, "").CompleteSignIn(ctx, connect.NewRequest(operatorv1.CompleteSignInRequest_builder{
		Challenge: options.Msg.GetChallenge(), PasskeyResponseJson: proof.GetPasskey().GetResponseJson(),
	}.Build())); !refused(err) {
		t.Errorf("a proof's challenge signs in: %v", err)
	}
	if err := h.prove(1, token, proof); err != nil {
		t.Fatal(err)
	}
	if err := h.prove(0, token, proof); !hasReason(err, fleetbanv1.Reason_REASON_BAD_CREDENTIAL) {
		t.Errorf("a challenge twice: %v", err)
	}
	if _, err := h.members(0, token).Invite(ctx, connect.NewRequest(operatorv1.InviteRequest_builder{Email: "x@example.com", Role: people.Viewer}.Build())); err != nil {
		t.Error(err)
	}
}

// invitation is the secret of one.
func (h *house) invitation(i int, by, email string, role operatorv1.Role) string {
	h.t.Helper()
	res, err := h.members(i, by).Invite(h.t.Context(), connect.NewRequest(operatorv1.InviteRequest_builder{Email: email, Role: role}.Build()))
	if err != nil {
		h.t.Fatal(err)
	}
	_, secret, _ := strings.Cut(res.Msg.GetLink(), "#")
	return secret
}

func (h *house) accept(i int, invitation, password, challenge, code string) (*operatorv1.AcceptInvitationResponse, error) {
	req := operatorv1.AcceptInvitationRequest_builder{Invitation: invitation, Password: password}
	if challenge != "" {
		req.SecondFactor = operatorv1.SecondFactorAnswer_builder{Challenge: challenge, TotpCode: &code}.Build()
	}
	res, err := h.members(i, "").AcceptInvitation(h.t.Context(), connect.NewRequest(req.Build()))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// An account that stands joins another organisation with all that it signs in with: whoever has its password alone, and an
// invitation that they had sent to it, is nobody there.
func TestInvitationAsksSecondFactor(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	secret, at, _ := h.enrol(h.signIn(0, ownerEmail, ownerPassword).GetTokens().GetAccessToken())
	org, eve := h.secondOrg()
	invitation := h.invitation(0, eve, ownerEmail, people.Viewer)
	asked, err := h.accept(0, invitation, ownerPassword, "", "")
	if err != nil || asked.GetOrganisationId() != "" || asked.GetEmail() != "" || !asked.GetSecondFactor().GetTotp() {
		t.Fatal(asked, err)
	}
	if _, err := h.accept(1, invitation, nextPassword, asked.GetSecondFactor().GetChallenge(), nextCode(t, secret, at)); !hasReason(err, fleetbanv1.Reason_REASON_BAD_CREDENTIAL) {
		t.Errorf("another password: %v", err)
	}
	if _, err := h.accept(1, invitation, ownerPassword, asked.GetSecondFactor().GetChallenge(), "000000"); !hasReason(err, fleetbanv1.Reason_REASON_BAD_CREDENTIAL) {
		t.Errorf("another code: %v", err)
	}
	// A challenge of somebody else's account, answered with what that has.
	h.join(eve, "mallory@example.com", people.Admin)
	other, otherAt, _ := h.enrol(h.signIn(0, "mallory@example.com", ownerPassword).GetTokens().GetAccessToken())
	theirs := h.challenge(0, "mallory@example.com", ownerPassword)
	if _, err := h.accept(1, invitation, ownerPassword, theirs, nextCode(t, other, otherAt)); !hasReason(err, fleetbanv1.Reason_REASON_BAD_CREDENTIAL) {
		t.Errorf("somebody else's second factor: %v", err)
	}
	members, err := h.members(0, eve).ListMembers(t.Context(), connect.NewRequest(&operatorv1.ListMembersRequest{}))
	if err != nil || strings.Contains(fmt.Sprint(members.Msg), ownerEmail) {
		t.Fatalf("joined without: %v, %v", members, err)
	}
	code := nextCode(t, secret, at)
	joined, err := h.accept(1, invitation, ownerPassword, asked.GetSecondFactor().GetChallenge(), code)
	if err != nil || joined.GetOrganisationId() != org || joined.GetEmail() != ownerEmail {
		t.Fatal(joined, err)
	}
	again := h.invitation(1, eve, ownerEmail, people.Viewer)
	if asked, err = h.accept(1, again, ownerPassword, "", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := h.accept(0, again, ownerPassword, asked.GetSecondFactor().GetChallenge(), code); !hasReason(err, fleetbanv1.Reason_REASON_BAD_CREDENTIAL) {
		t.Errorf("a code twice: %v", err)
	}
}

// A stranger who invites somebody to an organisation of their own has the link, and can make the account with a password and
// a factor of theirs, before the person comes. It gains them nothing: the person doesn't join with it, and once who runs the
// control plane has removed the factor and the person has set a password, all that the stranger kept is worth nothing.
func TestAccountMadeByAStranger(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	ada := h.signIn(0, ownerEmail, ownerPassword).GetTokens().GetAccessToken()
	_, eve := h.secondOrg()
	const victim = "victim@example.com"
	if _, err := h.accept(0, h.invitation(0, eve, victim, people.Viewer), ownerPassword, "", ""); err != nil {
		t.Fatal(err)
	}
	kept := h.signIn(0, victim, ownerPassword)
	secret, at, recovery := h.enrol(kept.GetTokens().GetAccessToken())
	invitation := h.invitation(1, ada, victim, people.Admin)
	if _, err := h.accept(1, invitation, nextPassword, "", ""); !hasReason(err, fleetbanv1.Reason_REASON_BAD_CREDENTIAL) || !strings.Contains(err.Error(), "password reset") {
		t.Errorf("the person isn't told what to do: %v", err)
	}
	reset := func(remove bool) string {
		var out bytes.Buffer
		backend := h.backend
		backend.DataDir = t.TempDir()
		if err := server.ResetLink(t.Context(), server.ResetLinkOptions{Backend: backend, Email: victim, RemoveFactors: remove}, slog.New(slog.DiscardHandler), &out); err != nil {
			t.Fatal(err)
		}
		_, link, _ := strings.Cut(out.String(), "/reset#")
		return strings.TrimSpace(link)
	}
	// By a link alone the person has the password, and not the factor: the account joins nothing.
	if _, err := h.reset(0, reset(false), nextPassword); err != nil {
		t.Fatal(err)
	}
	if asked, err := h.accept(0, invitation, nextPassword, "", ""); err != nil || !asked.HasSecondFactor() {
		t.Fatalf("joined without the stranger's factor: %v, %v", asked, err)
	}
	if _, err := h.reset(1, reset(true), nextPassword+"s"); err != nil {
		t.Fatal(err)
	}
	if joined, err := h.accept(1, invitation, nextPassword+"s", "", ""); err != nil || joined.GetRole() != people.Admin {
		t.Fatal(joined, err)
	}
	// What the stranger kept: the session, its next turn, the password, codes.
	for i := range h.replicas {
		if _, err := h.sessions(i, kept.GetTokens().GetAccessToken()).GetMe(t.Context(), connect.NewRequest(&operatorv1.GetMeRequest{})); !refused(err) {
			t.Errorf("replica %d: the stranger's session stands: %v", i, err)
		}
		if _, err := h.refresh(i, kept.GetTokens().GetRefreshToken()); !refused(err) {
			t.Errorf("replica %d: the stranger's session goes on: %v", i, err)
		}
		if _, err := h.sessions(i, "").SignIn(t.Context(), connect.NewRequest(operatorv1.SignInRequest_builder{Email: victim, Password: ownerPassword}.Build())); !refused(err) {
			t.Errorf("replica %d: the stranger's password is good: %v", i, err)
		}
	}
	in := h.signIn(0, victim, nextPassword+"s")
	if in.HasSecondFactor() {
		t.Error("the stranger's factor is asked for")
	}
	for name, proof := range map[string]*operatorv1.Proof{
		"code": byCode(nextCode(t, secret, at)), "recovery code": operatorv1.Proof_builder{RecoveryCode: &recovery[0]}.Build(),
	} {
		if err := h.prove(1, in.GetTokens().GetAccessToken(), proof); !hasReason(err, fleetbanv1.Reason_REASON_BAD_CREDENTIAL) {
			t.Errorf("the stranger's %s proves something: %v", name, err)
		}
	}
}

// Who came by an identity provider proves it there: it looks again, and what it says counts for the organisation, and not for
// an account's own factors.
func TestSSOProof(t *testing.T) {
	t.Parallel()
	g := newGuild(t)
	if err := g.set(nil); err != nil {
		t.Fatal(err)
	}
	g.idp.Person("carol", "carol@example.com", true, "fleet")
	access, _, text := g.visitor().signIn("carol")
	if access == "" {
		t.Fatal(text)
	}
	client := g.visitor().client
	invite := func(token string) error {
		_, err := operatorv1connect.NewMemberServiceClient(client, g.base, bearer(token)).Invite(t.Context(), connect.NewRequest(
			operatorv1.InviteRequest_builder{Email: "dan@example.com", Role: people.Viewer}.Build()))
		return err
	}
	if err := invite(access); !hasReason(err, fleetbanv1.Reason_REASON_PROOF_NEEDED) {
		t.Errorf("a sign-in for which the provider need not have looked: %v", err)
	}
	options, err := operatorv1connect.NewSessionServiceClient(client, g.base, bearer(access)).GetProofOptions(t.Context(), connect.NewRequest(&operatorv1.GetProofOptionsRequest{}))
	if err != nil || options.Msg.GetPassword() || !strings.HasPrefix(options.Msg.GetProviderUrl(), g.base+"/auth/oidc/"+g.org+"/start?") {
		t.Fatal(options, err)
	}
	_, query, _ := strings.Cut(options.Msg.GetProviderUrl(), "?")
	v := g.visitor()
	to := v.authorise("carol", "?"+query, func(q url.Values) {
		if q.Get("prompt") != "login" || q.Get("max_age") != "0" {
			t.Errorf("the provider isn't asked to look again: %v", q)
		}
	})
	if code, _, text := v.step(to, nil); code != http.StatusSeeOther {
		t.Fatal(code, text)
	}
	base, _ := url.Parse(g.base)
	for _, c := range v.client.Jar.Cookies(base) {
		if c.Name == "__Host-fleetban-access" {
			access = c.Value
		}
	}
	if err := invite(access); err != nil {
		t.Errorf("after the provider looked again: %v", err)
	}
	if _, err := operatorv1connect.NewSecondFactorServiceClient(client, g.base, bearer(access)).BeginTotp(t.Context(),
		connect.NewRequest(&operatorv1.BeginTotpRequest{})); !hasReason(err, fleetbanv1.Reason_REASON_PROOF_NEEDED) {
		t.Errorf("what a provider says counts for an account's own factors: %v", err)
	}
}

// Making the provider the only way ends the sessions that began otherwise, at every replica, but the owner's who may break the
// glass; and that one is not demoted nor removed. Members that came by the provider are found by their addresses.
func TestSSORequiredEndsSessions(t *testing.T) {
	t.Parallel()
	g := newGuild(t)
	if err := g.set(nil); err != nil {
		t.Fatal(err)
	}
	ctx, client := t.Context(), g.visitor().client
	members := func(token string) operatorv1connect.MemberServiceClient {
		return operatorv1connect.NewMemberServiceClient(client, g.base, bearer(token))
	}
	for _, email := range []string{"olga@example.com", "vic@example.com"} {
		invited, err := members(g.owner).Invite(ctx, connect.NewRequest(operatorv1.InviteRequest_builder{Email: email, Role: people.Owner}.Build()))
		if err != nil {
			t.Fatal(err)
		}
		_, secret, _ := strings.Cut(invited.Msg.GetLink(), "#")
		if _, err := members("").AcceptInvitation(ctx, connect.NewRequest(operatorv1.AcceptInvitationRequest_builder{Invitation: secret, Password: nextPassword}.Build())); err != nil {
			t.Fatal(err)
		}
	}
	signIn := func(email string) string {
		t.Helper()
		in, err := operatorv1connect.NewSessionServiceClient(client, g.base).SignIn(ctx, connect.NewRequest(
			operatorv1.SignInRequest_builder{Email: email, Password: nextPassword}.Build()))
		if err != nil {
			t.Fatal(err)
		}
		return in.Msg.GetTokens().GetAccessToken()
	}
	olga, vic := signIn("olga@example.com"), signIn("vic@example.com")
	g.idp.Person("carol", "carol@example.com", true, "fleet")
	carol, _, text := g.visitor().signIn("carol")
	if carol == "" {
		t.Fatal(text)
	}
	set := func(glass string) {
		t.Helper()
		if err := g.set(func(b *operatorv1.SetSsoRequest_builder) { b.Required, b.BreakGlass = true, glass }); err != nil {
			t.Fatal(err)
		}
	}
	set(ownerEmail)
	since := testwait.StartStopwatch(t)
	for i, p := range g.replicas {
		g.lb.send(p.addr())
		for who, token := range map[string]string{"olga": olga, "vic": vic} {
			testwait.For(t, fmt.Sprintf("replica %d refuses %s", i, who), func() bool { _, err := g.me(token); return refused(err) })
		}
		if took := since.Took(); took > soon {
			t.Errorf("replica %d took %s", i, took)
		}
		for who, token := range map[string]string{"who breaks the glass": g.owner, "who came by the provider": carol} {
			if _, err := g.me(token); err != nil {
				t.Errorf("replica %d refuses %s: %v", i, who, err)
			}
		}
	}
	demote := func(member string) error {
		_, err := members(g.owner).SetRole(ctx, connect.NewRequest(operatorv1.SetRoleRequest_builder{Member: member, Role: people.Admin}.Build()))
		return err
	}
	remove := func(member string) error {
		_, err := members(g.owner).RemoveMember(ctx, connect.NewRequest(operatorv1.RemoveMemberRequest_builder{Member: member}.Build()))
		return err
	}
	me, err := g.me(g.owner)
	if err != nil {
		t.Fatal(err)
	}
	for _, member := range []string{ownerEmail, "ADA@Example.com", me.GetId()} {
		for what, err := range map[string]error{"demoted": demote(member), "removed": remove(member)} {
			if connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "break glass") {
				t.Errorf("who breaks the glass is %s as %s: %v", what, member, err)
			}
		}
	}
	if _, err := members(g.owner).SetRole(ctx, connect.NewRequest(operatorv1.SetRoleRequest_builder{Member: "Carol@example.com", Role: people.Viewer}.Build())); err != nil {
		t.Errorf("the role of who came by the provider: %v", err)
	}
	if err := remove("carol@example.com"); err != nil {
		t.Errorf("who came by the provider is not found: %v", err)
	}
	if _, err := g.me(carol); !refused(err) {
		t.Errorf("the removed is let in: %v", err)
	}
	// Once another one may, it is an owner as any other.
	set("olga@example.com")
	testwait.For(t, "who may break it no more is refused", func() bool { _, err := g.me(g.owner); return refused(err) })
	if err := demote(ownerEmail); !refused(err) {
		t.Errorf("a session that ended: %v", err)
	}
	g.owner = signIn("olga@example.com")
	if err := remove(ownerEmail); err != nil {
		t.Errorf("the former: %v", err)
	}
}
