package auth

import (
	"errors"
	"strconv"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// bad tells a caller what is wrong with a credential, and never what it is.
func bad(err error) error {
	message, fix := "the API token is unknown here: it was revoked, or it belongs to another fleet", "make a new one, or check FLEETBAN_URL"
	if errors.Is(err, orgs.ErrMalformed) {
		message, fix = "the API token is malformed: it was mistyped or cut",
			"copy all of it, from fbt_ or fbp_ to its end (a join token, fbj_, enrols hosts and is no API token)"
	}
	if errors.Is(err, orgs.ErrAPITokenExpired) {
		message, fix = "the API token expired", "make a new one: fleetban tokens create"
	}
	if errors.Is(err, ErrSession) {
		message, fix = "the access token is good no longer: it expired, or its session or role ended",
			"get another with the refresh token; if that is refused too, sign in again: fleetban login"
	}
	return apierr.Wrap(err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "", message, fix)
}

// quote makes a name of unknown origin safe to stand in a sentence.
func quote(s string) string { return strconv.QuoteToGraphic(s) }
