package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/factors"
	"github.com/fleetban/fleetban/controlplane/internal/operatorapi"
	"github.com/fleetban/fleetban/controlplane/internal/people"
)

// ResetLinkOptions are what `reset-link` is told.
type ResetLinkOptions struct {
	Backend

	Email         string `name:"email" required:"" placeholder:"E-MAIL" help:"The account's address."`
	RemoveFactors bool   `name:"remove-second-factors" help:"Remove the person's codes, passkeys and recovery codes too: for who has lost them. Make sure who asks."`
}

// ResetLink prints a link by which a person sets a new password: where no mail is sent, or for who doesn't get any.
func ResetLink(ctx context.Context, o ResetLinkOptions, logger *slog.Logger, out io.Writer) error {
	return o.with(ctx, logger, func(b *base) error {
		if err := b.keys.Agree(ctx, b.store); err != nil {
			return err
		}
		address, err := people.ParseEmail(o.Email)
		if err != nil {
			return err
		}
		link, err := b.people.BeginReset(ctx, address)
		if errors.Is(err, people.ErrBadLogin) {
			return fmt.Errorf("there is no account with the address %s that has a password", address)
		}
		if err != nil {
			return err
		}
		record := func(action string) error {
			var errs []error
			for _, org := range link.Account.Orgs {
				errs = append(errs, b.audit.Record(ctx, org, audit.Record{
					Actor: audit.OperatorCommand, Client: audit.Client{UserAgent: "fleetban-controlplane reset-link"}, Action: action,
					Targets: []string{link.Account.Email},
				}))
			}
			return errors.Join(errs...)
		}
		if err := record("password.reset-request"); err != nil {
			return err
		}
		if o.RemoveFactors {
			if err := record("second-factor.remove"); err != nil {
				return err
			}
			second, err := factors.New(factors.Options{Store: b.store, Keys: b.keys, PublicURL: o.PublicURL, Logger: logger})
			if err != nil {
				return err
			}
			if err := second.RemoveAll(ctx, link.Account.ID); err != nil {
				return err
			}
			_, _ = fmt.Fprintf(out, "Removed the second factors of %s.\n", link.Account.Email)
		}
		_, _ = fmt.Fprintf(out, "Give this link to %s only. It works once, until %s, and ends all their sessions:\n\n  %s%s#%s\n", link.Account.Email,
			link.Expires.Format(time.RFC3339), cmp.Or(o.PublicURL, "https://YOUR-CONTROL-PLANE"), operatorapi.ResetPath, link.Secret)
		return nil
	})
}

// linkPage is where links lead that people get by mail, for who opens one without the console. What stands behind the #
// isn't sent here.
func linkPage(command string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = fmt.Fprintf(w, "Use this link with the program fleetban:\n\n  %s\n\nand paste the whole address there, with what stands behind the #.\n", command)
	}
}
