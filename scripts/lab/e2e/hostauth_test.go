package e2e

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/hostauth"
	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// What someone without a host's key can try, or with a host's key and bad intentions: refused by the real control plane,
// for the reason it is, and no host is the worse for it.
func TestHostCredentials(t *testing.T) {
	t.Parallel()
	f := newFleet(t, lab.Options{Name: "auth", Hosts: 1})
	ctx := limited(t, 3*limit)
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	enroll := func(token, name string, public ed25519.PublicKey) (*fleetbanv1.EnrollResponse, error) {
		answer, err := f.Agents().Enroll(ctx, connect.NewRequest(fleetbanv1.EnrollRequest_builder{
			JoinToken: token, PublicKey: public, Name: name,
		}.Build()))
		if err != nil {
			return nil, err
		}
		return answer.Msg, nil
	}
	join := func() string {
		made, err := f.api.JoinTokens.CreateJoinToken(ctx, connect.NewRequest(operatorv1.CreateJoinTokenRequest_builder{DurationS: 60}.Build()))
		if err != nil {
			t.Fatal(err)
		}
		return made.Msg.GetSecret()
	}
	host, err := enroll(join(), "stranger", public)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(key ed25519.PrivateKey, id, audience string, at time.Time) string {
		t.Helper()
		assertion, err := hostauth.Sign(key, id, audience, at)
		if err != nil {
			t.Fatal(err)
		}
		return assertion
	}
	_, otherKey, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	hello := fleetbanv1.ConnectRequest_builder{Hello: fleetbanv1.Hello_builder{
		Protocol: 1, Instance: "one", Spool: "one", Facts: fleetbanv1.HostFacts_builder{Boot: "boot", Machine: "machine"}.Build(),
	}.Build()}.Build()
	good := sign(key, host.GetHostId(), host.GetAudience(), time.Now())
	if err := f.connect(ctx, good, host.GetGrant(), hello); err != nil {
		t.Fatalf("what must be taken, or the rest proves nothing: %v", err)
	}

	for name, c := range map[string]struct {
		assertion string
		want      fleetbanv1.Reason
	}{
		"none":              {"", fleetbanv1.Reason_REASON_BAD_CREDENTIAL},
		"nonsense":          {"a.b.c", fleetbanv1.Reason_REASON_BAD_CREDENTIAL},
		"replayed":          {good, fleetbanv1.Reason_REASON_ASSERTION_REPLAYED},
		"another key":       {sign(otherKey, host.GetHostId(), host.GetAudience(), time.Now()), fleetbanv1.Reason_REASON_WRONG_KEY},
		"another fleet":     {sign(key, host.GetHostId(), "fleetban:other", time.Now()), fleetbanv1.Reason_REASON_BAD_CREDENTIAL},
		"an hour old":       {sign(key, host.GetHostId(), host.GetAudience(), time.Now().Add(-time.Hour)), fleetbanv1.Reason_REASON_CLOCK_SKEW},
		"from the future":   {sign(key, host.GetHostId(), host.GetAudience(), time.Now().Add(time.Hour)), fleetbanv1.Reason_REASON_CLOCK_SKEW},
		"ten megabytes":     {strings.Repeat("x", 10<<20), fleetbanv1.Reason_REASON_UNSPECIFIED},
		"an operator's key": {strings.TrimPrefix(f.OperatorEnv()[1], "FLEETBAN_TOKEN="), fleetbanv1.Reason_REASON_BAD_CREDENTIAL},
	} {
		t.Run(name, func(t *testing.T) {
			err := f.connect(ctx, c.assertion, host.GetGrant(), hello)
			if err == nil {
				t.Fatal("it was taken")
			}
			if c.want == fleetbanv1.Reason_REASON_UNSPECIFIED {
				return // the connection itself refuses so large a header
			}
			if got := reason(t, err); got != c.want {
				t.Errorf("%v: %s, want %s", err, got, c.want)
			}
		})
	}

	t.Run("another host's grant", func(t *testing.T) {
		second, err := enroll(join(), "second", otherKey.Public().(ed25519.PublicKey))
		if err != nil {
			t.Fatal(err)
		}
		err = f.connect(ctx, sign(key, host.GetHostId(), host.GetAudience(), time.Now()), second.GetGrant(), hello)
		if got := reason(t, err); got != fleetbanv1.Reason_REASON_WRONG_KEY && got != fleetbanv1.Reason_REASON_BAD_CREDENTIAL {
			t.Errorf("%v: %s", err, got)
		}
	})

	t.Run("a message of ten megabytes", func(t *testing.T) {
		large := fleetbanv1.ConnectRequest_builder{Hello: fleetbanv1.Hello_builder{
			Protocol: 1, Instance: strings.Repeat("0", 10<<20), Spool: "one",
		}.Build()}.Build()
		err := f.connect(ctx, sign(key, host.GetHostId(), host.GetAudience(), time.Now()), host.GetGrant(), large)
		if code := connect.CodeOf(err); code != connect.CodeResourceExhausted && code != connect.CodeInvalidArgument {
			t.Errorf("%v (%s)", err, code)
		}
		_, err = enroll(strings.Repeat("x", 10<<20), "large", public)
		if code := connect.CodeOf(err); code != connect.CodeResourceExhausted && code != connect.CodeInvalidArgument {
			t.Errorf("%v (%s)", err, code)
		}
	})

	t.Run("a join token whose time is over", func(t *testing.T) {
		token := join()
		// As Redis has it a minute later: the shortest life that a token can be given.
		expired, err := f.Node(lab.ControlPlane).Exec(ctx, "sh", "-c",
			`redis-cli --scan --pattern '*:join:*' | while read key; do redis-cli hset "$key" expires 1; done`)
		if err != nil || expired == "" {
			t.Fatalf("%q, %v", expired, err)
		}
		_, err = enroll(token, "late", otherKey.Public().(ed25519.PublicKey))
		if got := reason(t, err); got != fleetbanv1.Reason_REASON_JOIN_TOKEN_EXPIRED {
			t.Errorf("%v: %s", err, got)
		}
		if err != nil && strings.Contains(err.Error(), token) {
			t.Errorf("the error shows the token: %v", err)
		}
	})

	// After all that, the fleet works.
	from := source(t)
	f.jailBan(ctx, f.Node("a"), from)
	f.enforced(ctx, from, f.Node("a"))
	f.observedOnce(ctx, from, "a")
}

// connect opens a stream as an agent would and returns once it is welcome, or why it isn't.
func (f *fleet) connect(ctx context.Context, assertion, grant string, hello *fleetbanv1.ConnectRequest) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := f.Agents().Connect(ctx)
	if assertion != "" {
		stream.RequestHeader().Set("Authorization", "Bearer "+assertion)
	}
	stream.RequestHeader().Set(hostauth.GrantHeader, grant)
	if err := stream.Send(hello); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	answer, err := stream.Receive()
	if err == nil && !answer.HasWelcome() {
		err = errors.New("the first answer is no welcome")
	}
	cancel()
	_ = stream.CloseRequest()
	_ = stream.CloseResponse()
	return err
}
