package agentapi_test

import (
	"crypto/ed25519"
	"errors"
	"io"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/agentapi"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/hosts"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/hostauth"
)

// atOnce is what is promised: within a second.
const atOnce = time.Second

// endedIn waits for the stream's end, and checks that it came at once.
func (s *session) endedIn(w *testwait.Stopwatch) error {
	s.t.Helper()
	err := s.ended()
	w.Within(s.t, "the stream's end", atOnce)
	return err
}

// A host that is disabled or deleted at one replica loses its stream at the other at once, and is refused at both.
func TestDisableAndDelete(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	ctx := t.Context()
	one, two := f.replica("one"), f.replica("two")
	h := one.enrol("web", nil)
	s := h.connect(one)
	watch := testwait.StartStopwatch(t)
	if news, err := two.hosts.Disable(ctx, f.org, "web", "alice", "its disk was copied"); err != nil || !news {
		t.Fatal(news, err)
	}
	wantReason(t, s.endedIn(watch), connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_DISABLED)
	for _, r := range []*replica{one, two} {
		_, err := h.dial(r, fleetbanv1.Hello_builder{})
		wantReason(t, err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_DISABLED)
		_, err = h.rotate(r, newKey(t))
		wantReason(t, err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_DISABLED)
	}
	shown, err := one.hosts.Get(ctx, f.org, "web")
	if err != nil || shown.GetPresence() != operatorv1.Presence_PRESENCE_DISABLED || !strings.Contains(shown.GetCause(), "its disk was copied") {
		t.Errorf("shown as %v, %v", shown, err)
	}
	if news, err := one.hosts.Disable(ctx, f.org, "web", "alice", ""); err != nil || news {
		t.Errorf("disabled twice: %v, %v", news, err)
	}
	if news, err := one.hosts.Enable(ctx, f.org, "web", "alice"); err != nil || !news {
		t.Fatal(news, err)
	}
	s = h.connect(two)
	watch = testwait.StartStopwatch(t)
	if err := one.hosts.Delete(ctx, f.org, "web", "alice"); err != nil {
		t.Fatal(err)
	}
	wantReason(t, s.endedIn(watch), connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_DISABLED)
	_, err = h.dial(two, fleetbanv1.Hello_builder{})
	wantReason(t, err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_DISABLED)
	_, err = h.rotate(one, newKey(t))
	wantReason(t, err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_DISABLED)
}

// A quarantine isn't over because the host was disabled meanwhile.
func TestDisabledInQuarantine(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one")
	h := one.enrol("web", nil)
	for _, instance := range []string{"a", "b", "a"} {
		_, _ = h.dial(one, fleetbanv1.Hello_builder{Instance: instance})
	}
	if _, err := one.hosts.Disable(t.Context(), f.org, "web", "alice", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := one.hosts.Enable(t.Context(), f.org, "web", "alice"); err != nil {
		t.Fatal(err)
	}
	_, err := h.dial(one, fleetbanv1.Hello_builder{Instance: "a"})
	wantReason(t, err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_CLONED)
	f.recorded("host.quarantine", h.id)
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func public(key ed25519.PrivateKey) ed25519.PublicKey {
	return key.Public().(ed25519.PublicKey)
}

// rotate asks for the next key, and returns the host as it is then.
func (h *host) rotate(r *replica, next ed25519.PrivateKey) (*host, error) {
	return h.rotateWith(r, next, ed25519.Sign(next, hostauth.Rotation(h.audience, h.id, public(h.key), public(next))))
}

func (h *host) rotateWith(r *replica, next ed25519.PrivateKey, proof []byte) (*host, error) {
	assertion, err := hostauth.Sign(h.key, h.id, h.audience, time.Now())
	if err != nil {
		h.f.t.Fatal(err)
	}
	req := connect.NewRequest(fleetbanv1.RotateKeyRequest_builder{PublicKey: public(next), Proof: proof}.Build())
	req.Header().Set("Authorization", "Bearer "+assertion)
	req.Header().Set(hostauth.GrantHeader, h.grant)
	res, err := client(h.f.t, r.url).RotateKey(h.f.t.Context(), req)
	if err != nil {
		return nil, err
	}
	now := *h
	now.key, now.grant = next, res.Msg.GetGrant()
	return &now, nil
}

// recorded is the newest entry of that action on the target.
func (f *fleet) recorded(action, target string) *operatorv1.AuditEntry {
	f.t.Helper()
	page, _, err := f.audit.List(f.t.Context(), f.org, audit.Filter{Action: action, Target: target}, 100, "")
	if err != nil || len(page) == 0 {
		f.t.Fatalf("no entry of %s on %s: %v", action, target, err)
	}
	return page[0]
}

func TestRotateKey(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one, two := f.replica("one"), f.replica("two")
	h, other := one.enrol("web", map[string]string{"role": "web"}), one.enrol("db", nil)
	s := h.connect(one)
	next := newKey(t)
	// Who doesn't hold the new key is given none: a signature of another rotation, and of the old key.
	for _, proof := range [][]byte{
		ed25519.Sign(next, hostauth.Rotation(h.audience, other.id, public(h.key), public(next))),
		ed25519.Sign(h.key, hostauth.Rotation(h.audience, h.id, public(h.key), public(next))),
		make([]byte, 64),
	} {
		_, err := h.rotateWith(two, next, proof)
		wantReason(t, err, connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD)
	}
	_, err := h.rotateWith(two, other.key, ed25519.Sign(other.key, hostauth.Rotation(h.audience, h.id, public(h.key), public(other.key))))
	wantReason(t, err, connect.CodeAlreadyExists, fleetbanv1.Reason_REASON_INVALID_FIELD)

	watch := testwait.StartStopwatch(t)
	now, err := h.rotate(two, next)
	if err != nil {
		t.Fatal(err)
	}
	wantReason(t, s.endedIn(watch), connect.CodeAborted, fleetbanv1.Reason_REASON_STREAM_DISPLACED)
	for _, r := range []*replica{one, two} {
		_, err := h.dial(r, fleetbanv1.Hello_builder{})
		wantReason(t, err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_WRONG_KEY)
		_, err = h.rotate(r, newKey(t))
		wantReason(t, err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_WRONG_KEY)
	}
	// The answer was lost: the same two keys are told again.
	again, err := h.rotate(one, next)
	if err != nil {
		t.Fatal(err)
	}
	s = again.connect(one)
	if s.welcome.GetHostId() != h.id || s.welcome.GetHostName() != "web" || len(s.welcome.GetSets()) != 4 {
		t.Errorf("%v", s.welcome)
	}
	now.connect(two)
	entry := f.recorded("host.rotate-key", h.id)
	if entry.GetActor().GetKind() != operatorv1.AuditActorKind_AUDIT_ACTOR_KIND_HOST || entry.GetActor().GetId() != h.id || entry.GetAddress() != "127.0.0.1" {
		t.Errorf("%v", entry)
	}
}

// After a loss of Redis the newest grant says whose key is the host's, whichever comes first.
func TestRotatedKeyAfterLoss(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	now := atomic.Pointer[time.Time]{}
	start := time.Now()
	now.Store(&start)
	one := f.replica("one", func(o *agentapi.Options) { o.Now = func() time.Time { return *now.Load() } })
	h := one.enrol("web", nil)
	later := start.Add(2 * time.Second)
	now.Store(&later)
	fresh, err := h.rotate(one, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	f.server.Empty()
	testwait.For(t, "Redis answers", func() bool { return one.store.Ping(t.Context()) == nil })
	// Whoever stole the former key is first.
	if _, err := h.dial(one, fleetbanv1.Hello_builder{}); err != nil {
		t.Fatal("a former key is as good as any once Redis knows nothing; should this be refused, say so in security.md: ", err)
	}
	fresh.connect(one)
	_, err = h.dial(one, fleetbanv1.Hello_builder{})
	wantReason(t, err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_WRONG_KEY)
}

type enrolling struct {
	token, name, machine, boot string
	key, former                ed25519.PrivateKey
}

func (r *replica) join(e enrolling) (*host, error) {
	t := r.fleet.t
	b := fleetbanv1.EnrollRequest_builder{
		JoinToken: e.token, PublicKey: public(e.key), Name: e.name, Facts: fleetbanv1.HostFacts_builder{Hostname: e.name, Machine: e.machine, Boot: e.boot}.Build(),
	}
	if e.former != nil {
		b.FormerKey = public(e.former)
		b.FormerProof = ed25519.Sign(e.former, hostauth.Reenrolment(r.fleet.keys.Audience(), public(e.former), public(e.key)))
	}
	res, err := client(t, r.url).Enroll(t.Context(), connect.NewRequest(b.Build()))
	if err != nil {
		return nil, err
	}
	return &host{f: r.fleet, key: e.key, id: res.Msg.GetHostId(), name: res.Msg.GetName(), grant: res.Msg.GetGrant(), audience: res.Msg.GetAudience()}, nil
}

// A machine that proves its former key, or for which a person made a token, is the host it was; whoever only says so isn't.
func TestEnrolAgain(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	ctx := t.Context()
	one, two := f.replica("one"), f.replica("two")
	must := func(h *host, err error) *host {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	token := func() string { return f.joinToken(orgs.NewJoinToken{Tags: map[string]string{"team": "other"}}) }
	first := must(one.join(enrolling{token: f.joinToken(orgs.NewJoinToken{Tags: map[string]string{"team": "web"}}), name: "web", machine: "m1", boot: "b1", key: newKey(t)}))

	// Somebody with a join token who knows the name and the machine gets a host of their own, and the first goes on.
	thief := must(two.join(enrolling{token: token(), name: "web", machine: "m1", boot: "b1", key: newKey(t)}))
	if thief.id == first.id || thief.name != "web-2" {
		t.Errorf("by its name and machine alone: %s %s", thief.id, thief.name)
	}
	// So does who shows the key's public half with a proof of another key.
	forged := fleetbanv1.EnrollRequest_builder{JoinToken: token(), PublicKey: public(newKey(t)), Name: "web", FormerKey: public(first.key), FormerProof: make([]byte, 64)}
	if res, err := client(t, one.url).Enroll(ctx, connect.NewRequest(forged.Build())); err != nil || res.Msg.GetHostId() == first.id {
		t.Errorf("by a forged proof: %v, %v", res, err)
	}
	s := first.connect(one)

	// Online, and a copied disk that boots elsewhere: a second host.
	copied := must(two.join(enrolling{token: token(), name: "web", machine: "m1", boot: "b2", key: newKey(t), former: first.key}))
	if copied.id == first.id {
		t.Error("a copied disk took its host over")
	}
	// The same boot: the same host, with its own name and tags.
	watch := testwait.StartStopwatch(t)
	again := must(two.join(enrolling{token: token(), name: "renamed", machine: "m1", boot: "b1", key: newKey(t), former: first.key}))
	if again.id != first.id || again.name != "web" {
		t.Errorf("by its former key: %s %s", again.id, again.name)
	}
	wantReason(t, s.endedIn(watch), connect.CodeAborted, fleetbanv1.Reason_REASON_STREAM_DISPLACED)
	_, err := first.dial(two, fleetbanv1.Hello_builder{})
	wantReason(t, err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_WRONG_KEY)
	s = again.connect(one)
	if sets := s.welcome.GetSets(); len(sets) != 4 || sets[3].GetSet() != "tag:team=web" {
		t.Errorf("%v", sets)
	}

	// A person's token for this very host, once.
	bound := f.joinToken(orgs.NewJoinToken{Host: first.id})
	key := newKey(t)
	reinstalled := must(two.join(enrolling{token: bound, name: "localhost", machine: "m2", boot: "b3", key: key}))
	if reinstalled.id != first.id || reinstalled.name != "web" {
		t.Errorf("by a token made for it: %s %s", reinstalled.id, reinstalled.name)
	}
	if repeated := must(one.join(enrolling{token: bound, name: "localhost", machine: "m2", boot: "b3", key: key})); repeated.id != first.id {
		t.Errorf("repeated, it made %s", repeated.id)
	}
	_, err = one.join(enrolling{token: bound, name: "localhost", key: newKey(t)})
	wantReason(t, err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_JOIN_TOKEN_USED_UP)
	reinstalled.connect(one)
	entry := f.recorded("host.enrol", "localhost")
	found := map[string]string{}
	for _, d := range entry.GetDetails() {
		found[d.GetName()] = d.GetAfter()
	}
	if entry.GetOutcome() != operatorv1.AuditOutcome_AUDIT_OUTCOME_REFUSED || found["join_token"] == "" || entry.GetAddress() != "127.0.0.1" || strings.Contains(entry.String(), bound[:20]) {
		t.Errorf("the refused use of a token is recorded as %v", entry)
	}

	// Disabled, nothing brings it back but a person.
	if _, err := one.hosts.Disable(ctx, f.org, "web", "alice", ""); err != nil {
		t.Fatal(err)
	}
	_, err = two.join(enrolling{token: token(), name: "web", machine: "m2", boot: "b4", key: newKey(t), former: key})
	wantReason(t, err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_DISABLED)
	_, err = two.join(enrolling{token: f.joinToken(orgs.NewJoinToken{Host: first.id}), name: "web", key: newKey(t)})
	wantReason(t, err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_DISABLED)
	// Deleted, it is gone.
	if err := one.hosts.Delete(ctx, f.org, "web", "alice"); err != nil {
		t.Fatal(err)
	}
	_, err = two.join(enrolling{token: f.joinToken(orgs.NewJoinToken{Host: first.id}), name: "web", key: newKey(t)})
	wantReason(t, err, connect.CodeNotFound, fleetbanv1.Reason_REASON_NOT_FOUND)
	if anew := must(two.join(enrolling{token: token(), name: "web", key: newKey(t), former: key})); anew.id == first.id || anew.name != "web" {
		t.Errorf("after it was deleted: %s %s", anew.id, anew.name)
	}
	if entry := f.recorded("host.enrol", "renamed"); entry.GetOutcome() != operatorv1.AuditOutcome_AUDIT_OUTCOME_OK {
		t.Errorf("%v", entry)
	}
	if result, err := f.audit.Verify(ctx, f.org, audit.Head{}); err != nil || len(result.GetFindings()) > 0 {
		t.Errorf("%v, %v", result, err)
	}
}

// However many come at once, at two replicas, a token enrols as many as it may.
func TestJoinTokenUsesAreExact(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	replicas := []*replica{f.replica("one"), f.replica("two")}
	const uses, tries = 5, 24
	token := f.joinToken(orgs.NewJoinToken{Uses: uses})
	var made, refused atomic.Int32
	var all sync.WaitGroup
	for i := range tries {
		key := newKey(t)
		all.Go(func() {
			_, err := replicas[i%2].join(enrolling{token: token, name: "h", key: key})
			switch {
			case err == nil:
				made.Add(1)
			case connect.CodeOf(err) == connect.CodeUnauthenticated:
				refused.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	all.Wait()
	n, _, err := replicas[0].hosts.Count(t.Context(), f.org)
	if made.Load() != uses || refused.Load() != tries-uses || err != nil || n != uses {
		t.Errorf("%d enrolled, %d refused, %d hosts, %v", made.Load(), refused.Load(), n, err)
	}
	listed, err := f.orgs.ListJoinTokens(t.Context(), f.org)
	if err != nil || len(listed) != 1 || listed[0].UsesLeft != 0 {
		t.Errorf("%+v, %v", listed, err)
	}
	// Revoked, it is unknown at once, whoever asks where.
	other := f.joinToken(orgs.NewJoinToken{Uses: 10})
	if err := f.orgs.RevokeJoinToken(t.Context(), f.org, other[:12]); err != nil {
		t.Fatal(err)
	}
	for _, r := range replicas {
		_, err := r.join(enrolling{token: other, name: "h", key: newKey(t)})
		wantReason(t, err, connect.CodeUnauthenticated, fleetbanv1.Reason_REASON_JOIN_TOKEN_UNKNOWN)
	}
}

// Hosts of an ephemeral token vanish when they were offline for their time, with their addresses, and come back no more.
func TestEphemeral(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	ctx := t.Context()
	one := f.replica("one")
	token := f.joinToken(orgs.NewJoinToken{Uses: 2, Ephemeral: time.Minute})
	gone, err := one.join(enrolling{token: token, name: "runner-1", key: newKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	stays, err := one.join(enrolling{token: token, name: "runner-2", key: newKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	s, err := gone.dial(one, fleetbanv1.Hello_builder{Facts: fleetbanv1.HostFacts_builder{Addresses: [][]byte{{198, 51, 100, 7}}}.Build()})
	if err != nil {
		t.Fatal(err)
	}
	stays.connect(one)
	s.close()
	testwait.For(t, "it is offline", func() bool {
		h, err := one.hosts.Get(ctx, f.org, "runner-1")
		return err == nil && h.GetPresence() == operatorv1.Presence_PRESENCE_OFFLINE
	})
	if found, err := one.hosts.SweepEphemeral(ctx, f.org); err != nil || len(found) != 0 {
		t.Fatalf("before its time: %v, %v", found, err)
	}
	// As both look a minute later.
	raise(t, f, one, "runner-1", "runner-2")
	found, err := one.hosts.SweepEphemeral(ctx, f.org)
	if err != nil || len(found) != 1 || found[0].Name != "runner-1" {
		t.Fatalf("%v, %v", found, err)
	}
	if _, err := one.hosts.FindWithin(ctx, f.org, "runner-1", nil); !errors.Is(err, hosts.ErrNotFound) {
		t.Error(err)
	}
	if n, err := one.store.Client().HLen(ctx, "fb:{"+f.org+"}:addresses").Result(); err != nil || n != 0 {
		t.Errorf("%d hosts' addresses are protected, %v", n, err)
	}
	_, err = gone.dial(one, fleetbanv1.Hello_builder{})
	wantReason(t, err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_DISABLED)
	if found, err := one.hosts.SweepEphemeral(ctx, f.org); err != nil || len(found) != 0 {
		t.Errorf("twice: %v, %v", found, err)
	}
	grant, err := hostauth.VerifyGrant(stays.grant, f.keys.GrantPublicKey(), f.keys.Audience())
	if err != nil || grant.Ephemeral != time.Minute {
		t.Errorf("%+v, %v", grant, err)
	}
}

// raise puts the moments since when hosts are as they are two minutes back.
func raise(t *testing.T, f *fleet, r *replica, names ...string) {
	t.Helper()
	c, base := r.store.Client(), "fb:{"+f.org+"}:"
	for _, name := range names {
		h, err := r.hosts.Get(t.Context(), f.org, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"hosts", "routes"} {
			raw, err := c.HGet(t.Context(), base+key, h.GetHostId()).Result()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.HSet(t.Context(), base+key, h.GetHostId(), older(raw)).Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A message of 10 MB, as it is or packed small, is refused with its reason, costs the replica little, and ends nothing else.
func TestHugeMessages(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one")
	h, other := one.enrol("web", nil), one.enrol("db", nil)
	bystander := other.connect(one)
	huge := fleetbanv1.Health_builder{PolicyLevel: strings.Repeat("x", 10<<20)}.Build()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s := h.connect(one)
	err := s.stream.Send(fleetbanv1.ConnectRequest_builder{Health: huge}.Build())
	if err != nil && !errors.Is(err, io.EOF) {
		t.Logf("sending: %v", err)
	}
	if err := s.ended(); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("on a stream: %v", err)
	}
	_, err = client(t, one.url).Enroll(t.Context(), connect.NewRequest(fleetbanv1.EnrollRequest_builder{
		JoinToken: f.joinToken(orgs.NewJoinToken{}), PublicKey: public(newKey(t)), Name: strings.Repeat("x", 10<<20),
	}.Build()))
	if connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("enrolling: %v", err)
	}
	runtime.ReadMemStats(&after)
	t.Logf("%d MiB allocated, the test's own messages included", (after.TotalAlloc-before.TotalAlloc)>>20)
	one.manual("203.0.113.9", time.Hour)
	bystander.delta("all", "203.0.113.9", fleetbanv1.RecordKind_RECORD_KIND_PRESENT)
	h.connect(one)
}

// A host whose clock is off is served, and people are told.
func TestClockSkewIsTold(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one")
	h := one.enrol("web", nil)
	assertion, err := hostauth.Sign(h.key, h.id, h.audience, time.Now().Add(-20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	s, err := h.dialWith(one, assertion, fleetbanv1.Hello_builder{Health: fleetbanv1.Health_builder{PolicyLevel: "standard"}.Build()})
	if err != nil {
		t.Fatal("20 s are tolerated: ", err)
	}
	beat := func(off time.Duration) {
		s.send(fleetbanv1.ConnectRequest_builder{Heartbeat: fleetbanv1.AgentHeartbeat_builder{HostUnixMs: time.Now().Add(off).UnixMilli()}.Build()})
	}
	told := func() string {
		shown, err := one.hosts.Get(t.Context(), f.org, "web")
		if err != nil {
			t.Fatal(err)
		}
		for _, finding := range shown.GetHealth().GetFindings() {
			if finding.GetCode() == "clock-skew" {
				return finding.GetProblem()
			}
		}
		return ""
	}
	beat(-20 * time.Second)
	testwait.For(t, "the host's clock is told of", func() bool { return strings.Contains(told(), "behind") })
	beat(0)
	testwait.For(t, "it is not told of any more", func() bool { return told() == "" })
}

var times = regexp.MustCompile(`"(since|seen|enrolled|keyed)":(\d+)`)

// older is a stored record with its times two minutes back.
func older(raw string) string {
	return times.ReplaceAllStringFunc(raw, func(field string) string {
		m := times.FindStringSubmatch(field)
		ms, _ := strconv.ParseInt(m[2], 10, 64)
		return `"` + m[1] + `":` + strconv.FormatInt(ms-120_000, 10)
	})
}
