package cli

import (
	"context"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/term"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

type proveCmd struct {
	proofFlags
}

func (p *proveCmd) run(r *run) error {
	if r.api.person == nil {
		return usage("you are not signed in as a person", "API tokens are asked for no proof")
	}
	proof, err := r.given(p.proofFlags)
	if err != nil {
		return err
	}
	if err := r.prove(proof); err != nil {
		return err
	}
	return r.done(&operatorv1.ProveResponse{}, "Proved, for ten minutes.")
}

// proved runs a verb, and where the control plane wants to know anew who is there, and somebody is, asks and runs it again:
// what was refused for that wasn't done.
func (r *run) proved(v verb) error {
	err := v.run(r)
	if _, asks := v.(*proveCmd); asks || reasonOf(err) != fleetbanv1.Reason_REASON_PROOF_NEEDED || r.terminal() == nil || r.api.person == nil {
		return err
	}
	_, _ = fmt.Fprintln(r.env.Stderr, "It is more than ten minutes ago that you proved who you are.")
	if err := r.prove(nil); err != nil {
		return err
	}
	return v.run(r)
}

// prove proves with what is given, or asks for it.
func (r *run) prove(proof *operatorv1.Proof) error {
	ctx, cancel := r.call()
	defer cancel()
	if proof == nil {
		options, err := r.api.sessions.GetProofOptions(ctx, connect.NewRequest(&operatorv1.GetProofOptionsRequest{}))
		if err != nil {
			return err
		}
		if proof, err = r.askProof(options.Msg); err != nil {
			return err
		}
		// Somebody may have looked for their phone.
		ctx, cancel = r.call()
		defer cancel()
	}
	_, err := r.api.sessions.Prove(ctx, connect.NewRequest(operatorv1.ProveRequest_builder{Proof: proof}.Build()))
	return err
}

// askProof asks for what the account has.
func (r *run) askProof(has *operatorv1.GetProofOptionsResponse) (*operatorv1.Proof, error) {
	var ways []string
	if has.GetTotp() {
		ways = append(ways, "code")
	}
	if has.GetRecoveryCode() {
		ways = append(ways, "recovery code")
	}
	if second := len(ways) > 0 || has.GetChallenge() != ""; has.GetPassword() && !second {
		ways = append(ways, "password")
	}
	switch {
	case len(ways) > 0:
	case has.GetProviderUrl() != "":
		return nil, usage("you signed in with your organisation's identity provider, which has to look again", "fleetban login --url "+r.g.URL+" --sso --fresh")
	default:
		return nil, usage("your account has a passkey and nothing else, and a terminal can't use one", "sign in anew, with a browser: fleetban login --url "+r.g.URL+" --browser")
	}
	file := r.terminal()
	if file == nil {
		return nil, usage("there is no terminal to ask at", "give the "+ways[0]+" with --password-stdin or --code-stdin")
	}
	prompt := strings.Join(ways, " or ")
	_, _ = fmt.Fprint(r.env.Stderr, strings.ToUpper(prompt[:1])+prompt[1:]+" (not shown): ")
	raw, err := term.ReadPassword(int(file.Fd())) //nolint:gosec // a descriptor
	_, _ = fmt.Fprintln(r.env.Stderr)
	if err != nil {
		return nil, fmt.Errorf("read the proof: %w", err)
	}
	return proofOf(string(raw)), nil
}

// proofOf tells codes and recovery codes from passwords.
func proofOf(given string) *operatorv1.Proof {
	if compact := strings.ReplaceAll(given, "-", ""); isTOTP(given) || len(compact) == 10 && len(given) == 11 {
		return proofByCode(given)
	}
	return operatorv1.Proof_builder{Password: &given}.Build()
}

// given is the proof that the flags give; nil where they give none.
func (r *run) given(flags proofFlags) (*operatorv1.Proof, error) {
	switch {
	case flags.PasswordStdin:
		given, err := r.line("the password")
		if err != nil {
			return nil, err
		}
		return operatorv1.Proof_builder{Password: &given}.Build(), nil
	case flags.CodeStdin, r.env.Getenv(codeVariable) != "":
		given, err := r.code(flags.CodeStdin)
		if err != nil {
			return nil, err
		}
		return proofByCode(given), nil
	default:
		return nil, nil //nolint:nilnil // documented
	}
}

// proving makes a call with the proof that the flags give, and where they give none and the control plane asks for one, again
// after one was asked for.
func (r *run) proving(flags proofFlags, call func(ctx context.Context, proof *operatorv1.Proof) error) error {
	proof, err := r.given(flags)
	if err != nil {
		return err
	}
	ctx, cancel := r.call()
	defer cancel()
	return call(ctx, proof)
}
