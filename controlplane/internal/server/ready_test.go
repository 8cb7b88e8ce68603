package server

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
)

func newReadiness(st *store.Store) *readiness {
	return &readiness{store: st, keys: keys.New([32]byte{1}), clock: &clock{}, begun: func() string { return "" }}
}

// older is a Redis that says it is of an older version: the real one, but for what INFO tells.
func older(t *testing.T, redis *redistest.Server) string {
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
					_, _ = in.Write(bytes.ReplaceAll(page[:n], []byte("redis_version:7"), []byte("redis_version:6")))
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
	st, err := store.Open(store.Options{URL: older(t, redis), Logger: slog.New(slog.DiscardHandler)})
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
