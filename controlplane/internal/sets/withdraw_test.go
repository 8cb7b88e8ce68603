package sets_test

import (
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
)

// What a host claimed goes, and what another one or a person claims stays; what the host says of it again is refused.
func TestWithdrawHost(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const alone, shared, manual = "203.0.113.1/32", "203.0.113.2/32", "203.0.113.3/32"
	f.events(t, "H1", jailBan(1, "sshd", alone, time.Hour), jailBan(2, "sshd", shared, time.Hour), jailBan(3, "nginx", shared, time.Hour), jailBan(4, "sshd", manual, time.Hour))
	f.events(t, "H2", jailBan(1, "sshd", shared, time.Hour))
	f.ban(t, time.Hour, manual)
	f.advance(time.Second)
	if n := must(f.WithdrawHost(t.Context(), org, "H1", "alice"))(t); n != 4 {
		t.Errorf("%d claims retracted, want 4", n)
	}
	f.check(t)
	banned := func() string {
		text := ""
		for _, e := range must(f.List(t.Context(), org, sets.ListInput{PageSize: 100}))(t).Entries {
			for _, c := range e.Claims {
				text += e.Prefix.String() + " by " + c.HostID + c.Actor + "; "
			}
		}
		return text
	}
	held := banned()
	for _, e := range must(f.List(t.Context(), org, sets.ListInput{PageSize: 100, HostID: "H1", IncludeUnpromoted: true}))(t).Entries {
		t.Errorf("%s is still claimed", e.Prefix)
	}
	if n := len(must(f.List(t.Context(), org, sets.ListInput{PageSize: 100}))(t).Entries); n != 2 {
		t.Errorf("banned: %s", held)
	}
	// It is enabled again, and tells what its fail2ban still bans: begun before.
	old := jailBan(5, "sshd", alone, time.Hour)
	old.Age = 2 * time.Second
	if r := f.events(t, "H1", old); r.Refused != 1 || banned() != held {
		t.Errorf("%+v; banned: %s", r, banned())
	}
	if r := f.events(t, "H1", jailBan(6, "sshd", alone, time.Hour)); r.Promoted != 1 {
		t.Errorf("a new ban: %+v", r)
	}
	if n := must(f.WithdrawHost(t.Context(), org, "H9", "alice"))(t); n != 0 {
		t.Errorf("%d claims of a host that has none", n)
	}
	f.check(t)
}
