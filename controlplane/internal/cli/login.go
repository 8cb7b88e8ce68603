package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/term"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

type loginCmd struct {
	TokenStdin bool `name:"token-stdin" help:"Read the API token from standard input instead of asking for it."`

	Email         string `placeholder:"E-MAIL" help:"Sign in as a person, with a password instead of an API token."`
	PasswordStdin bool   `name:"password-stdin" help:"Read the password from standard input instead of asking for it."`
	CodeStdin     bool   `name:"code-stdin" help:"Read the code, where one is asked for, from standard input: the line after the password (FLEETBAN_CODE)."`
	SSO           bool   `name:"sso" help:"Sign in with the organisation's identity provider, in a browser on this machine."`
	Browser       bool   `help:"Sign in as whoever types a code in a browser where they are signed in, on any machine: with a passkey, an identity provider, or none of them here."`
	Fresh         bool   `help:"With --sso: have the provider ask you to sign in anew. It proves, for ten minutes, who you are."`
	Organisation  string `placeholder:"ID" help:"Which, where a person belongs to several; default the one first joined."`
}

// offline: there is no configuration yet. The token is tried before it is kept.
func (l *loginCmd) offline(r *run) error {
	if r.g.URL == "" {
		return usage("login needs the control plane's URL", "fleetban login --url https://HOST --token-stdin < FILE")
	}
	if err := checkURL(r.g.URL); err != nil {
		return err
	}
	path, err := r.env.configPath(r.g.Config)
	if err != nil {
		return err
	}
	if l.Fresh && !l.SSO {
		return usage("--fresh is for sign-ins with an identity provider", "give --sso too")
	}
	if l.Browser && (l.SSO || l.Email != "" || l.TokenStdin) {
		return usage("--browser is a way of its own to sign in", "give it without --sso, --email and --token-stdin")
	}
	if l.Browser {
		return l.byBrowser(r, path)
	}
	if l.Email != "" {
		return l.asPerson(r, path)
	}
	if l.SSO {
		return l.withProvider(r, path)
	}
	if l.PasswordStdin || l.Organisation != "" {
		return usage("--password-stdin and --organisation are for people", "give --email E-MAIL or --browser too, or --token-stdin for an API token")
	}
	token, err := l.read(r)
	if err != nil {
		return err
	}
	cfg := config{URL: strings.TrimRight(r.g.URL, "/"), Token: token, Pin: r.g.Pin, CAFile: r.g.CAFile}
	if r.api, err = newClient(cfg); err != nil {
		return err
	}
	defer r.api.close()
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.fleet.GetFleet(ctx, connect.NewRequest(&operatorv1.GetFleetRequest{}))
	// A token that may not read is a good token still.
	if err != nil && connect.CodeOf(err) != connect.CodePermissionDenied {
		return err
	}
	if err := cfg.save(path); err != nil {
		return err
	}
	switch {
	case !r.out.people():
		r.out.json(map[string]string{"url": cfg.URL, "config": path})
	case res != nil:
		r.out.line("Logged in to %s as organisation %s. Written to %s.", cfg.URL, safe(res.Msg.GetOrganisationName()), path)
	default:
		r.out.line("Logged in to %s. Written to %s.", cfg.URL, path)
	}
	return nil
}

func (l *loginCmd) read(r *run) (string, error) {
	if file, ok := r.env.Stdin.(*os.File); ok && !l.TokenStdin && term.IsTerminal(int(file.Fd())) { //nolint:gosec // a descriptor
		_, _ = fmt.Fprint(r.env.Stderr, "API token (not shown): ")
		raw, err := term.ReadPassword(int(file.Fd())) //nolint:gosec // a descriptor
		_, _ = fmt.Fprintln(r.env.Stderr)
		if err != nil {
			return "", fmt.Errorf("read the API token: %w", err)
		}
		return checkToken(string(raw))
	}
	if !l.TokenStdin {
		return "", usage("there is no terminal to ask for the API token at", "fleetban login --url URL --token-stdin < FILE")
	}
	line, err := bufio.NewReader(io.LimitReader(r.env.Stdin, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the API token: %w", err)
	}
	return checkToken(line)
}

func checkToken(token string) (string, error) {
	token = strings.TrimSpace(token)
	if token == "" || strings.ContainsAny(token, " \t\r\n") {
		return "", usage("that is no API token", "give it alone on one line: fbt_…")
	}
	return token, nil
}

type pauseCmd struct {
	For    Duration `required:"" help:"For how long, at most 7d."`
	Reason string   `help:"Why, for whoever looks."`
}

func (p *pauseCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.fleet.Pause(ctx, connect.NewRequest(operatorv1.PauseRequest_builder{
		DurationS: int64(time.Duration(p.For).Seconds()), Reason: p.Reason,
	}.Build()))
	if err != nil {
		return err
	}
	if !r.out.people() {
		r.out.json(res.Msg)
		return nil
	}
	r.out.line("Enforcement is paused on every host until %s (%s). fleetban resume ends it.",
		r.out.clock.when(res.Msg.GetPausedUntilUnixMs()), r.out.clock.in(res.Msg.GetPausedUntilUnixMs()))
	return nil
}

type resumeCmd struct{}

func (resumeCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	res, err := r.api.fleet.Resume(ctx, connect.NewRequest(&operatorv1.ResumeRequest{}))
	if err != nil {
		return err
	}
	return r.done(res.Msg, "Hosts enforce again.")
}

type modeCmd struct {
	Mode string `arg:"" enum:"enforce,watch" help:"enforce or watch."`
}

func (m *modeCmd) run(r *run) error {
	ctx, cancel := r.call()
	defer cancel()
	mode, text := modeEnforce, "What a host bans is banned on all from now on."
	if m.Mode == "watch" {
		mode, text = modeWatch, "What a host bans stays there from now on; see fleetban watch --would. Fleet bans in force stay until they end."
	}
	res, err := r.api.fleet.SetMode(ctx, connect.NewRequest(operatorv1.SetModeRequest_builder{Mode: mode}.Build()))
	if err != nil {
		return err
	}
	return r.done(res.Msg, text)
}
