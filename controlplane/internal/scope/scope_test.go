package scope_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/fleetban/fleetban/controlplane/internal/scope"
)

func tags(t *rapid.T, name string) scope.Tags {
	texts := rapid.SliceOfN(rapid.SampledFrom([]string{"team=web", "team=db", "env=prod", "env=test", "x=1"}), 0, 5).Draw(t, name)
	out, err := scope.Parse(texts)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Who is narrowed sees no more than either let them see.
func TestNarrow(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b := tags(t, "a"), tags(t, "b")
		both, ok := a.Narrow(b)
		if ok && both.Whole() != (a.Whole() && b.Whole()) {
			t.Fatalf("%v narrowed by %v is the whole fleet: %v", a, b, both)
		}
		host := map[string]string{}
		for _, k := range []string{"team", "env", "x"} {
			if v := rapid.SampledFrom([]string{"", "web", "db", "prod", "test", "1"}).Draw(t, k); v != "" {
				host[k] = v
			}
		}
		if ok && both.Has(host) && (!a.Has(host) || !b.Has(host)) {
			t.Fatalf("%v and %v: %v shows %v", a, b, both, host)
		}
		for _, set := range []string{"all", "allow", "hosts", "tag:team=web", "tag:env=prod", "tag:team=we", "tag:"} {
			if ok && both.Shows(set) && (!a.Shows(set) || !b.Shows(set)) {
				t.Fatalf("%v and %v: %v shows %s", a, b, both, set)
			}
		}
	})
}

func TestParse(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "=", "a", "a=", "=b", "A=b", "a=b c", "a=b\n", "a=b,c=d", "a b=c", "a=é", "a=" + strings.Repeat("x", 61)} {
		if got, err := scope.Parse([]string{bad}); !errors.Is(err, scope.ErrInvalid) {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
	if _, err := scope.Parse([]string{"a=1", "a=2", "a=3", "a=4", "a=5", "a=6", "a=7", "a=8", "a=9"}); !errors.Is(err, scope.ErrInvalid) {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("team=web")
	f.Add("=\x00=")
	f.Fuzz(func(t *testing.T, s string) {
		tags, err := scope.Parse([]string{s})
		if err == nil && (!slices.Equal(tags.Strings(), []string{s}) || strings.ContainsAny(s, " ,\n\x00~")) {
			t.Errorf("%q became %v", s, tags)
		}
	})
}
