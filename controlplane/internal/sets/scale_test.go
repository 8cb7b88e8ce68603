package sets_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// longest is what no command may take of Redis' one thread: all organisations wait for it.
const longest = 50 * time.Millisecond

// figures are what an organisation of so many bans costs; a line of the file that FLEETBAN_SCALE_JSON names.
type figures struct {
	Bans int `json:"bans"`
	// BytesPerBan of Redis' memory, logs and indexes included.
	BytesPerBan float64 `json:"redis_bytes_per_ban"`
	// Events are those of jails: a second, one batch after another, fsync always.
	EventsPerSecond float64 `json:"events_per_second"`
	// BanMicroseconds of Redis' thread for one more ban alone, and for one of a thousand at once.
	BanMicroseconds     float64 `json:"ban_redis_us"`
	BanManyMicroseconds float64 `json:"ban_of_1000_redis_us"`
	// Page is the first 100 of the list, Walk the whole of it in pages of 5,000.
	PageMilliseconds     float64 `json:"page_ms"`
	WalkMilliseconds     float64 `json:"walk_ms"`
	ExplainMilliseconds  float64 `json:"explain_ms"`
	SnapshotMilliseconds float64 `json:"snapshot_ms"`
	// SnapshotBytes of this process that a snapshot takes a ban.
	SnapshotBytes float64 `json:"snapshot_bytes_per_ban"`
	// Restart is from the start of a killed Redis to its first answer.
	RestartMilliseconds float64 `json:"restart_ms"`
	// Rebuilt and Swept are bans a second that hosts bring back to an emptied Redis, and that run out all at once.
	RebuiltPerSecond float64 `json:"rebuilt_per_second"`
	SweptPerSecond   float64 `json:"swept_per_second"`
	// Slowest is the command that Redis' log of slow ones has on top: wall time, so of a busy machine also the others' time.
	SlowestMilliseconds float64 `json:"slowest_command_ms"`
	Slowest             string  `json:"slowest_command"`
	// Over are the commands that took more than 50 ms.
	Over int `json:"commands_over_50ms"`
	// Costliest is the longest time of Redis' thread that one call took.
	CostliestMilliseconds float64 `json:"costliest_call_ms"`
	Costliest             string  `json:"costliest_call"`
}

// scale fills an organisation with bans, does everything with them that touches many, and empties it.
type scale struct {
	*fixture
	t   testing.TB
	out figures
}

// cost runs one call that is one script, and returns the time of Redis' thread that it took.
func (s *scale) cost(call func()) time.Duration {
	s.t.Helper()
	busy := func() float64 {
		return s.info(s.t, "cpu", "used_cpu_user_main_thread") + s.info(s.t, "cpu", "used_cpu_sys_main_thread")
	}
	before := busy()
	call()
	return time.Duration((busy() - before) * float64(time.Second))
}

// bounded sees that a call doesn't take too long, where it was made several times the one that was disturbed least.
func (s *scale) bounded(what string, took ...time.Duration) {
	s.t.Helper()
	least := slices.Min(took)
	if least > longest {
		s.t.Errorf("%s took %s of Redis' thread", what, least)
	}
	if ms := least.Seconds() * 1000; ms > s.out.CostliestMilliseconds {
		s.out.CostliestMilliseconds, s.out.Costliest = ms, what
	}
}

func (s *scale) timed(into *float64, do func()) {
	began := time.Now()
	do()
	*into = time.Since(began).Seconds() * 1000
}

func (s *scale) run(bans []netip.Prefix) figures {
	t, ctx := s.t, context.Background()
	t.Helper()
	s.out.Bans = len(bans)
	s.redis.Set("slowlog-log-slower-than", "2000")
	s.redis.Set("slowlog-max-len", "1000")
	s.ban(t, time.Hour, "203.0.113.1/32")

	empty := s.info(t, "memory", "used_memory")
	began := time.Now()
	seq := map[string]uint64{}
	for piece := range slices.Chunk(bans, 256) {
		host := fmt.Sprintf("01HOST%020d", len(seq)%5)
		if len(seq) == 5 {
			host = fmt.Sprintf("01HOST%020d", int(piece[0].Addr().As4()[3])%5)
		}
		events := make([]sets.Event, 0, len(piece))
		for _, p := range piece {
			seq[host]++
			events = append(events, jailBan(seq[host], "sshd", p.String(), time.Hour))
		}
		must(s.RecordEvents(ctx, org, sets.EventsInput{HostID: host, Spool: "s1", Events: events}))(t)
	}
	s.out.EventsPerSecond = float64(len(bans)) / time.Since(began).Seconds()
	s.out.BytesPerBan = (s.info(t, "memory", "used_memory") - empty) / float64(len(bans))

	s.people()
	standing := uint64(len(bans) + 1)

	s.timed(&s.out.PageMilliseconds, func() { must(s.List(ctx, org, sets.ListInput{}))(t) })
	s.timed(&s.out.ExplainMilliseconds, func() { must(s.Explain(ctx, org, bans[0]))(t) })
	s.timed(&s.out.WalkMilliseconds, func() {
		listed, token := 0, ""
		for {
			page := must(s.List(ctx, org, sets.ListInput{PageSize: 5000, PageToken: token}))(t)
			listed += len(page.Entries)
			if token = page.NextPageToken; token == "" {
				break
			}
		}
		if listed != int(standing) { //nolint:gosec // small
			t.Errorf("%d are listed of %d", listed, standing)
		}
	})
	var snap *sets.Snapshot
	var was, is runtime.MemStats
	runtime.ReadMemStats(&was)
	s.timed(&s.out.SnapshotMilliseconds, func() { snap = must(s.Snapshot(ctx, org, banset.All))(t) })
	runtime.ReadMemStats(&is)
	s.out.SnapshotBytes = float64(is.TotalAlloc-was.TotalAlloc) / float64(len(bans))
	if snap.State.Records != standing {
		t.Errorf("the set counts %d bans of %d", snap.State.Records, standing)
	}

	// A restart that loses nothing costs nobody a snapshot.
	s.noteSlow()
	s.redis.Kill()
	s.timed(&s.out.RestartMilliseconds, s.redis.Start)
	s.redis.Set("slowlog-log-slower-than", "2000")
	s.redis.Set("slowlog-max-len", "1000")
	s.advance(time.Second)
	if r := must(s.Resume(ctx, org, snap.State.Cursor))(t); r.Action != sets.ResumeCurrent || r.State.Cursor.Epoch <= snap.State.Cursor.Epoch {
		t.Errorf("after a restart: %+v", r)
	}

	// All is lost, and a host brings it back.
	s.noteSlow()
	s.redis.Empty()
	s.redis.Set("slowlog-log-slower-than", "2000")
	s.redis.Set("slowlog-max-len", "1000")
	s.advance(time.Second)
	if r := must(s.Resume(ctx, org, snap.State.Cursor))(t); r.Action != sets.ResumeOffer || r.After != 0 {
		t.Errorf("after a loss: %+v", r)
	}
	began = time.Now()
	for piece := range slices.Chunk(snap.Records, sets.MaxOffer) {
		must(s.Offer(ctx, org, banset.All, piece))(t)
	}
	s.out.RebuiltPerSecond = float64(len(snap.Records)) / time.Since(began).Seconds()
	back := must(s.Snapshot(ctx, org, banset.All))(t)
	if back.State.Cursor.Digest != snap.State.Cursor.Digest || back.State.Records != standing {
		t.Errorf("rebuilt: %+v, lost: %+v", back.State, snap.State)
	}

	// All run out in the same moment.
	s.advance(2 * time.Hour)
	began = time.Now()
	swept := 0
	for more := true; more; {
		s.bounded("a sweep", s.cost(func() {
			r := must(s.Sweep(ctx, org))(t)
			swept, more = swept+r.Expired, r.More
		}))
	}
	s.out.SweptPerSecond = float64(swept) / time.Since(began).Seconds()
	if left := must(s.States(ctx, org))(t).Set(banset.All).Records; left != 0 || swept < len(bans) {
		t.Errorf("%d are left, %d were swept", left, swept)
	}
	s.noteSlow()
	return s.out
}

// people ban, exempt and unban as much as one call may.
func (s *scale) people() {
	t, ctx := s.t, context.Background()
	t.Helper()
	in := sets.BanInput{Set: banset.All, Duration: time.Hour, Actor: "alice", Reason: "scale"}
	var ban, allow, unban []time.Duration
	for round := range 3 {
		more := make([]netip.Prefix, 0, sets.MaxPrefixes)
		for n := range sets.MaxPrefixes {
			more = append(more, netip.PrefixFrom(netip.AddrFrom4([4]byte{203, byte(1 + round), byte(n >> 8), byte(n)}), 32)) //nolint:gosec // cut
		}
		for n := range 20 {
			in.Prefixes = more[n : n+1]
			s.out.BanMicroseconds += float64(s.cost(func() { must(s.Ban(ctx, org, in))(t) }).Microseconds()) / 60
		}
		in.Prefixes = more
		ban = append(ban, s.cost(func() { must(s.Ban(ctx, org, in))(t) }))
		allow = append(allow, s.cost(func() {
			must(s.Allow(ctx, org, sets.AllowInput{Prefixes: more, Duration: time.Hour, Actor: "alice"}))(t)
		}))
		unban = append(unban, s.cost(func() { must(s.Unban(ctx, org, sets.UnbanInput{Prefixes: more, Actor: "alice"}))(t) }))
	}
	s.out.BanManyMicroseconds = float64(slices.Min(ban).Microseconds()) / sets.MaxPrefixes
	s.bounded("a ban of 1,000", ban...)
	s.bounded("an exemption of 1,000", allow...)
	s.bounded("an unban of 1,000", unban...)
}

// noteSlow reads Redis' log of slow commands, which a restart empties.
func (s *scale) noteSlow() {
	s.t.Helper()
	for _, slow := range must(s.store.Client().SlowLogGet(context.Background(), -1).Result())(s.t) {
		if slow.Duration > longest {
			s.out.Over++
		}
		if ms := slow.Duration.Seconds() * 1000; ms > s.out.SlowestMilliseconds {
			s.out.SlowestMilliseconds = ms
			s.out.Slowest = fmt.Sprintf("%.40s of %d arguments", slow.Args[0], len(slow.Args))
		}
	}
}

// TestManyBans: what the bans of a million cost, with as many in a bucket as a million brings there, but not all buckets.
func TestManyBans(t *testing.T) {
	t.Parallel()
	const perBucket, buckets = 300, 32
	bans := make([]netip.Prefix, 0, perBucket*buckets)
	for n := 0; len(bans) < cap(bans); n++ {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(64 + n>>24), byte(n >> 16), byte(n >> 8), byte(n)}), 32)
		if sets.BucketOf(prefix.Pack(p)) < buckets {
			bans = append(bans, p)
		}
	}
	s := &scale{fixture: newFixture(t), t: t}
	t.Logf("%+v", s.run(bans))
}

// BenchmarkScale prints what an organisation of 1,000, 100,000 and 1,000,000 bans costs, one run each. The claims it backs: what
// one ban costs doesn't depend on how many there are; at most 120 bytes of Redis' memory; no command over 50 ms. Each run is
// also a line of JSON (see figures) at the end of the file that FLEETBAN_SCALE_JSON names.
func BenchmarkScale(b *testing.B) {
	for _, n := range []int{1_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("bans=%d", n), func(b *testing.B) {
			for range b.N {
				bans := make([]netip.Prefix, n)
				for i := range bans {
					bans[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{64, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
				}
				s := &scale{fixture: newFixture(b), t: b}
				out := s.run(bans)
				raw := must(json.Marshal(out))(b)
				if name := os.Getenv("FLEETBAN_SCALE_JSON"); name != "" {
					f := must(os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644))(b) //nolint:gosec // figures, and the bench's own variable
					if _, err := f.Write(append(raw, '\n')); err != nil {
						b.Fatal(err)
					}
					_ = f.Close()
				}
				var metrics map[string]any
				if err := json.Unmarshal(raw, &metrics); err != nil {
					b.Fatal(err)
				}
				for name, value := range metrics {
					if v, ok := value.(float64); ok && name != "bans" {
						b.ReportMetric(v, name)
					}
				}
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}
