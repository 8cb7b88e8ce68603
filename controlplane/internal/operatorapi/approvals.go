package operatorapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/approvals"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/people"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// ApprovalOptions are what Approvals works with.
type ApprovalOptions struct {
	Approvals *approvals.Approvals
	People    *people.People
	// Tokens tells whether a program that asked still may.
	Tokens auth.Tokens
	// API does what was approved.
	API *API
	// Recorder writes the audit log; Validation refuses what would be refused anyway, before it is kept.
	Recorder   *Recorder
	Validation connect.Interceptor
	Logger     *slog.Logger
}

// Approvals serves ApprovalService, and is the interceptor that keeps what needs a second person: it stands behind that of
// package auth and before the Recorder.
type Approvals struct {
	o     ApprovalOptions
	table map[string]guarded
}

// guarded is an RPC that may wait for a second person.
type guarded struct {
	how        optionsv1.Approval
	permission optionsv1.Permission
	declared   *optionsv1.Audit
	performer  performer
}

// performer does what an RPC does.
type performer struct {
	parse func([]byte) (proto.Message, error)
	run   func(context.Context, proto.Message) error
}

func performs[Req, Res any, P interface {
	*Req
	proto.Message
}](handler func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error),
) performer {
	return performer{
		parse: func(raw []byte) (proto.Message, error) {
			m := P(new(Req))
			return m, proto.Unmarshal(raw, m)
		},
		run: func(ctx context.Context, m proto.Message) error {
			req, ok := m.(P)
			if !ok {
				return fmt.Errorf("a %T is no request of this RPC", m)
			}
			_, err := handler(ctx, connect.NewRequest((*Req)(req)))
			return err
		},
	}
}

var (
	_ operatorv1connect.ApprovalServiceHandler = (*Approvals)(nil)
	_ connect.Interceptor                      = (*Approvals)(nil)
)

// NewApprovals refuses RPCs that declare that they may wait and that it doesn't know how to do.
func NewApprovals(o ApprovalOptions) (*Approvals, error) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	a := &Approvals{o: o, table: map[string]guarded{}}
	known := map[string]performer{
		operatorv1connect.BanServiceBanProcedure:                    performs(o.API.Ban),
		operatorv1connect.AllowlistServiceAllowProcedure:            performs(o.API.Allow),
		operatorv1connect.AllowlistServiceDisallowProcedure:         performs(o.API.Disallow),
		operatorv1connect.FleetServicePauseProcedure:                performs(o.API.Pause),
		operatorv1connect.FleetServiceSetModeProcedure:              performs(o.API.SetMode),
		operatorv1connect.ApprovalServiceSetApprovalPolicyProcedure: performs(a.SetApprovalPolicy),
	}
	var errs []error
	for _, service := range Services() {
		for i := range service.Methods().Len() {
			method := service.Methods().Get(i)
			options, _ := method.Options().(*descriptorpb.MethodOptions)
			how, _ := proto.GetExtension(options, optionsv1.E_Approval).(optionsv1.Approval)
			if how == optionsv1.Approval_APPROVAL_UNSPECIFIED {
				continue
			}
			procedure := fmt.Sprintf("/%s/%s", service.FullName(), method.Name())
			permission, err := auth.PermissionOf(method)
			declared, auditErr := AuditOf(method)
			performer, ok := known[procedure]
			if !ok || declared == nil {
				err = errors.Join(err, fmt.Errorf("%s declares that it may wait for approval: say in NewApprovals how it is done, and how it is recorded", procedure))
			}
			errs = append(errs, err, auditErr)
			a.table[procedure] = guarded{how, permission, declared, performer}
		}
	}
	return a, errors.Join(errs...)
}

// Register puts the service on mux.
func (a *Approvals) Register(mux *http.ServeMux, options ...connect.HandlerOption) {
	mux.Handle(operatorv1connect.NewApprovalServiceHandler(a, options...))
}

// WrapStreamingClient implements connect.Interceptor.
func (*Approvals) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor: streams change nothing.
func (*Approvals) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// WrapUnary implements connect.Interceptor.
func (a *Approvals) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	keep := a.o.Validation.WrapUnary(a.keep)
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		g, ok := a.table[req.Spec().Procedure]
		p, known := auth.From(ctx)
		if !ok || !known {
			return next(ctx, req)
		}
		waits, err := a.waits(ctx, p.Org, g.how, req.Any())
		if err != nil {
			return nil, err
		}
		if waits {
			return keep(ctx, req)
		}
		return next(ctx, req)
	}
}

// waits reports whether a request needs a second person.
func (a *Approvals) waits(ctx context.Context, org string, how optionsv1.Approval, request any) (bool, error) {
	if how == optionsv1.Approval_APPROVAL_ALWAYS {
		policy, err := a.o.Approvals.Policy(ctx, org)
		return policy.Required, err
	}
	named, ok := request.(interface{ GetPrefixes() []string })
	if !ok {
		return false, fmt.Errorf("a %T has no prefixes, and so is never wide", request)
	}
	prefixes, _, err := parsePrefixes(named.GetPrefixes())
	if err != nil || len(prefixes) == 1 && prefixes[0].IsSingleIP() {
		return false, nil //nolint:nilerr // the handler refuses it
	}
	policy, err := a.o.Approvals.Policy(ctx, org)
	return policy.Required && policy.Wide(prefixes), err
}

// keep keeps a request until somebody approves it, and tells its caller.
func (a *Approvals) keep(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	g := a.table[req.Spec().Procedure]
	m, ok := req.Any().(proto.Message)
	if !ok {
		return nil, fmt.Errorf("a %T can't be kept", req.Any())
	}
	raw, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("keep for approval: %w", err)
	}
	client := auditClient(ctx, auth.Address(ctx), req.Header())
	record := audit.Record{Actor: actorOf(p), Client: client, Action: "approval.request", Procedure: shortened(req.Spec().Procedure)}
	describe(&record, g.declared, m.ProtoReflect())
	record.Details = append([]audit.Detail{{Name: "action", After: g.declared.GetAction()}}, record.Details...)
	kept, err := a.o.Approvals.Ask(audit.With(ctx, a.o.Recorder.log.NewCall(p.Org, record, true)), p.Org, approvals.Request{
		Procedure: req.Spec().Procedure, Message: raw, Requester: requester(p, client),
	})
	if err != nil {
		return nil, mappedApproval(err)
	}
	a.tell(ctx, p.Org, p.Name, fmt.Sprintf("asks for a second person's approval: %s (%s)", a.sentence(g, m), kept.ID))
	return nil, required(g, kept)
}

func required(g guarded, kept approvals.Approval) error {
	e := apierr.New(connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_APPROVAL_REQUIRED, "",
		fmt.Sprintf("%s needs a second person: it waits for approval until %s as %s", g.declared.GetAction(),
			time.UnixMilli(kept.Expires).UTC().Format("2006-01-02 15:04 MST"), kept.ID),
		fmt.Sprintf("another %s approves it: fleetban approvals approve %s", joined(rolesFor(g.permission)), kept.ID))
	e.Subject = kept.ID
	return e
}

func requester(p auth.Principal, client audit.Client) approvals.Requester {
	r := approvals.Requester{Name: p.Name, Address: client.Address, Agent: client.UserAgent}
	if p.Session.ID != "" {
		r.Person, r.Version = p.ID, p.Session.Version
	} else {
		r.Token, r.Maker, r.Person, r.Version = p.Token.ID, p.Token.Maker, p.Token.Person, p.Token.Version
		if r.Token == "" {
			r.Token = p.ID
		}
	}
	return r
}

// rolesFor are the roles that may approve what asks for a permission.
func rolesFor(permission optionsv1.Permission) []string {
	var out []string
	for _, role := range []people.Role{people.Owner, people.Admin, people.Operator, people.Viewer} {
		may := people.Permissions(role)
		if slices.Contains(may, permission) && slices.Contains(may, optionsv1.Permission_PERMISSION_APPROVE) {
			out = append(out, strings.ToLower(strings.TrimPrefix(role.String(), "ROLE_")))
		}
	}
	return out
}

func joined(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

// sentence is a request in few words.
func (a *Approvals) sentence(g guarded, m proto.Message) string {
	var record audit.Record
	describe(&record, g.declared, m.ProtoReflect())
	words := []string{g.declared.GetAction()}
	words = append(words, record.Targets[:min(len(record.Targets), 3)]...)
	if more := len(record.Targets) - 3; more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	for _, d := range record.Details {
		words = append(words, d.Name+"="+d.After)
	}
	text := strings.ToValidUTF8(strings.Join(words, " "), "?")
	if len(text) > 300 {
		text = strings.ToValidUTF8(text[:300], "") + "…"
	}
	return text
}

func (a *Approvals) tell(ctx context.Context, org, actor, text string) {
	a.o.API.event(ctx, auth.Principal{Org: org, Name: actor}, operatorv1.FleetEventKind_FLEET_EVENT_KIND_NOTICE, text, 0)
}

// ListApprovals implements ApprovalService.
func (a *Approvals) ListApprovals(
	ctx context.Context, req *connect.Request[operatorv1.ListApprovalsRequest],
) (*connect.Response[operatorv1.ListApprovalsResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	all, err := a.o.Approvals.List(ctx, p.Org)
	if err != nil {
		return nil, mappedApproval(err)
	}
	var answer operatorv1.ListApprovalsResponse_builder
	for _, one := range all {
		// Who is restricted to tags sees what they asked for.
		own := one.Requester.Person != "" && one.Requester.Person == p.ID
		if (p.Tags.Whole() || own) && (!req.Msg.GetWaiting() || one.State == approvals.Waiting) {
			answer.Approvals = append(answer.Approvals, a.proto(one))
		}
	}
	return connect.NewResponse(answer.Build()), nil
}

// Approve implements ApprovalService.
func (a *Approvals) Approve(ctx context.Context, req *connect.Request[operatorv1.ApproveRequest]) (*connect.Response[operatorv1.ApproveResponse], error) {
	p, one, g, err := a.decider(ctx, req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	if one.Requester.Person == p.ID {
		return nil, apierr.New(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "id",
			"you asked for this yourself: it takes somebody else", "ask another "+joined(rolesFor(g.permission))+", or withdraw it: fleetban approvals reject "+one.ID)
	}
	if one.Requester.Maker == p.ID {
		return nil, apierr.New(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "id",
			"you made the API token that asked for this: it takes somebody else", "ask another "+joined(rolesFor(g.permission)))
	}
	m, err := g.performer.parse(one.Message)
	if err != nil {
		return nil, fmt.Errorf("approval %s: %w", one.ID, err)
	}
	audit.From(ctx).Add(audit.Detail{Name: "action", After: g.declared.GetAction()})
	audit.From(ctx).Add(audit.Detail{Name: "requester", After: one.Requester.Name})
	if err := a.o.Approvals.Decide(ctx, p.Org, one.ID, approvals.Approved, p.ID, p.Name, ""); err != nil {
		return nil, mappedApproval(err)
	}
	// Whoever approved it may leave: it is done once, to its end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), performWithin)
	defer cancel()
	a.tell(ctx, p.Org, p.Name, fmt.Sprintf("approved what %s asked for: %s (%s)", one.Requester.Name, a.sentence(g, m), one.ID))
	state, reason := approvals.Done, ""
	if err := a.perform(ctx, p, one, g, m); err != nil {
		state, reason = approvals.Failed, apierr.From(ctx, err).Message()
		a.o.Logger.WarnContext(ctx, "what was approved was refused", slog.String("approval", one.ID), slog.Any("error", err))
	}
	if err := a.o.Approvals.Finish(ctx, p.Org, one.ID, state, reason); err != nil {
		a.o.Logger.WarnContext(ctx, "what came of an approval is not recorded with it", slog.String("approval", one.ID), slog.Any("error", err))
	}
	one.State, one.Reason, one.Decider, one.DeciderID, one.Decided = state, reason, p.Name, p.ID, time.Now().UnixMilli()
	return connect.NewResponse(operatorv1.ApproveResponse_builder{Approval: a.proto(one)}.Build()), nil
}

// performWithin bounds what is done after an approval.
const performWithin = 30 * time.Second

// perform does what was asked for in the right of who asked, as it is now.
func (a *Approvals) perform(ctx context.Context, approver auth.Principal, one approvals.Approval, g guarded, m proto.Message) error {
	as, err := a.right(ctx, one)
	if err == nil && !as.May(g.permission) {
		err = errGone
	}
	client := audit.Client{Address: one.Requester.Address, UserAgent: one.Requester.Agent, RequestID: audit.ClientFrom(ctx).RequestID}
	details := []audit.Detail{{Name: "approved_by", After: approver.Name}, {Name: "approval", After: one.ID}}
	who := as
	if err != nil {
		// Recorded as refused, in the name of who asked.
		who = auth.Principal{Org: approver.Org, ID: one.Requester.Person, Name: one.Requester.Name}
		if one.Requester.Token != "" {
			who.ID, who.Token.ID = one.Requester.Token, one.Requester.Token
		} else {
			who.Session.ID = one.ID
		}
	}
	return a.o.Recorder.Perform(ctx, one.Procedure, who, client, m, details, func(ctx context.Context) error {
		if err != nil {
			return err
		}
		return g.performer.run(auth.With(ctx, as), m)
	})
}

var errGone = apierr.New(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_APPROVAL_OVER, "",
	"who asked for it may not do it any more: the role changed, or the person or token is gone", "ask for it anew")

// right is who asked, with what they may now; errGone where the role changed, or the person or token is gone.
func (a *Approvals) right(ctx context.Context, one approvals.Approval) (auth.Principal, error) {
	r := one.Requester
	if r.Token != "" {
		p, err := a.o.Tokens.Again(ctx, r.Org, r.Token)
		if errors.Is(err, auth.ErrBadCredential) || err == nil && (p.Token.Person != r.Person || p.Token.Version != r.Version) {
			return auth.Principal{}, errGone
		}
		return p, err
	}
	m, err := a.o.People.Member(ctx, r.Org, r.Person)
	if errors.Is(err, people.ErrNoMember) || err == nil && m.Version != r.Version {
		return auth.Principal{}, errGone
	}
	if err != nil {
		return auth.Principal{}, err
	}
	return auth.Principal{
		Org: r.Org, ID: r.Person, Name: m.Email, Permissions: people.Within(people.Permissions(m.Role), m.Tags), Tags: m.Tags,
		Session: auth.Session{ID: one.ID, Role: m.Role, Version: m.Version},
	}, nil
}

// decider finds an approval for a person who may decide on it.
func (a *Approvals) decider(ctx context.Context, id string) (auth.Principal, approvals.Approval, guarded, error) {
	p, err := signedIn(ctx)
	if err != nil {
		return p, approvals.Approval{}, guarded{}, err
	}
	one, err := a.o.Approvals.Get(ctx, p.Org, id)
	if err != nil {
		return p, one, guarded{}, mappedApproval(err)
	}
	g, ok := a.table[one.Procedure]
	if !ok {
		return p, one, g, fmt.Errorf("approval %s is of %s, which this release doesn't have", id, one.Procedure)
	}
	if one.State != approvals.Waiting {
		return p, one, g, mappedApproval(&approvals.OverError{State: one.State})
	}
	if !p.May(g.permission) {
		return p, one, g, apierr.New(connect.CodePermissionDenied, fleetbanv1.Reason_REASON_PERMISSION_DENIED, "id",
			"you may not decide on this: you could not ask for it either", "ask another "+joined(rolesFor(g.permission)))
	}
	return p, one, g, nil
}

// Reject implements ApprovalService.
func (a *Approvals) Reject(ctx context.Context, req *connect.Request[operatorv1.RejectRequest]) (*connect.Response[operatorv1.RejectResponse], error) {
	p, one, g, err := a.decider(ctx, req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	state, word := approvals.Rejected, "rejected"
	if one.Requester.Person == p.ID {
		state, word = approvals.Withdrawn, "withdrew"
	}
	audit.From(ctx).Add(audit.Detail{Name: "action", After: g.declared.GetAction()})
	audit.From(ctx).Add(audit.Detail{Name: "requester", After: one.Requester.Name})
	if err := a.o.Approvals.Decide(ctx, p.Org, one.ID, state, p.ID, p.Name, req.Msg.GetReason()); err != nil {
		return nil, mappedApproval(err)
	}
	a.tell(ctx, p.Org, p.Name, fmt.Sprintf("%s what %s asked for: %s (%s)", word, one.Requester.Name, g.declared.GetAction(), one.ID))
	one.State, one.Reason, one.Decider, one.DeciderID, one.Decided = state, req.Msg.GetReason(), p.Name, p.ID, time.Now().UnixMilli()
	return connect.NewResponse(operatorv1.RejectResponse_builder{Approval: a.proto(one)}.Build()), nil
}

// GetApprovalPolicy implements ApprovalService.
func (a *Approvals) GetApprovalPolicy(
	ctx context.Context, _ *connect.Request[operatorv1.GetApprovalPolicyRequest],
) (*connect.Response[operatorv1.GetApprovalPolicyResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	policy, err := a.o.Approvals.Policy(ctx, p.Org)
	if err != nil {
		return nil, mappedApproval(err)
	}
	return connect.NewResponse(operatorv1.GetApprovalPolicyResponse_builder{Policy: policyProto(policy)}.Build()), nil
}

// SetApprovalPolicy implements ApprovalService.
func (a *Approvals) SetApprovalPolicy(
	ctx context.Context, req *connect.Request[operatorv1.SetApprovalPolicyRequest],
) (*connect.Response[operatorv1.SetApprovalPolicyResponse], error) {
	p, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	if req.Msg.GetRequired() {
		members, err := a.o.People.Members(ctx, p.Org)
		if err != nil {
			return nil, mappedPeople(err)
		}
		owners := 0
		for _, m := range members {
			if m.Role == people.Owner {
				owners++
			}
		}
		if owners < 2 {
			return nil, apierr.New(connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_INVALID_FIELD, "required",
				"with one owner nobody could approve that it is switched off again", "make someone else an owner first: fleetban members role E-MAIL owner")
		}
	}
	policy, err := a.o.Approvals.SetPolicy(ctx, p.Org, approvals.Policy{
		Required: req.Msg.GetRequired(), Widest4: int(req.Msg.GetWidestIpv4Bits()), Widest6: int(req.Msg.GetWidestIpv6Bits()), Most: int(req.Msg.GetMostPrefixes()),
	})
	if err != nil {
		return nil, mappedApproval(err)
	}
	word := "isn't needed any more"
	if policy.Required {
		word = "is needed from now on"
	}
	a.tell(ctx, p.Org, p.Name, "a second person's approval "+word)
	return connect.NewResponse(operatorv1.SetApprovalPolicyResponse_builder{Policy: policyProto(policy)}.Build()), nil
}

func policyProto(p approvals.Policy) *operatorv1.ApprovalPolicy {
	return operatorv1.ApprovalPolicy_builder{
		Required: p.Required, WidestIpv4Bits: uint32(p.Widest4), WidestIpv6Bits: uint32(p.Widest6), MostPrefixes: uint32(p.Most), //nolint:gosec // small
	}.Build()
}

// proto is an approval as people see it.
func (a *Approvals) proto(one approvals.Approval) *operatorv1.Approval {
	b := operatorv1.Approval_builder{
		Id: one.ID, Procedure: shortened(one.Procedure), Requester: one.Requester.Name, RequesterId: one.Requester.Person, CreatedUnixMs: one.Created,
		ExpiresUnixMs: one.Expires, State: states[one.State], Decider: one.Decider, DecidedUnixMs: one.Decided, Reason: one.Reason, Details: map[string]string{},
	}
	if b.RequesterId == "" {
		b.RequesterId = one.Requester.Token
	}
	g, ok := a.table[one.Procedure]
	if !ok {
		return b.Build() // of another release
	}
	b.Action, b.Roles = g.declared.GetAction(), rolesFor(g.permission)
	m, err := g.performer.parse(one.Message)
	if err != nil {
		return b.Build()
	}
	var record audit.Record
	describe(&record, g.declared, m.ProtoReflect())
	b.Targets, b.TargetsTotal = record.Targets[:min(len(record.Targets), audit.MaxTargets)], uint32(len(record.Targets)) //nolint:gosec // at most 1000
	for i, text := range b.Targets {
		if p, err := prefix.Parse(text); err == nil {
			b.Targets[i] = prefix.Format(p)
		}
	}
	for _, d := range record.Details {
		b.Details[d.Name] = d.After
	}
	return b.Build()
}

var states = map[approvals.State]operatorv1.ApprovalState{
	approvals.Waiting: operatorv1.ApprovalState_APPROVAL_STATE_WAITING, approvals.Approved: operatorv1.ApprovalState_APPROVAL_STATE_APPROVED,
	approvals.Done: operatorv1.ApprovalState_APPROVAL_STATE_DONE, approvals.Failed: operatorv1.ApprovalState_APPROVAL_STATE_FAILED,
	approvals.Rejected: operatorv1.ApprovalState_APPROVAL_STATE_REJECTED, approvals.Withdrawn: operatorv1.ApprovalState_APPROVAL_STATE_WITHDRAWN,
	approvals.Expired: operatorv1.ApprovalState_APPROVAL_STATE_EXPIRED,
}

func mappedApproval(err error) error {
	var over *approvals.OverError
	switch {
	case errors.As(err, &over):
		text := "it was decided before: it is " + string(over.State)
		if over.State == approvals.Expired {
			text = "nobody approved it within a day: it expired"
		}
		return apierr.Wrap(err, connect.CodeFailedPrecondition, fleetbanv1.Reason_REASON_APPROVAL_OVER, "id", text, "fleetban approvals list shows what waits")
	case errors.Is(err, approvals.ErrNotFound):
		return apierr.NotFound("id", "there is no such approval", "fleetban approvals list shows them")
	case errors.Is(err, approvals.ErrTooMany):
		return apierr.Wrap(err, connect.CodeResourceExhausted, fleetbanv1.Reason_REASON_RATE_LIMITED, "",
			fmt.Sprintf("%d requests wait for approval already", approvals.MostWaiting), "have some approved, or reject them: fleetban approvals list")
	case errors.Is(err, approvals.ErrTooLarge):
		return apierr.Wrap(err, connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_MESSAGE_TOO_LARGE, "",
			"the request is too large to be kept for approval", "ask in pieces")
	default:
		return mapped(err)
	}
}
