package agentapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/requestid"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/hostauth"
)

// Enroll implements AgentService. The rate of failures is limited by the auth interceptor.
func (s *Service) Enroll(ctx context.Context, r *connect.Request[fleetbanv1.EnrollRequest]) (*connect.Response[fleetbanv1.EnrollResponse], error) {
	if s.isDraining() {
		return nil, errDraining
	}
	m := r.Msg
	if !hostauth.Sound(m.GetPublicKey()) {
		return nil, errWeakKey()
	}
	join, err := s.Orgs.UseJoinToken(ctx, m.GetJoinToken(), m.GetPublicKey())
	if err != nil {
		if join.Org != "" {
			s.refusedJoin(ctx, join, m.GetName(), err)
		}
		return nil, joinError(err)
	}
	org, err := s.Orgs.Get(ctx, join.Org)
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	enrolment := hosts.Enrolment{
		Name: m.GetName(), PublicKey: m.GetPublicKey(), Tags: join.Tags, Facts: m.GetFacts(), Ephemeral: join.Ephemeral, Again: join.Host,
	}
	if hostauth.Verify(m.GetFormerKey(), hostauth.Reenrolment(s.Keys.Audience(), m.GetFormerKey(), m.GetPublicKey()), m.GetFormerProof()) {
		enrolment.Former = m.GetFormerKey()
	}
	ctx = s.recorded(ctx, join.Org, hostActor("", m.GetName()), "host.enrol", []string{m.GetName()}, audit.Detail{Name: "join_token", After: join.ID})
	host, err := s.Hosts.Join(ctx, join.Org, enrolment)
	if err != nil {
		s.refusedJoin(ctx, join, m.GetName(), err)
		return nil, enrolError(err)
	}
	grant, err := s.grant(join.Org, host.Identity, m.GetPublicKey(), host.Tags, host)
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	return connect.NewResponse(fleetbanv1.EnrollResponse_builder{
		HostId: host.ID, Name: host.Name, OrganisationId: join.Org, OrganisationName: org.Name, Grant: grant,
		Audience: s.Keys.Audience(), ServerUnixMs: s.Now().UnixMilli(), Mode: org.Mode,
	}.Build()), nil
}

// errWeakKey: such a key is nobody's, and anyone could sign in its name.
func errWeakKey() error {
	return apierr.Invalid("public_key", "public_key: it is of small order", "make a key at random")
}

// RotateKey implements AgentService. The caller's present key was verified by AuthenticateHost.
func (s *Service) RotateKey(ctx context.Context, r *connect.Request[fleetbanv1.RotateKeyRequest]) (*connect.Response[fleetbanv1.RotateKeyResponse], error) {
	g, ok := ctx.Value(grantKey{}).(hostauth.Grant)
	if !ok {
		return nil, apierr.New(connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_BAD_CREDENTIAL, "", "no host credential was verified", "")
	}
	next := r.Msg.GetPublicKey()
	if !hostauth.Sound(next) {
		return nil, errWeakKey()
	}
	if !hostauth.Verify(next, hostauth.Rotation(s.Keys.Audience(), g.HostID, g.PublicKey, next), r.Msg.GetProof()) {
		return nil, apierr.Invalid("proof", "proof: it is not the new key's signature over this rotation", "use an agent of this release")
	}
	ctx = s.recorded(ctx, g.OrganisationID, hostActor(g.HostID, g.Name), "host.rotate-key", []string{g.Name, g.HostID})
	host, err := s.Hosts.Rotate(ctx, g.OrganisationID, g.HostID, g.PublicKey, next)
	if errors.Is(err, hosts.ErrMissing) {
		// Redis lost it. Its stream puts it back; then it may come again.
		if _, err = s.Hosts.Adopt(ctx, g.OrganisationID, lost(g)); err == nil {
			host, err = s.Hosts.Rotate(ctx, g.OrganisationID, g.HostID, g.PublicKey, next)
		}
	}
	if errors.Is(err, hosts.ErrKeyTaken) {
		return nil, apierr.Wrap(err, connect.CodeAlreadyExists, fleetbanv1.Reason_REASON_INVALID_FIELD, "public_key",
			"this key is another host's", "make a key for each host")
	}
	if err != nil {
		return nil, refusal(err)
	}
	grant, err := s.grant(g.OrganisationID, host.Identity, next, host.Tags, hosts.Enrolled{Ephemeral: host.Ephemeral})
	if err != nil {
		return nil, fmt.Errorf("change key: %w", err)
	}
	s.Logger.InfoContext(ctx, "host changed its key", slog.String("organisation", g.OrganisationID), slog.String("host", g.HostID), slog.String("name", host.Name))
	return connect.NewResponse(fleetbanv1.RotateKeyResponse_builder{Grant: grant}.Build()), nil
}

func (s *Service) grant(org string, id hosts.Identity, key []byte, tags map[string]string, e hosts.Enrolled) (string, error) {
	return hostauth.SignGrant(s.Keys.GrantKey(), s.Keys.Audience(), hostauth.Grant{
		HostID: id.ID, OrganisationID: org, Name: id.Name, PublicKey: key, Tags: tags, Ephemeral: e.Ephemeral, IssuedAt: s.Now(),
	})
}

func enrolError(err error) error {
	switch {
	case errors.Is(err, hosts.ErrDisabled):
		return errHostDisabled
	case errors.Is(err, hosts.ErrNotFound):
		return apierr.Wrap(err, connect.CodeNotFound, fleetbanv1.Reason_REASON_NOT_FOUND, "join_token",
			"the host that this join token enrols again was deleted", "make one for a new host: fleetban join-token create")
	default:
		return fmt.Errorf("enrol: %w", err)
	}
}

func hostActor(id, name string) audit.Actor {
	return audit.Actor{Kind: operatorv1.AuditActorKind_AUDIT_ACTOR_KIND_HOST, ID: id, Name: name}
}

func client(ctx context.Context, addr netip.Addr) audit.Client {
	return audit.Client{Address: addr, RequestID: requestid.From(ctx)}
}

// recorded is ctx of a change whose own script writes the entry.
func (s *Service) recorded(ctx context.Context, org string, actor audit.Actor, action string, targets []string, details ...audit.Detail) context.Context {
	if s.Audit == nil {
		return ctx
	}
	return audit.With(ctx, s.Audit.NewCall(org, audit.Record{
		Actor: actor, Client: client(ctx, auth.Address(ctx)), Action: action, Targets: targets, Details: details,
	}, true))
}

// record writes an entry of what stands already; one that can't be written is logged.
func (s *Service) record(ctx context.Context, org string, actor audit.Actor, addr netip.Addr, action string, targets []string, cause string) {
	if s.Audit == nil {
		return
	}
	if err := s.Audit.Record(context.WithoutCancel(ctx), org, audit.Record{
		Actor: actor, Client: client(ctx, addr), Action: action, Targets: targets, Details: []audit.Detail{{Name: "cause", After: cause}},
	}); err != nil {
		s.Logger.ErrorContext(ctx, "audit entry not written", slog.String("action", action), slog.Any("error", err))
	}
}

// refusedJoin records that a good token was no use. Unknown ones belong to no organisation, and have no log.
func (s *Service) refusedJoin(ctx context.Context, join orgs.Join, name string, err error) {
	if s.Audit == nil || isStore(err) {
		return
	}
	if err := s.Audit.Record(context.WithoutCancel(ctx), join.Org, audit.Record{
		Actor: hostActor("", name), Client: client(ctx, auth.Address(ctx)), Action: "host.enrol", Targets: []string{name},
		Details: []audit.Detail{{Name: "join_token", After: join.ID}},
		Outcome: operatorv1.AuditOutcome_AUDIT_OUTCOME_REFUSED, Reason: err.Error(),
	}); err != nil {
		s.Logger.WarnContext(ctx, "refused enrolment not recorded", slog.Any("error", err))
	}
}
