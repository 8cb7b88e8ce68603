package operatorapi

import (
	"cmp"
	"context"
	"errors"
	"net/http"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/sessions"
	"github.com/fleetban/fleetban/controlplane/internal/setup"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// SetupAPI serves the service of setup.proto.
type SetupAPI struct {
	Fleet *setup.Setup
	// People sign the owner in.
	People *PeopleAPI
	// Organisation and Mode are what a request that names none gets.
	Organisation string
	Mode         fleetbanv1.Mode
}

var _ operatorv1connect.SetupServiceHandler = (*SetupAPI)(nil)

// Register puts the service on mux.
func (a *SetupAPI) Register(mux *http.ServeMux, options ...connect.HandlerOption) {
	mux.Handle(operatorv1connect.NewSetupServiceHandler(a, options...))
}

// GetSetup implements SetupService.
func (a *SetupAPI) GetSetup(ctx context.Context, _ *connect.Request[operatorv1.GetSetupRequest]) (*connect.Response[operatorv1.GetSetupResponse], error) {
	done, err := a.Fleet.Done(ctx)
	return connect.NewResponse(operatorv1.GetSetupResponse_builder{Done: done}.Build()), err
}

// Setup implements SetupService.
func (a *SetupAPI) Setup(ctx context.Context, req *connect.Request[operatorv1.SetupRequest]) (*connect.Response[operatorv1.SetupResponse], error) {
	mode := cmp.Or(req.Msg.GetMode(), a.Mode)
	made, err := a.Fleet.Use(ctx, setup.Request{
		Secret: req.Msg.GetToken(), Name: cmp.Or(req.Msg.GetOrganisationName(), a.Organisation), Mode: mode,
		Email: req.Msg.GetEmail(), Password: req.Msg.GetPassword(), Client: audit.ClientFrom(ctx),
	})
	if err != nil {
		return nil, mappedSetup(err)
	}
	org := made.Organisation
	tokens, err := a.People.Begin(ctx, people.Account{ID: made.Owner.Person, Email: made.Owner.Email, Orgs: []string{org.ID}}, org.ID, sessions.Password)
	if err != nil {
		return nil, err
	}
	return noStore(connect.NewResponse(operatorv1.SetupResponse_builder{
		Tokens: tokensProto(tokens), Person: personOf(tokens), OrganisationName: org.Name, Mode: org.Mode,
	}.Build())), nil
}

func mappedSetup(err error) error {
	switch {
	case errors.Is(err, setup.ErrDone):
		return apierr.Wrap(err, connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_SET_UP_ALREADY, "",
			"this control plane was set up before", "sign in with fleetban login --email, or ask the owner for an invitation")
	case errors.Is(err, people.ErrOwnerStands):
		return apierr.Wrap(err, connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_SET_UP_ALREADY, "email",
			"someone with another address began to set this control plane up", "use that address, or run fleetban-controlplane setup on its machine")
	case errors.Is(err, setup.ErrLink):
		return apierr.Wrap(err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "token",
			"the set-up link is unknown, replaced or expired", "copy it whole, or print another with fleetban-controlplane setup-link")
	case errors.Is(err, setup.ErrBusy):
		return apierr.Wrap(err, connect.CodeUnavailable, fleetbanv1.Reason_REASON_RATE_LIMITED, "",
			"someone uses the set-up link at this moment", "if that is you, try again in half a minute")
	case errors.Is(err, people.ErrBadLogin):
		return apierr.Wrap(err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "password",
			"an account with this address stands and has another password", "use that password, or another address")
	case errors.Is(err, orgs.ErrInvalid):
		return apierr.Wrap(err, connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD, "organisation_name", err.Error(), "choose another name")
	default:
		return mappedPeople(err)
	}
}
