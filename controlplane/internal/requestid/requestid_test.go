package requestid_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/fleetban/fleetban/controlplane/internal/requestid"
)

func TestOf(t *testing.T) {
	t.Parallel()
	for given, kept := range map[string]bool{
		"a": true, "01J.x_y:z-9": true, strings.Repeat("x", 64): true,
		"": false, strings.Repeat("x", 65): false, "a b": false, "a\nb": false, `a"b`: false, "ä": false, "a\x1b[2J": false, "a=b": false,
	} {
		got := requestid.Of(http.Header{requestid.Header: []string{given}})
		if (got == given) != kept {
			t.Errorf("%q became %q", given, got)
		}
		if !kept && len(got) != 16 {
			t.Errorf("%q is no new id", got)
		}
	}
	if one, other := requestid.New(), requestid.New(); one == other {
		t.Error("two calls have one id")
	}
}
