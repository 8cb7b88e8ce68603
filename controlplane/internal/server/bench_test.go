package server_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/server"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
)

// apiTarget is how many bans of one prefix each one replica is to take in a second, fsynced, on two cores that the
// clients share.
const apiTarget = 5000

// BenchmarkAPI measures bans of one prefix each by one replica as people run it: TLS, HTTP/2, the redis-server of its own
// that fsyncs before each answer. The clients are in this process.
func BenchmarkAPI(b *testing.B) {
	for _, clients := range []int{16, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) { benchmarkAPI(b, clients, 4) })
	}
}

func benchmarkAPI(b *testing.B, clients, connections int) {
	b.Helper()
	config := server.Config{Backend: server.Backend{DataDir: b.TempDir()}, Listen: "127.0.0.1:0", Organisation: "bench", Mode: "enforce"}
	if err := config.Complete(); err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	s, err := server.New(ctx, config, slog.New(slog.DiscardHandler), io.Discard)
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			b.Error(err)
		}
	}()
	defer func() {
		stop()
		<-done
	}()
	base := "https://" + s.Addr().String()
	conns := make([]*http.Client, connections)
	for i := range conns {
		transport := &http.Transport{TLSClientConfig: pinned(s.Pin()), ForceAttemptHTTP2: true}
		defer transport.CloseIdleConnections()
		conns[i] = &http.Client{Transport: transport}
	}
	for deadline := time.Now().Add(within); ; time.Sleep(5 * time.Millisecond) {
		if res, err := conns[0].Get(base + "/readyz"); err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				break
			}
		}
		if time.Now().After(deadline) {
			b.Fatal("it never became ready")
		}
	}
	var out bytes.Buffer
	if err := server.Setup(ctx, server.SetupOptions{Backend: config.Backend, Organisation: "bench", Mode: "enforce"}, slog.New(slog.DiscardHandler), nil, &out); err != nil {
		b.Fatal(err)
	}
	apis := make([]operatorv1connect.BanServiceClient, connections)
	for i := range apis {
		apis[i] = operatorv1connect.NewBanServiceClient(conns[i], base, bearer(apiToken.FindString(out.String())))
	}
	took := make([]time.Duration, b.N)
	var next atomic.Int64
	b.ResetTimer()
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for {
				n := int(next.Add(1)) - 1
				if n >= b.N {
					return
				}
				began := time.Now()
				_, err := apis[c%connections].Ban(ctx, connect.NewRequest(operatorv1.BanRequest_builder{
					Prefixes: []string{fmt.Sprintf("198.%d.%d.%d", 18+n>>16&1, n>>8&255, n&255)}, DurationS: 3600, Reason: "bench",
				}.Build()))
				if err != nil {
					b.Error(err)
					return
				}
				took[n] = time.Since(began)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	rate := float64(b.N) / b.Elapsed().Seconds()
	slices.Sort(took)
	b.ReportMetric(rate, "bans/s")
	b.ReportMetric(rate/apiTarget, "of-target")
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}
