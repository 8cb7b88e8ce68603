package apierr_test

import (
	"strings"
	"testing"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

func TestRulesInPlainWords(t *testing.T) {
	t.Parallel()
	ban := func(seconds int64, reason string, prefixes ...string) proto.Message {
		return operatorv1.BanRequest_builder{Prefixes: prefixes, DurationS: seconds, Reason: reason}.Build()
	}
	for want, tc := range map[string]struct {
		field   string
		message proto.Message
	}{
		"duration must be 1 second to 366 days; it is 0 seconds": {"duration_s", ban(0, "", "203.0.113.9")},
		"duration must be 1 second to 366 days; it is 400 days":  {"duration_s", ban(400*86400, "", "203.0.113.9")},
		"duration must be 1 second to 366 days; it is -1 minute": {"duration_s", ban(-60, "", "203.0.113.9")},
		"reason may have at most 500 characters, not 501":        {"reason", ban(1, strings.Repeat("é", 501), "203.0.113.9")},
		"prefixes is empty": {"prefixes", ban(1, "")},
		"prefixes must have 1 to 1000 entries, not 1001": {"prefixes", ban(1, "", strings.Split(strings.Repeat("203.0.113.9,", 1000)+"203.0.113.9", ",")...)},
		"prefixes[1]: must be at least 2 characters":     {"prefixes[1]", ban(1, "", "203.0.113.9", "x")},
		"page_size may be at most 5000; it is 5001":      {"page_size", operatorv1.ListBansRequest_builder{PageSize: 5001}.Build()},
		"cursor is missing":                              {"cursor", &operatorv1.WatchReceiptsRequest{}},
		"duration may not be negative, and at most 366 days; it is -1 second": {
			"duration_s", operatorv1.CreateJoinTokenRequest_builder{DurationS: -1}.Build(),
		},
		"public_key must have 32 bytes, not 31": {
			"public_key", fleetbanv1.EnrollRequest_builder{JoinToken: "x", PublicKey: make([]byte, 31), Name: "web-1"}.Build(),
		},
		`tags["a"]: must be at most 60 characters`: {
			`tags["a"]`, operatorv1.CreateJoinTokenRequest_builder{Tags: map[string]string{"a": strings.Repeat("x", 61)}}.Build(),
		},
		// What has no better words keeps its own.
		"name: does not match regex pattern": {
			"name", fleetbanv1.EnrollRequest_builder{JoinToken: "x", PublicKey: make([]byte, 32), Name: "a b"}.Build(),
		},
	} {
		err := apierr.From(t.Context(), protovalidate.Validate(tc.message))
		if err == nil || !strings.HasPrefix(err.Message(), want) || apierr.Info(err).GetField() != tc.field {
			t.Errorf("%v with %v; want %s", err, apierr.Info(err), want)
		}
	}
}
