package hosts

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// TestStoreAcksOfMany: what is stored is what each said, however many say the same or something of their own, and nothing of those whose
// stream isn't theirs any more.
func TestStoreAcksOfMany(t *testing.T) {
	t.Parallel()
	f := start(t)
	const hosts, stale = 60, 5
	fences := make([]Fence, hosts)
	for i := range fences {
		fences[i] = f.attach(f.enrol(fmt.Sprintf("h%02d", i), byte(i+1), nil), byte(i+1), "one")
	}
	want := map[string]map[string]string{"acks:all": {}, "acks:tag:a=b": {}, "inert": {}, "exceptions": {}}
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // repeatable
	for round := range uint64(30) {
		batch := make([]AckWrite, hosts)
		var refused []string
		for i := range batch {
			ack := fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{cursor("all", round+1)}}
			switch random.IntN(8) {
			case 0:
				ack.Inert = fleetbanv1.Inert_INERT_OFF
			case 1:
				ack.Cursors = append(ack.Cursors, cursor("tag:a=b", random.Uint64N(100)))
			case 2:
				ack.Cursors = []*fleetbanv1.SetCursor{cursor("all", random.Uint64N(100))}
			case 3:
				ack.Cursors = nil
			case 4:
				ack.ExceptionsChanged = true
			case 5:
				ack.ExceptionsChanged, ack.ExceptionsTotal = true, random.Uint32N(100)+1
			default:
			}
			batch[i] = ackOf(fences[i], ack.Build())
			id := fences[i].Host
			if i < stale {
				batch[i].Fence.N--
				refused = append(refused, id)
				continue
			}
			for _, c := range batch[i].Cursors {
				want["acks:"+c.Set][id] = formatCursor(c)
			}
			if delete(want["inert"], id); ack.Inert != 0 {
				want["inert"][id] = fmt.Sprint(int(ack.Inert))
			}
			if ack.ExceptionsChanged {
				delete(want["exceptions"], id)
				if raw, err := encodeExceptions(batch[i].Exceptions); err != nil || len(raw) > 0 {
					want["exceptions"][id] = string(raw)
				}
			}
		}
		random.Shuffle(hosts, func(i, j int) { batch[i], batch[j] = batch[j], batch[i] })
		got, err := f.StoreAcks(t.Context(), org, batch)
		if slices.Sort(got); err != nil || !slices.Equal(got, slices.Sorted(slices.Values(refused))) {
			t.Fatalf("stale are %v, %v; want %v", got, err, refused)
		}
		for name, want := range want {
			got, err := f.store.Client().HGetAll(t.Context(), store.Key(org, name)).Result()
			if err != nil || !maps.Equal(got, want) {
				t.Fatalf("round %d: %s is %v, %v; want %v", round, name, got, err, want)
			}
		}
	}
}

// TestWatchHearsItsReplica: of the hosts whose streams are this replica's a watch knows the answers without Redis; but what a host refuses
// it reads there.
func TestWatchHearsItsReplica(t *testing.T) {
	t.Parallel()
	f := start(t)
	prefix := []byte{203, 0, 113, 9, 32}
	fences := make([]Fence, 5)
	for i := range fences {
		fences[i] = f.attach(f.enrol(fmt.Sprintf("h%d", i), byte(i+1), nil), byte(i+1), "one")
	}
	refuses := fleetbanv1.Ack_builder{
		Cursors:    []*fleetbanv1.SetCursor{cursor("all", 3)},
		Exceptions: []*fleetbanv1.SetException{fleetbanv1.SetException_builder{Set: "all", Prefix: prefix, Refusal: fleetbanv1.Refusal_REFUSAL_SSH_PEER}.Build()}, ExceptionsTotal: 1, ExceptionsChanged: true,
	}
	w := &receiptWatch{hosts: f.Hosts, org: org, cursor: cursor("all", 3), packed: [][]byte{prefix}, rung: make(chan struct{}, 1)}
	stop := w.follow()
	if err := w.readAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.ack(fences[0], fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{cursor("allow", 3), cursor("all", 4)}})
	f.ack(fences[1], fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{cursor("all", 3)}, Inert: fleetbanv1.Inert_INERT_PAUSED})
	f.ack(fences[2], fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{cursor("all", 2)}})
	f.ack(fences[3], refuses)
	// Of a stream that isn't the host's any more.
	old := fences[4]
	old.N--
	if stale, err := f.StoreAcks(t.Context(), org, []AckWrite{ackOf(old, fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{cursor("all", 3)}}.Build())}); err != nil || len(stale) != 1 {
		t.Fatal(stale, err)
	}
	select {
	case <-w.rung:
	default:
		t.Error("it wasn't rung")
	}
	if same, err := w.take(t.Context()); err != nil || !same {
		t.Fatal(same, err)
	}
	for i, want := range []operatorv1.EnforcementState{
		operatorv1.EnforcementState_ENFORCEMENT_STATE_ENFORCED, operatorv1.EnforcementState_ENFORCEMENT_STATE_INERT, operatorv1.EnforcementState_ENFORCEMENT_STATE_PENDING,
		operatorv1.EnforcementState_ENFORCEMENT_STATE_REFUSED, operatorv1.EnforcementState_ENFORCEMENT_STATE_PENDING,
	} {
		if got := w.standings[i].State; got != want {
			t.Errorf("h%d is %s, want %s", i, got, want)
		}
	}
	// Its caller takes nothing, for a long time, and bans go on: it doesn't keep whatever is said, and Redis tells it in the end.
	acks := make([]AckWrite, 1000)
	for i := range acks {
		acks[i] = ackOf(fences[0], fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{cursor("all", 9)}}.Build())
	}
	for range 200 {
		f.answered(org, acks, nil)
	}
	if n := len(w.answers); n > receiptAnswers {
		t.Errorf("%d answers wait for who takes none", n)
	}
	f.ack(fences[4], fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{cursor("all", 3)}})
	if changed, err := w.look(t.Context()); err != nil || !changed || w.standings[4].State != operatorv1.EnforcementState_ENFORCEMENT_STATE_ENFORCED {
		t.Errorf("what was missed is %s, %t, %v", w.standings[4].State, changed, err)
	}
	f.ack(fences[2], fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{cursor("all", 3)}})
	f.server.Kill()
	if same, err := w.take(t.Context()); err != nil || !same || w.standings[2].State != operatorv1.EnforcementState_ENFORCEMENT_STATE_ENFORCED {
		t.Errorf("without Redis: %s, %v", w.standings[2].State, err)
	}
	stop()
	if len(f.watches) != 0 {
		t.Error("a watch that ended is still told")
	}
}

// TestWatchHearsOfRefusalsBefore: what a host says that it refuses before it has what is waited for counts when it has.
func TestWatchHearsOfRefusalsBefore(t *testing.T) {
	t.Parallel()
	f := start(t)
	prefix := []byte{203, 0, 113, 9, 32}
	fence := f.attach(f.enrol("h", 1, nil), 1, "one")
	w := &receiptWatch{hosts: f.Hosts, org: org, cursor: cursor("all", 3), packed: [][]byte{prefix}, rung: make(chan struct{}, 1)}
	defer w.follow()()
	if err := w.readAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.ack(fence, fleetbanv1.Ack_builder{
		Cursors:    []*fleetbanv1.SetCursor{cursor("all", 2)},
		Exceptions: []*fleetbanv1.SetException{fleetbanv1.SetException_builder{Set: "all", Prefix: prefix, Refusal: fleetbanv1.Refusal_REFUSAL_SSH_PEER}.Build()}, ExceptionsTotal: 1, ExceptionsChanged: true,
	})
	if same, err := w.take(t.Context()); err != nil || !same || w.standings[0].State != operatorv1.EnforcementState_ENFORCEMENT_STATE_PENDING {
		t.Errorf("before it has it: %s, %v", w.standings[0].State, err)
	}
	f.ack(fence, fleetbanv1.Ack_builder{Cursors: []*fleetbanv1.SetCursor{cursor("all", 3)}})
	if same, err := w.take(t.Context()); err != nil || !same || w.standings[0].State != operatorv1.EnforcementState_ENFORCEMENT_STATE_REFUSED {
		t.Errorf("when it has it: %s, %v", w.standings[0].State, err)
	}
}

// TestProbesAreFromAllOver: Redis is asked of hosts from all of those that haven't answered, wherever in the fleet they are, and of all where
// they are few.
func TestProbesAreFromAllOver(t *testing.T) {
	t.Parallel()
	const (
		pending = operatorv1.EnforcementState_ENFORCEMENT_STATE_PENDING
		offline = operatorv1.EnforcementState_ENFORCEMENT_STATE_OFFLINE
	)
	for name, test := range map[string]struct {
		hosts, first, last int // hosts, and which of them haven't answered: first to last-1
		want               []int
	}{
		"none at all":          {0, 0, 0, []int{}},
		"none waits":           {40, 0, 0, []int{}},
		"few":                  {40, 38, 40, []int{38, 39}},
		"as many as are asked": {40, 10, 14, []int{10, 11, 12, 13}},
		"one more":             {40, 10, 15, []int{10, 12, 14}},
		"all":                  {40, 0, 40, []int{0, 10, 20, 30}},
		"the last half":        {40, 20, 40, []int{20, 25, 30, 35}},
	} {
		w := &receiptWatch{}
		for i := range test.hosts {
			state := offline
			if i >= test.first && i < test.last {
				state = pending
			}
			w.standings, w.open = append(w.standings, Standing{State: state}), append(w.open, i)
		}
		if got := w.pending(4); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}
