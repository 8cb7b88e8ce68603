package sim

import (
	"context"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"

	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
	"github.com/fleetban/fleetban/scripts/fleetsim/internal/plane"
)

// watcher reads the history that people see, from its beginning to its end, and counts what hosts observed.
type watcher struct {
	api    *plane.API
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	seen   map[eventKey]int
	odd    map[operatorv1.Unpromoted]int
	read   int
	hosts  int // of what was read, that hosts observed
	gaps   int
	last   string
	breaks int
}

// watch begins with what happens from now on.
func watch(ctx context.Context, api *plane.API) (*watcher, error) {
	w := &watcher{api: api, done: make(chan struct{}), seen: map[eventKey]int{}, odd: map[operatorv1.Unpromoted]int{}}
	ctx, w.cancel = context.WithCancel(ctx)
	stream, err := api.Fleet.Watch(ctx, connect.NewRequest(&operatorv1.WatchRequest{}))
	if err != nil {
		w.cancel()
		return nil, err
	}
	go w.run(ctx, stream)
	return w, nil
}

func (w *watcher) run(ctx context.Context, stream *connect.ServerStreamForClient[operatorv1.WatchResponse]) {
	defer close(w.done)
	for {
		if stream != nil {
			for stream.Receive() {
				w.take(stream.Msg())
			}
			if w.last == "" {
				w.last = stream.ResponseHeader().Get("Fleetban-After")
			}
			_ = stream.Close()
		}
		if ctx.Err() != nil {
			return
		}
		w.mu.Lock()
		w.breaks++
		w.mu.Unlock()
		sleep(ctx, 100*time.Millisecond)
		var err error
		if stream, err = w.api.Fleet.Watch(ctx, connect.NewRequest(operatorv1.WatchRequest_builder{After: w.last}.Build())); err != nil {
			stream = nil
		}
	}
}

func (w *watcher) take(m *operatorv1.WatchResponse) {
	e := m.GetEvent()
	w.mu.Lock()
	defer w.mu.Unlock()
	if m.GetGap() {
		w.gaps++
	}
	if e.GetId() != "" {
		w.last = e.GetId()
	}
	w.read++
	switch e.GetKind() {
	case operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED, operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED_UNBAN:
	default:
		return
	}
	p, err := prefix.Parse(e.GetPrefix())
	if err != nil {
		return
	}
	w.hosts++
	w.seen[eventKey{e.GetHostId(), e.GetKind(), p, e.GetJail()}]++
	if u := e.GetUnpromoted(); u != operatorv1.Unpromoted_UNPROMOTED_UNSPECIFIED && e.GetKind() == operatorv1.FleetEventKind_FLEET_EVENT_KIND_OBSERVED {
		w.odd[u]++
	}
}

// observed is how many events of hosts were read.
func (w *watcher) observed() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hosts
}

// await waits until so many events of hosts were read.
func (w *watcher) await(ctx context.Context, n int, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for w.observed() < n {
		if ctx.Err() != nil {
			return fmt.Errorf("the history shows %d events of hosts and not %d", w.observed(), n)
		}
		sleep(ctx, 5*time.Millisecond)
	}
	return nil
}

func (w *watcher) stop() {
	w.cancel()
	<-w.done
}
