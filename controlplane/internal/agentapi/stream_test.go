package agentapi_test

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

const (
	present   = fleetbanv1.RecordKind_RECORD_KIND_PRESENT
	retracted = fleetbanv1.RecordKind_RECORD_KIND_RETRACTED
)

// The main job: a ban observed on a host of one replica is on the wire to a host of the other, and its receipt comes back.
func TestABanGoesRound(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one, two := f.replica("one"), f.replica("two")
	a, b := one.enrol("a", nil).connect(one), one.enrol("b", nil).connect(two)
	// The acknowledgement comes before the change or after it: it is waited for below.
	a.ban(1, "sshd", "203.0.113.9", time.Hour)
	cursor := b.delta("all", "203.0.113.9", present)
	own := a.delta("all", "203.0.113.9", present)
	if !proto.Equal(cursor, own) {
		t.Errorf("%v on one, %v on the other", own, cursor)
	}
	feed, release := two.feeds.Acquire(f.org)
	defer release()
	receipts := make(chan *operatorv1.WatchReceiptsResponse, 100)
	done := make(chan error, 1)
	go func() {
		done <- two.hosts.WatchReceipts(t.Context(), f.org, cursor, nil, feed, func(r *operatorv1.WatchReceiptsResponse) error {
			receipts <- r
			return nil
		})
	}()
	if r := <-receipts; r.GetComplete() || r.GetInScope() != 2 {
		t.Fatalf("%v", r)
	}
	a.ack(own)
	b.ack(cursor)
	for {
		if r := <-receipts; r.GetComplete() {
			if r.GetEnforced() != 2 || len(r.GetMissing()) != 0 {
				t.Fatalf("%v", r)
			}
			break
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	// Sent again after a reconnect, it is stored once; and a person's unban reaches everyone.
	a.ban(1, "sshd", "203.0.113.9", time.Hour)
	a.eventAck(1)
	if _, err := one.sets.Unban(t.Context(), f.org, sets.UnbanInput{Prefixes: []netip.Prefix{mustPrefix("203.0.113.9")}, Actor: "alice"}); err != nil {
		t.Fatal(err)
	}
	a.delta("all", "203.0.113.9", retracted)
	b.delta("all", "203.0.113.9", retracted)
}

func TestResumeSendsWhatIsMissing(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one, two := f.replica("one"), f.replica("two")
	h := one.enrol("a", nil)
	s := h.connect(one)
	one.manual("203.0.113.1", time.Hour)
	cursor := s.delta("all", "203.0.113.1", present)
	s.close()
	one.manual("203.0.113.2", time.Hour)
	again, err := h.dial(two, fleetbanv1.Hello_builder{Cursors: []*fleetbanv1.SetCursor{cursor}})
	if err != nil {
		t.Fatal(err)
	}
	m := again.next("a delta", func(m *fleetbanv1.ConnectResponse) bool {
		if m.GetSnapshot().GetSet() == "all" {
			t.Fatal("a snapshot, where the log reaches back far enough")
		}
		return m.GetDelta() != nil
	})
	if d := m.GetDelta(); len(d.GetRecords()) != 1 || d.GetFromVersion() > cursor.GetVersion()+1 {
		t.Errorf("%v after %v", d, cursor)
	}
}

func TestTagSets(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one")
	web, db := one.enrol("w", map[string]string{"role": "web"}).connect(one), one.enrol("d", map[string]string{"role": "db"}).connect(one)
	if _, err := one.sets.Ban(t.Context(), f.org, sets.BanInput{
		Prefixes: []netip.Prefix{mustPrefix("203.0.113.5")}, Set: "tag:role=web", Duration: time.Hour, Actor: "test",
	}); err != nil {
		t.Fatal(err)
	}
	web.delta("tag:role=web", "203.0.113.5", present)
	one.manual("203.0.113.6", time.Hour)
	m := db.next("the ban for all", func(m *fleetbanv1.ConnectResponse) bool {
		if strings.HasPrefix(m.GetDelta().GetSet(), "tag:role=web") {
			t.Error("a host got a set that isn't its own")
		}
		return m.GetDelta().GetSet() == "all"
	})
	if len(m.GetDelta().GetRecords()) != 1 {
		t.Errorf("%v", m)
	}
}

func TestDisplacementAndFence(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one, two := f.replica("one"), f.replica("two")
	h := one.enrol("a", nil)
	old := h.connect(one)
	next := h.connect(two)
	wantReason(t, old.ended(), connect.CodeAborted, fleetbanv1.Reason_REASON_STREAM_DISPLACED)
	next.ban(1, "sshd", "203.0.113.9", time.Hour)
	next.eventAck(1)
	got, err := two.hosts.Get(t.Context(), f.org, "a")
	if err != nil || got.GetPresence() != operatorv1.Presence_PRESENCE_ONLINE || got.GetReplica() != "two" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestCloneIsQuarantined(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one, two := f.replica("one"), f.replica("two")
	h := one.enrol("a", nil)
	first, err := h.dial(one, fleetbanv1.Hello_builder{Instance: "original"})
	if err != nil {
		t.Fatal(err)
	}
	second, err := h.dial(two, fleetbanv1.Hello_builder{Instance: "copy"})
	if err != nil {
		t.Fatal(err)
	}
	first.ended()
	_, err = h.dial(one, fleetbanv1.Hello_builder{Instance: "original"})
	wantReason(t, err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_CLONED)
	wantReason(t, second.ended(), connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_CLONED)
	if _, err := one.hosts.Release(t.Context(), f.org, "a", "alice"); err != nil {
		t.Fatal(err)
	}
	h.connect(two)
}

func TestDeletedHostIsKicked(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one, two := f.replica("one"), f.replica("two")
	h := one.enrol("a", nil)
	s := h.connect(two)
	if err := one.hosts.Delete(t.Context(), f.org, h.id, "alice"); err != nil {
		t.Fatal(err)
	}
	wantReason(t, s.ended(), connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_DISABLED)
	_, err := h.dial(one, fleetbanv1.Hello_builder{})
	wantReason(t, err, connect.CodePermissionDenied, fleetbanv1.Reason_REASON_HOST_DISABLED)
}

func TestSettingsReachHosts(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one")
	s := one.enrol("a", nil).connect(one)
	if _, err := f.orgs.Pause(t.Context(), f.org, time.Hour); err != nil {
		t.Fatal(err)
	}
	s.next("the pause", func(m *fleetbanv1.ConnectResponse) bool { return m.GetSettings().GetPausedUntilUnixMs() > 0 })
	// Under watch, what is observed isn't promoted, on the very next event.
	if _, _, err := f.orgs.SetMode(t.Context(), f.org, fleetbanv1.Mode_MODE_WATCH); err != nil {
		t.Fatal(err)
	}
	s.ban(1, "sshd", "203.0.113.9", time.Hour)
	s.eventAck(1)
	states, err := one.sets.States(t.Context(), f.org)
	if err != nil || states.Set("all").Records != 0 {
		t.Errorf("%+v, %v", states, err)
	}
}

func TestCommands(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one, two := f.replica("one"), f.replica("two")
	h := one.enrol("a", nil)
	order := func() string {
		t.Helper()
		queued, err := one.hosts.QueueCommand(t.Context(), f.org, h.id, fleetbanv1.Command_builder{
			UnbanInJails: fleetbanv1.UnbanInJails_builder{Prefixes: [][]byte{prefix.Pack(mustPrefix("203.0.113.9"))}}.Build(),
		}.Build(), "alice")
		if err != nil {
			t.Fatal(err)
		}
		return queued.GetCommand().GetCommandId()
	}
	waited := order()
	s := h.connect(two)
	isCommand := func(m *fleetbanv1.ConnectResponse) bool { return m.GetCommand() != nil }
	if got := s.next("the command that waited", isCommand).GetCommand().GetCommandId(); got != waited {
		t.Fatalf("%s, want %s", got, waited)
	}
	live := order()
	if got := s.next("the command that came", isCommand).GetCommand().GetCommandId(); got != live {
		t.Fatalf("%s was sent (again), want %s", got, live)
	}
	result := func(s *session, id string) {
		s.send(fleetbanv1.ConnectRequest_builder{CommandResult: fleetbanv1.CommandResult_builder{
			CommandId: id, Outcome: fleetbanv1.CommandOutcome_COMMAND_OUTCOME_DONE, Message: "unbanned in sshd",
		}.Build()})
	}
	result(s, waited)
	outcome := func(id string) fleetbanv1.CommandOutcome {
		all, err := one.hosts.Commands(t.Context(), f.org, h.id)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range all {
			if c.GetCommand().GetCommandId() == id {
				return c.GetResult().GetOutcome()
			}
		}
		return 0
	}
	testwait.For(t, "the result is stored", func() bool { return outcome(waited) == fleetbanv1.CommandOutcome_COMMAND_OUTCOME_DONE })
	// No result came of the other: it is delivered again on the next stream, and only it.
	s.close()
	s = h.connect(one)
	if got := s.next("the command without a result", isCommand).GetCommand().GetCommandId(); got != live {
		t.Fatalf("%s, want %s", got, live)
	}
	result(s, live)
	testwait.For(t, "the result is stored", func() bool { return outcome(live) == fleetbanv1.CommandOutcome_COMMAND_OUTCOME_DONE })
}

func TestMessageTooLarge(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one")
	s := one.enrol("a", nil).connect(one)
	s.send(fleetbanv1.ConnectRequest_builder{CommandResult: fleetbanv1.CommandResult_builder{CommandId: "x", Message: strings.Repeat("x", 10<<20)}.Build()})
	wantReason(t, s.ended(), connect.CodeResourceExhausted, fleetbanv1.Reason_REASON_MESSAGE_TOO_LARGE)
}

func TestInvalidMessage(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one")
	s := one.enrol("a", nil).connect(one)
	s.ban(0, "sshd", "203.0.113.9", time.Hour)
	wantReason(t, s.ended(), connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_INVALID_FIELD)
}

func TestUnknownMessageIsSkipped(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one")
	s := one.enrol("a", nil).connect(one)
	future := &fleetbanv1.ConnectRequest{}
	future.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 99, protowire.BytesType), []byte("a kind of tomorrow")))
	if err := s.stream.Send(future); err != nil {
		t.Fatal(err)
	}
	s.ban(1, "sshd", "203.0.113.9", time.Hour)
	s.eventAck(1)
}

func TestHeartbeatsAndSilence(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one", heartbeat(time.Second))
	h := one.enrol("a", nil)
	s := h.connect(one)
	beat := func(m *fleetbanv1.ConnectResponse) bool { return m.GetHeartbeat() != nil }
	for range 3 {
		s.next("a heartbeat", beat)
		s.send(fleetbanv1.ConnectRequest_builder{Heartbeat: fleetbanv1.AgentHeartbeat_builder{}.Build()})
	}
	wantReason(t, s.ended(), connect.CodeDeadlineExceeded, fleetbanv1.Reason_REASON_UNSPECIFIED)
	testwait.For(t, "it is offline, and why", func() bool {
		got, err := one.hosts.Get(t.Context(), f.org, "a")
		return err == nil && got.GetPresence() == operatorv1.Presence_PRESENCE_OFFLINE && strings.Contains(got.GetCause(), "not heard")
	})
}

// A host that says it holds something else than it was sent gets the set again.
func TestDivergenceIsSeen(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one")
	s := one.enrol("a", nil).connect(one)
	one.manual("203.0.113.1", time.Hour)
	cursor := s.delta("all", "203.0.113.1", present)
	wrong := proto.CloneOf(cursor)
	wrong.SetDigest(cursor.GetDigest() ^ 1)
	for range 2 {
		s.send(fleetbanv1.ConnectRequest_builder{Heartbeat: fleetbanv1.AgentHeartbeat_builder{Cursors: []*fleetbanv1.SetCursor{wrong}}.Build()})
	}
	// The mailbox holds one heartbeat: say it until it was seen twice.
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				s.send(fleetbanv1.ConnectRequest_builder{Heartbeat: fleetbanv1.AgentHeartbeat_builder{Cursors: []*fleetbanv1.SetCursor{wrong}}.Build()})
			}
		}
	}()
	s.next("a snapshot", func(m *fleetbanv1.ConnectResponse) bool {
		return m.GetSnapshot().GetSet() == "all" && m.GetSnapshot().GetLast()
	})
}

// TestDrainIsSpread: hosts are told moments all over the window, so that they don't come to the other replicas at once.
func TestDrainIsSpread(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.replica("one")
	const hosts, window = 12, 9 * time.Second
	streams := make([]*session, 0, hosts)
	for i := range hosts {
		streams = append(streams, one.enrol("h"+strconv.Itoa(i), nil).connect(one))
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		one.Drain(context.Background(), window, time.Second)
	}()
	thirds := map[int64]int{}
	for _, s := range streams {
		m := s.next("Drain", func(m *fleetbanv1.ConnectResponse) bool { return m.GetDrain() != nil })
		after := time.Duration(m.GetDrain().GetReconnectAfterMs()) * time.Millisecond
		if after > window {
			t.Errorf("a host is to leave after %s of %s", after, window)
		}
		thirds[int64(after*3/window)]++
		s.close()
	}
	<-done
	if len(thirds) < 2 { // by chance once in 177,147 times
		t.Errorf("all %d hosts are to leave in one third of the window: %v", hosts, thirds)
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one, two := f.replica("one"), f.replica("two")
	h, stays := one.enrol("a", nil), one.enrol("b", nil)
	s, other := h.connect(one), stays.connect(one)
	done := make(chan struct{})
	go func() {
		defer close(done)
		one.Drain(context.Background(), 100*time.Millisecond, 300*time.Millisecond)
	}()
	m := s.next("Drain", func(m *fleetbanv1.ConnectResponse) bool { return m.GetDrain() != nil })
	if m.GetDrain().GetReconnectAfterMs() > 100 {
		t.Errorf("%v", m)
	}
	_, err := h.dial(one, fleetbanv1.Hello_builder{})
	wantReason(t, err, connect.CodeUnavailable, fleetbanv1.Reason_REASON_SHUTTING_DOWN)
	next := h.connect(two) // make before break
	s.close()
	wantReason(t, other.ended(), connect.CodeUnavailable, fleetbanv1.Reason_REASON_SHUTTING_DOWN)
	<-done
	got, err := two.hosts.Get(t.Context(), f.org, "a")
	if err != nil || got.GetPresence() != operatorv1.Presence_PRESENCE_ONLINE || got.GetReplica() != "two" {
		t.Errorf("%v, %v", got, err)
	}
	next.ban(1, "sshd", "203.0.113.9", time.Hour)
	next.eventAck(1)
}
