package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
)

func newReadiness(st *store.Store) *readiness {
	return &readiness{store: st, keys: keys.New([32]byte{1}), clock: &clock{}, begun: func() string { return "" }}
}

// altered is the URL of the real Redis, whose answers are changed on their way.
func altered(t *testing.T, redis *redistest.Server, change func([]byte) []byte) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("unix", strings.TrimPrefix(redis.URL(), "unix://"))
			if err != nil {
				_ = in.Close()
				continue
			}
			stop := context.AfterFunc(ctx, func() { _, _ = in.Close(), out.Close() })
			conns.Go(func() {
				_, _ = io.Copy(out, in)
				_ = out.Close()
			})
			conns.Go(func() {
				defer stop()
				page := make([]byte, 64<<10)
				for {
					n, err := out.Read(page)
					_, _ = in.Write(change(page[:n]))
					if err != nil {
						_ = in.Close()
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		cancel()
		conns.Wait()
	})
	return "redis://" + l.Addr().String()
}

func TestOldRedis(t *testing.T) {
	t.Parallel()
	redis := redistest.StartOne(t)
	st, err := store.Open(store.Options{Logger: slog.New(slog.DiscardHandler), URL: altered(t, redis, func(answer []byte) []byte {
		return bytes.ReplaceAll(answer, []byte("redis_version:7"), []byte("redis_version:6"))
	})})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	r := newReadiness(st)
	report := r.check(t.Context())
	if report.Ready || len(report.Reasons) != 1 || report.Reasons[0].Code != "redis-version" || !strings.Contains(report.Summary, "Redis 6.") ||
		r.disagrees.Load() == nil {
		t.Errorf("%+v", report)
	}
}

// A replica whose clock and Redis' differ by more than a bound refuses to serve, says why and what to do, and serves again once they agree.
func TestClockOffIsUnready(t *testing.T) {
	t.Parallel()
	redis := redistest.StartOne(t)
	var ahead atomic.Int64                                    // seconds
	told := regexp.MustCompile(`\*2\r\n\$10\r\n(\d{10})\r\n`) // the beginning of what TIME answers
	st, err := store.Open(store.Options{Logger: slog.New(slog.DiscardHandler), URL: altered(t, redis, func(answer []byte) []byte {
		return told.ReplaceAllFunc(answer, func(b []byte) []byte {
			at, _ := strconv.ParseInt(string(told.FindSubmatch(b)[1]), 10, 64)
			return fmt.Appendf(nil, "*2\r\n$10\r\n%d\r\n", at+ahead.Load())
		})
	})})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	r := newReadiness(st)
	const bound = int64(maxClockSkew / time.Second)
	for _, c := range []struct {
		ahead int64
		ready bool
	}{{0, true}, {bound - 2, true}, {bound + 2, false}, {-bound - 2, false}, {0, true}} {
		ahead.Store(c.ahead)
		testwait.For(t, fmt.Sprintf("ready %t with a clock that is %d s off", c.ready, c.ahead), func() bool {
			r.at = time.Time{} // look anew
			report := r.check(t.Context())
			disagrees := r.disagrees.Load() != nil
			if c.ready {
				return report.Ready && !disagrees
			}
			return !report.Ready && disagrees && len(report.Reasons) == 1 && report.Reasons[0].Code == "clock" &&
				strings.Contains(report.Reasons[0].Problem, "clock is") && report.Reasons[0].Fix != ""
		})
	}
}

func TestDrainingIsUnready(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	var log bytes.Buffer
	r := newReadiness(redis.Open())
	r.logger = slog.New(slog.NewTextHandler(&log, nil))
	if report := r.check(t.Context()); !report.Ready || report.Summary != "ready" {
		t.Fatalf("%+v", report)
	}
	redis.Kill()
	r.at = r.at.Add(-readyLife)
	if report := r.check(t.Context()); report.Ready || !report.has("redis-unreachable") || strings.Contains(report.Summary, "\n") {
		t.Errorf("%+v", report)
	}
	// At once, whatever Redis does.
	r.drain()
	if report := r.last(); report.Ready || len(report.Reasons) != 2 || !strings.Contains(report.Summary, "being shut down; Redis") {
		t.Errorf("%+v", report)
	}
	if report := r.check(t.Context()); report.Ready || report.Reasons[0].Code != "draining" {
		t.Errorf("%+v", report)
	}
	if lines := strings.Count(log.String(), "not ready to serve"); lines != 1 {
		t.Errorf("what changed is told %d times:\n%s", lines, log.String())
	}
}
