package operatorapi

import (
	"context"
	"errors"
	"log/slog"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/factors"
	"github.com/fleetban/fleetban/controlplane/internal/mail"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// BeginPasskeySignIn implements SessionService.
func (a *PeopleAPI) BeginPasskeySignIn(
	ctx context.Context, _ *connect.Request[operatorv1.BeginPasskeySignInRequest],
) (*connect.Response[operatorv1.BeginPasskeySignInResponse], error) {
	if a.o.Factors == nil {
		return nil, mappedPeople(factors.ErrNoPasskeys)
	}
	challenge, options, err := a.o.Factors.AskPasskey(ctx, auth.Address(ctx))
	if err != nil {
		return nil, mappedPeople(err)
	}
	return noStore(connect.NewResponse(operatorv1.BeginPasskeySignInResponse_builder{Challenge: challenge, PasskeyOptionsJson: options}.Build())), nil
}

// CompleteSignIn implements SessionService.
func (a *PeopleAPI) CompleteSignIn(
	ctx context.Context, req *connect.Request[operatorv1.CompleteSignInRequest],
) (*connect.Response[operatorv1.SignInResponse], error) {
	if a.o.Factors == nil {
		return nil, mappedPeople(factors.ErrChallenge)
	}
	answer := factors.Answer{TOTP: req.Msg.GetTotpCode(), Recovery: req.Msg.GetRecoveryCode(), Passkey: req.Msg.GetPasskeyResponseJson()}
	done, err := a.o.Factors.Complete(ctx, req.Msg.GetChallenge(), answer, a.device(req.Msg.GetDevice()))
	if err != nil {
		return nil, mappedPeople(err)
	}
	account, err := a.o.People.Account(ctx, done.Person)
	if err != nil {
		return nil, mappedPeople(err)
	}
	account.State = done.State
	if err := a.still(ctx, account); err != nil {
		return nil, err
	}
	return a.begin(ctx, account, req.Msg.GetOrganisationId(), done.Method)
}

// mappedEnrolment: as mappedPeople, of one who is signed in.
func mappedEnrolment(err error) error {
	switch {
	case errors.Is(err, factors.ErrChallenge):
		return apierr.Wrap(err, connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "",
			"this enrolment took too long, was confirmed or failed too often", "begin again")
	case errors.Is(err, factors.ErrWrong):
		return apierr.Wrap(err, connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "",
			"that is not it; nothing was changed", "type the code that is shown now; look at the clock of the device that shows it")
	default:
		return mappedPeople(err)
	}
}

// enrolling is signedIn for RPCs about second factors.
func (a *PeopleAPI) enrolling(ctx context.Context) (auth.Principal, error) {
	p, err := signedIn(ctx)
	if err == nil && a.o.Factors == nil {
		err = errors.New("this server keeps no second factors")
	}
	return p, err
}

// GetFactors implements SecondFactorService.
func (a *PeopleAPI) GetFactors(ctx context.Context, _ *connect.Request[operatorv1.GetFactorsRequest]) (*connect.Response[operatorv1.GetFactorsResponse], error) {
	p, err := a.enrolling(ctx)
	if err != nil {
		return nil, err
	}
	state, err := a.o.Factors.State(ctx, p.ID)
	if err != nil {
		return nil, mappedPeople(err)
	}
	required, err := a.o.Factors.Required(ctx, p.Org)
	if err != nil {
		return nil, mappedPeople(err)
	}
	answer := operatorv1.GetFactorsResponse_builder{
		Totp: state.TOTP, TotpSinceUnixMs: state.TOTPSince, RecoveryCodesLeft: uint32(state.Recovery), //nolint:gosec // few
		Required: required, PasskeysPossible: a.o.Factors.PasskeysPossible(),
	}
	for _, k := range state.Passkeys {
		answer.Passkeys = append(answer.Passkeys, passkeyProto(k))
	}
	return connect.NewResponse(answer.Build()), nil
}

func passkeyProto(k factors.Passkey) *operatorv1.Passkey {
	return operatorv1.Passkey_builder{Id: k.ID, Name: k.Name, SinceUnixMs: k.Since, UsedUnixMs: k.Used, Synced: k.Synced}.Build()
}

// BeginTotp implements SecondFactorService.
func (a *PeopleAPI) BeginTotp(ctx context.Context, req *connect.Request[operatorv1.BeginTotpRequest]) (*connect.Response[operatorv1.BeginTotpResponse], error) {
	p, err := a.enrolling(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.prove(ctx, p, req.Msg.GetProof(), true); err != nil {
		return nil, err
	}
	made, err := a.o.Factors.BeginTOTP(ctx, p.ID, p.Name)
	if err != nil {
		return nil, mappedPeople(err)
	}
	return noStore(connect.NewResponse(operatorv1.BeginTotpResponse_builder{Secret: made.Secret, Uri: made.URI, Enrolment: made.Enrolment}.Build())), nil
}

// ConfirmTotp implements SecondFactorService.
func (a *PeopleAPI) ConfirmTotp(ctx context.Context, req *connect.Request[operatorv1.ConfirmTotpRequest]) (*connect.Response[operatorv1.ConfirmTotpResponse], error) {
	p, err := a.enrolling(ctx)
	if err != nil {
		return nil, err
	}
	enabled, err := a.o.Factors.ConfirmTOTP(ctx, p.ID, req.Msg.GetEnrolment(), req.Msg.GetCode())
	if err != nil {
		return nil, mappedEnrolment(err)
	}
	ended, err := a.enabled(ctx, p, enabled, "Codes of a program are asked for when you sign in, from now on")
	if err != nil {
		return nil, err
	}
	return noStore(connect.NewResponse(operatorv1.ConfirmTotpResponse_builder{RecoveryCodes: enabled.Recovery, Ended: ended}.Build())), nil
}

// enabled ends the sessions that a first factor wasn't asked of, and tells the person.
func (a *PeopleAPI) enabled(ctx context.Context, p auth.Principal, e factors.Enabled, what string) (ended uint32, err error) {
	a.notify(ctx, mail.FactorsChanged(p.Name, what))
	if !e.First {
		return 0, nil
	}
	n, err := a.o.Sessions.EndOthers(ctx, p.ID, p.Session.ID)
	if err != nil {
		return 0, mappedPeople(err)
	}
	return uint32(n), nil //nolint:gosec // few
}

// DisableTotp implements SecondFactorService.
func (a *PeopleAPI) DisableTotp(ctx context.Context, req *connect.Request[operatorv1.DisableTotpRequest]) (*connect.Response[operatorv1.DisableTotpResponse], error) {
	p, err := a.enrolling(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.prove(ctx, p, req.Msg.GetProof(), true); err != nil {
		return nil, err
	}
	if err := a.o.Factors.DisableTOTP(ctx, p.ID); err != nil {
		return nil, mappedPeople(err)
	}
	a.notify(ctx, mail.FactorsChanged(p.Name, "Codes of a program are no longer asked for when you sign in"))
	return connect.NewResponse(&operatorv1.DisableTotpResponse{}), nil
}

// MakeRecoveryCodes implements SecondFactorService.
func (a *PeopleAPI) MakeRecoveryCodes(
	ctx context.Context, req *connect.Request[operatorv1.MakeRecoveryCodesRequest],
) (*connect.Response[operatorv1.MakeRecoveryCodesResponse], error) {
	p, err := a.enrolling(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.prove(ctx, p, req.Msg.GetProof(), true); err != nil {
		return nil, err
	}
	state, err := a.o.Factors.State(ctx, p.ID)
	if err != nil {
		return nil, mappedPeople(err)
	}
	if !state.Any() {
		return nil, apierr.New(connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_NOT_FOUND, "",
			"recovery codes are for who has a second factor", "enable one: fleetban account totp enable")
	}
	codes, err := a.o.Factors.MakeRecoveryCodes(ctx, p.ID)
	if err != nil {
		return nil, mappedPeople(err)
	}
	a.notify(ctx, mail.FactorsChanged(p.Name, "New recovery codes were made; the former are good no more"))
	return noStore(connect.NewResponse(operatorv1.MakeRecoveryCodesResponse_builder{RecoveryCodes: codes}.Build())), nil
}

// BeginPasskey implements SecondFactorService.
func (a *PeopleAPI) BeginPasskey(ctx context.Context, req *connect.Request[operatorv1.BeginPasskeyRequest]) (*connect.Response[operatorv1.BeginPasskeyResponse], error) {
	p, err := a.enrolling(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.prove(ctx, p, req.Msg.GetProof(), true); err != nil {
		return nil, err
	}
	challenge, options, err := a.o.Factors.BeginPasskey(ctx, p.ID, p.Name)
	if err != nil {
		return nil, mappedPeople(err)
	}
	return noStore(connect.NewResponse(operatorv1.BeginPasskeyResponse_builder{Challenge: challenge, PasskeyOptionsJson: options}.Build())), nil
}

// FinishPasskey implements SecondFactorService.
func (a *PeopleAPI) FinishPasskey(ctx context.Context, req *connect.Request[operatorv1.FinishPasskeyRequest]) (*connect.Response[operatorv1.FinishPasskeyResponse], error) {
	p, err := a.enrolling(ctx)
	if err != nil {
		return nil, err
	}
	key, enabled, err := a.o.Factors.FinishPasskey(ctx, p.ID, p.Name, req.Msg.GetChallenge(), req.Msg.GetName(), req.Msg.GetPasskeyResponseJson())
	if err != nil {
		return nil, mappedEnrolment(err)
	}
	ended, err := a.enabled(ctx, p, enabled, "The passkey \""+key.Name+"\" was added")
	if err != nil {
		return nil, err
	}
	return noStore(connect.NewResponse(operatorv1.FinishPasskeyResponse_builder{
		Passkey: passkeyProto(key), RecoveryCodes: enabled.Recovery, Ended: ended,
	}.Build())), nil
}

// RenamePasskey implements SecondFactorService.
func (a *PeopleAPI) RenamePasskey(ctx context.Context, req *connect.Request[operatorv1.RenamePasskeyRequest]) (*connect.Response[operatorv1.RenamePasskeyResponse], error) {
	p, err := a.enrolling(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.o.Factors.RenamePasskey(ctx, p.ID, req.Msg.GetId(), req.Msg.GetName()); err != nil {
		return nil, mappedPeople(err)
	}
	return connect.NewResponse(&operatorv1.RenamePasskeyResponse{}), nil
}

// DeletePasskey implements SecondFactorService.
func (a *PeopleAPI) DeletePasskey(ctx context.Context, req *connect.Request[operatorv1.DeletePasskeyRequest]) (*connect.Response[operatorv1.DeletePasskeyResponse], error) {
	p, err := a.enrolling(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.prove(ctx, p, req.Msg.GetProof(), true); err != nil {
		return nil, err
	}
	if err := a.o.Factors.DeletePasskey(ctx, p.ID, req.Msg.GetId()); err != nil {
		return nil, mappedPeople(err)
	}
	a.notify(ctx, mail.FactorsChanged(p.Name, "A passkey was deleted"))
	return connect.NewResponse(&operatorv1.DeletePasskeyResponse{}), nil
}

// GetSecondFactorPolicy implements SecondFactorService.
func (a *PeopleAPI) GetSecondFactorPolicy(
	ctx context.Context, _ *connect.Request[operatorv1.GetSecondFactorPolicyRequest],
) (*connect.Response[operatorv1.GetSecondFactorPolicyResponse], error) {
	p, err := caller(ctx)
	if err != nil || a.o.Factors == nil {
		return connect.NewResponse(&operatorv1.GetSecondFactorPolicyResponse{}), err
	}
	required, err := a.o.Factors.Required(ctx, p.Org)
	if err != nil {
		return nil, mappedPeople(err)
	}
	return connect.NewResponse(operatorv1.GetSecondFactorPolicyResponse_builder{Required: required}.Build()), nil
}

// SetSecondFactorPolicy implements SecondFactorService.
func (a *PeopleAPI) SetSecondFactorPolicy(
	ctx context.Context, req *connect.Request[operatorv1.SetSecondFactorPolicyRequest],
) (*connect.Response[operatorv1.SetSecondFactorPolicyResponse], error) {
	p, err := a.enrolling(ctx)
	if err != nil {
		return nil, err
	}
	was, err := a.o.Factors.Required(ctx, p.Org)
	if err != nil {
		return nil, mappedPeople(err)
	}
	if req.Msg.GetRequired() {
		state, err := a.o.Factors.State(ctx, p.ID)
		if err != nil {
			return nil, mappedPeople(err)
		}
		if !state.Any() {
			return nil, apierr.New(connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_NOT_FOUND, "required",
				"you have no second factor yourself", "enable one first: fleetban account totp enable")
		}
	}
	if err := a.o.Factors.SetRequired(ctx, p.Org, req.Msg.GetRequired()); err != nil {
		return nil, mappedPeople(err)
	}
	audit.From(ctx).Add(audit.Detail{Name: "was_required", After: map[bool]string{true: "true", false: "false"}[was]})
	a.o.Logger.InfoContext(ctx, "whether members must have a second factor was set", slog.String("organisation", p.Org), slog.Bool("required", req.Msg.GetRequired()))
	return connect.NewResponse(&operatorv1.SetSecondFactorPolicyResponse{}), nil
}
