// Package setup is how a fleet begins: a link, shown once, with which one person makes the first organisation and becomes
// its owner. Until then nothing else answers (Gate).
//
//	first start ─▶ Offer: one link, whichever replica is first ─▶ Use ─▶ organisation, owner ─▶ the gate opens everywhere
//
// What decides that a fleet was set up is that there is an organisation: made by a link, by the command `setup`, or
// brought back by its hosts after Redis lost it.
package setup

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/seal"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

const (
	// Path is where links lead; the secret follows its #, which browsers keep to themselves.
	Path = "/setup"
	// Life is how long a link is good. A replica that serves shows another one then.
	Life = 24 * time.Hour

	prefix = "fbs_"
	// lease is Options.lease: hashing a password may wait seconds where many are hashed.
	lease = 20 * time.Second
)

// Errors that callers decide on.
var (
	// ErrDone: there is an organisation.
	ErrDone = errors.New("it was set up before")
	// ErrLink: the link is another one, or used, replaced or expired.
	ErrLink = errors.New("the set-up link is unknown, replaced or expired")
	// ErrBusy: someone uses the link at this moment.
	ErrBusy = errors.New("the set-up link is being used at this moment")
	// ErrNoURL: no replica has said where the control plane is, nor has the caller.
	ErrNoURL = errors.New("the control plane's URL isn't known: give --public-url")
)

var (
	//go:embed lua/link.lua
	linkText   string
	linkScript = store.NewScript("setup/link", linkText)

	linkKey = store.Global("setup")
)

// Options make a Setup.
type Options struct {
	Store  *store.Store
	Orgs   *orgs.Orgs
	People *people.People
	Audit  *audit.Log
	// Seal makes what Redis keeps of the link: who writes there makes none.
	Seal *seal.Sealer
	// Logger; default slog.Default().
	Logger *slog.Logger

	// lease is how long one attempt keeps others off.
	lease time.Duration
}

// Setup sets a fleet up. Safe for concurrent use.
type Setup struct{ o Options }

// New makes a Setup.
func New(o Options) *Setup {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.lease <= 0 {
		o.lease = lease
	}
	return &Setup{o: o}
}

// Done reports whether there is an organisation.
func (s *Setup) Done(ctx context.Context) (bool, error) {
	ids, err := s.o.Orgs.IDs(ctx)
	return len(ids) > 0, err
}

// Offer makes a link; "" where one stands that was shown before, unless that is to be replaced. url and pin are the control
// plane's, pin "" where its certificate is publicly trusted; without a url: those of the link before. ErrDone, ErrBusy,
// ErrNoURL or an error of the store.
func (s *Setup) Offer(ctx context.Context, url, pin string, replace bool) (link string, err error) {
	if done, err := s.Done(ctx); err != nil || done {
		return "", errors.Join(err, whether(done, ErrDone))
	}
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails: crypto/rand ends the program instead
	secret := prefix + base64.RawURLEncoding.EncodeToString(raw[:])
	again := "0"
	if replace {
		again = "1"
	}
	answer, url, pin, err := s.link(ctx, "offer", s.mark(secret), Life.Milliseconds(), again, url, pin)
	switch {
	case err != nil:
		return "", err
	case answer == "stands":
		return "", nil
	case answer == "busy":
		return "", ErrBusy
	case url == "":
		_, _, _, err := s.link(ctx, "end")
		return "", errors.Join(ErrNoURL, err)
	}
	return format(url, secret, pin), nil
}

// Request is what a person asks for with a link.
type Request struct {
	// Secret is what follows the # of the link; what stands behind a dot in it is for programs alone.
	Secret string
	// Name and Mode are the organisation's.
	Name            string
	Mode            fleetbanv1.Mode
	Email, Password string
	Client          audit.Client
}

// Made is what came of it.
type Made struct {
	Organisation orgs.Organisation
	Owner        people.Member
}

// Use makes the first organisation and its owner: ErrDone, ErrLink, ErrBusy, orgs.ErrInvalid, people.ErrInvalid,
// people.ErrWeakPassword, people.ErrBadLogin, people.ErrBusy, or an error of the store. Of concurrent attempts one
// is heard at a time, and one that fails leaves the link good; one that dies half way is completed by the next, twenty
// seconds later.
func (s *Setup) Use(ctx context.Context, r Request) (Made, error) {
	secret, _, _ := strings.Cut(r.Secret, ".")
	if !strings.HasPrefix(secret, prefix) {
		return Made{}, ErrLink
	}
	if done, err := s.Done(ctx); err != nil || done {
		return Made{}, errors.Join(err, whether(done, ErrDone))
	}
	attempt := ulid.Make().String()
	switch answer, _, _, err := s.link(ctx, "claim", s.mark(secret), attempt, s.o.lease.Milliseconds()); {
	case err != nil:
		return Made{}, err
	case answer == "busy":
		return Made{}, ErrBusy
	case answer != "ok":
		return Made{}, ErrLink
	}
	// The caller who leaves must not leave others waiting.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lease)
	defer cancel()
	made, err := s.make(ctx, r)
	if err != nil {
		if _, _, _, left := s.link(ctx, "leave", attempt); left != nil {
			s.o.Logger.WarnContext(ctx, "the set-up link stays taken for a moment", slog.Any("error", left))
		}
		return Made{}, err
	}
	// It is of no use any more: there is an organisation.
	if _, _, _, err := s.link(ctx, "end"); err != nil {
		s.o.Logger.WarnContext(ctx, "the used set-up link wasn't removed", slog.Any("error", err))
	}
	return made, nil
}

func (s *Setup) make(ctx context.Context, r Request) (Made, error) {
	// Again, now that others wait: who had the link before may have done it.
	if done, err := s.Done(ctx); err != nil || done {
		return Made{}, errors.Join(err, whether(done, ErrDone))
	}
	if err := orgs.CheckNew(r.Name, r.Mode); err != nil {
		return Made{}, err
	}
	id, err := s.o.Orgs.Reserve(ctx)
	if err != nil {
		return Made{}, err
	}
	owner, err := s.o.People.Found(ctx, id, r.Email, r.Password)
	if err != nil {
		return Made{}, err
	}
	err = s.o.Audit.Record(ctx, id, audit.Record{
		Actor:  audit.Actor{Kind: operatorv1.AuditActorKind_AUDIT_ACTOR_KIND_PERSON, ID: owner.Person, Name: owner.Email},
		Client: r.Client, Action: "setup", Targets: []string{owner.Email},
		Details: []audit.Detail{
			{Name: "name", After: r.Name},
			{Name: "mode", After: strings.ToLower(strings.TrimPrefix(r.Mode.String(), "MODE_"))},
			{Name: "role", After: "owner"},
		},
	})
	if err != nil {
		return Made{}, fmt.Errorf("record the set-up: %w", err)
	}
	// Last: it opens every replica's gate.
	org, err := s.o.Orgs.Found(ctx, id, r.Name, r.Mode)
	return Made{Organisation: org, Owner: owner}, err
}

func (s *Setup) link(ctx context.Context, args ...any) (answer, url, pin string, err error) {
	reply, err := linkScript.Run(ctx, s.o.Store, []string{linkKey}, args...).StringSlice()
	if err != nil {
		return "", "", "", fmt.Errorf("set-up link: %w", err)
	}
	if len(reply) != 3 {
		return "", "", "", fmt.Errorf("set-up link: unexpected reply %v", reply)
	}
	return reply[0], reply[1], reply[2], nil
}

// format writes a link that is all there is to paste: with the pin behind the secret.
func format(url, secret, pin string) string {
	link := url + Path + "#" + secret
	if sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(pin, "sha256//")); err == nil && len(sum) == sha256.Size {
		link += "." + base64.RawURLEncoding.EncodeToString(sum)
	}
	return link
}

// mark is what is kept of a secret: whoever has it can't be told from it, nor made.
func (s *Setup) mark(secret string) string { return s.o.Seal.Mark("setup", "", "", secret) }

func whether(is bool, err error) error {
	if is {
		return err
	}
	return nil
}
