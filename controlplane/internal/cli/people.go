package cli

import (
	"fmt"
	"os"
	"strings"

	"connectrpc.com/connect"
	"golang.org/x/term"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// secrets reads one line each: from standard input where told so, else asked for at the terminal.
func (r *run) secrets(stdin bool, what ...string) ([]string, error) {
	out := make([]string, 0, len(what))
	file, isFile := r.env.Stdin.(*os.File)
	if !stdin && (!isFile || !term.IsTerminal(int(file.Fd()))) { //nolint:gosec // a descriptor
		return nil, usage("there is no terminal to ask at", "give each on a line of standard input, with --password-stdin: "+strings.Join(what, ", "))
	}
	for _, name := range what {
		if stdin {
			line, err := r.wholeLine(name)
			if err != nil {
				return nil, err
			}
			out = append(out, line)
		} else {
			_, _ = fmt.Fprint(r.env.Stderr, name+" (not shown): ")
			raw, err := term.ReadPassword(int(file.Fd())) //nolint:gosec // a descriptor
			_, _ = fmt.Fprintln(r.env.Stderr)
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", name, err)
			}
			out = append(out, string(raw))
		}
		if out[len(out)-1] == "" {
			return nil, usage(name+" is missing", "give each on a line: "+strings.Join(what, ", "))
		}
	}
	return out, nil
}

// asPerson is login with an e-mail address and password.
func (l *loginCmd) asPerson(r *run, path string) error {
	var given []string
	if l.PasswordStdin {
		// The code may stand on the next line.
		text, err := r.line("the password")
		if err != nil {
			return err
		}
		given = []string{text}
	} else {
		var err error
		if given, err = r.secrets(false, "Password"); err != nil {
			return err
		}
	}
	cfg := r.freshConfig(path)
	var err error
	if r.api, err = newClient(cfg); err != nil {
		return err
	}
	defer r.api.close()
	ctx, cancel := r.call()
	defer cancel()
	device := cfg.Devices[strings.ToLower(l.Email)]
	res, err := r.api.anonymous.SignIn(ctx, connect.NewRequest(operatorv1.SignInRequest_builder{
		Email: l.Email, Password: given[0], OrganisationId: l.Organisation, Device: device,
	}.Build()))
	if err != nil {
		return err
	}
	in := res.Msg
	if asked := in.GetSecondFactor(); asked != nil {
		if in, err = l.secondFactor(r, asked, device); err != nil {
			return err
		}
	}
	person := in.GetPerson()
	cfg.Session = newSession(person.GetEmail(), in.GetTokens(), r.env.Now())
	cfg.Devices = withDevice(cfg.Devices, person.GetEmail(), in.GetDevice())
	return r.signedInAs(cfg, path, person)
}

type logoutCmd struct{}

func (logoutCmd) run(r *run) error {
	if r.api.person == nil {
		return usage("you are not signed in as a person", "an API token is revoked where it was made; take it out of FLEETBAN_TOKEN or the configuration")
	}
	ctx, cancel := r.call()
	defer cancel()
	// A session that is over already is what was wanted.
	if _, err := r.api.sessions.SignOut(ctx, connect.NewRequest(&operatorv1.SignOutRequest{})); err != nil && !isBadCredential(err) {
		return err
	}
	if err := r.api.person.forget(ctx); err != nil {
		return err
	}
	return r.done(&operatorv1.SignOutResponse{}, "Signed out.")
}

type whoamiCmd struct{}

func (whoamiCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	if r.api.person == nil {
		res, err := r.api.fleet.GetFleet(ctx, connect.NewRequest(&operatorv1.GetFleetRequest{}))
		if err != nil {
			return err
		}
		if !r.out.people() {
			r.out.json(map[string]string{"organisation_id": res.Msg.GetOrganisationId(), "credential": "api-token"})
			return nil
		}
		r.out.line("A program with an API token of %s.", safe(res.Msg.GetOrganisationName()))
		return nil
	}
	res, err := r.api.sessions.GetMe(ctx, connect.NewRequest(&operatorv1.GetMeRequest{}))
	if err != nil {
		return err
	}
	if !r.out.people() {
		r.out.json(res.Msg)
		return nil
	}
	p := res.Msg.GetPerson()
	name := "organisation"
	// Who must have a second factor first isn't told.
	if fleet, err := r.api.fleet.GetFleet(ctx, connect.NewRequest(&operatorv1.GetFleetRequest{})); err == nil {
		name = safe(fleet.Msg.GetOrganisationName())
	}
	r.out.line("%s, %s of %s (%s).", safe(p.GetEmail()), roleText(p.GetRole()), name, safe(p.GetOrganisationId()))
	if len(p.GetTags()) > 0 {
		r.out.line("Only for hosts with %s.", safe(strings.Join(p.GetTags(), " or ")))
	}
	if p.GetMustEnrolSecondFactor() {
		r.out.line("The organisation asks for a second factor, and you have none: fleetban account --help says how to make one.")
	}
	return nil
}

type acceptCmd struct {
	PasswordStdin bool `name:"password-stdin" help:"Read the link and the password from standard input, a line each."`
	CodeStdin     bool `name:"code-stdin" help:"Read the code, where an account that stands asks for one, from the line after these (FLEETBAN_CODE)."`
}

// offline: who accepts has no credential yet.
func (a *acceptCmd) offline(r *run) error {
	given, err := r.secrets(a.PasswordStdin, "Link of the invitation", "Password")
	if err != nil {
		return err
	}
	link, secret, found := strings.Cut(given[0], "/invitation#")
	if !found {
		return usage("that is no link of an invitation", "paste it whole: https://HOST/invitation#fbi_…")
	}
	cfg := config{URL: link, Pin: r.g.Pin, CAFile: r.g.CAFile}
	if r.g.URL != "" {
		cfg.URL = r.g.URL
	}
	if err := checkURL(cfg.URL); err != nil {
		return err
	}
	r.g.URL = cfg.URL
	if r.api, err = newClient(cfg); err != nil {
		return err
	}
	defer r.api.close()
	ctx, cancel := r.call()
	defer cancel()
	req := operatorv1.AcceptInvitationRequest_builder{Invitation: secret, Password: given[1]}.Build()
	res, err := r.api.joining.AcceptInvitation(ctx, connect.NewRequest(req))
	if err == nil && res.Msg.HasSecondFactor() {
		if err := a.secondFactor(r, req, res.Msg.GetSecondFactor(), given[0]); err != nil {
			return err
		}
		// Somebody may have looked for their phone.
		ctx, cancel := r.call()
		defer cancel()
		res, err = r.api.joining.AcceptInvitation(ctx, connect.NewRequest(req))
	}
	if err != nil {
		return err
	}
	return r.done(res.Msg, fmt.Sprintf("You have joined as %s. Log in: fleetban login --url %s%s --email %s",
		roleText(res.Msg.GetRole()), cfg.URL, pinFlag(cfg.Pin), safe(res.Msg.GetEmail())))
}

// pinFlag is what a command needs to trust the server that this one does; empty where everyone trusts it.
func pinFlag(pin string) string {
	if pin == "" {
		return ""
	}
	return " --pin " + pin
}

// secondFactor asks for that of an account that stands.
func (a *acceptCmd) secondFactor(r *run, req *operatorv1.AcceptInvitationRequest, asked *operatorv1.SecondFactor, link string) error {
	if !asked.GetTotp() && !asked.GetRecoveryCode() {
		return usage("you have an account here, and its second factor is a passkey, which a terminal can't use", "open the link in a browser: "+escape(link, 2000))
	}
	_, _ = fmt.Fprintln(r.env.Stderr, "You have an account here already, with a second factor.")
	code, err := r.code(a.CodeStdin)
	if err != nil {
		return err
	}
	answer := operatorv1.SecondFactorAnswer_builder{Challenge: asked.GetChallenge()}
	if isTOTP(code) {
		answer.TotpCode = &code
	} else {
		answer.RecoveryCode = &code
	}
	req.SetSecondFactor(answer.Build())
	return nil
}

type passwdCmd struct {
	Change passwdChangeCmd `cmd:"" default:"withargs" help:"Change your password; your other sessions end."`
	Reset  resetCmd        `cmd:"" help:"Have a link sent to who forgot theirs, or use one."`
}

type passwdChangeCmd struct {
	PasswordStdin bool `name:"password-stdin" help:"Read the present and the new password from standard input, a line each."`
}

func (p *passwdChangeCmd) run(r *run) error {
	given, err := r.secrets(p.PasswordStdin, "Present password", "New password")
	if err != nil {
		return err
	}
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.account.ChangePassword(ctx, connect.NewRequest(operatorv1.ChangePasswordRequest_builder{Password: given[0], NewPassword: given[1]}.Build()))
	if err != nil {
		return err
	}
	return r.done(res.Msg, fmt.Sprintf("Changed; %s ended.", plural(uint64(res.Msg.GetEnded()), "other session", "other sessions")))
}

type sessionsCmd struct {
	List   sessionsListCmd   `cmd:"" default:"1" help:"List your sessions."`
	Revoke sessionsRevokeCmd `cmd:"" help:"End one of your sessions, or with --others all but this one."`
}

type sessionsListCmd struct{}

func (sessionsListCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.sessions.ListSessions(ctx, connect.NewRequest(&operatorv1.ListSessionsRequest{}))
	if err != nil {
		return err
	}
	if !r.out.people() {
		list(r.out, res.Msg, res.Msg.GetSessions())
		return nil
	}
	rows := make([][]cell, 0, len(res.Msg.GetSessions()))
	for _, s := range res.Msg.GetSessions() {
		current := ""
		if s.GetCurrent() {
			current = "this one"
		}
		rows = append(rows, []cell{
			c(s.GetId()), c(r.out.clock.ago(s.GetUsedUnixMs())), c(r.out.clock.in(s.GetEndsUnixMs())), c(s.GetAddress()), c(s.GetUserAgent()), c(current),
		})
	}
	r.out.table([]string{"ID", "USED", "ENDS", "FROM", "WITH", ""}, rows)
	return nil
}

type sessionsRevokeCmd struct {
	ID     string `arg:"" optional:"" name:"id" help:"As list shows it."`
	Others bool   `help:"All but this one."`
}

func (s *sessionsRevokeCmd) run(r *run) error {
	if (s.ID == "") != s.Others {
		return usage("name a session, or give --others", "fleetban sessions lists them")
	}
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.sessions.RevokeSession(ctx, connect.NewRequest(operatorv1.RevokeSessionRequest_builder{Id: s.ID}.Build()))
	if err != nil {
		return err
	}
	return r.done(res.Msg, plural(uint64(res.Msg.GetEnded()), "session", "sessions")+" ended.")
}

type membersCmd struct {
	List   membersListCmd   `cmd:"" default:"1" help:"List the organisation's members."`
	Invite membersInviteCmd `cmd:"" help:"Make a link with which one person joins."`
	Role   membersRoleCmd   `cmd:"" help:"Change a member's role, at once."`
	Remove membersRemoveCmd `cmd:"" help:"Remove a member, at once."`
	Factor membersFactorCmd `cmd:"" name:"second-factor" help:"Say, or set, whether members must have a second factor."`
}

type membersListCmd struct{}

func (membersListCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.members.ListMembers(ctx, connect.NewRequest(&operatorv1.ListMembersRequest{}))
	if err != nil {
		return err
	}
	if !r.out.people() {
		list(r.out, res.Msg, res.Msg.GetMembers())
		return nil
	}
	rows := make([][]cell, 0, len(res.Msg.GetMembers()))
	for _, m := range res.Msg.GetMembers() {
		where := "all"
		if len(m.GetTags()) > 0 {
			where = strings.Join(m.GetTags(), " ")
		}
		rows = append(rows, []cell{c(m.GetEmail()), c(roleText(m.GetRole())), c(where), c(r.out.clock.ago(m.GetSinceUnixMs())), c(m.GetPersonId())})
	}
	r.out.table([]string{"E-MAIL", "ROLE", "HOSTS", "SINCE", "ID"}, rows)
	return nil
}

type membersInviteCmd struct {
	Email string   `arg:"" name:"e-mail" help:"Whom."`
	Role  string   `required:"" enum:"owner,admin,operator,viewer" help:"owner, admin, operator or viewer."`
	Tag   []string `placeholder:"k=v" help:"They see and steer only hosts with one of these tags; for operators and viewers; may be repeated."`
}

func (m *membersInviteCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.members.Invite(ctx, connect.NewRequest(operatorv1.InviteRequest_builder{Email: m.Email, Role: roleOf(m.Role), Tags: m.Tag}.Build()))
	if err != nil {
		return err
	}
	if !r.out.people() {
		r.out.json(res.Msg)
		return nil
	}
	r.out.line("Send this link to %s, and to nobody else; it is shown once and good until %s:", safe(m.Email), r.out.clock.when(res.Msg.GetExpiresUnixMs()))
	r.out.line("")
	r.out.line("  %s", escape(res.Msg.GetLink(), 2000))
	r.out.line("")
	if res.Msg.GetMailed() {
		r.out.line("It was mailed to them, too.")
	}
	r.out.line("They join with: fleetban accept%s", pinFlag(r.api.pin))
	return nil
}

type membersRoleCmd struct {
	Member string   `arg:"" help:"E-mail address or id."`
	Role   string   `arg:"" enum:"owner,admin,operator,viewer" help:"owner, admin, operator or viewer."`
	Tag    []string `placeholder:"k=v" help:"They see and steer only hosts with one of these tags; without it, who is restricted stays so; may be repeated."`
	Whole  bool     `name:"whole-fleet" help:"They see and steer the whole fleet from now on, whatever they were restricted to."`
}

func (m *membersRoleCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.members.SetRole(ctx, connect.NewRequest(operatorv1.SetRoleRequest_builder{Member: m.Member, Role: roleOf(m.Role), Tags: m.Tag, WholeFleet: m.Whole}.Build()))
	if err != nil {
		return err
	}
	where := ""
	if m.Whole {
		where = " of the whole fleet"
	}
	if len(m.Tag) > 0 {
		where = " of hosts with " + safe(strings.Join(m.Tag, " or "))
	}
	return r.done(res.Msg, safe(m.Member)+" is "+m.Role+where+" now.")
}

type membersRemoveCmd struct {
	Member string `arg:"" help:"E-mail address or id."`
}

func (m *membersRemoveCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.members.RemoveMember(ctx, connect.NewRequest(operatorv1.RemoveMemberRequest_builder{Member: m.Member}.Build()))
	if err != nil {
		return err
	}
	return r.done(res.Msg, "Removed.")
}

func roleText(role operatorv1.Role) string { return strings.ToLower(enumText(role.String(), "ROLE_")) }

func roleOf(text string) operatorv1.Role {
	return operatorv1.Role(operatorv1.Role_value["ROLE_"+strings.ToUpper(text)])
}
