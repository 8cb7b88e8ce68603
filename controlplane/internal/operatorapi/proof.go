package operatorapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/factors"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/sessions"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// provedFor is how long after a sign-in, or after a proof, a person need not prove again who they are.
const provedFor = 10 * time.Minute

// FreshParam has an identity provider look at the person again, in the query of where a sign-in with it begins.
const FreshParam = "fresh"

// recentlyProved reports whether the caller has proved to be the person within provedFor: with the sign-in of the session, or
// since. byProvider: what the organisation's identity provider says counts too. It is looked up in Redis where the access
// token doesn't say so: whoever has proved it a moment ago has one that is older.
func (a *PeopleAPI) recentlyProved(ctx context.Context, byProvider bool) (bool, error) {
	p, ok := auth.From(ctx)
	if !ok || p.Session.ID == "" {
		return false, nil
	}
	if time.Since(time.Unix(p.Session.Proved, 0)) < provedFor {
		return true, nil
	}
	proofs, err := a.o.Sessions.Proofs(ctx, p.ID, p.Session.ID)
	if errors.Is(err, sessions.ErrNone) {
		return false, nil
	}
	if err != nil {
		return false, mappedPeople(err)
	}
	return time.Since(proofs.Account) < provedFor || byProvider && time.Since(proofs.Provider) < provedFor, nil
}

// Proofs is the interceptor of RPCs that declare that a person must have proved lately who they are (option
// fleetban.options.v1.proof). It stands behind that of package auth. Programs are not asked: what they may do, and what only
// people may, is a matter of permissions.
type Proofs struct {
	people *PeopleAPI
	needed map[string]bool
}

var _ connect.Interceptor = (*Proofs)(nil)

// NewProofs makes one.
func NewProofs(people *PeopleAPI, services []protoreflect.ServiceDescriptor) *Proofs {
	out := &Proofs{people: people, needed: map[string]bool{}}
	for _, service := range services {
		for i := range service.Methods().Len() {
			method := service.Methods().Get(i)
			if asks, _ := proto.GetExtension(method.Options(), optionsv1.E_Proof).(bool); asks {
				out.needed[fmt.Sprintf("/%s/%s", service.FullName(), method.Name())] = true
			}
		}
	}
	return out
}

// WrapUnary implements connect.Interceptor.
func (i *Proofs) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if p, ok := auth.From(ctx); !i.needed[req.Spec().Procedure] || !ok || p.Session.ID == "" {
			return next(ctx, req)
		}
		recently, err := i.people.recentlyProved(ctx, true)
		if err != nil {
			return nil, err
		}
		if !recently {
			return nil, proofNeeded("it is more than ten minutes ago that you proved who you are",
				"prove it again (fleetban prove), and repeat this")
		}
		return next(ctx, req)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (*Proofs) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor: streams read.
func (*Proofs) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// GetProofOptions implements SessionService.
func (a *PeopleAPI) GetProofOptions(
	ctx context.Context, _ *connect.Request[operatorv1.GetProofOptionsRequest],
) (*connect.Response[operatorv1.GetProofOptionsResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	var answer operatorv1.GetProofOptionsResponse_builder
	if answer.Password, err = a.o.People.HasPassword(ctx, p.ID); err != nil {
		return nil, mappedPeople(err)
	}
	if a.o.Factors != nil {
		asked, err := a.o.Factors.AskProof(ctx, p.ID)
		if err != nil {
			return nil, mappedPeople(err)
		}
		answer.Totp, answer.RecoveryCode, answer.Challenge, answer.PasskeyOptionsJson = asked.TOTP, asked.Recovery, asked.Challenge, asked.PasskeyOptions
	}
	began, err := a.o.Sessions.Proofs(ctx, p.ID, p.Session.ID)
	if err != nil && !errors.Is(err, sessions.ErrNone) {
		return nil, mappedPeople(err)
	}
	if began.Method == sessions.OIDC && a.o.SSO != nil {
		answer.ProviderUrl = a.o.SSO.StartURL(p.Org) + "?" + FreshParam + "=1"
	}
	return noStore(connect.NewResponse(answer.Build())), nil
}

// Prove implements SessionService.
func (a *PeopleAPI) Prove(ctx context.Context, req *connect.Request[operatorv1.ProveRequest]) (*connect.Response[operatorv1.ProveResponse], error) {
	p, err := signedIn(ctx)
	if err != nil {
		return nil, err
	}
	// A proof that is good for everything: where there is a second factor, the password alone is none.
	if err := a.prove(ctx, p, req.Msg.GetProof(), a.o.Factors != nil); err != nil {
		return nil, err
	}
	if err := a.o.Sessions.Prove(ctx, p.ID, p.Session.ID); err != nil {
		return nil, mappedPeople(err)
	}
	return connect.NewResponse(&operatorv1.ProveResponse{}), nil
}

// prove checks that the caller is the person and not someone at their screen: by proof, or where there is none by how long
// ago they signed in. ofFactors: a second factor is at stake, and then the password alone isn't enough for who has one.
func (a *PeopleAPI) prove(ctx context.Context, p auth.Principal, proof *operatorv1.Proof, ofFactors bool) error {
	if a.o.Factors == nil && ofFactors {
		return mappedPeople(factors.ErrNone)
	}
	recently, err := a.recentlyProved(ctx, false)
	if err != nil {
		return err
	}
	switch {
	case proof == nil && recently:
		return nil
	case proof == nil:
		return proofNeeded("it is more than ten minutes ago that you proved who you are", "give your password or a code, or sign in again")
	case proof.HasPassword():
		if err := a.o.People.Check(ctx, p.ID, proof.GetPassword()); err != nil {
			return mappedProof(err)
		}
		if !ofFactors || recently {
			return nil
		}
		state, err := a.o.Factors.State(ctx, p.ID)
		if err != nil {
			return mappedPeople(err)
		}
		if state.Any() {
			return proofNeeded("you have a second factor, so the password alone is not enough", "give a code, a recovery code or a passkey, or sign in again")
		}
		return nil
	case a.o.Factors == nil:
		return mappedProof(factors.ErrWrong)
	case proof.HasTotpCode():
		// For the session's own device: what strangers try doesn't count.
		err = a.o.Factors.Code(ctx, p.ID, p.Session.ID, proof.GetTotpCode())
	case proof.HasRecoveryCode():
		err = a.o.Factors.RecoveryCode(ctx, p.ID, p.Session.ID, proof.GetRecoveryCode())
	case proof.HasPasskey():
		err = a.o.Factors.Passkey(ctx, p.ID, proof.GetPasskey().GetChallenge(), proof.GetPasskey().GetResponseJson())
	default:
		err = factors.ErrWrong
	}
	return mappedProof(err)
}

// mappedProof: the caller is signed in; what is wrong is what they gave.
func mappedProof(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, people.ErrBadLogin):
		return apierr.Wrap(err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "proof",
			"the password is another one; nothing was changed", "type it again")
	case errors.Is(err, factors.ErrWrong), errors.Is(err, factors.ErrChallenge):
		return apierr.Wrap(err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "proof",
			"the code or passkey is wrong, or was used before; nothing was changed", "type the code that is shown now, or begin again")
	default:
		return mappedPeople(err)
	}
}

func proofNeeded(message, fix string) error {
	return apierr.New(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PROOF_NEEDED, "proof", message, fix)
}
