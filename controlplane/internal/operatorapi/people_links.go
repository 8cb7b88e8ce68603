package operatorapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/mail"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Where links lead that people get by mail.
const (
	ResetPath = "/reset"
	EmailPath = "/email"
)

// RequestPasswordReset implements AccountService. All that depends on whether there is an account is done in the background.
func (a *PeopleAPI) RequestPasswordReset(
	ctx context.Context, req *connect.Request[operatorv1.RequestPasswordResetRequest],
) (*connect.Response[operatorv1.RequestPasswordResetResponse], error) {
	if !a.o.Mail.On() {
		return nil, mailOff("ask who runs it for a link: fleetban-controlplane reset-link --email E-MAIL")
	}
	address, err := people.ParseEmail(req.Msg.GetEmail())
	if err != nil {
		return nil, mappedPeople(err)
	}
	if err := a.o.People.MayAskForLinks(ctx, auth.Address(ctx)); err != nil {
		return nil, mappedPeople(err)
	}
	client := audit.ClientFrom(ctx)
	if err := a.o.Mail.SendMade(ctx, resetRequest{Email: address.String(), Client: client}); err != nil {
		return nil, mappedPeople(err)
	}
	return connect.NewResponse(&operatorv1.RequestPasswordResetResponse{}), nil
}

// resetRequest is what a letter with a link to a new password is made of, by whichever replica.
type resetRequest struct {
	Email  string       `json:"email"`
	Client audit.Client `json:"client"`
}

// letter makes the letters that weren't when they were asked for.
func (a *PeopleAPI) letter(ctx context.Context, request []byte) (*mail.Letter, error) {
	var r resetRequest
	if err := json.Unmarshal(request, &r); err != nil {
		return nil, fmt.Errorf("read what a letter was asked for with: %w", err)
	}
	address, err := people.ParseEmail(r.Email)
	if err != nil {
		return nil, err
	}
	return a.resetLetter(audit.WithClient(ctx, r.Client), address)
}

// resetLetter makes a link and the letter that it is in; nil where there is nobody to send it to. Who has asked too often
// isn't told: the letters that were sent before lie in the same mailbox, and their links are good.
func (a *PeopleAPI) resetLetter(ctx context.Context, address people.Email) (*mail.Letter, error) {
	var often *people.TooOftenError
	err := a.o.People.MayMail(ctx, address)
	if errors.As(err, &often) {
		return nil, nil //nolint:nilnil // documented
	}
	if err != nil {
		return nil, err
	}
	link, err := a.o.People.BeginReset(ctx, address)
	if errors.Is(err, people.ErrBadLogin) {
		return nil, nil //nolint:nilnil // documented
	}
	if err != nil {
		return nil, err
	}
	if err := a.recordEverywhere(ctx, link.Account, "password.reset-request"); err != nil {
		return nil, err
	}
	letter := mail.Reset(link.Account.Email, a.o.PublicURL+ResetPath+"#"+link.Secret, people.ResetLife)
	return &letter, nil
}

// ResetPassword implements AccountService.
func (a *PeopleAPI) ResetPassword(
	ctx context.Context, req *connect.Request[operatorv1.ResetPasswordRequest],
) (*connect.Response[operatorv1.ResetPasswordResponse], error) {
	if err := a.o.People.MayAskForLinks(ctx, auth.Address(ctx)); err != nil {
		return nil, mappedPeople(err)
	}
	account, err := a.o.People.ResetPassword(ctx, req.Msg.GetReset(), req.Msg.GetNewPassword(), func(ctx context.Context, person string) error {
		_, err := a.o.Sessions.EndOthers(ctx, person, "")
		return err
	})
	if err != nil {
		return nil, mappedPeople(err)
	}
	if err := a.recordEverywhere(ctx, account, "password.reset"); err != nil {
		return nil, err
	}
	a.o.Logger.InfoContext(ctx, "a password was set by a link", slog.String("person", account.ID))
	a.notify(ctx, mail.PasswordSet(account.Email))
	return noStore(connect.NewResponse(operatorv1.ResetPasswordResponse_builder{Email: account.Email, Device: a.newDevice(account.ID)}.Build())), nil
}

// ChangeEmail implements AccountService.
func (a *PeopleAPI) ChangeEmail(ctx context.Context, req *connect.Request[operatorv1.ChangeEmailRequest]) (*connect.Response[operatorv1.ChangeEmailResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	if !a.o.Mail.On() {
		return nil, mailOff("who runs it can set --smtp-url")
	}
	next, err := people.ParseEmail(req.Msg.GetNewEmail())
	if err != nil {
		return nil, mappedPeople(err)
	}
	if err := a.prove(ctx, p, req.Msg.GetProof(), false); err != nil {
		return nil, err
	}
	link, err := a.o.People.BeginEmail(ctx, p.ID, next)
	if err != nil {
		return nil, mappedPeople(err)
	}
	confirm := mail.Confirm(next.String(), a.o.PublicURL+EmailPath+"#"+link.Secret, people.EmailLife)
	if err := a.o.Mail.Send(ctx, confirm); err != nil {
		return nil, mappedPeople(err)
	}
	a.notify(ctx, mail.Changing(link.Account.Email, next.String()))
	return connect.NewResponse(&operatorv1.ChangeEmailResponse{}), nil
}

// ConfirmEmail implements AccountService.
func (a *PeopleAPI) ConfirmEmail(ctx context.Context, req *connect.Request[operatorv1.ConfirmEmailRequest]) (*connect.Response[operatorv1.ConfirmEmailResponse], error) {
	if err := a.o.People.MayAskForLinks(ctx, auth.Address(ctx)); err != nil {
		return nil, mappedPeople(err)
	}
	account, was, err := a.o.People.ConfirmEmail(ctx, req.Msg.GetConfirmation())
	if err != nil {
		return nil, mappedPeople(err)
	}
	if err := a.recordEverywhere(ctx, account, "email.change", audit.Detail{Name: "email", Before: was, After: account.Email}); err != nil {
		return nil, err
	}
	a.notify(ctx, mail.Changed(was, account.Email))
	return connect.NewResponse(operatorv1.ConfirmEmailResponse_builder{Email: account.Email}.Build()), nil
}

// recordEverywhere writes an entry about an account in each organisation that it belongs to.
func (a *PeopleAPI) recordEverywhere(ctx context.Context, account people.Account, action string, details ...audit.Detail) error {
	for _, org := range account.Orgs {
		if err := a.record(ctx, org, action, people.Member{Person: account.ID, Email: account.Email}, details...); err != nil {
			return err
		}
	}
	return nil
}

// notify sends a letter that nobody waits for.
func (a *PeopleAPI) notify(ctx context.Context, letter mail.Letter) {
	if !a.o.Mail.On() {
		return
	}
	if err := a.o.Mail.Send(context.WithoutCancel(ctx), letter); err != nil {
		a.o.Logger.WarnContext(ctx, "a notice was not sent", slog.String("subject", letter.Subject), slog.Any("error", err))
	}
}

func mailOff(fix string) error {
	return apierr.New(connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_MAIL_OFF, "", "this control plane sends no mail", fix)
}
