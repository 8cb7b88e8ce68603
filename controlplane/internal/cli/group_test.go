package cli

import (
	"fmt"
	"testing"
)

func TestParseGroup(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"ops=admin": "ops ROLE_ADMIN []", "web=operator:team=web,team=shop": "web ROLE_OPERATOR [team=web team=shop]",
		"cn=ops,dc=example=viewer": "cn=ops,dc=example ROLE_VIEWER []", "a:b=owner": "a:b ROLE_OWNER []", "admin=operator": "admin ROLE_OPERATOR []",
	} {
		role, err := parseGroup(in)
		if err != nil || fmt.Sprintf("%s %s %v", role.GetGroup(), role.GetRole(), role.GetTags()) != want {
			t.Errorf("%q: %v, %v", in, role, err)
		}
	}
	for _, in := range []string{"", "ops", "=admin", "ops=", "ops=boss", "ops=admin:", "ops=administrator"} {
		if role, err := parseGroup(in); err == nil {
			t.Errorf("%q: %v", in, role)
		}
	}
}
