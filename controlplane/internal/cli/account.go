package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/term"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// codeVariable holds a code for commands that ask for one: a code is good once, and so no secret for long.
const codeVariable = "FLEETBAN_CODE"

// accountCmd is about who is signed in.
type accountCmd struct {
	Factors  factorsCmd  `cmd:"" default:"1" help:"Show your second factors."`
	TOTP     totpCmd     `cmd:"" name:"totp" help:"Codes of a program on your phone."`
	Recovery recoveryCmd `cmd:"" name:"recovery-codes" help:"Make ten new recovery codes; the former are good no more."`
	Passkeys passkeysCmd `cmd:"" help:"List and delete passkeys; the console registers them."`
	Email    emailCmd    `cmd:"" help:"Change your e-mail address."`
}

type totpCmd struct {
	Enable  totpEnableCmd  `cmd:"" help:"Ask for a code whenever you sign in."`
	Disable totpDisableCmd `cmd:"" help:"Ask for none any more."`
}

// proofFlags say how somebody proves again who they are, when the control plane asks for it.
type proofFlags struct {
	PasswordStdin bool `name:"password-stdin" help:"Read your password from standard input."`
	CodeStdin     bool `name:"code-stdin" help:"Read a code or a recovery code from standard input (FLEETBAN_CODE)."`
}

// terminal is where somebody can be asked; nil where nobody can.
func (r *run) terminal() *os.File {
	if file, ok := r.env.Stdin.(*os.File); ok && term.IsTerminal(int(file.Fd())) { //nolint:gosec // a descriptor
		return file
	}
	return nil
}

// line reads one line of standard input, without the blanks around it.
func (r *run) line(what string) (string, error) {
	text, err := r.wholeLine(what)
	if err != nil {
		return "", err
	}
	if text = strings.TrimSpace(text); text == "" {
		return "", usage(what+" is missing", "give it on a line of standard input")
	}
	return text, nil
}

// wholeLine reads one line byte by byte, so that the next one is left there.
func (r *run) wholeLine(what string) (string, error) {
	var out []byte
	var b [1]byte
	for len(out) < 8192 {
		n, err := r.env.Stdin.Read(b[:])
		if n > 0 {
			if b[0] == '\n' {
				break
			}
			out = append(out, b[0])
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", fmt.Errorf("read %s: %w", what, err)
		}
	}
	return strings.TrimRight(string(out), "\r"), nil
}

// code is a code or a recovery code: from standard input where told so, the environment, or asked for.
func (r *run) code(stdin bool) (string, error) {
	if text := r.env.Getenv(codeVariable); text != "" && !stdin {
		return text, nil
	}
	if stdin {
		return r.line("the code")
	}
	if r.terminal() == nil {
		return "", usage("a code is asked for, and there is no terminal to ask at", "give it with --code-stdin, or in "+codeVariable)
	}
	_, _ = fmt.Fprint(r.env.Stderr, "Code, or a recovery code: ")
	return r.line("the code")
}

// isTOTP tells codes of a program from recovery codes, which have letters or ten signs.
func isTOTP(code string) bool {
	digits := strings.NewReplacer(" ", "", "-", "").Replace(code)
	return len(digits) == 6 && strings.Trim(digits, "0123456789") == ""
}

func proofByCode(code string) *operatorv1.Proof {
	if isTOTP(code) {
		return operatorv1.Proof_builder{TotpCode: &code}.Build()
	}
	return operatorv1.Proof_builder{RecoveryCode: &code}.Build()
}

// reasonOf is the typed reason of an error of the API; 0 where it has none.
func reasonOf(err error) fleetbanv1.Reason {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return 0
	}
	for _, detail := range ce.Details() {
		if value, err := detail.Value(); err == nil {
			if info, ok := value.(*fleetbanv1.ErrorInfo); ok {
				return info.GetReason()
			}
		}
	}
	return 0
}

// needsBrowser: a passkey is bound to the console's address, and a terminal has none.
func needsBrowser(at string) error {
	return usage("this account's second factor is a passkey, and a terminal can't use one",
		"fleetban login --url "+strings.TrimRight(at, "/")+" --browser, and approve it in a browser, where you sign in with the passkey")
}

type factorsCmd struct{}

func (factorsCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.factors.GetFactors(ctx, connect.NewRequest(&operatorv1.GetFactorsRequest{}))
	if err != nil {
		return err
	}
	if !r.out.people() {
		r.out.json(res.Msg)
		return nil
	}
	codes, asked := "no", "no"
	if res.Msg.GetTotp() {
		codes = "since " + r.out.clock.when(res.Msg.GetTotpSinceUnixMs())
	}
	if res.Msg.GetRequired() {
		asked = "yes"
	}
	r.out.facts([2]string{"codes", codes}, [2]string{"passkeys", fmt.Sprint(len(res.Msg.GetPasskeys()))},
		[2]string{"recovery codes left", fmt.Sprint(res.Msg.GetRecoveryCodesLeft())}, [2]string{"the organisation asks for one", asked})
	return nil
}

type totpEnableCmd struct {
	proofFlags
}

func (t *totpEnableCmd) run(r *run) error {
	var begun *operatorv1.BeginTotpResponse
	if err := r.proving(t.proofFlags, func(ctx context.Context, proof *operatorv1.Proof) error {
		res, err := r.api.factors.BeginTotp(ctx, connect.NewRequest(operatorv1.BeginTotpRequest_builder{Proof: proof}.Build()))
		if err == nil {
			begun = res.Msg
		}
		return err
	}); err != nil {
		return err
	}
	// What is shown is for whoever types the code, whatever the output's format.
	_, _ = fmt.Fprintf(r.env.Stderr, "Add this to your program, as a code of six digits that changes every 30 s:\n\n  %s\n  %s\n\nCode that it shows now: ",
		escape(begun.GetSecret(), 200), escape(begun.GetUri(), 1000))
	code, err := r.line("the code")
	if err != nil {
		return err
	}
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.factors.ConfirmTotp(ctx, connect.NewRequest(operatorv1.ConfirmTotpRequest_builder{Enrolment: begun.GetEnrolment(), Code: code}.Build()))
	if err != nil {
		return err
	}
	if !r.out.people() {
		r.out.json(res.Msg)
		return nil
	}
	r.out.line("A code is asked for from now on. %s ended.", plural(uint64(res.Msg.GetEnded()), "other session", "other sessions"))
	r.showRecovery(res.Msg.GetRecoveryCodes())
	return nil
}

func (r *run) showRecovery(codes []string) {
	if len(codes) == 0 {
		return
	}
	r.out.line("Recovery codes, each good once where your device isn't at hand. They are shown now and never again: keep them safe.")
	r.out.line("")
	for _, code := range codes {
		r.out.line("  %s", safe(code))
	}
}

type totpDisableCmd struct {
	proofFlags
}

func (t *totpDisableCmd) run(r *run) error {
	if err := r.proving(t.proofFlags, func(ctx context.Context, proof *operatorv1.Proof) error {
		_, err := r.api.factors.DisableTotp(ctx, connect.NewRequest(operatorv1.DisableTotpRequest_builder{Proof: proof}.Build()))
		return err
	}); err != nil {
		return err
	}
	return r.done(&operatorv1.DisableTotpResponse{}, "No code is asked for any more.")
}

type recoveryCmd struct {
	proofFlags
}

func (c *recoveryCmd) run(r *run) error {
	var made *operatorv1.MakeRecoveryCodesResponse
	if err := r.proving(c.proofFlags, func(ctx context.Context, proof *operatorv1.Proof) error {
		res, err := r.api.factors.MakeRecoveryCodes(ctx, connect.NewRequest(operatorv1.MakeRecoveryCodesRequest_builder{Proof: proof}.Build()))
		if err == nil {
			made = res.Msg
		}
		return err
	}); err != nil {
		return err
	}
	if !r.out.people() {
		r.out.json(made)
		return nil
	}
	r.showRecovery(made.GetRecoveryCodes())
	return nil
}

type passkeysCmd struct {
	List   passkeysListCmd   `cmd:"" default:"1" help:"List your passkeys."`
	Delete passkeysDeleteCmd `cmd:"" help:"Delete one."`
}

type passkeysListCmd struct{}

func (passkeysListCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.factors.GetFactors(ctx, connect.NewRequest(&operatorv1.GetFactorsRequest{}))
	if err != nil {
		return err
	}
	if !r.out.people() {
		list(r.out, res.Msg, res.Msg.GetPasskeys())
		return nil
	}
	rows := make([][]cell, 0, len(res.Msg.GetPasskeys()))
	for _, k := range res.Msg.GetPasskeys() {
		used := "never"
		if k.GetUsedUnixMs() > 0 {
			used = r.out.clock.ago(k.GetUsedUnixMs())
		}
		rows = append(rows, []cell{c(k.GetName()), c(r.out.clock.ago(k.GetSinceUnixMs())), c(used), c(k.GetId())})
	}
	r.out.table([]string{"NAME", "SINCE", "USED", "ID"}, rows)
	return nil
}

type passkeysDeleteCmd struct {
	ID string `arg:"" help:"As account passkeys lists it."`
	proofFlags
}

func (p *passkeysDeleteCmd) run(r *run) error {
	if err := r.proving(p.proofFlags, func(ctx context.Context, proof *operatorv1.Proof) error {
		_, err := r.api.factors.DeletePasskey(ctx, connect.NewRequest(operatorv1.DeletePasskeyRequest_builder{Id: p.ID, Proof: proof}.Build()))
		return err
	}); err != nil {
		return err
	}
	return r.done(&operatorv1.DeletePasskeyResponse{}, "Deleted.")
}

type emailCmd struct {
	Change  emailChangeCmd  `cmd:"" help:"Have a link sent to the new address."`
	Confirm emailConfirmCmd `cmd:"" help:"Follow that link."`
}

type emailChangeCmd struct {
	Address string `arg:"" name:"e-mail" help:"The new address."`
	proofFlags
}

func (e *emailChangeCmd) run(r *run) error {
	if err := r.proving(e.proofFlags, func(ctx context.Context, proof *operatorv1.Proof) error {
		_, err := r.api.account.ChangeEmail(ctx, connect.NewRequest(operatorv1.ChangeEmailRequest_builder{NewEmail: e.Address, Proof: proof}.Build()))
		return err
	}); err != nil {
		return err
	}
	return r.done(&operatorv1.ChangeEmailResponse{}, "A link was sent to "+safe(e.Address)+"; your address changes when you follow it.")
}

type emailConfirmCmd struct {
	LinkStdin bool `name:"link-stdin" help:"Read the link from standard input instead of asking for it."`
}

// offline: the link is the credential.
func (e *emailConfirmCmd) offline(r *run) error {
	given, err := r.secrets(e.LinkStdin, "Link")
	if err != nil {
		return err
	}
	secret, err := r.byLink(given[0], "/email#")
	if err != nil {
		return err
	}
	defer r.api.close()
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.linked.ConfirmEmail(ctx, connect.NewRequest(operatorv1.ConfirmEmailRequest_builder{Confirmation: secret}.Build()))
	if err != nil {
		return err
	}
	return r.done(res.Msg, "Your address is "+safe(res.Msg.GetEmail())+" now.")
}

// byLink connects to where a link of a letter leads, and returns its secret.
func (r *run) byLink(text, path string) (secret string, err error) {
	base, secret, found := strings.Cut(text, path)
	if !found {
		return "", usage("that is not the link", "paste it whole: https://HOST"+path+"…")
	}
	cfg := config{URL: base, Pin: r.g.Pin, CAFile: r.g.CAFile}
	if r.g.URL != "" {
		cfg.URL = r.g.URL
	}
	if err := checkURL(cfg.URL); err != nil {
		return "", err
	}
	r.api, err = newClient(cfg)
	return secret, err
}

type resetCmd struct {
	Email         string `placeholder:"E-MAIL" help:"Have a link sent there, if it is an account's."`
	LinkStdin     bool   `name:"link-stdin" help:"Set a new password with such a link: read it from standard input, and the new password from the next line."`
	PasswordStdin bool   `name:"password-stdin" hidden:"" help:"The same as --link-stdin."`
}

// offline: who forgot a password has no credential.
func (p *resetCmd) offline(r *run) error {
	if p.Email != "" {
		return p.request(r)
	}
	given, err := r.secrets(p.LinkStdin || p.PasswordStdin, "Link", "New password")
	if err != nil {
		return err
	}
	secret, err := r.byLink(given[0], "/reset#")
	if err != nil {
		return err
	}
	defer r.api.close()
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.linked.ResetPassword(ctx, connect.NewRequest(operatorv1.ResetPasswordRequest_builder{Reset: secret, NewPassword: given[1]}.Build()))
	if err != nil {
		return err
	}
	r.keepDevice(res.Msg.GetEmail(), res.Msg.GetDevice())
	res.Msg.SetDevice("")
	return r.done(res.Msg, "The password of "+safe(res.Msg.GetEmail())+" is set, and all sessions ended. Sign in: fleetban login --url URL --email "+safe(res.Msg.GetEmail()))
}

func (p *resetCmd) request(r *run) error {
	if r.g.URL == "" {
		return usage("a reset needs the control plane's URL", "fleetban password reset --url https://HOST --email "+p.Email)
	}
	if err := checkURL(r.g.URL); err != nil {
		return err
	}
	var err error
	if r.api, err = newClient(config{URL: strings.TrimRight(r.g.URL, "/"), Pin: r.g.Pin, CAFile: r.g.CAFile}); err != nil {
		return err
	}
	defer r.api.close()
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.linked.RequestPasswordReset(ctx, connect.NewRequest(operatorv1.RequestPasswordResetRequest_builder{Email: p.Email}.Build()))
	if err != nil {
		return err
	}
	return r.done(res.Msg, "If that is an account's address, a link is on its way to it. Use it with: fleetban password reset")
}

// keepDevice notes what has this machine known at the next sign-in. That it can't is no failure.
func (r *run) keepDevice(email, device string) {
	path, err := r.env.configPath(r.g.Config)
	if err != nil || device == "" {
		return
	}
	unlock, err := lock(r.ctx, path+".lock")
	if err != nil {
		return
	}
	defer unlock()
	if cfg, err := loadConfig(path); err == nil {
		cfg.Devices = withDevice(cfg.Devices, email, device)
		_ = cfg.save(path)
	}
}

// maxDevices bounds the configuration.
const maxDevices = 20

// withDevice is devices with that of email.
func withDevice(devices map[string]string, email, device string) map[string]string {
	if device == "" {
		return devices
	}
	out := map[string]string{strings.ToLower(email): device}
	for e, d := range devices {
		if len(out) < maxDevices && out[e] == "" {
			out[e] = d
		}
	}
	return out
}

// secondFactor answers what a sign-in asks for beside the password.
func (l *loginCmd) secondFactor(r *run, asked *operatorv1.SecondFactor, device string) (*operatorv1.SignInResponse, error) {
	if !asked.GetTotp() && !asked.GetRecoveryCode() {
		return nil, needsBrowser(r.g.URL)
	}
	code, err := r.code(l.CodeStdin)
	if err != nil {
		return nil, err
	}
	req := operatorv1.CompleteSignInRequest_builder{Challenge: asked.GetChallenge(), OrganisationId: l.Organisation, Device: device}
	if isTOTP(code) {
		req.TotpCode = &code
	} else {
		req.RecoveryCode = &code
	}
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.anonymous.CompleteSignIn(ctx, connect.NewRequest(req.Build()))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

type membersFactorCmd struct {
	Policy string `arg:"" optional:"" enum:",required,optional" default:"" help:"required or optional; nothing: say which."`
}

func (m *membersFactorCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	if m.Policy != "" {
		res, err := r.api.factors.SetSecondFactorPolicy(ctx, connect.NewRequest(operatorv1.SetSecondFactorPolicyRequest_builder{Required: m.Policy == "required"}.Build()))
		if err != nil {
			return err
		}
		return r.done(res.Msg, "A second factor is "+m.Policy+" now.")
	}
	res, err := r.api.factors.GetSecondFactorPolicy(ctx, connect.NewRequest(&operatorv1.GetSecondFactorPolicyRequest{}))
	if err != nil {
		return err
	}
	text := "optional"
	if res.Msg.GetRequired() {
		text = "required"
	}
	return r.done(res.Msg, "A second factor is "+text+".")
}
