package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// cut loses what a host sends to the control plane, what it is sent, or both. Rules stand on the control plane's machine,
// which has no agent to mind them.
func cut(l *lab.Lab, r *rand.Rand, from, to bool) fault {
	h := host(l, r)
	n := l.Node(h)
	cp := l.Node(lab.ControlPlane)
	table := fmt.Sprintf("chaos_%s_%t_%t", h, from, to) // one for each, for two may overlap
	var rules strings.Builder
	fmt.Fprintf(&rules, "table inet %s {\n chain in { type filter hook input priority -200;\n", table)
	if from {
		fmt.Fprintf(&rules, "  ip saddr %s drop\n  ip6 saddr %s drop\n", n.Addr, n.Addr6)
	}
	rules.WriteString(" }\n chain out { type filter hook output priority -200;\n")
	if to {
		fmt.Fprintf(&rules, "  ip daddr %s drop\n  ip6 daddr %s drop\n", n.Addr, n.Addr6)
	}
	rules.WriteString(" }\n}\n")
	name := map[[2]bool]string{
		{true, true}: "cut off " + h, {true, false}: "lose what " + h + " sends", {false, true}: "lose what " + h + " is sent",
	}[[2]bool{from, to}]
	return fault{
		name: name, host: h, lasts: time.Duration(500+r.IntN(3500)) * time.Millisecond,
		begin: func(ctx context.Context) error {
			_, err := cp.Exec(ctx, "nft", rules.String())
			return err
		},
		mend: func(ctx context.Context) error {
			_, err := cp.Exec(ctx, "nft", "delete", "table", "inet", table)
			return err
		},
	}
}

// slow delays what a service answers by up to so many milliseconds.
func slow(l *lab.Lab, r *rand.Rand, service string, most int) fault {
	latency := time.Duration(5+r.IntN(most)) * time.Millisecond
	return fault{
		name: fmt.Sprintf("delay %s by %s", service, latency), way: service, lasts: time.Duration(500+r.IntN(2500)) * time.Millisecond,
		begin: func(ctx context.Context) error { return l.Proxy(service).Delay(ctx, latency, latency/2) },
		mend:  l.Proxy(service).Through,
	}
}

// unplug ends a service's connections and lets nobody in.
func unplug(l *lab.Lab, r *rand.Rand, service string) fault {
	return fault{
		name: "refuse connections to " + service, lasts: time.Duration(200+r.IntN(2000)) * time.Millisecond,
		begin: l.Proxy(service).Cut, mend: l.Proxy(service).Mend,
	}
}

// swallow loses what a service is sent, without a sign.
func swallow(l *lab.Lab, r *rand.Rand, service string) fault {
	return fault{
		name: "lose what " + service + " is sent", way: service, lasts: time.Duration(500+r.IntN(2500)) * time.Millisecond,
		begin: l.Proxy(service).Swallow, mend: l.Proxy(service).Through,
	}
}
