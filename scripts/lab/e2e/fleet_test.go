package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/scripts/lab/internal/await"
	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// limit is for what takes milliseconds when nothing is wrong, on a machine that does much else.
const limit = 40 * time.Second

// fleet is a lab with Fleetban in it, and what tests ask of it.
type fleet struct {
	*lab.Lab
	t   *testing.T
	api *lab.Operator
}

// newFleet makes a lab with Fleetban for the test.
func newFleet(t *testing.T, options lab.Options) *fleet {
	t.Helper()
	options.Fleetban = true
	l := up(t, options)
	return &fleet{Lab: l, t: t, api: l.Operator()}
}

// in is the fleet for a subtest: what fails there ends that, not the whole test.
func (f *fleet) in(t *testing.T) *fleet { return &fleet{Lab: f.Lab, t: t, api: f.api} }

// sources hands out the attacker's addresses, so that no test meets the bans of another.
var sources atomic.Int64

func source(t *testing.T) netip.Addr {
	t.Helper()
	i := int(sources.Add(1) - 1)
	if i >= 200 {
		t.Fatal("the attacker has no address left that wasn't used")
	}
	return lab.SourceAddr(i)
}

func source6(t *testing.T) netip.Addr {
	t.Helper()
	return lab.SourceAddr6(int(sources.Add(1)))
}

// single is the prefix that an address is banned as.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// jailBan has a host's fail2ban ban addresses in its sshd jail, with the line in its log that a real attack makes.
func (f *fleet) jailBan(ctx context.Context, host *lab.Node, addrs ...netip.Addr) {
	f.t.Helper()
	args := []string{"set", "sshd", "banip"}
	for _, a := range addrs {
		args = append(args, a.String())
	}
	if _, err := host.Fail2ban(ctx, args...); err != nil {
		f.t.Fatal(err)
	}
}

// enforced waits until hosts ban an address in the kernel.
func (f *fleet) enforced(ctx context.Context, addr netip.Addr, hosts ...*lab.Node) {
	f.t.Helper()
	if err := lab.AwaitKernel(ctx, single(addr), true, hosts...); err != nil {
		f.t.Fatal(err)
	}
}

// lifted waits until hosts don't ban an address in the kernel.
func (f *fleet) lifted(ctx context.Context, addr netip.Addr, hosts ...*lab.Node) {
	f.t.Helper()
	if err := lab.AwaitKernel(ctx, single(addr), false, hosts...); err != nil {
		f.t.Fatal(err)
	}
}

// bans says whether a host's kernel bans an address now.
func (f *fleet) bans(ctx context.Context, host *lab.Node, addr netip.Addr) bool {
	f.t.Helper()
	kernel, err := host.Kernel(ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	_, banned := kernel[single(addr)]
	return banned
}

// ban makes a ban in the administrator's name.
func (f *fleet) ban(ctx context.Context, length time.Duration, prefixes ...string) *operatorv1.BanResponse {
	f.t.Helper()
	answer, err := f.api.Bans.Ban(ctx, connect.NewRequest(operatorv1.BanRequest_builder{
		Prefixes: prefixes, DurationS: int64(length / time.Second), Reason: f.t.Name(),
	}.Build()))
	if err != nil {
		f.t.Fatal(err)
	}
	return answer.Msg
}

// unban lifts bans in the administrator's name.
func (f *fleet) unban(ctx context.Context, prefixes ...string) *operatorv1.UnbanResponse {
	f.t.Helper()
	answer, err := f.api.Bans.Unban(ctx, connect.NewRequest(operatorv1.UnbanRequest_builder{Prefixes: prefixes}.Build()))
	if err != nil {
		f.t.Fatal(err)
	}
	return answer.Msg
}

// receipts waits until every connected host has answered for a version of a set.
func (f *fleet) receipts(ctx context.Context, cursor *fleetbanv1.SetCursor, prefixes ...string) *operatorv1.WatchReceiptsResponse {
	f.t.Helper()
	stream, err := f.api.Bans.WatchReceipts(ctx, connect.NewRequest(operatorv1.WatchReceiptsRequest_builder{
		Cursor: cursor, Prefixes: prefixes,
	}.Build()))
	if err != nil {
		f.t.Fatal(err)
	}
	defer stream.Close()
	for stream.Receive() {
		if stream.Msg().GetComplete() {
			return stream.Msg()
		}
	}
	f.t.Fatalf("the receipts ended before they were complete: %v", stream.Err())
	return nil
}

// explain asks for everything known of an address. It only reads, so it is asked again where the connection to a replica
// broke, as any client may.
func (f *fleet) explain(ctx context.Context, addr string) *operatorv1.ExplainResponse {
	f.t.Helper()
	var answer *connect.Response[operatorv1.ExplainResponse]
	var refused error
	err := await.Until(ctx, "what is known of "+addr, func() (err error) {
		answer, err = f.api.Bans.Explain(ctx, connect.NewRequest(operatorv1.ExplainRequest_builder{Address: addr}.Build()))
		if err != nil && connect.CodeOf(err) != connect.CodeUnavailable {
			refused = err
			return nil
		}
		return err
	})
	if err = errors.Join(err, refused); err != nil {
		f.t.Fatal(err)
	}
	return answer.Msg
}

// state is how a host stands to an address, by explain.
func state(e *operatorv1.ExplainResponse, host string) *operatorv1.HostEnforcement {
	for _, h := range e.GetHosts() {
		if h.GetHostName() == host {
			return h
		}
	}
	return operatorv1.HostEnforcement_builder{}.Build()
}

// awaitHost waits until what the control plane knows of a host satisfies a condition.
func (f *fleet) awaitHost(ctx context.Context, name, what string, cond func(*operatorv1.Host) bool) *operatorv1.Host {
	f.t.Helper()
	var last *operatorv1.Host
	err := await.Until(ctx, fmt.Sprintf("host %s: %s", name, what), func() error {
		h, err := f.HostState(ctx, name)
		if err != nil {
			return err
		}
		last = h
		if !cond(h) {
			return fmt.Errorf("it is %v", h)
		}
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return last
}

// status is what `fleetban-agent status` prints on a host, as JSON.
func (f *fleet) status(ctx context.Context, host *lab.Node) string {
	f.t.Helper()
	// It ends with another status than 0 where something is wrong: what it prints counts.
	output, err := host.Exec(ctx, "fleetban-agent", "status", "-o", "json")
	var exit *lab.ExitError
	if err != nil && !errors.As(err, &exit) && ctx.Err() == nil {
		f.t.Fatal(err)
	}
	return output
}

// awaitStatus waits until the agent's status on a host says something.
func (f *fleet) awaitStatus(ctx context.Context, host *lab.Node, words ...string) {
	f.t.Helper()
	last := errors.New("it says nothing")
	err := await.Until(ctx, fmt.Sprintf("the status of %s to tell of %q", host.Name, words), func() error {
		output := f.status(ctx, host)
		if output == "" {
			return last
		}
		for _, w := range words {
			if !strings.Contains(strings.ToLower(output), strings.ToLower(w)) {
				last = fmt.Errorf("it says:\n%s", output)
				return last
			}
		}
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// observedOnce checks that the fleet was told of a host's ban of an address exactly once.
func (f *fleet) observedOnce(ctx context.Context, addr netip.Addr, host string) {
	f.t.Helper()
	count := 0
	for _, e := range f.explain(ctx, addr.String()).GetEvents() {
		if e.GetKind() == operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED && e.GetHostName() == host && e.GetPrefix() == addr.String() {
			count++
		}
	}
	if count != 1 {
		f.t.Errorf("the fleet was told %d times that %s bans %s, want once", count, host, addr)
	}
}

// reason is why the API refused, and must come with advice.
func reason(t *testing.T, err error) fleetbanv1.Reason {
	t.Helper()
	var failure *connect.Error
	if !errors.As(err, &failure) {
		t.Errorf("want an error of the API, got %v", err)
		return 0
	}
	for _, detail := range failure.Details() {
		value, err := detail.Value()
		if err != nil {
			t.Error(err)
			continue
		}
		if info, ok := value.(*fleetbanv1.ErrorInfo); ok {
			if info.GetFix() == "" {
				t.Errorf("the error %v doesn't say what to do", failure)
			}
			return info.GetReason()
		}
	}
	t.Errorf("the error %v (%s) has no reason for programs", failure, failure.Code())
	return 0
}
