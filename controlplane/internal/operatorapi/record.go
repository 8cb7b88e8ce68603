package operatorapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/auth"
	"github.com/fleetban/fleetban/controlplane/internal/requestid"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	optionsv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/options/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// reading are the beginnings of the names of RPCs that change nothing, and so need no entry.
var reading = []string{"Get", "List", "Search", "Watch", "Explain", "Verify", "Export"}

// AuditOf reads how an RPC stands in the audit log; nil for one that only reads, an error for one that doesn't say.
func AuditOf(method protoreflect.MethodDescriptor) (*optionsv1.Audit, error) {
	options, ok := method.Options().(*descriptorpb.MethodOptions)
	if !ok || !proto.HasExtension(options, optionsv1.E_Audit) {
		if slices.ContainsFunc(reading, func(verb string) bool { return strings.HasPrefix(string(method.Name()), verb) }) {
			return nil, nil //nolint:nilnil // documented
		}
		return nil, fmt.Errorf("%s may change something and isn't recorded: add option (fleetban.options.v1.audit)", method.FullName())
	}
	a, _ := proto.GetExtension(options, optionsv1.E_Audit).(*optionsv1.Audit)
	if a.GetAction() == "" || a.GetAtomic() && a.GetByHandler() {
		return nil, fmt.Errorf("%s: its option (fleetban.options.v1.audit) makes no sense", method.FullName())
	}
	for _, name := range append(slices.Clone(a.GetDetails()), a.GetTarget()) {
		field := method.Input().Fields().ByName(protoreflect.Name(name))
		if name != "" && (field == nil || field.Kind() == protoreflect.MessageKind && !field.IsMap() || field.Kind() == protoreflect.BytesKind) {
			return nil, fmt.Errorf("%s: its option (fleetban.options.v1.audit) names the field %q, which can't be recorded", method.FullName(), name)
		}
	}
	return a, nil
}

// Recorder writes the audit log of what goes through it: an interceptor that stands behind that of package auth and before
// the handlers.
type Recorder struct {
	log        *audit.Log
	clientAddr func(connect.Peer, http.Header) netip.Addr
	logger     *slog.Logger
	table      map[string]*optionsv1.Audit

	mu       sync.Mutex
	refusals map[string]*refusals
}

var _ connect.Interceptor = (*Recorder)(nil)

// NewRecorder refuses services with an RPC that may change something and doesn't say how it is recorded.
func NewRecorder(
	log *audit.Log, services []protoreflect.ServiceDescriptor, clientAddr func(connect.Peer, http.Header) netip.Addr, logger *slog.Logger,
) (*Recorder, error) {
	r := &Recorder{log: log, clientAddr: clientAddr, logger: logger, table: map[string]*optionsv1.Audit{}, refusals: map[string]*refusals{}}
	var errs []error
	for _, service := range services {
		for i := range service.Methods().Len() {
			method := service.Methods().Get(i)
			a, err := AuditOf(method)
			if err != nil {
				errs = append(errs, err)
			} else if a != nil {
				r.table[fmt.Sprintf("/%s/%s", service.FullName(), method.Name())] = a
			}
		}
	}
	if r.clientAddr == nil {
		r.clientAddr = func(peer connect.Peer, _ http.Header) netip.Addr { return auth.PeerAddr(peer) }
	}
	return r, errors.Join(errs...)
}

// WrapStreamingClient implements connect.Interceptor.
func (*Recorder) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor: streams read.
func (*Recorder) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// WrapUnary implements connect.Interceptor.
func (r *Recorder) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		declared := r.table[req.Spec().Procedure]
		if declared == nil {
			return next(ctx, req)
		}
		client := auditClient(ctx, r.clientAddr(req.Peer(), req.Header()), req.Header())
		ctx = audit.WithClient(ctx, client)
		p, known := auth.From(ctx)
		if declared.GetByHandler() || !known {
			return next(ctx, req)
		}
		record := audit.Record{Actor: actorOf(p), Client: client, Action: declared.GetAction(), Procedure: shortened(req.Spec().Procedure)}
		if m, ok := req.Any().(proto.Message); ok {
			describe(&record, declared, m.ProtoReflect())
		}
		run := func(ctx context.Context) (connect.AnyResponse, error) { return next(ctx, req) }
		if declared.GetAtomic() {
			return r.atomic(ctx, req.Spec().Procedure, run, p.Org, record)
		}
		return r.around(ctx, req.Spec().Procedure, run, p.Org, record)
	}
}

// Perform records what is done for p, who asked for it at another time.
func (r *Recorder) Perform(
	ctx context.Context, procedure string, p auth.Principal, client audit.Client, m proto.Message, details []audit.Detail, run func(context.Context) error,
) error {
	declared := r.table[procedure]
	if declared == nil {
		return fmt.Errorf("%s isn't recorded, so it can't be done for anybody", procedure)
	}
	ctx = audit.WithClient(ctx, client)
	record := audit.Record{Actor: actorOf(p), Client: client, Action: declared.GetAction(), Procedure: shortened(procedure)}
	describe(&record, declared, m.ProtoReflect())
	record.Details = append(record.Details, details...)
	next := func(ctx context.Context) (connect.AnyResponse, error) { return nil, run(ctx) }
	var err error
	if declared.GetAtomic() {
		_, err = r.atomic(ctx, procedure, next, p.Org, record)
	} else {
		_, err = r.around(ctx, procedure, next, p.Org, record)
	}
	return err
}

// atomic leaves the entry to the script that makes the change.
func (r *Recorder) atomic(
	ctx context.Context, procedure string, next func(context.Context) (connect.AnyResponse, error), org string, record audit.Record,
) (connect.AnyResponse, error) {
	call := r.log.NewCall(org, record, true)
	res, err := next(audit.With(ctx, call))
	switch outcome, reason := outcomeOf(ctx, err); {
	case call.Wrote(), outcome == operatorv1.AuditOutcome_AUDIT_OUTCOME_UNKNOWN && away(err):
		// Where it isn't known whether the change stands, the entry stands if it does.
	case err == nil:
		// A handler that didn't pass the entry on: a mistake, and no reason to have nothing.
		r.logger.ErrorContext(ctx, "a change was recorded after it was made, not with it", slog.String("procedure", procedure))
		if err := r.log.Record(context.WithoutCancel(ctx), org, call.Record()); err != nil {
			return nil, err
		}
	default:
		record = call.Record()
		record.Outcome, record.Reason = outcome, reason
		r.refused(ctx, org, record)
	}
	return res, err
}

// around writes one entry before and one after.
func (r *Recorder) around(
	ctx context.Context, procedure string, next func(context.Context) (connect.AnyResponse, error), org string, record audit.Record,
) (connect.AnyResponse, error) {
	begun, err := r.log.Begin(ctx, org, record)
	if err != nil {
		return nil, err
	}
	call := r.log.NewCall(org, record, false)
	res, err := next(audit.With(ctx, call))
	begun.Record = call.Record()
	outcome, reason := outcomeOf(ctx, err)
	if err := begun.End(ctx, outcome, reason); err != nil {
		r.logger.WarnContext(ctx, "the outcome of a change is missing in the audit log", slog.String("procedure", procedure), slog.Any("error", err))
	}
	return res, err
}

// outcomeOf says what an error means for the change that was asked for.
func outcomeOf(ctx context.Context, err error) (operatorv1.AuditOutcome, string) {
	if err == nil {
		return operatorv1.AuditOutcome_AUDIT_OUTCOME_OK, ""
	}
	seen := apierr.From(ctx, err)
	switch reason := apierr.ReasonOf(seen); {
	case reason == fleetbanv1.Reason_REASON_OUTCOME_UNKNOWN, reason == fleetbanv1.Reason_REASON_INTERNAL, errors.Is(err, context.Canceled):
		return operatorv1.AuditOutcome_AUDIT_OUTCOME_UNKNOWN, seen.Message()
	default:
		return operatorv1.AuditOutcome_AUDIT_OUTCOME_REFUSED, seen.Message()
	}
}

// Denied records that a caller lacked a permission: for auth.Options.
func (r *Recorder) Denied(ctx context.Context, p auth.Principal, procedure string, addr netip.Addr, header http.Header, err error) {
	declared := r.table[procedure]
	if declared == nil {
		return
	}
	_, reason := outcomeOf(ctx, err)
	r.refused(ctx, p.Org, audit.Record{
		Actor: actorOf(p), Client: auditClient(ctx, addr, header), Action: declared.GetAction(), Procedure: shortened(procedure),
		Outcome: operatorv1.AuditOutcome_AUDIT_OUTCOME_REFUSED, Reason: reason,
	})
}

// Refusals are recorded at this rate and organisation by each replica, after a first few: who is refused must not be able to
// push everything else out of the log.
const (
	refusalsBurst = 20
	refusalEvery  = time.Second
	// maxRefusals bounds the organisations that are remembered.
	maxRefusals = 10_000
)

type refusals struct {
	left  float64
	at    time.Time
	quiet int // not recorded since the last one that was
}

// refused records what changed nothing, unless there was too much of it. That it can't be recorded is no reason to fail.
func (r *Recorder) refused(ctx context.Context, org string, record audit.Record) {
	quiet, ok := r.mayRecord(org, time.Now())
	if !ok {
		return
	}
	if quiet > 0 {
		record.Details = append(record.Details, audit.Detail{Name: "refusals_not_recorded_before", After: strconv.Itoa(quiet)})
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := r.log.Record(ctx, org, record); err != nil {
		r.logger.WarnContext(ctx, "a refusal is missing in the audit log", slog.String("action", record.Action), slog.Any("error", err))
	}
}

func (r *Recorder) mayRecord(org string, now time.Time) (quiet int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.refusals[org]
	if b == nil {
		if len(r.refusals) >= maxRefusals {
			clear(r.refusals)
		}
		b = &refusals{left: refusalsBurst, at: now}
		r.refusals[org] = b
	}
	b.left, b.at = min(refusalsBurst, b.left+float64(now.Sub(b.at))/float64(refusalEvery)), now
	if b.left < 1 {
		b.quiet++
		return 0, false
	}
	b.left--
	quiet, b.quiet = b.quiet, 0
	return quiet, true
}

func auditClient(ctx context.Context, addr netip.Addr, header http.Header) audit.Client {
	return audit.Client{Address: addr, UserAgent: header.Get("User-Agent"), RequestID: requestid.From(ctx)}
}

func actorOf(p auth.Principal) audit.Actor {
	kind := operatorv1.AuditActorKind_AUDIT_ACTOR_KIND_TOKEN
	if p.Session.ID != "" {
		kind = operatorv1.AuditActorKind_AUDIT_ACTOR_KIND_PERSON
	}
	if p.Token.ID != "" {
		// A personal token acts under its person's name.
		return audit.Actor{Kind: kind, ID: p.Token.ID, Name: p.Name}
	}
	return audit.Actor{Kind: kind, ID: p.ID, Name: p.Name}
}

// describe takes from a request what its RPC's declaration names, and nothing else.
func describe(record *audit.Record, declared *optionsv1.Audit, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	if field := fields.ByName(protoreflect.Name(declared.GetTarget())); field != nil {
		if field.IsList() {
			list := m.Get(field).List()
			record.Targets = make([]string, 0, list.Len())
			for i := range list.Len() {
				record.Targets = append(record.Targets, list.Get(i).String())
			}
		} else if m.Has(field) {
			record.Targets = []string{valueOf(field, m.Get(field))}
		}
	}
	for _, name := range declared.GetDetails() {
		if field := fields.ByName(protoreflect.Name(name)); field != nil && m.Has(field) {
			record.Details = append(record.Details, audit.Detail{Name: name, After: valueOf(field, m.Get(field))})
		}
	}
}

func valueOf(field protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch {
	case field.IsMap():
		var pairs []string
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			pairs = append(pairs, k.String()+"="+v.String())
			return true
		})
		slices.Sort(pairs)
		return strings.Join(pairs, " ")
	case field.IsList():
		var items []string
		for i := range min(v.List().Len(), audit.MaxTargets) {
			if item := v.List().Get(i); field.Kind() == protoreflect.EnumKind {
				items = append(items, enumName(field, item.Enum()))
			} else {
				items = append(items, item.String())
			}
		}
		return strings.Join(items, " ")
	case field.Kind() == protoreflect.EnumKind:
		return enumName(field, v.Enum())
	default:
		return v.String()
	}
}

// enumName: MODE_ENFORCE of the enum Mode is "enforce".
func enumName(field protoreflect.FieldDescriptor, n protoreflect.EnumNumber) string {
	value := field.Enum().Values().ByNumber(n)
	if value == nil {
		return strconv.Itoa(int(n))
	}
	return strings.ToLower(strings.TrimPrefix(string(value.Name()), strings.ToUpper(string(field.Enum().Name()))+"_"))
}

// shortened is a procedure without its package, where that is the one that people's services are in.
func shortened(procedure string) string {
	return strings.TrimPrefix(strings.TrimPrefix(procedure, "/"), "fleetban.operator.v1.")
}
