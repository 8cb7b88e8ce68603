package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// SignOptions are those of the command sign.
type SignOptions struct {
	Backend
}

// Sign signs the members, accounts, API tokens and join tokens that a release kept unsigned, and lists them: whoever runs it should know each.
func Sign(ctx context.Context, o SignOptions, logger *slog.Logger, out io.Writer) error {
	b, err := o.open(ctx, logger, nil)
	if err != nil {
		return err
	}
	defer func() { _ = b.close() }() //nolint:contextcheck // closed also when ctx is over
	ids, err := b.orgs.IDs(ctx)
	if err != nil {
		return fmt.Errorf("sign: %w", err)
	}
	signed := 0
	for _, org := range ids {
		members, err := b.people.Sign(ctx, org)
		if err != nil {
			return fmt.Errorf("sign the members of organisation %s: %w", org, err)
		}
		var targets []string
		for _, m := range members {
			_, _ = fmt.Fprintf(out, "organisation %s: signed member %s, %s\n", org, quoted(m.Email), strings.ToLower(strings.TrimPrefix(m.Role.String(), "ROLE_")))
			targets = append(targets, m.Email)
		}
		tokens, err := b.orgs.SignOld(ctx, org)
		if err != nil {
			return fmt.Errorf("sign the API tokens of organisation %s: %w", org, err)
		}
		for _, t := range tokens {
			_, _ = fmt.Fprintf(out, "organisation %s: signed API token %s, %q\n", org, quoted(t.ID), t.Name)
			targets = append(targets, t.ID)
		}
		accounts, err := b.people.SignAccounts(ctx, org)
		if err != nil {
			return fmt.Errorf("sign the accounts of organisation %s: %w", org, err)
		}
		for _, email := range accounts {
			_, _ = fmt.Fprintf(out, "organisation %s: signed the password of %s\n", org, quoted(email))
			targets = append(targets, email)
		}
		joins, err := b.orgs.SignJoins(ctx, org)
		if err != nil {
			return fmt.Errorf("sign the join tokens of organisation %s: %w", org, err)
		}
		for _, id := range joins {
			_, _ = fmt.Fprintf(out, "organisation %s: signed join token %s\n", org, quoted(id))
			targets = append(targets, id)
		}
		if len(targets) == 0 {
			continue
		}
		signed += len(targets)
		if err := b.audit.Record(ctx, org, audit.Record{Actor: audit.OperatorCommand, Action: "sign", Targets: targets}); err != nil {
			return fmt.Errorf("record: %w", err)
		}
	}
	_, err = fmt.Fprintf(out, "%d signed. Whom you don't know among them: remove (fleetban members remove, fleetban tokens revoke, fleetban join-token revoke).\n", signed)
	return err //nolint:wrapcheck // of standard output
}

// forged records that somebody wrote to Redis what only this fleet may.
func (b *base) forged(ctx context.Context, kind, org, id string) {
	if org == "" || b.audit == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = b.audit.Record(ctx, org, audit.Record{
		Actor: audit.System, Action: "forged." + kind, Targets: []string{id}, Outcome: operatorv1.AuditOutcome_AUDIT_OUTCOME_REFUSED,
		Reason: "Redis holds it without this fleet's signature",
	})
}

// replayed records that a session ended because somebody holds a copy of its refresh token.
func (b *base) replayed(ctx context.Context, org, person, session string) {
	_ = b.audit.Record(context.WithoutCancel(ctx), org, audit.Record{
		Actor: audit.System, Client: audit.ClientFrom(ctx), Action: "session.replayed", Targets: []string{session, person},
		Reason: "its refresh token was used a second time: somebody holds a copy",
	})
}
