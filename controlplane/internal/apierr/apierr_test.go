package apierr_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/requestid"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

func TestFrom(t *testing.T) {
	t.Parallel()
	now := time.UnixMilli(1_800_000_000_123)
	invalid := protovalidate.Validate(fleetbanv1.EnrollRequest_builder{JoinToken: "x", PublicKey: make([]byte, 31), Name: "web-1"}.Build())
	if invalid == nil {
		t.Fatal("a short key passed validation")
	}
	for name, tc := range map[string]struct {
		err    error
		code   connect.Code
		reason fleetbanv1.Reason
		field  string
	}{
		"redis away":   {fmt.Errorf("x: %w", store.ErrUnavailable), connect.CodeUnavailable, fleetbanv1.Reason_REASON_STORE_UNAVAILABLE, ""},
		"redis silent": {fmt.Errorf("x: %w", store.ErrOutcomeUnknown), connect.CodeUnavailable, fleetbanv1.Reason_REASON_OUTCOME_UNKNOWN, ""},
		"own": {
			fmt.Errorf("x: %w", apierr.NotFound("host", "no host web-9", "see fleetban hosts")),
			connect.CodeNotFound, fleetbanv1.Reason_REASON_NOT_FOUND, "host",
		},
		"validation": {invalid, connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD, "public_key"},
		"too large":  {connect.NewError(connect.CodeResourceExhausted, errors.New("big")), connect.CodeResourceExhausted, fleetbanv1.Reason_REASON_MESSAGE_TOO_LARGE, ""},
		"canceled":   {context.Canceled, connect.CodeCanceled, fleetbanv1.Reason_REASON_UNSPECIFIED, ""},
		"anything":   {errors.New("dial 10.0.0.7: password hunter2"), connect.CodeInternal, fleetbanv1.Reason_REASON_INTERNAL, ""},
	} {
		got := apierr.FromAt(requestid.With(t.Context(), "R1"), tc.err, now)
		info := apierr.Info(got)
		if got.Code() != tc.code || info.GetReason() != tc.reason || info.GetField() != tc.field || info.GetServerUnixMs() != now.UnixMilli() || info.GetRequestId() != "R1" {
			t.Errorf("%s: %v, %v", name, got, info)
		}
		if strings.Contains(got.Error(), "hunter2") {
			t.Errorf("%s: shows the inside: %v", name, got)
		}
		again := apierr.FromAt(t.Context(), got, now)
		if len(again.Details()) != len(got.Details()) || again.Message() != got.Message() && tc.code == connect.CodeInternal {
			t.Errorf("%s: mapped twice: %v, %v", name, again, got)
		}
	}
	if apierr.From(t.Context(), nil) != nil {
		t.Error("nil became an error")
	}
}
