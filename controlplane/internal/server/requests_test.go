package server_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// leaf is a string somewhere in a request: in a message of it, in a list, in a oneof.
type leaf []protoreflect.FieldDescriptor

func (l leaf) field() protoreflect.FieldDescriptor { return l[len(l)-1] }

// leaves are all strings of a request.
func leaves(m protoreflect.MessageDescriptor, above ...protoreflect.FieldDescriptor) []leaf {
	var out []leaf
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		path := append(slices.Clone(above), f)
		switch {
		case f.IsMap():
			out = append(out, path)
		case f.Message() != nil && len(path) < 5:
			out = append(out, leaves(f.Message(), path...)...)
		case f.Kind() == protoreflect.StringKind:
			out = append(out, path)
		}
	}
	return out
}

// put writes text where the leaf is; false where that is a map, whose keys and values identify nothing.
func (l leaf) put(m protoreflect.Message, text string) bool {
	for _, f := range l[:len(l)-1] {
		if f.IsList() {
			m = m.Mutable(f).List().AppendMutable().Message()
		} else {
			m = m.Mutable(f).Message()
		}
	}
	switch f := l.field(); {
	case f.IsMap():
		return false
	case f.IsList():
		list := m.Mutable(f).List()
		list.Truncate(0)
		list.Append(protoreflect.ValueOfString(text))
	default:
		m.Set(f, protoreflect.ValueOfString(text))
	}
	return true
}

// What the strings of requests are. naming are those that name something of an organisation: another one's are tried in each.
// secretive are secrets: whoever has one is whom it was given to, whatever else they are, and tests of their own try those. The
// rest is text that is kept or compared.
var (
	naming = []string{
		"id", "host", "member", "organisation_id", "page_token", "tag", "tags", "after", "actor", "target", "jail", "set", "text", "address", "prefixes", "email",
		"break_glass", "group",
	}
	secretive = []string{
		"challenge", "code", "confirmation", "device", "enrolment", "invitation", "new_password", "password", "recovery_code", "refresh_token", "reset", "token",
		"totp_code", "verifier", "client_secret",
	}
	plainText = []string{"name", "note", "reason", "organisation_name", "client_id", "domains", "group_claim", "issuer", "head_hash", "new_email", "action"}
)

// A field that is added to a request is said to be one of these, so that none that names something is left out of TestTenants.
func TestRequestsAreKnown(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	theirs := &tenant{ids: map[string][]string{}, pages: map[string]string{}}
	for _, list := range []string{"token", "session", "join", "host", "member", "tag", "organisation_id"} {
		theirs.ids[list] = []string{"x", "y"}
	}
	for _, method := range methods() {
		for _, l := range leaves(method.Input()) {
			name, kinds := string(l.field().Name()), 0
			seen[name] = true
			for _, list := range [][]string{naming, secretive, plainText} {
				if slices.Contains(list, name) {
					kinds++
				}
			}
			if kinds != 1 {
				t.Errorf("%s has a field %s that is none, or several, of naming, secretive and plainText: say which", method.FullName(), name)
			}
			looks := name == "id" || strings.HasSuffix(name, "_id") && name != "client_id" || strings.HasSuffix(name, "cursor")
			if looks && !slices.Contains(naming, name) {
				t.Errorf("%s of %s looks like an identifier", name, method.FullName())
			}
			if slices.Contains(naming, name) && len(theirs.foreign(method, l.field())) == 0 {
				t.Errorf("%s of %s names something, and nothing of another organisation is tried in it", name, method.FullName())
			}
		}
	}
	for _, name := range slices.Concat(naming, secretive, plainText) {
		if !seen[name] {
			t.Errorf("no request has a field %s any more", name)
		}
	}
}
