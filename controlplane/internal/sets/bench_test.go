package sets_test

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// BenchmarkBan is one ban a call from 256 callers at once, appendfsync always: group commit's throughput.
// The claim it backs: at least 5,000 mutations a second on two cores.
func BenchmarkBan(b *testing.B) {
	f := newFixture(b)
	f.clock.Store(0)
	var n atomic.Int64
	b.SetParallelism(max(1, 256/runtime.GOMAXPROCS(0)))
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			p := []netip.Prefix{address(int(n.Add(1)))}
			if _, err := f.Ban(context.Background(), org, sets.BanInput{Prefixes: p, Set: banset.All, Duration: time.Hour, Actor: "alice", Reason: "bench"}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.StopTimer()
	rate := float64(b.N) / b.Elapsed().Seconds()
	b.ReportMetric(rate, "bans/s")
	b.ReportMetric(rate/5000, "x-of-5000/s")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkBanAlone is one caller: the latency of a ban with its fsync.
func BenchmarkBanAlone(b *testing.B) {
	f := newFixture(b)
	f.clock.Store(0)
	for n := range b.N {
		if _, err := f.Ban(context.Background(), org, sets.BanInput{Prefixes: []netip.Prefix{address(n)}, Set: banset.All, Duration: time.Hour, Actor: "alice"}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLargest is the processor time that Redis's one thread spends on the largest mutations, which all others wait
// for. The claim it backs: less than 50 ms each.
func BenchmarkLargest(b *testing.B) {
	f := newFixture(b)
	ctx := context.Background()
	var prefixes []netip.Prefix
	for n := range sets.MaxPrefixes {
		prefixes = append(prefixes, address(n))
	}
	var events []sets.Event
	for n := range 256 { // what one script takes of a batch
		events = append(events, jailBan(uint64(n+1), "sshd", address(5000+n).String(), time.Minute)) //nolint:gosec // small
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"ban-1000", func() error {
			_, err := f.Ban(ctx, org, sets.BanInput{Prefixes: prefixes, Set: banset.All, Duration: time.Hour, Actor: "alice", Reason: "bench"})
			return err
		}},
		{"allow-1000", func() error {
			_, err := f.Allow(ctx, org, sets.AllowInput{Prefixes: prefixes, Duration: time.Hour, Actor: "alice", Reason: "bench"})
			return err
		}},
		{"unban-1000", func() error {
			_, err := f.Unban(ctx, org, sets.UnbanInput{Prefixes: prefixes, Actor: "alice", Reason: "bench"})
			return err
		}},
		{"events-256", func() error {
			_, err := f.RecordEvents(ctx, org, sets.EventsInput{HostID: "H1", Spool: "s1", Events: events})
			return err
		}},
		{"sweep", func() error {
			f.advance(2 * time.Hour)
			_, err := f.Sweep(ctx, org)
			return err
		}},
	} {
		before := f.info(b, "cpu", "used_cpu_user_main_thread") + f.info(b, "cpu", "used_cpu_sys_main_thread")
		if err := step.do(); err != nil {
			b.Fatal(err)
		}
		after := f.info(b, "cpu", "used_cpu_user_main_thread") + f.info(b, "cpu", "used_cpu_sys_main_thread")
		b.ReportMetric((after-before)*1000, step.name+"-ms")
	}
	b.ReportMetric(0, "ns/op")
}

func (f *fixture) info(b testing.TB, section, field string) float64 {
	b.Helper()
	_, rest, _ := strings.Cut(must(f.store.Client().Info(context.Background(), section).Result())(b), field+":")
	n, err := strconv.ParseFloat(strings.TrimSpace(strings.SplitN(rest, "\r\n", 2)[0]), 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// BenchmarkMemory100k prints the bytes of Redis memory a ban at 100,000, logs and indexes included, and what a snapshot
// of them takes. The claim it backs: at most 120 bytes.
func BenchmarkMemory100k(b *testing.B) {
	const bans = 100_000
	for range b.N {
		b.StopTimer()
		f := newFixture(b)
		f.clock.Store(0)
		ctx := context.Background()
		f.ban(b, time.Hour, "203.0.113.1/32")
		before := f.info(b, "memory", "used_memory")
		seq := map[string]uint64{}
		for first := 0; first < bans; first += 250 {
			host := fmt.Sprintf("01HOST%020d", first/250%5)
			var events []sets.Event
			for n := range 250 {
				seq[host]++
				events = append(events, jailBan(seq[host], "sshd", address(first+n).String(), time.Hour))
			}
			f.events(b, host, events...)
		}
		bytes := (f.info(b, "memory", "used_memory") - before) / bans
		b.StartTimer()
		snap := must(f.Snapshot(ctx, org, banset.All))(b)
		b.StopTimer()
		if len(snap.Records) != bans+1 {
			b.Fatal(len(snap.Records))
		}
		b.ReportMetric(bytes, "bytes/ban")
		b.ReportMetric(bytes/120, "x-of-120-bytes")
	}
}
