package server_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/operatorapi"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
	"github.com/fleetban/fleetban/proto/wire/hostauth"
)

var updateMatrix = flag.Bool("update-matrix", false, "write testdata/tenants anew: review what changes")

// tenant is an organisation with one of everything that has an id.
type tenant struct {
	h     *house
	owner string // the owner's access token
	// callers are credentials by what they are.
	callers map[string]string
	org     string
	// ids are identifiers of this organisation by the name of the request's field that takes one.
	ids map[string][]string
	// pages are page tokens of its lists by the RPC that gave them.
	pages map[string]string
	// hostKey is the key of the first host.
	hostKey ed25519.PrivateKey
}

// member makes someone belong to it, and returns their access token.
func (n *tenant) member(email string, role operatorv1.Role, tags ...string) string {
	n.h.t.Helper()
	res, err := n.h.members(0, n.owner).Invite(n.h.t.Context(), connect.NewRequest(operatorv1.InviteRequest_builder{Email: email, Role: role, Tags: tags}.Build()))
	if err != nil {
		n.h.t.Fatal(err)
	}
	_, secret, _ := strings.Cut(res.Msg.GetLink(), "#")
	joined, err := n.h.members(1, "").AcceptInvitation(n.h.t.Context(), connect.NewRequest(operatorv1.AcceptInvitationRequest_builder{
		Invitation: secret, Password: ownerPassword,
	}.Build()))
	if err != nil {
		n.h.t.Fatal(err)
	}
	signed, err := n.h.sessions(0, "").SignIn(n.h.t.Context(), connect.NewRequest(operatorv1.SignInRequest_builder{
		Email: email, Password: ownerPassword, OrganisationId: joined.Msg.GetOrganisationId(),
	}.Build()))
	if err != nil {
		n.h.t.Fatal(err)
	}
	n.ids["member"] = append(n.ids["member"], signed.Msg.GetPerson().GetId(), email)
	return signed.Msg.GetTokens().GetAccessToken()
}

// enrol makes a host.
func (n *tenant) enrol(name string, tags map[string]string) string {
	n.h.t.Helper()
	join := operatorv1connect.NewJoinTokenServiceClient(http.DefaultClient, n.h.url(0), n.h.as(n.owner))
	made, err := join.CreateJoinToken(n.h.t.Context(), connect.NewRequest(operatorv1.CreateJoinTokenRequest_builder{Tags: tags}.Build()))
	if err != nil {
		n.h.t.Fatal(err)
	}
	public, private, _ := ed25519.GenerateKey(rand.Reader)
	if n.hostKey == nil {
		n.hostKey = private
	}
	res, err := fleetbanv1connect.NewAgentServiceClient(http.DefaultClient, n.h.url(1), n.h.as("")).Enroll(n.h.t.Context(),
		connect.NewRequest(fleetbanv1.EnrollRequest_builder{JoinToken: made.Msg.GetSecret(), PublicKey: public, Name: name}.Build()))
	if err != nil {
		n.h.t.Fatal(err)
	}
	n.ids["host"] = append(n.ids["host"], res.Msg.GetHostId(), name)
	return res.Msg.GetHostId()
}

func (n *tenant) tokens() operatorv1connect.TokenServiceClient {
	return operatorv1connect.NewTokenServiceClient(http.DefaultClient, n.h.url(0), n.h.as(n.owner))
}

func newTenant(h *house, org, owner, slug string) *tenant {
	t := h.t
	t.Helper()
	n := &tenant{h: h, org: org, owner: owner, ids: map[string][]string{"organisation_id": {org}}, callers: map[string]string{"owner": owner}}
	n.callers["admin"] = n.member("admin@"+slug+".example", people.Admin)
	n.callers["operator"] = n.member("operator@"+slug+".example", people.Operator)
	n.callers["viewer"] = n.member("viewer@"+slug+".example", people.Viewer)
	n.callers["scoped"] = n.member("scoped@"+slug+".example", people.Operator, "team="+slug)
	for i, tags := range []map[string]string{{"team": slug}, {"team": "others-" + slug}} {
		n.enrol(fmt.Sprintf("%s-host-%d", slug, i), tags)
	}
	personal, err := n.tokens().CreateToken(t.Context(), connect.NewRequest(operatorv1.CreateTokenRequest_builder{Name: slug + "-personal", Role: people.Operator}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	machine, err := operatorv1connect.NewOrganisationTokenServiceClient(http.DefaultClient, h.url(0), h.as(owner)).CreateOrganisationToken(t.Context(),
		connect.NewRequest(operatorv1.CreateOrganisationTokenRequest_builder{Name: slug + "-machine", Role: people.Admin}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	n.callers["personal"], n.callers["machine"] = personal.Msg.GetSecret(), machine.Msg.GetSecret()
	n.ids["token"] = []string{personal.Msg.GetToken().GetId(), machine.Msg.GetToken().GetId()}
	n.ids["page_token"] = append(n.ids["page_token"], machine.Msg.GetToken().GetId(), n.ids["host"][1])
	bans := operatorv1connect.NewBanServiceClient(http.DefaultClient, h.url(0), h.as(owner))
	banned, err := bans.Ban(t.Context(), connect.NewRequest(operatorv1.BanRequest_builder{
		Prefixes: []string{"203.0.113.77", "203.0.113.79"}, DurationS: 3600, Reason: "reason-of-" + slug, Tag: "team=" + slug,
	}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := protojson.Marshal(banned.Msg.GetCursor())
	n.ids["cursor"] = []string{string(raw)}
	n.ids["tag"] = []string{"team=" + slug}
	joins, err := operatorv1connect.NewJoinTokenServiceClient(http.DefaultClient, h.url(0), h.as(owner)).CreateJoinToken(t.Context(),
		connect.NewRequest(operatorv1.CreateJoinTokenRequest_builder{Note: "note-of-" + slug}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	n.ids["join"] = []string{joins.Msg.GetJoinToken().GetId()}
	list, err := h.sessions(0, n.callers["operator"]).ListSessions(t.Context(), connect.NewRequest(&operatorv1.ListSessionsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	n.ids["session"] = []string{list.Msg.GetSessions()[0].GetId()}
	for _, prefix := range []string{"192.0.2.1", "192.0.2.2"} {
		if _, err := operatorv1connect.NewAllowlistServiceClient(http.DefaultClient, h.url(0), h.as(owner)).Allow(t.Context(),
			connect.NewRequest(operatorv1.AllowRequest_builder{Prefixes: []string{prefix}, Reason: "reason-of-" + slug}.Build())); err != nil {
			t.Fatal(err)
		}
	}
	n.page()
	return n
}

// page has each list give its first page of one, and keeps the token of the next.
func (n *tenant) page() {
	n.h.t.Helper()
	n.pages = map[string]string{}
	for _, method := range methods() {
		if method.Input().Fields().ByName("page_token") == nil {
			continue
		}
		message := dynamicpb.NewMessage(method.Input())
		for _, name := range []protoreflect.Name{"page_size", "limit"} {
			if f := method.Input().Fields().ByName(name); f != nil {
				message.Set(f, protoreflect.ValueOfUint32(1))
			}
		}
		_, body := n.h.ask(0, method, n.owner, message)
		var answer struct{ NextPageToken string }
		if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.NextPageToken == "" {
			n.h.t.Errorf("%s gives no second page: %s", method.FullName(), body)
		}
		n.pages[string(method.FullName())] = answer.NextPageToken
	}
}

// methods are all RPCs of people's services.
func methods() []protoreflect.MethodDescriptor {
	var out []protoreflect.MethodDescriptor
	for _, service := range operatorapi.Services() {
		for i := range service.Methods().Len() {
			out = append(out, service.Methods().Get(i))
		}
	}
	return out
}

// credential is that of a kind of caller; a host's is good once, and so made each time.
func (n *tenant) credential(kind string) string {
	if kind != "agent" {
		return n.callers[kind]
	}
	n.h.t.Helper()
	k := keys.New([keys.SecretLen]byte(bytes.Repeat([]byte{secretFill}, keys.SecretLen)))
	assertion, err := hostauth.Sign(n.hostKey, n.ids["host"][0], k.Audience(), time.Now())
	if err != nil {
		n.h.t.Fatal(err)
	}
	return assertion
}

// foreign are the other organisation's identifiers that a field could hold; every string field that could hold one is
// given each of them.
func (n *tenant) foreign(method protoreflect.MethodDescriptor, field protoreflect.FieldDescriptor) []string {
	switch name := string(field.Name()); name {
	case "id":
		return slices.Concat(n.ids["token"][:1], n.ids["session"], n.ids["join"], n.ids["host"][:1])
	case "page_token":
		// That of the same list, and what page tokens of others are made of.
		return append([]string{n.pages[string(method.FullName())]}, n.ids[name]...)
	case "host", "member", "organisation_id", "tag":
		return n.ids[name]
	case "after":
		return []string{"1-1"}
	case "tags":
		return n.ids["tag"]
	case "set":
		return []string{"tag:" + n.ids["tag"][0]}
	case "actor", "break_glass", "email":
		return n.ids["member"][1:2]
	case "target":
		return n.ids["host"][1:2]
	case "text", "group", "jail":
		return n.ids["host"][:1]
	case "address", "prefixes":
		return []string{"203.0.113.79"}
	default:
		return nil
	}
}

// filled is a request whose rules are kept, with what this organisation has in its fields.
func (n *tenant) filled(m protoreflect.MessageDescriptor) *dynamicpb.Message {
	message := dynamicpb.NewMessage(m)
	set := func(name string, v any) {
		if f := m.Fields().ByName(protoreflect.Name(name)); f != nil && !f.IsList() && !f.IsMap() {
			message.Set(f, protoreflect.ValueOf(v))
		}
	}
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		switch name := string(f.Name()); {
		case name == "prefixes":
			list := message.Mutable(f).List()
			list.Append(protoreflect.ValueOfString("203.0.113.78"))
		case name == "cursor" && f.Message() != nil:
			cursor := dynamicpb.NewMessage(f.Message())
			_ = protojson.Unmarshal([]byte(n.ids["cursor"][0]), cursor)
			message.Set(f, protoreflect.ValueOfMessage(cursor))
		case f.Kind() == protoreflect.EnumKind && !f.IsList():
			message.Set(f, protoreflect.ValueOfEnum(2))
		}
	}
	for name, text := range map[string]string{
		"host": n.ids["host"][0], "member": "nobody@example.com", "id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "address": "203.0.113.77", "email": "new@example.com",
		"new_email": "newer@example.com", "name": "a-name", "tag": n.ids["tag"][0], "challenge": "none", "refresh_token": "none", "invitation": "none",
		"password": "none-of-these", "new_password": "none-of-these-words", "reset": "none", "confirmation": "none", "organisation": "none", "token": "none",
	} {
		if f := m.Fields().ByName(protoreflect.Name(name)); f != nil && f.Kind() == protoreflect.StringKind && f.ContainingOneof() == nil {
			set(name, text)
		}
	}
	if f := m.Fields().ByName("duration_s"); f != nil {
		message.Set(f, protoreflect.ValueOfInt64(60))
	}
	return message
}

// ask calls an RPC with the Connect protocol, JSON, as any program could; of a stream it hears what comes in a moment.
func (h *house) ask(replica int, method protoreflect.MethodDescriptor, credential string, message proto.Message) (code, body string) {
	h.t.Helper()
	raw, err := protojson.Marshal(message)
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(h.t.Context(), within)
	defer cancel()
	kind := "application/json"
	if method.IsStreamingServer() {
		kind = "application/connect+json"
		raw = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(raw))), raw...)
	}
	url := fmt.Sprintf("%s/%s/%s", h.url(replica), method.Parent().FullName(), method.Name())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(raw))
	if err != nil {
		h.t.Fatal(err)
	}
	as{credential, &h.calls}.set(req.Header)
	req.Header.Set("Content-Type", kind)
	req.Header.Set("Connect-Protocol-Version", "1")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer res.Body.Close()
	if method.IsStreamingServer() {
		// A refusal comes with the headers. Who is let in hears what there is, for a moment.
		defer time.AfterFunc(200*time.Millisecond, cancel).Stop()
	}
	answer, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20)) // a stream is cut by its deadline
	var failed struct {
		Code  string
		Error struct{ Code string }
	}
	text := answer
	if method.IsStreamingServer() {
		// The last frame of a stream that ended.
		if at := bytes.LastIndex(answer, []byte(`{"error"`)); at >= 0 {
			text = answer[at:]
		}
	}
	_ = json.Unmarshal(text, &failed)
	if failed.Code == "" {
		failed.Code = failed.Error.Code
	}
	if failed.Code == "" {
		failed.Code = "ok"
	}
	return failed.Code, string(answer)
}

// secondOrg makes another organisation in the same fleet, with an owner.
func (h *house) secondOrg() (org, owner string) {
	h.t.Helper()
	st, err := store.Open(store.Options{URL: h.backend.RedisURL})
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	sealer := sealerOf(secretFill)
	made, err := orgsOf(st, sealer).Create(h.t.Context(), "Other", fleetbanv1.Mode_MODE_ENFORCE)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := people.New(st, sealer).FirstOwner(h.t.Context(), made.ID, "eve@example.com", ownerPassword); err != nil {
		h.t.Fatal(err)
	}
	return made.ID, h.signIn(1, "eve@example.com", ownerPassword).GetTokens().GetAccessToken()
}

// last is called after all others: it ends the caller's session.
func last(method protoreflect.MethodDescriptor) bool { return method.Name() == "SignOut" }

// Each RPC × each kind of caller × the own and a foreign organisation's identifiers in every field that can hold one, over
// two replicas. Who is let through is what the reviewed file says; whoever is, nothing of the other organisation shows, and
// nothing of it has changed. An RPC that is added has no row there, and fails this.
func TestTenants(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	first := h.signIn(0, ownerEmail, ownerPassword)
	a := newTenant(h, first.GetPerson().GetOrganisationId(), first.GetTokens().GetAccessToken(), "alpha")
	other, owner := h.secondOrg()
	b := newTenant(h, other, owner, "beta")
	before := h.state(b)
	kinds := []string{"owner", "admin", "operator", "viewer", "scoped", "personal", "machine", "agent", "none"}
	a.callers["none"] = ""
	var methods []protoreflect.MethodDescriptor
	for _, service := range operatorapi.Services() {
		for i := range service.Methods().Len() {
			methods = append(methods, service.Methods().Get(i))
		}
	}
	slices.SortStableFunc(methods, func(x, y protoreflect.MethodDescriptor) int {
		switch {
		case last(x) == last(y):
			return 0
		case last(x):
			return 1
		default:
			return -1
		}
	})
	said := h.permissions(a, "owner", "admin", "operator", "viewer", "scoped")
	var lines []string
	turn := 0
	for _, method := range methods {
		line := fmt.Sprintf("%-50s", string(method.Parent().Name())+"."+string(method.Name()))
		for _, kind := range kinds {
			turn++
			admitted := h.admitted(a, method, kind, turn%2)
			line += " " + fmt.Sprintf("%-9s", admitted)
			if has, ok := said[kind]; ok {
				said := permissionNone(method) || slices.Contains(has, permissionOf(method))
				// Who is restricted to tags may hold it and yet not use an RPC that is about all of the fleet.
				if said != (admitted == "yes") && (!said || kind != "scoped") {
					t.Errorf("%s: GetMe tells %s %v of %v, and they are let through: %s", method.FullName(), kind, said, permissionOf(method), admitted)
				}
			}
			if !last(method) {
				// Who is refused whatever they ask is asked one thing.
				h.probe(a, b, method, kind, turn%2, admitted == "yes")
			}
		}
		lines = append(lines, strings.TrimRight(line, " "))
	}
	slices.Sort(lines)
	head := strings.TrimRight(fmt.Sprintf("%-50s %s", "RPC", strings.Join(pad(kinds), " ")), " ")
	got, path := head+"\n"+strings.Join(lines, "\n")+"\n", filepath.Join("testdata", "tenants")
	if *updateMatrix {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || string(want) != got {
		t.Errorf("who is let through changed (go test -run TestTenants -update-matrix writes it; review it): %v\n--- got\n%s--- want\n%s", err, got, want)
	}
	if after := h.state(b); after != before {
		t.Errorf("the other organisation changed:\n%s\nwas\n%s", after, before)
	}
}

func pad(words []string) []string {
	out := make([]string, 0, len(words))
	for _, w := range words {
		out = append(out, fmt.Sprintf("%-9s", w))
	}
	return out
}

// admitted asks with an empty request, which the rules of the proto, if any, refuse after the caller was let through: so
// nothing changes. What is let through says "yes".
func (h *house) admitted(n *tenant, method protoreflect.MethodDescriptor, kind string, replica int) string {
	message := dynamicpb.NewMessage(method.Input())
	if method.Name() == "RevokeSession" {
		// An empty one ends all sessions but one.
		message = n.filled(method.Input())
	}
	code, body := h.ask(replica, method, n.credential(kind), message)
	switch {
	case code == "unauthenticated" && strings.Contains(body, "refresh_token"), code == "unauthenticated" && kind == "none" && permissionNone(method):
		return "yes"
	case code == "unauthenticated":
		return "-"
	case code == "permission_denied" && (strings.Contains(body, "lacks") || strings.Contains(body, "it is about more than")):
		return "no"
	default:
		return "yes"
	}
}

func permissionNone(method protoreflect.MethodDescriptor) bool {
	return permissionOf(method) == optionsv1.Permission_PERMISSION_NONE
}

func permissionOf(method protoreflect.MethodDescriptor) optionsv1.Permission {
	permission, _ := proto.GetExtension(method.Options(), optionsv1.E_Permission).(optionsv1.Permission)
	return permission
}

// permissions are what callers are told that they may, by kind: at sign-in and when they ask.
func (h *house) permissions(n *tenant, kinds ...string) map[string][]optionsv1.Permission {
	h.t.Helper()
	out := map[string][]optionsv1.Permission{}
	for i, kind := range kinds {
		res, err := h.sessions(i%2, n.callers[kind]).GetMe(h.t.Context(), connect.NewRequest(&operatorv1.GetMeRequest{}))
		if err != nil {
			h.t.Fatal(err)
		}
		out[kind] = res.Msg.GetPerson().GetPermissions()
		if restricted := len(res.Msg.GetPerson().GetTags()) > 0; restricted != (kind == "scoped") {
			h.t.Errorf("GetMe tells %s that they are restricted to %v", kind, res.Msg.GetPerson().GetTags())
		}
	}
	return out
}

// probe asks with the other organisation's identifiers, in each field in turn: the answer holds nothing of it that the
// request didn't say.
func (h *house) probe(mine, theirs *tenant, method protoreflect.MethodDescriptor, kind string, replica int, everything bool) {
	h.t.Helper()
	marks := []string{"beta-host", "beta.example", "beta-personal", "beta-machine", "-of-beta", theirs.ids["host"][0], theirs.org}
	for _, l := range leaves(method.Input()) {
		field := l.field()
		for _, id := range theirs.foreign(method, field) {
			message := mine.filled(method.Input())
			if !l.put(message, id) {
				continue
			}
			_, body := h.ask(replica, method, mine.credential(kind), message)
			// What the request says may come back in the refusal; and in the audit log what requests before said.
			body = strings.ReplaceAll(body, id, "")
			if method.Parent().Name() == "AuditService" {
				body = theirs.without(body)
			}
			for _, mark := range marks {
				if strings.Contains(body, mark) {
					h.t.Errorf("%s as %s with %s=%q shows %q of the other organisation: %s", method.FullName(), kind, field.Name(), id, mark, body)
				}
			}
			if !everything {
				return
			}
		}
	}
	message := mine.filled(method.Input())
	_, body := h.ask(replica, method, mine.credential(kind), message)
	if method.Parent().Name() == "AuditService" {
		body = theirs.without(body)
	}
	if strings.Contains(body, "beta-") || strings.Contains(body, theirs.org) {
		h.t.Errorf("%s as %s shows of the other organisation: %s", method.FullName(), kind, body)
	}
}

// without is text without the organisation's identifiers.
func (n *tenant) without(text string) string {
	for _, ids := range n.ids {
		for _, id := range ids {
			text = strings.ReplaceAll(text, id, "")
		}
	}
	return text
}

// state is what an organisation has that calls could change, as its owner sees it.
func (h *house) state(n *tenant) string {
	h.t.Helper()
	var out strings.Builder
	for _, name := range []string{"HostService.ListHosts", "MemberService.ListMembers", "BanService.ListBans", "JoinTokenService.ListJoinTokens", "AllowlistService.ListAllowed"} {
		service, rpc, _ := strings.Cut(name, ".")
		for _, s := range operatorapi.Services() {
			if string(s.Name()) == service {
				method := s.Methods().ByName(protoreflect.Name(rpc))
				code, body := h.ask(1, method, n.owner, dynamicpb.NewMessage(method.Input()))
				if code != "ok" {
					h.t.Fatal(name, code, body)
				}
				var plain any
				_ = json.Unmarshal([]byte(body), &plain)
				sorted, _ := json.Marshal(plain)
				fmt.Fprintf(&out, "%s %s\n", name, sorted)
			}
		}
	}
	tokens, err := operatorv1connect.NewOrganisationTokenServiceClient(http.DefaultClient, h.url(0), h.as(n.owner)).ListOrganisationTokens(h.t.Context(),
		connect.NewRequest(&operatorv1.ListOrganisationTokensRequest{}))
	if err != nil {
		h.t.Fatal(err)
	}
	for _, token := range tokens.Msg.GetTokens() {
		fmt.Fprintln(&out, token.GetId(), token.GetName())
	}
	return out.String()
}
