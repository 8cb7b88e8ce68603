package promotion_test

import (
	"net/netip"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/promotion"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

func TestClassOf(t *testing.T) {
	t.Parallel()
	for jail, want := range map[string]promotion.Class{
		"sshd": promotion.ClassOneHost, "SSHD": promotion.ClassOneHost, "postfix-sasl": promotion.ClassOneHost, "dovecot": promotion.ClassOneHost,
		"recidive": promotion.ClassOneHost, "nginx-http-auth": promotion.ClassTwoHosts, "nginx-botsearch": promotion.ClassTwoHosts,
		"apache-auth": promotion.ClassTwoHosts, "wordpress": promotion.ClassTwoHosts, "named-refused": promotion.ClassLocal, "asterisk": promotion.ClassLocal,
		"openvpn": promotion.ClassLocal, "my-own": promotion.ClassLocal, "sshd2": promotion.ClassLocal, "": promotion.ClassLocal, "xnginx": promotion.ClassLocal,
	} {
		if got := promotion.ClassOf(jail); got != want {
			t.Errorf("ClassOf(%q) = %d, want %d", jail, got, want)
		}
	}
}

func TestDecide(t *testing.T) {
	t.Parallel()
	const enforce, watch = fleetbanv1.Mode_MODE_ENFORCE, fleetbanv1.Mode_MODE_WATCH
	one := netip.MustParsePrefix("203.0.113.9/32")
	for name, tc := range map[string]struct {
		mode   fleetbanv1.Mode
		o      promotion.Observed
		set    string
		why    operatorv1.Unpromoted
		counts bool
	}{
		"sshd":           {enforce, promotion.Observed{Jail: "sshd", Prefix: one}, banset.All, 0, true},
		"IPv6":           {enforce, promotion.Observed{Jail: "sshd", Prefix: netip.MustParsePrefix("2001:db8::1/128")}, banset.All, 0, true},
		"web":            {enforce, promotion.Observed{Jail: "nginx-botsearch", Prefix: one}, banset.All, operatorv1.Unpromoted_UNPROMOTED_AWAITS_SECOND_HOST, true},
		"unknown":        {enforce, promotion.Observed{Jail: "x", Prefix: one}, "", operatorv1.Unpromoted_UNPROMOTED_LOCAL_JAIL, false},
		"watch":          {watch, promotion.Observed{Jail: "sshd", Prefix: one}, "", operatorv1.Unpromoted_UNPROMOTED_WATCH_MODE, false},
		"no mode":        {0, promotion.Observed{Jail: "sshd", Prefix: one}, "", operatorv1.Unpromoted_UNPROMOTED_WATCH_MODE, false},
		"watch, unknown": {watch, promotion.Observed{Jail: "x", Prefix: one}, "", operatorv1.Unpromoted_UNPROMOTED_LOCAL_JAIL, false},
		"private":        {enforce, promotion.Observed{Jail: "sshd", Prefix: netip.MustParsePrefix("10.0.0.1/32")}, "", operatorv1.Unpromoted_UNPROMOTED_NOT_PUBLIC, false},
		"network":        {enforce, promotion.Observed{Jail: "sshd", Prefix: netip.MustParsePrefix("203.0.113.0/24")}, "", operatorv1.Unpromoted_UNPROMOTED_NOT_PUBLIC, false},
		"no prefix":      {enforce, promotion.Observed{Jail: "sshd"}, "", operatorv1.Unpromoted_UNPROMOTED_NOT_PUBLIC, false},
		"restored":       {enforce, promotion.Observed{Jail: "sshd", Prefix: one, Restored: true}, "", operatorv1.Unpromoted_UNPROMOTED_RESTORED, false},
		"before":         {enforce, promotion.Observed{Jail: "sshd", Prefix: one, Preexisting: true}, "", operatorv1.Unpromoted_UNPROMOTED_PREEXISTING, false},
		"ordered":        {enforce, promotion.Observed{Jail: "sshd", Prefix: one, Commanded: true, Restored: true}, "", operatorv1.Unpromoted_UNPROMOTED_COMMANDED, false},
	} {
		d := promotion.Decide(tc.mode, tc.o)
		if d.Set != tc.set || d.Unpromoted != tc.why || d.Counts() != tc.counts || d.Cap != 24*time.Hour {
			t.Errorf("%s: %+v", name, d)
		}
	}
	if d := promotion.Decide(enforce, promotion.Observed{Jail: "recidive", Prefix: one}); d.Cap != 7*24*time.Hour {
		t.Errorf("recidive: %+v", d)
	}
}
