// Package cli is the operator's command, fleetban: its grammar, what it asks the control plane, and how it shows the
// answers. Text that came from hosts is escaped before it reaches a terminal.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/term"

	"github.com/fleetban/fleetban/controlplane/internal/version"
)

// Env is what a run sees of the world.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	Now            func() time.Time
	// Terminal: Stdout is one.
	Terminal bool
}

// OS is the real world.
func OS() *Env {
	return &Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Now: time.Now,
		Terminal: term.IsTerminal(int(os.Stdout.Fd())), //nolint:gosec // a descriptor
	}
}

// grammar is every flag and verb. FLEETBAN_TOKEN has no flag: an argument list is read by every user of a machine.
type grammar struct {
	URL     string   `name:"url" placeholder:"URL" help:"The control plane (FLEETBAN_URL)."`
	Pin     string   `placeholder:"sha256//…" help:"Trust this key of the server alone (FLEETBAN_PIN)."`
	CAFile  string   `name:"ca-file" placeholder:"FILE" help:"Trust the authorities in this file (FLEETBAN_CA_FILE)."`
	Config  string   `placeholder:"FILE" help:"Configuration, as login writes it (FLEETBAN_CONFIG; default ~/.config/fleetban/config.json)."`
	Output  string   `short:"o" enum:"table,json,jsonl" default:"table" help:"table, json or jsonl."`
	Timeout Duration `default:"15s" help:"How long to wait for an answer."`

	Setup     setupCmd     `cmd:"" help:"Set a control plane up with the link that it showed, and become its owner."`
	Login     loginCmd     `cmd:"" help:"Remember a control plane and an API token, or sign in as a person."`
	Logout    logoutCmd    `cmd:"" help:"End this session."`
	Whoami    whoamiCmd    `cmd:"" help:"Who is signed in here, and as what."`
	Accept    acceptCmd    `cmd:"" help:"Join an organisation with the link of an invitation."`
	Password  passwdCmd    `cmd:"" help:"Change your password, or set one anew by a link; your other sessions end."`
	Prove     proveCmd     `cmd:"" help:"Prove again who you are: changing people, tokens and providers asks for it after ten minutes."`
	Account   accountCmd   `cmd:"" help:"Your second factors and e-mail address."`
	Sessions  sessionsCmd  `cmd:"" help:"List and end your sessions."`
	Sso       ssoCmd       `cmd:"" name:"sso" help:"Show and set the identity provider that people sign in with."`
	Members   membersCmd   `cmd:"" help:"List, invite, change and remove the organisation's people."`
	Tokens    tokensCmd    `cmd:"" help:"Make, list and revoke API tokens."`
	Status    statusCmd    `cmd:"" help:"The fleet at a glance."`
	Jobs      jobsCmd      `cmd:"" help:"Which replica does periodic work, when it was done last, and which did before."`
	Hosts     hostsCmd     `cmd:"" help:"List hosts; disable, enable and delete one."`
	Host      hostCmd      `cmd:"" help:"Everything about one host."`
	Jails     jailsCmd     `cmd:"" help:"List the jails of all hosts."`
	Bans      bansCmd      `cmd:"" help:"List fleet bans."`
	Ban       banCmd       `cmd:"" help:"Ban addresses or prefixes on every host."`
	Unban     unbanCmd     `cmd:"" help:"Unban on every host, in its jails too."`
	Explain   explainCmd   `cmd:"" help:"Why is this address banned, or not, and where?"`
	Allow     allowCmd     `cmd:"" help:"Never ban these, whatever says so."`
	Disallow  disallowCmd  `cmd:"" help:"Take prefixes off the allowlist."`
	Allowed   allowedCmd   `cmd:"" help:"List the allowlist."`
	Watch     watchCmd     `cmd:"" help:"Show what happens, as it happens."`
	Pause     pauseCmd     `cmd:"" help:"Stop enforcement on every host for a time."`
	Resume    resumeCmd    `cmd:"" help:"End a pause."`
	Mode      modeCmd      `cmd:"" help:"Enforce what hosts ban fleet-wide, or only watch what would be."`
	JoinToken joinTokenCmd `cmd:"" name:"join-token" help:"Make, list and revoke what enrols hosts."`
	Audit     auditCmd     `cmd:"" help:"Who did what, and from where; export, verify."`
	Commands  commandsCmd  `cmd:"" help:"List a host's latest orders and their results."`
	Release   releaseCmd   `cmd:"" help:"End the quarantine of a host whose identity was used twice."`
	Forget    forgetCmd    `cmd:"" help:"Delete a host, as hosts delete does: its stream ends and its identity is refused."`
	Approvals approvalsCmd `cmd:"" help:"What waits for a second person: list, approve, reject; and what must wait."`
	Version   versionCmd   `cmd:"" help:"Print the version."`
}

// run is what a verb works with.
type run struct {
	ctx context.Context //nolint:containedctx // a run is one command line
	env *Env
	g   *grammar
	out *printer
	api *client
}

// call bounds one call by --timeout.
func (r *run) call() (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.ctx, time.Duration(r.g.Timeout))
}

// verb is a command that needs the control plane; those that don't have a method of another name.
type verb interface{ run(r *run) error }

type offline interface{ offline(r *run) error }

// exited is how kong's --help ends the parse.
type exited int

// Run runs one command line (without the program's name) and returns its exit code.
func Run(ctx context.Context, args []string, env *Env) (code int) {
	g := &grammar{}
	defer func() {
		if e := recover(); e != nil {
			n, ok := e.(exited)
			if !ok {
				panic(e)
			}
			code = int(n)
		}
	}()
	parser, err := kong.New(g, kong.Name("fleetban"),
		kong.Description("Ban once, everywhere: fail2ban hosts as one fleet.\n\nThe API token comes from FLEETBAN_TOKEN or from fleetban login.\n"+exitCodesHelp),
		kong.Writers(env.Stdout, env.Stderr), kong.Exit(func(n int) { panic(exited(n)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.TypeMapper(reflect.TypeFor[Duration](), kong.MapperFunc(mapDuration)),
	)
	if err != nil {
		panic(err) // the grammar is a constant
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		f := &failure{code: exitUsage, message: err.Error(), fix: "see " + helpFor(err)}
		f.print(env, outputOf(args))
		return f.code
	}
	for field, variable := range map[*string]string{
		&g.URL: "FLEETBAN_URL", &g.Pin: "FLEETBAN_PIN", &g.CAFile: "FLEETBAN_CA_FILE", &g.Config: "FLEETBAN_CONFIG",
	} {
		*field = cmp.Or(*field, env.Getenv(variable))
	}
	err = dispatch(ctx, g, env, parsed)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return 130 // interrupted, as shells say it
	}
	f := explain(err, g.URL)
	f.print(env, g.Output)
	return f.code
}

func dispatch(ctx context.Context, g *grammar, env *Env, parsed *kong.Context) error {
	r := &run{ctx: ctx, env: env, g: g, out: &printer{
		out: env.Stdout, format: g.Output, clock: clock{now: env.Now()},
		colour: env.Terminal && env.Getenv("NO_COLOR") == "" && env.Getenv("TERM") != "dumb",
	}}
	command := parsed.Selected().Target.Addr().Interface()
	if o, ok := command.(offline); ok {
		return errors.Join(o.offline(r), r.out.err)
	}
	v, ok := command.(verb)
	if !ok {
		return usage("that isn't a whole command", "see fleetban "+parsed.Command()+" --help")
	}
	cfg, err := g.resolve(env)
	if err != nil {
		return err
	}
	g.URL = cfg.URL
	if r.api, err = newClient(cfg); err != nil {
		return err
	}
	defer r.api.close()
	if err := r.proved(v); err != nil { //nolint:contextcheck // the run has it
		return err
	}
	if r.out.err != nil {
		return fmt.Errorf("write the answer: %w", r.out.err)
	}
	return nil
}

func mapDuration(ctx *kong.DecodeContext, target reflect.Value) error {
	var text string
	if err := ctx.Scan.PopValueInto("time span", &text); err != nil {
		return err
	}
	d, err := parseDuration(text)
	target.SetInt(int64(d))
	return err
}

// outputOf finds the wanted output in arguments that can't be parsed.
func outputOf(args []string) string {
	for i, a := range args {
		switch {
		case (a == "-o" || a == "--output") && i+1 < len(args):
			return args[i+1]
		case strings.HasPrefix(a, "--output="):
			return strings.TrimPrefix(a, "--output=")
		case strings.HasPrefix(a, "-o"):
			return strings.TrimPrefix(a, "-o")
		}
	}
	return "table"
}

type versionCmd struct{}

func (versionCmd) offline(r *run) error { //nolint:unparam // implements offline
	if r.out.people() {
		r.out.line("fleetban %s", version.Version)
	} else {
		r.out.json(map[string]string{"version": version.Version})
	}
	return nil
}

// helpFor is the command that explains what was written wrong.
func helpFor(err error) string {
	var parse *kong.ParseError
	if errors.As(err, &parse) && parse.Context != nil {
		for _, part := range parse.Context.Path {
			if part.Command != nil {
				return "fleetban " + part.Command.Name + " --help"
			}
		}
	}
	return "fleetban --help"
}
