package cli

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// byBrowser is login by way of a browser on any machine, in which the person is signed in.
func (l *loginCmd) byBrowser(r *run, path string) error {
	cfg := r.freshConfig(path)
	var err error
	if r.api, err = newClient(cfg); err != nil {
		return err
	}
	defer r.api.close()
	verifier := rand.Text() + rand.Text()
	sum := sha256.Sum256([]byte(verifier))
	name, _ := os.Hostname() // the person is shown what there is
	ctx, cancel := r.call()
	begun, err := r.api.terminal.BeginTerminalSignIn(ctx, connect.NewRequest(operatorv1.BeginTerminalSignInRequest_builder{
		Challenge: base64.RawURLEncoding.EncodeToString(sum[:]), Name: name, OrganisationId: l.Organisation,
	}.Build()))
	cancel()
	if err != nil {
		return err
	}
	at := begun.Msg.GetUrl()
	if strings.HasPrefix(at, "/") {
		at = cfg.URL + at
	}
	_, _ = fmt.Fprintf(r.env.Stderr, "Open this in a browser, on any machine, and type the code there:\n\n    %s\n    %s\n\n"+
		"It is good for %s. Give it to nobody: who types it decides as whom you are signed in here.\n",
		safe(at), safe(begun.Msg.GetCode()), time.Duration(begun.Msg.GetExpiresS())*time.Second)
	in, err := r.awaitApproval(begun.Msg, verifier)
	if err != nil {
		return err
	}
	person := in.GetPerson()
	cfg.Session = newSession(person.GetEmail(), in.GetTokens(), r.env.Now())
	cfg.Devices = withDevice(cfg.Devices, person.GetEmail(), in.GetDevice())
	return r.signedInAs(cfg, path, person)
}

// awaitApproval asks until somebody has decided. That the control plane is away for a moment ends nothing.
func (r *run) awaitApproval(begun *operatorv1.BeginTerminalSignInResponse, verifier string) (*operatorv1.CompleteTerminalSignInResponse, error) {
	ctx, cancel := context.WithTimeout(r.ctx, time.Duration(begun.GetExpiresS())*time.Second)
	defer cancel()
	nobody := &failure{code: exitFailed, message: "nobody approved it in time", fix: "run fleetban login --browser again"}
	every := max(time.Duration(begun.GetIntervalS())*time.Second, time.Second)
	for {
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, nobody
			}
			return nil, ctx.Err()
		case <-time.After(every):
		}
		asking, cancel := r.call()
		res, err := r.api.terminal.CompleteTerminalSignIn(asking, connect.NewRequest(operatorv1.CompleteTerminalSignInRequest_builder{
			Code: begun.GetCode(), Verifier: verifier,
		}.Build()))
		cancel()
		switch connect.CodeOf(err) {
		case connect.CodeUnavailable, connect.CodeResourceExhausted, connect.CodeDeadlineExceeded:
			continue
		default:
		}
		if err != nil {
			return nil, err
		}
		if !res.Msg.GetPending() {
			return res.Msg, nil
		}
	}
}

// freshConfig is that of a new sign-in. What is at path is replaced, but for the devices, and need not be readable.
func (r *run) freshConfig(path string) config {
	cfg := config{URL: strings.TrimRight(r.g.URL, "/"), Pin: r.g.Pin, CAFile: r.g.CAFile}
	if former, err := loadConfig(path); err == nil {
		cfg.Devices = former.Devices
	}
	return cfg
}

// signedInAs writes the configuration of who has signed in, and says so.
func (r *run) signedInAs(cfg config, path string, person *operatorv1.Person) error {
	ctx, cancel := r.call()
	defer cancel()
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
	r.out.line("Logged in to %s as %s, %s. Written to %s.", cfg.URL, safe(person.GetEmail()), roleText(person.GetRole()), path)
	if person.GetMustEnrolSecondFactor() {
		r.out.line("Your organisation asks for a second factor, and you have none: you can do nothing else before fleetban account totp enable.")
	}
	return nil
}
