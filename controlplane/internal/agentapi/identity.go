package agentapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/hostauth"
)

type grantKey struct{}

// AuthenticateHost verifies a host's grant and assertion and takes the assertion's one use. It implements
// auth.HostAuthenticator. Whether the host was deleted or quarantined is found when its stream attaches.
func (s *Service) AuthenticateHost(ctx context.Context, header http.Header) (context.Context, error) {
	if s.isDraining() {
		return ctx, errDraining
	}
	scheme, token, _ := strings.Cut(header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" || header.Get(hostauth.GrantHeader) == "" {
		return ctx, apierr.New(connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "",
			"no host credential was sent", "agents send `authorization: Bearer ASSERTION` and `fleetban-grant: GRANT`")
	}
	grant, err := hostauth.VerifyGrant(header.Get(hostauth.GrantHeader), s.Keys.GrantPublicKey(), s.Keys.Audience())
	if err != nil {
		return ctx, apierr.Wrap(err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "",
			"the host's grant was not made by this control plane", "enrol the host here: fleetban-agent enroll --force")
	}
	assertion, err := hostauth.VerifyAssertion(token, grant.PublicKey, grant.HostID, s.Keys.Audience(), s.Now())
	if err != nil {
		return ctx, assertionError(err)
	}
	if err := s.certified(ctx, grant.HostID); err != nil {
		return ctx, err
	}
	life := assertion.Expires.Sub(s.Now()) + 2*hostauth.ClockLeeway
	if err := s.Hosts.UseAssertion(ctx, grant.OrganisationID, grant.HostID, assertion.ID, life); err != nil {
		if errors.Is(err, hosts.ErrReplayed) {
			return ctx, apierr.Wrap(err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_ASSERTION_REPLAYED, "",
				"this assertion was presented before", "sign a new one for each connection")
		}
		return ctx, err
	}
	return context.WithValue(ctx, grantKey{}, grant), nil
}

// HostOf is the host that AuthenticateHost let in, and its organisation.
func HostOf(ctx context.Context) (org, host string, ok bool) {
	grant, ok := ctx.Value(grantKey{}).(hostauth.Grant)
	return grant.OrganisationID, grant.HostID, ok
}

func assertionError(err error) error {
	reason, message, fix := fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "the host's assertion is malformed", "enrol the host again: fleetban-agent enroll --force"
	switch {
	case errors.Is(err, hostauth.ErrTime):
		reason, message = fleetbanv1.Reason_REASON_CLOCK_SKEW, "the assertion's times don't fit the server's clock"
		fix = "sign one with the time in server_unix_ms, and set the host's clock"
	case errors.Is(err, hostauth.ErrSignature):
		reason, message = fleetbanv1.Reason_REASON_WRONG_KEY, "the assertion is signed with another key than the host was enrolled with"
	case errors.Is(err, hostauth.ErrAudience):
		message = "the assertion is for another host or another control plane"
	}
	return apierr.Wrap(err, connect.CodeUnauthenticated, reason, "", message, fix)
}

func (s *Service) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

func joinError(err error) error {
	var reason fleetbanv1.Reason
	var message string
	switch {
	case errors.Is(err, orgs.ErrTokenExpired):
		reason, message = fleetbanv1.Reason_REASON_JOIN_TOKEN_EXPIRED, "the join token expired"
	case errors.Is(err, orgs.ErrTokenUsedUp):
		reason, message = fleetbanv1.Reason_REASON_JOIN_TOKEN_USED_UP, "the join token has enrolled as many hosts as it may"
	case errors.Is(err, orgs.ErrMalformed):
		reason, message = fleetbanv1.Reason_REASON_JOIN_TOKEN_UNKNOWN, "this is not a whole join token: it begins with fbj_"
	case errors.Is(err, orgs.ErrUnknownToken):
		reason, message = fleetbanv1.Reason_REASON_JOIN_TOKEN_UNKNOWN, "the join token is unknown here, or was revoked"
	default:
		return fmt.Errorf("enrol: %w", err)
	}
	return apierr.Wrap(err, connect.CodeUnauthenticated, reason, "join_token", message, "make one with: fleetban join-token create")
}
