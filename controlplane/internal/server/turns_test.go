package server

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

// welcomes is an AgentService that says when streams have come, and welcomes them when it may.
type welcomes struct {
	fleetbanv1connect.UnimplementedAgentServiceHandler

	came, may chan struct{}
}

func (w *welcomes) Connect(ctx context.Context, s *connect.BidiStream[fleetbanv1.ConnectRequest, fleetbanv1.ConnectResponse]) error {
	w.came <- struct{}{}
	<-w.may
	if err := s.Send(fleetbanv1.ConnectResponse_builder{Welcome: &fleetbanv1.Welcome{}}.Build()); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// Streams that come by a proxy are let in one after the other; who would wait too long is told when to come again; a stream that has
// its Welcome takes no place.
func TestTurnsOfProxiedStreams(t *testing.T) {
	t.Parallel()
	admitted := turns{&admission{places: 1, pace: time.Minute, sources: map[netip.Prefix]*source{}}}
	w := &welcomes{came: make(chan struct{}), may: make(chan struct{})}
	mux := http.NewServeMux()
	mux.Handle(fleetbanv1connect.NewAgentServiceHandler(w, connect.WithInterceptors(&apierr.Interceptor{Now: time.Now, Logger: slog.New(slog.DiscardHandler)}, admitted)))
	server := httptest.NewUnstartedServer(admitted.mark(mux))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(func() {
		server.CloseClientConnections() // ends the handlers, for which Close waits
		server.Close()
	})
	ctx, leave := context.WithCancel(t.Context())
	t.Cleanup(leave)
	agents := fleetbanv1connect.NewAgentServiceClient(server.Client(), server.URL, connect.WithGRPC())
	begin := func() *connect.BidiStreamForClient[fleetbanv1.ConnectRequest, fleetbanv1.ConnectResponse] {
		s := agents.Connect(ctx)
		_ = s.Send(&fleetbanv1.ConnectRequest{}) // Receive tells why it failed
		return s
	}
	first := begin()
	<-w.came
	second := begin()
	testwait.For(t, "the second waits", func() bool {
		admitted.admission.mu.Lock()
		defer admitted.admission.mu.Unlock()
		return admitted.admission.waiting == 1
	})
	_, err := begin().Receive()
	var e *connect.Error
	if !errors.As(err, &e) || e.Code() != connect.CodeResourceExhausted || len(e.Details()) != 1 {
		t.Fatalf("the third is told %v", err)
	}
	detail, err := e.Details()[0].Value()
	info, ok := detail.(*fleetbanv1.ErrorInfo)
	if err != nil || !ok || info.GetReason() != fleetbanv1.Reason_REASON_RATE_LIMITED || info.GetRetryAfterMs() < 1000 || info.GetFix() == "" {
		t.Errorf("the third is told %v, %v", detail, err)
	}
	for _, s := range []*connect.BidiStreamForClient[fleetbanv1.ConnectRequest, fleetbanv1.ConnectResponse]{first, second} {
		w.may <- struct{}{}
		if m, err := s.Receive(); err != nil || !m.HasWelcome() {
			t.Fatalf("%v, %v", m, err)
		}
		if s == first {
			<-w.came // it is the second's turn, though the first stands
		}
	}
	leave()
}
