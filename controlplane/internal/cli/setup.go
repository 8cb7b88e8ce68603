package cli

import (
	"bufio"
	"encoding/base64"
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

type setupCmd struct {
	Link string `arg:"" optional:"" help:"As the control plane showed it when it started: https://HOST/setup#fbs_…"`

	Email         string `placeholder:"E-MAIL" help:"Yours; asked for where it is missing."`
	PasswordStdin bool   `name:"password-stdin" help:"Read the password from standard input instead of asking for it."`
	Organisation  string `placeholder:"NAME" help:"Name of the organisation; default as the control plane was told."`
	Mode          string `enum:",enforce,watch" default:"" help:"enforce or watch; default as the control plane was told."`
}

// offline: there is no credential yet but the link.
func (s *setupCmd) offline(r *run) error {
	if s.Link == "" {
		return usage("the set-up link is missing", "paste it whole: fleetban setup 'https://HOST/setup#fbs_…'; fleetban-controlplane setup-link prints another one")
	}
	at, fragment, found := strings.Cut(s.Link, "/setup#")
	token, pin, _ := strings.Cut(fragment, ".")
	if !found || token == "" {
		return usage("that is no set-up link", "paste it whole and in quotes: fleetban setup 'https://HOST/setup#fbs_…'")
	}
	cfg := config{URL: at, Pin: r.g.Pin, CAFile: r.g.CAFile}
	if sum, err := base64.RawURLEncoding.DecodeString(pin); pin != "" && cfg.Pin == "" && cfg.CAFile == "" {
		if err != nil {
			return usage("the set-up link is not whole", "copy all of it")
		}
		cfg.Pin = "sha256//" + base64.StdEncoding.EncodeToString(sum)
	}
	if err := checkURL(cfg.URL); err != nil {
		return err
	}
	r.g.URL = cfg.URL
	path, err := r.env.configPath(r.g.Config)
	if err != nil {
		return err
	}
	password, err := s.ask(r)
	if err != nil {
		return err
	}
	if r.api, err = newClient(cfg); err != nil {
		return err
	}
	defer r.api.close()
	ctx, cancel := r.call()
	defer cancel()
	mode := map[string]fleetbanv1.Mode{"enforce": modeEnforce, "watch": modeWatch}[s.Mode]
	res, err := r.api.setup.Setup(ctx, connect.NewRequest(operatorv1.SetupRequest_builder{
		Token: token, Email: s.Email, Password: password, OrganisationName: s.Organisation, Mode: mode,
	}.Build()))
	if err != nil {
		return err
	}
	person := res.Msg.GetPerson()
	cfg.Session = newSession(person.GetEmail(), res.Msg.GetTokens(), r.env.Now())
	unlock, err := lock(ctx, path+".lock")
	if err != nil {
		return err
	}
	defer unlock()
	if err := cfg.save(path); err != nil {
		return err
	}
	if !r.out.people() {
		r.out.json(map[string]string{"url": cfg.URL, "config": path, "email": person.GetEmail(), "organisation_id": person.GetOrganisationId()})
		return nil
	}
	r.out.line("%s is the owner of the organisation %s now, and logged in here (%s).", safe(person.GetEmail()), safe(res.Msg.GetOrganisationName()), path)
	r.out.line("Enrol your hosts: fleetban join-token create")
	return nil
}

// ask completes the address and asks for the password, twice where a person types it.
func (s *setupCmd) ask(r *run) (password string, err error) {
	file, isFile := r.env.Stdin.(*os.File)
	if !s.PasswordStdin && isFile && term.IsTerminal(int(file.Fd())) && s.Email == "" { //nolint:gosec // a descriptor
		_, _ = fmt.Fprint(r.env.Stderr, "Your e-mail address: ")
		// A terminal gives a line at a time: nothing of the password is taken.
		line, err := bufio.NewReader(io.LimitReader(file, 255)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("read the e-mail address: %w", err)
		}
		s.Email = strings.TrimSpace(line)
	}
	if s.Email == "" {
		return "", usage("your e-mail address is missing", "give --email E-MAIL")
	}
	if s.PasswordStdin {
		given, err := r.secrets(true, "Password")
		if err != nil {
			return "", err
		}
		return given[0], nil
	}
	given, err := r.secrets(false, "Password, 12 characters or more", "Once more")
	if err != nil {
		return "", err
	}
	if given[0] != given[1] {
		return "", usage("the two passwords differ", "type the same one twice")
	}
	return given[0], nil
}
