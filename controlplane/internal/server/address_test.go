package server_test

import (
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/people"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// Whoever writes an address in another way is the same person, or nobody: at each replica, where people sign in, are invited and
// ask for a reset. What is refused stands in no log as more than a line.
func TestAddressTricks(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	ctx := t.Context()
	owner := h.signIn(0, ownerEmail, ownerPassword).GetTokens().GetAccessToken()
	id := ""
	for i, same := range []string{"ADA@EXAMPLE.COM", "Ada@example.com", "ada@Example.Com", "aDA@eXAMPLE.cOM"} {
		in := h.signIn(i%2, same, ownerPassword)
		if id == "" {
			id = in.GetPerson().GetId()
		}
		if in.GetPerson().GetId() != id || in.GetPerson().GetEmail() != ownerEmail {
			t.Errorf("%q is %v", same, in.GetPerson())
		}
	}
	for name, other := range map[string]string{
		"full-width letters": "ａｄａ@example.com", "a Cyrillic a": "аda@example.com", "a dotless i": "adı@example.com", "the Kelvin sign": "\u212aate@example.com",
		"a zero-width space": "ada\u200b@example.com", "a combining accent": "ada\u0301@example.com", "right to left": "\u202eada@example.com",
		"a line": "ada@example.com\n", "a header": "ada@example.com\r\nBcc: eve@example.com", "a line before": "\nada@example.com", "a blank": " ada@example.com",
		"a tab": "ada@example.com\t", "a zero byte": "ada\x00@example.com", "two addresses": "ada@example.com,eve@example.com", "a route": "@eve.example,ada@example.com",
		"quotes": `"ada"@example.com`, "a comment": "ada(x)@example.com", "a name": "Ada <ada@example.com>", "two at signs": "ada@@example.com",
		"a dot at the end": "ada@example.com.", "two dots": "ada..a@example.com", "an address literal": "ada@[127.0.0.1]", "percent": "ada%40example.com",
		"a key of Redis": "ada@example.com}:account", "very long": strings.Repeat("a", 65) + "@example.com",
	} {
		for i := range h.replicas {
			_, err := h.sessions(i, "").SignIn(ctx, connect.NewRequest(operatorv1.SignInRequest_builder{Email: other, Password: ownerPassword}.Build()))
			if connect.CodeOf(err) != connect.CodeInvalidArgument {
				t.Errorf("%s, replica %d: signing in: %v", name, i, err)
			}
			_, err = h.members(i, owner).Invite(ctx, connect.NewRequest(operatorv1.InviteRequest_builder{Email: other, Role: people.Viewer}.Build()))
			if connect.CodeOf(err) != connect.CodeInvalidArgument {
				t.Errorf("%s, replica %d: inviting: %v", name, i, err)
			}
			_, err = h.members(i, owner).RemoveMember(ctx, connect.NewRequest(operatorv1.RemoveMemberRequest_builder{Member: other}.Build()))
			if code := connect.CodeOf(err); code != connect.CodeInvalidArgument && code != connect.CodeNotFound {
				t.Errorf("%s, replica %d: removing: %v", name, i, err)
			}
		}
	}
	if members, err := h.members(1, owner).ListMembers(ctx, connect.NewRequest(&operatorv1.ListMembersRequest{})); err != nil || len(members.Msg.GetMembers()) != 1 {
		t.Errorf("%v, %v", members, err)
	}
	for i, p := range h.replicas {
		for line := range strings.Lines(p.log.String()) {
			if strings.HasPrefix(line, "Bcc") || strings.ContainsAny(line, "\x00\u202e") {
				t.Errorf("replica %d has a line of its caller's in its log: %q", i, line)
			}
		}
	}
}
