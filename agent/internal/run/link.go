package run

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/fleetban/fleetban/agent/internal/footprint"
	"github.com/fleetban/fleetban/agent/internal/lately"
	"github.com/fleetban/fleetban/agent/internal/localrpc"
	"github.com/fleetban/fleetban/agent/internal/spool"
	"github.com/fleetban/fleetban/agent/stream"
	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1/hostv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
	"google.golang.org/protobuf/proto"
)

// link is the way to the helper: it keeps two streams from it, and is the Sink of the stream to the control plane.
type link struct {
	client *localrpc.Client
	spool  *spool.Spool
	places *places
	log    *slog.Logger
	// lately remembers that the helper was away. Optional.
	lately *lately.Log
	// callAtMost bounds a call of the helper that only touches the kernel and the disk.
	callAtMost time.Duration
	// spooled is rung when observations were taken in.
	spooled chan struct{}
	// first is closed when the helper has answered for the first time.
	first chan struct{}
	once  sync.Once
	// Told when the helper's health or exceptions changed, and when it is back after having been away.
	healthChanged, exceptionsChanged, back func()

	mu      sync.Mutex
	last    *hostv1.WatchHealthResponse
	problem string
	// spoolProblem is what was last told of the spool.
	spoolProblem string
	observe      context.CancelFunc
	watch        context.CancelFunc
}

const (
	// The helper is tried again after these pauses.
	linkPause, linkPauseMost = 100 * time.Millisecond, 2 * time.Second
	// callPatience is callAtMost, outside of tests.
	callPatience = 30 * time.Second
	// executeAtMost is longer than the helper gives fail2ban.
	executeAtMost = 3 * time.Minute
	// baselineEvery is how often it is looked whether the spool wants a new baseline, and its disk is tried again.
	baselineEvery = 5 * time.Second
	// ackEvery is how often the helper is told, at most, what is spooled.
	ackEvery = 500 * time.Millisecond
	// gather bounds how many observations are written with one sync.
	gather = 256
)

func newLink(socket string, s *spool.Spool, controlPlane string, log *slog.Logger) *link {
	return &link{
		client: localrpc.NewClient(socket), callAtMost: callPatience, spool: s, places: newPlaces(controlPlane, log), log: log, spooled: make(chan struct{}, 1), first: make(chan struct{}), problem: "the helper wasn't asked yet",
		healthChanged: func() {}, exceptionsChanged: func() {}, back: func() {},
	}
}

// health is what the helper last said, and why it isn't to be had.
func (l *link) health() (*hostv1.WatchHealthResponse, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last, l.problem
}

// run keeps both streams until ctx ends.
func (l *link) run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { l.keep(ctx, l.watchHealth) })
	wg.Go(func() { l.keep(ctx, l.observeInto) })
	wg.Go(func() { l.renewBaselines(ctx) })
	wg.Go(func() { l.ackObserved(ctx) })
	wg.Go(func() { l.places.watch(ctx, l.tellPlaces) })
	wg.Wait()
	l.client.Close()
	return ctx.Err()
}

// keep calls f again and again.
func (l *link) keep(ctx context.Context, f func(context.Context) error) {
	pause := linkPause
	for ctx.Err() == nil {
		began := time.Now()
		err := f(ctx)
		if time.Since(began) > linkPauseMost {
			pause = linkPause
		}
		if err != nil && ctx.Err() == nil {
			l.away(ctx, err)
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
		pause = min(2*pause, linkPauseMost)
	}
}

// away notes that the helper doesn't answer; one line for each change.
func (l *link) away(ctx context.Context, err error) {
	var u *localrpc.UnreachableError
	if !errors.As(err, &u) && l.reachable(ctx) {
		return // it answered, and ended one stream
	}
	text := unreachable(err)
	l.mu.Lock()
	news := l.problem == "" || l.last == nil && l.problem != text
	l.problem = text
	l.mu.Unlock()
	if news {
		l.log.Warn("the helper doesn't answer: nothing is observed or changed on this host until it does; what is enforced stays", "problem", text)
		l.healthChanged()
	}
}

func (l *link) reachable(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return l.client.Call(ctx, hostv1connect.HelperServiceCursorsProcedure, &hostv1.CursorsRequest{}, &hostv1.CursorsResponse{}) == nil
}

func (l *link) watchHealth(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.mu.Lock()
	l.watch = cancel
	l.mu.Unlock()
	began := true
	return localrpc.Stream(ctx, l.client, hostv1connect.HelperServiceWatchHealthProcedure, &hostv1.WatchHealthRequest{}, func(h *hostv1.WatchHealthResponse) error {
		l.mu.Lock()
		before, was := l.last, l.problem
		l.last, l.problem = h, ""
		l.mu.Unlock()
		if began {
			began = false
			const restarted = "the connection to the helper broke and was made anew; what it holds was told again"
			switch {
			case was != "":
				l.log.Info("the helper answers")
				if before != nil {
					l.lately.Count("helper-away", restarted)
				}
			case before != nil:
				l.lately.Note("helper-away", restarted)
			}
			l.once.Do(func() { close(l.first) })
			if before != nil {
				l.back() // it may be another one, which holds something else
			}
		}
		l.healthChanged()
		if before == nil || before.GetExceptionsTotal() != h.GetExceptionsTotal() || before.GetEnforcer().GetInert() != h.GetEnforcer().GetInert() ||
			!sameExceptions(before.GetExceptions(), h.GetExceptions()) {
			l.exceptionsChanged()
		}
		return nil
	})
}

func sameExceptions(a, b []*fleetbanv1.SetException) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !proto.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// observeInto writes what is observed to the spool. What comes while one write is synced is written with the next.
func (l *link) observeInto(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.mu.Lock()
	l.observe = cancel
	l.mu.Unlock()
	defer l.spool.Interrupted()
	type arrival struct {
		*hostv1.ObserveResponse
		at time.Time
	}
	queue := make(chan arrival, gather)
	done := make(chan struct{})
	go func() {
		defer close(done)
		batch := make([]*hostv1.ObserveResponse, 0, gather)
		for o := range queue {
			first := o.at
			batch = append(batch[:0], o.ObserveResponse)
			for more := true; more && len(batch) < gather; {
				select {
				case o, ok := <-queue:
					if more = ok; ok {
						batch = append(batch, o.ObserveResponse)
					}
				default:
					more = false
				}
			}
			l.spool.Observe(batch...)
			footprint.Worked(len(batch))
			l.ringSpooled()
			l.tellWay(ctx, batch, first)
			l.tellSpool()
		}
	}()
	feed, through := l.spool.Taken()
	req := hostv1.ObserveRequest_builder{Feed: feed, Through: through}.Build()
	err := localrpc.Stream(ctx, l.client, hostv1connect.HelperServiceObserveProcedure, req, func(o *hostv1.ObserveResponse) error {
		select {
		case queue <- arrival{o, time.Now()}:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	close(queue)
	<-done
	return err
}

func (l *link) ringSpooled() {
	select {
	case l.spooled <- struct{}{}:
	default:
	}
}

// ackObserved tells the helper what it need not keep for this process to come back to.
func (l *link) ackObserved(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.spooled:
		}
		feed, through := l.spool.Safe()
		// Where this fails, the next Observe or acknowledgement makes up for it.
		_ = l.call(ctx, hostv1connect.HelperServiceAckObservedProcedure,
			hostv1.AckObservedRequest_builder{Feed: feed, Through: through}.Build(), &hostv1.AckObservedResponse{})
		t := time.NewTimer(ackEvery)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

// tellWay tells, to who debugs how long a ban takes, when each step of its way here was over: microseconds of Unix time.
func (l *link) tellWay(ctx context.Context, batch []*hostv1.ObserveResponse, received time.Time) {
	if !l.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	spooled := time.Now().UnixMicro()
	for _, o := range batch {
		c := o.GetChange()
		if p, err := prefix.Unpack(c.GetPrefix()); err == nil && c.HasBan() {
			l.log.Debug("ban observed", "prefix", p.String(), "read_us", int64(1000*c.GetReadUnixMs()),
				"confirmed_us", int64(1000*c.GetConfirmedUnixMs()), "received_us", received.UnixMicro(), "spooled_us", spooled)
		}
	}
}

// tellSpool tells of the spool's problem when it begins and when it is over; while it lasts, its words may change with each
// try.
func (l *link) tellSpool() {
	l.mu.Lock()
	was, now := l.spoolProblem, l.spool.Health().GetProblem()
	l.spoolProblem = now
	l.mu.Unlock()
	if was == now {
		return
	}
	l.healthChanged()
	switch {
	case was == "":
		l.log.Warn("the spool of events", "problem", now)
	case now == "":
		l.log.Info("events are written to the spool again")
	}
}

// renewBaselines asks for a new baseline when changes were left out of a full spool that has room again, and has the spool
// try a disk that refused.
func (l *link) renewBaselines(ctx context.Context) {
	t := time.NewTicker(baselineEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if l.spool.Health().GetProblem() != "" {
			l.spool.Mend()
			if l.spool.Health().GetProblem() == "" {
				l.ringSpooled()
			}
			l.tellSpool()
		}
		if !l.spool.WantsBaseline() {
			continue
		}
		l.mu.Lock()
		again := l.observe
		l.mu.Unlock()
		if again != nil {
			again()
		}
	}
}

func (l *link) call(ctx context.Context, procedure string, req, res proto.Message) error {
	within, cancel := context.WithTimeout(ctx, l.callAtMost)
	defer cancel()
	err := l.client.Call(within, procedure, req, res)
	if err != nil && errors.Is(within.Err(), context.DeadlineExceeded) { // ours, or the caller's
		// It hangs, and its streams stand. The stream to the control plane has given it up; that it is back is told by a new
		// stream of its health alone.
		l.mu.Lock()
		again := l.watch
		l.mu.Unlock()
		if again != nil {
			again()
		}
	}
	return err
}

// Cursors is what the helper holds.
func (l *link) Cursors(ctx context.Context) ([]*fleetbanv1.SetCursor, error) {
	var res hostv1.CursorsResponse
	if err := l.call(ctx, hostv1connect.HelperServiceCursorsProcedure, &hostv1.CursorsRequest{}, &res); err != nil {
		return nil, err
	}
	return res.GetCursors(), nil
}

// Begin tells the helper of the stream's Welcome.
func (l *link) Begin(ctx context.Context, w *fleetbanv1.Welcome, serverMS int64, peers []netip.Addr) error {
	b := hostv1.SetSessionRequest_builder{ServerUnixMs: serverMS, Sets: w.GetSets(), Settings: w.GetSettings()}
	return l.places.met(peers, func(all []netip.Addr) error {
		b.ControlPlane = packed(all)
		return l.call(ctx, hostv1connect.HelperServiceSetSessionProcedure, b.Build(), &hostv1.SetSessionResponse{})
	})
}

// tellPlaces tells the helper where the control plane is; all else stays as it is.
func (l *link) tellPlaces(ctx context.Context, all []netip.Addr) error {
	return l.call(ctx, hostv1connect.HelperServiceSetSessionProcedure,
		hostv1.SetSessionRequest_builder{ControlPlane: packed(all)}.Build(), &hostv1.SetSessionResponse{})
}

func packed(addrs []netip.Addr) (out [][]byte) {
	for _, a := range addrs {
		out = append(out, a.AsSlice())
	}
	return out
}

// Settings tells the helper of new settings; the sets stay as they are.
func (l *link) Settings(ctx context.Context, s *fleetbanv1.Settings, serverMS int64) error {
	return l.call(ctx, hostv1connect.HelperServiceSetSessionProcedure,
		hostv1.SetSessionRequest_builder{ServerUnixMs: serverMS, Settings: s}.Build(), &hostv1.SetSessionResponse{})
}

// Apply hands an update to the helper.
func (l *link) Apply(ctx context.Context, u stream.Update, serverMS int64) (stream.Applied, error) {
	footprint.Worked(1 + len(u.Delta.GetRecords()) + len(u.Page.GetRecords()))
	req := &hostv1.ApplyRequest{}
	req.SetServerUnixMs(serverMS)
	switch {
	case u.Delta != nil:
		req.SetDelta(u.Delta)
	case u.Page != nil:
		req.SetPage(u.Page)
	default:
		req.SetSync(u.Sync)
	}
	var res hostv1.ApplyResponse
	if err := l.call(ctx, hostv1connect.HelperServiceApplyProcedure, req, &res); err != nil {
		return stream.Applied{}, err
	}
	a := stream.Applied{Cursor: res.GetCursor(), ExceptionsChanged: res.GetExceptionsChanged()}
	switch res.GetOutcome() {
	case hostv1.ApplyResponse_OUTCOME_APPLIED, hostv1.ApplyResponse_OUTCOME_SKIPPED:
		a.Outcome = stream.Done
	case hostv1.ApplyResponse_OUTCOME_MORE:
		a.Outcome = stream.More
	case hostv1.ApplyResponse_OUTCOME_UNKNOWN_KIND:
		a.Outcome = stream.UnknownKind
	default:
		a.Outcome = stream.Gap
	}
	return a, nil
}

// Exceptions asks what is held and not enforced.
func (l *link) Exceptions(ctx context.Context) (stream.Exceptions, error) {
	var res hostv1.StatusResponse
	if err := l.call(ctx, hostv1connect.HelperServiceStatusProcedure, &hostv1.StatusRequest{}, &res); err != nil {
		return stream.Exceptions{}, err
	}
	return stream.Exceptions{List: res.GetExceptions(), Total: res.GetExceptionsTotal(), Inert: res.GetEnforcer().GetInert()}, nil
}

// Held gives what the helper holds.
func (l *link) Held(ctx context.Context, set string, above uint64, page func([]*fleetbanv1.Record) error) error {
	return localrpc.Stream(ctx, l.client, hostv1connect.HelperServiceHeldProcedure,
		hostv1.HeldRequest_builder{Set: set, AboveVersion: above}.Build(),
		func(r *hostv1.HeldResponse) error { return page(r.GetRecords()) })
}

// Execute has the helper carry out a command. Where it can't be asked there is no result: the command is sent again.
func (l *link) Execute(ctx context.Context, c *fleetbanv1.Command, serverMS int64) *fleetbanv1.CommandResult {
	ctx, cancel := context.WithTimeout(ctx, executeAtMost)
	defer cancel()
	var res hostv1.ExecuteResponse
	err := l.client.Call(ctx, hostv1connect.HelperServiceExecuteProcedure,
		hostv1.ExecuteRequest_builder{Command: c, ServerUnixMs: serverMS}.Build(), &res)
	if err != nil {
		l.log.Warn("a command couldn't be handed to the helper", "command", c.GetCommandId(), "problem", err)
		return nil
	}
	return res.GetResult()
}
