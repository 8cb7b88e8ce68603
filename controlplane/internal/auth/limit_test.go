package auth_test

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/auth"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// rate is so low that even a machine that is busy calls more often, calls a second.
const rate = 5

// An organisation has one rate, whichever of its tokens calls, and another organisation's calls count for nothing in it.
func TestOrganisationIsLimited(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := start(t, auth.Limits{Calls: 1000, Organisation: rate}, 0)
	tokens := [2]string{r.token(t, optionsv1.Permission_PERMISSION_FLEET_READ).Secret, r.token(t, optionsv1.Permission_PERMISSION_FLEET_READ).Secret}
	began := time.Now()
	done := 0
	var err error
	for ; err == nil && done < 10_000; done++ {
		_, err = r.fleet().GetFleet(ctx, request(&operatorv1.GetFleetRequest{}, "Bearer "+tokens[done%2]))
	}
	wantError(t, err, connect.CodeResourceExhausted, fleetbanv1.Reason_REASON_RATE_LIMITED)
	if most := rate + int(time.Since(began).Seconds()*rate) + 2; done < rate || done > most {
		t.Errorf("%d calls in %s were let through at %d a second", done, time.Since(began), rate)
	}
}

// Answers say what is left, and refusals when to come again: in the headers that clients look for.
func TestAllowanceIsTold(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := start(t, auth.Limits{Calls: 30, Failures: 3, Tries: 5}, 0)
	token := r.token(t, optionsv1.Permission_PERMISSION_FLEET_READ).Secret
	number := func(h http.Header, name string) int {
		t.Helper()
		n, err := strconv.Atoi(h.Get(name))
		if err != nil {
			t.Fatalf("%s: %v in %v", name, err, h)
		}
		return n
	}
	for _, option := range []connect.ClientOption{connect.WithProtoJSON(), connect.WithGRPCWeb()} {
		client := operatorv1connect.NewFleetServiceClient(http.DefaultClient, r.url, option)
		res, err := client.GetFleet(ctx, request(&operatorv1.GetFleetRequest{}, "Bearer "+token))
		if err != nil {
			t.Fatal(err)
		}
		limit, left, reset := number(res.Header(), "RateLimit-Limit"), number(res.Header(), "RateLimit-Remaining"), number(res.Header(), "RateLimit-Reset")
		if limit != 30 || left >= 30 || left < 0 || reset < 0 || reset > 1 || res.Header().Get("Retry-After") != "" {
			t.Errorf("%d of %d left, all in %d s: %v", left, limit, reset, res.Header())
		}
	}
	// Of wrong credentials there are three a minute: no machine is too slow for that.
	var last *connect.Error
	for range 4 {
		_, err := r.fleet().GetFleet(ctx, request(&operatorv1.GetFleetRequest{}, "Bearer fbt_x"))
		if !errors.As(err, &last) {
			t.Fatal(err)
		}
	}
	wantError(t, last, connect.CodeResourceExhausted, fleetbanv1.Reason_REASON_RATE_LIMITED)
	if wait := number(last.Meta(), "Retry-After"); wait < 1 || wait > 20 || number(last.Meta(), "RateLimit-Limit") != 3 || number(last.Meta(), "RateLimit-Remaining") != 0 {
		t.Errorf("a refusal says %v", last.Meta())
	}
}
