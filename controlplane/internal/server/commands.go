package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/embedded"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	"github.com/fleetban/fleetban/controlplane/internal/setup"
	"github.com/fleetban/fleetban/controlplane/internal/version"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// SetupOptions are what `setup` is told.
type SetupOptions struct {
	Backend

	Organisation string `name:"organisation" env:"FLEETBAN_ORGANISATION" default:"default" placeholder:"NAME" help:"Name of the organisation."`
	Mode         string `name:"mode" env:"FLEETBAN_MODE" enum:"enforce,watch" required:"" help:"enforce: what one host bans is banned on all. watch: only record what would be banned."`

	Email         string `name:"email" placeholder:"E-MAIL" help:"Make this person the organisation's first owner. Also of one that stands and has no member yet."`
	PasswordStdin bool   `name:"password-stdin" help:"Read the owner's password from standard input."`
}

// Setup makes the first organisation and prints its administrator's token to out; with an address, its first owner too,
// whose password is a line of in. Run again, it changes nothing and says so. Of many at once, on different machines, one
// makes the organisation and one the owner.
func Setup(ctx context.Context, o SetupOptions, logger *slog.Logger, in io.Reader, out io.Writer) error {
	mode, err := modeOf(o.Mode)
	if err != nil {
		return err
	}
	var password string
	if (o.Email == "") == o.PasswordStdin {
		return &ConfigError{"email", "no variable", "--email and --password-stdin belong together", "give both: setup --email E-MAIL --password-stdin < FILE"}
	}
	if o.Email != "" {
		line, err := bufio.NewReader(io.LimitReader(in, people.MaxPasswordBytes+2)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read the password: %w", err)
		}
		password = strings.TrimRight(line, "\r\n")
	}
	return o.with(ctx, logger, func(b *base) error {
		if err := b.keys.Agree(ctx, b.store); err != nil {
			return err
		}
		made, err := b.orgs.First(ctx, o.Organisation, mode)
		if err != nil {
			return err
		}
		if made.AdminToken != "" {
			if err := b.recordFirst(ctx, audit.OperatorCommand, "fleetban-controlplane setup", made.Organisation); err != nil {
				return err
			}
		}
		if err := b.firstDone(); err != nil {
			return err
		}
		if made.AdminToken == "" {
			_, _ = fmt.Fprintf(out, "The organisation %q stands already; nothing was changed. Another token: fleetban-controlplane token create\n", made.Organisation.Name)
		} else {
			showToken(out, fmt.Sprintf("Made the organisation %q; its mode is %s.", made.Organisation.Name, o.Mode), made.AdminToken, o.PublicURL, "")
		}
		if o.Email == "" {
			return nil
		}
		owner, err := b.people.FirstOwner(ctx, made.Organisation.ID, o.Email, password)
		if errors.Is(err, people.ErrOwnerStands) {
			return fmt.Errorf("the organisation %q has its first owner: ask them for an invitation (fleetban members invite): %w", made.Organisation.Name, err)
		}
		if err != nil {
			return err
		}
		if err := b.audit.Record(ctx, made.Organisation.ID, audit.Record{
			Actor: audit.OperatorCommand, Client: audit.Client{UserAgent: "fleetban-controlplane setup"}, Action: "member.owner", Targets: []string{owner.Email},
		}); err != nil {
			return err
		}
		_, _ = fmt.Fprintf(out, "Made %s the owner of %q. Log in: fleetban login --url URL --email %s\n", owner.Email, made.Organisation.Name, owner.Email)
		return nil
	})
}

// SetupLinkOptions are what `setup-link` is told.
type SetupLinkOptions struct {
	Backend

	Pin string `name:"pin" env:"FLEETBAN_PUBLIC_PIN" placeholder:"sha256//…" help:"With --public-url: the key to pin, where the certificate isn't publicly trusted. Without both, the replicas' own are taken."`
}

// SetupLink prints a new set-up link to out, as long as nobody set the control plane up. The former one ends.
func SetupLink(ctx context.Context, o SetupLinkOptions, logger *slog.Logger, out io.Writer) error {
	return o.with(ctx, logger, func(b *base) error {
		if err := b.keys.Agree(ctx, b.store); err != nil {
			return err
		}
		link, err := setup.New(setup.Options{Store: b.store, Orgs: b.orgs, People: b.people, Audit: b.audit, Seal: b.seal, Logger: logger}).
			Offer(ctx, o.PublicURL, o.Pin, true)
		if errors.Is(err, setup.ErrDone) {
			return fmt.Errorf("%w: its owner invites others (fleetban members invite), and fleetban-controlplane token create makes an administrator's token", err)
		}
		if err != nil {
			return err
		}
		showLink(out, link, b.firstStart == "")
		return nil
	})
}

// recordFirst says in the audit log that the first organisation and its administrator's token were made.
func (b *base) recordFirst(ctx context.Context, by audit.Actor, how string, org orgs.Organisation) error {
	return b.audit.Record(ctx, org.ID, audit.Record{
		Actor: by, Client: audit.Client{UserAgent: how}, Action: "organisation.create", Targets: []string{org.ID},
		Details: []audit.Detail{
			{Name: "name", After: org.Name},
			{Name: "mode", After: strings.ToLower(strings.TrimPrefix(org.Mode.String(), "MODE_"))},
			{Name: "token", After: "first administrator"},
		},
	})
}

// TokenOptions are what `token create` is told.
type TokenOptions struct {
	Backend

	Organisation string `name:"organisation-id" placeholder:"ID" help:"The organisation's id. Without it: the one that the first start made."`
	Name         string `name:"name" default:"administrator" placeholder:"NAME" help:"What it is for: shown in lists and beside what is done with it."`
}

// CreateToken makes an administrator's token and prints it to out: the way back in for who has lost theirs.
func CreateToken(ctx context.Context, o TokenOptions, logger *slog.Logger, out io.Writer) error {
	return o.with(ctx, logger, func(b *base) error {
		id := o.Organisation
		if id == "" {
			var err error
			if id, err = b.orgs.FirstID(ctx); err != nil {
				if errors.Is(err, orgs.ErrNotFound) {
					return errors.New("there is no organisation: hosts of one that Redis lost bring it back when they connect to a replica that serves; for a new one run fleetban-controlplane setup")
				}
				return err
			}
		}
		org, err := b.orgs.Get(ctx, id)
		if err != nil {
			return err
		}
		if err := b.keys.Agree(ctx, b.store); err != nil {
			return err
		}
		begun, err := b.audit.Begin(ctx, id, audit.Record{
			Actor: audit.OperatorCommand, Client: audit.Client{UserAgent: "fleetban-controlplane token create"}, Action: "token.create",
			Details: []audit.Detail{{Name: "name", After: o.Name}, {Name: "permissions", After: "all"}},
		})
		if err != nil {
			return err
		}
		token, err := b.orgs.CreateToken(ctx, id, o.Name, orgs.AllPermissions())
		outcome, reason := operatorv1.AuditOutcome_AUDIT_OUTCOME_OK, ""
		switch {
		case errors.Is(err, orgs.ErrInvalid):
			outcome, reason = operatorv1.AuditOutcome_AUDIT_OUTCOME_REFUSED, err.Error()
		case err != nil:
			outcome, reason = operatorv1.AuditOutcome_AUDIT_OUTCOME_UNKNOWN, "the command failed"
		default:
			begun.Record.Targets = []string{token.ID}
		}
		if unsaid := begun.End(ctx, outcome, reason); unsaid != nil {
			logger.WarnContext(ctx, "the outcome is missing in the audit log", slog.Any("error", unsaid))
		}
		if err != nil {
			return err
		}
		showToken(out, fmt.Sprintf("Made a token of the organisation %q.", org.Name), token.Secret, o.PublicURL, "")
		return nil
	})
}

// CheckOptions are what `check` is told.
type CheckOptions struct {
	Backend

	AcceptDurability []string `name:"accept-durability" env:"FLEETBAN_ACCEPT_DURABILITY" placeholder:"CLASS" help:"As serve takes it."`
}

// ErrNotReady is returned by Check when a replica with these settings would not be ready.
var ErrNotReady = errors.New("a replica with these settings would not be ready")

// Check says whether a replica with these settings would be ready, and what mends it if not, as JSON to out.
func Check(ctx context.Context, o CheckOptions, logger *slog.Logger, out io.Writer) error {
	return o.with(ctx, logger, func(b *base) error {
		r := &readiness{
			store: b.store, keys: b.keys, clock: &clock{}, accept: o.AcceptDurability, version: version.Version, begun: func() string { return "" },
		}
		report := r.check(ctx)
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(report); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
		if !report.Ready {
			return ErrNotReady
		}
		return nil
	})
}

// with opens the backend for one command. Where a control plane runs its own Redis in the folder, it is that one.
func (b *Backend) with(ctx context.Context, logger *slog.Logger, f func(*base) error) error {
	if err := b.complete(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	backend := *b
	if url, ok := embedded.Running(ctx, b.redisDir()); ok && b.RedisURL == "" {
		backend.RedisURL = url
	}
	opened, err := backend.open(ctx, logger, nil)
	if err != nil {
		return err
	}
	return errors.Join(f(opened), opened.close()) //nolint:contextcheck // closed also when ctx is over
}
