package agentapi

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/feed"
)

// pump writes for all streams on links: a few goroutines take turns for streams that have something to send, instead of one
// goroutine a stream that waits. A turn never blocks: what needs Redis gets a goroutine for as long as that takes.
//
//	idle ── schedule ──▶ queued ── a worker ──▶ running ──▶ idle
//	                       ▲                      │ schedule
//	                       └────────────────── again
type pump struct {
	mu      sync.Mutex
	waiting *sync.Cond
	queue   []*stream
	closed  bool
	done    sync.WaitGroup
}

func newPump(workers int) *pump {
	p := &pump{}
	p.waiting = sync.NewCond(&p.mu)
	for range workers {
		p.done.Go(p.work)
	}
	return p
}

func (p *pump) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.waiting.Broadcast()
	p.done.Wait()
}

func (p *pump) push(st *stream) {
	p.mu.Lock()
	p.queue = append(p.queue, st)
	p.mu.Unlock()
	p.waiting.Signal()
}

func (p *pump) work() {
	// Streams are taken in heaps: as long as one works on its heap, what comes is gathered and sent at once.
	const heap = 64
	var mine [heap]*stream
	for {
		p.mu.Lock()
		for len(p.queue) == 0 && !p.closed {
			p.waiting.Wait()
		}
		if len(p.queue) == 0 {
			p.mu.Unlock()
			return
		}
		n := copy(mine[:], p.queue)
		if p.queue = p.queue[n:]; len(p.queue) == 0 {
			p.queue = nil
		}
		p.mu.Unlock()
		for i, st := range mine[:n] {
			st.pushed.take(st)
			mine[i] = nil
		}
	}
}

// What a pushed stream is at.
const (
	turnIdle = iota
	turnQueued
	turnRunning
	turnAgain
)

// pushedStream is how far the pump is with a stream.
type pushedStream struct {
	turn atomic.Int32
	st   atomic.Pointer[stream]
	// welcomed, if not nil, is called by who serves the stream when its Welcome is sent.
	welcomed func()

	// Held by who writes.
	mu     sync.Mutex
	w      *writer         // nil before the Welcome was sent, and when the stream is over
	ctx    context.Context //nolint:containedctx // the stream's, for what needs Redis
	frames []*feed.Frame
	batch  [][]byte
	// retrying: it will be looked again after storeRetry; for commands too, where they are missing.
	retrying, missing bool

	// taken is what the link had taken when the stream was last seen to go on, bytes. The ticker's.
	taken uint64
}

// drained is called by the link.
func (p *pushedStream) drained() {
	if st := p.st.Load(); st != nil {
		p.schedule(st)
	}
}

// schedule has the stream written to soon.
func (p *pushedStream) schedule(st *stream) {
	for {
		switch now := p.turn.Load(); now {
		case turnIdle:
			if p.turn.CompareAndSwap(now, turnQueued) {
				st.service.pump.push(st)
				return
			}
		case turnRunning:
			if p.turn.CompareAndSwap(now, turnAgain) {
				return
			}
		default:
			return
		}
	}
}

// take is a worker's turn.
func (p *pushedStream) take(st *stream) {
	p.turn.Store(turnRunning)
	if p.quick(st) {
		p.over(st)
	}
}

func (p *pushedStream) over(st *stream) {
	if !p.turn.CompareAndSwap(turnRunning, turnIdle) {
		p.turn.Store(turnQueued)
		st.service.pump.push(st)
	}
}

// quick sends what is there. False: Redis is needed, and a goroutine goes on with the turn.
func (p *pushedStream) quick(st *stream) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.w
	if w == nil || w.link.Blocked() {
		return true // drained comes
	}
	st.mu.Lock()
	box := &st.box
	if box.commands || len(box.offered) > 0 {
		st.mu.Unlock()
		p.goSlow(st)
		return false
	}
	empty := !box.events && box.settings == nil && box.drain == nil && !box.heartbeat && len(box.beats) == 0
	waits := st.waits()
	st.mu.Unlock()
	if !empty {
		if _, err := w.mail(p.ctx); err != nil {
			st.end(err, "the connection broke")
			return true
		}
	}
	if waits {
		return true
	}
	frames, ok := st.sub.Held(p.frames[:0], framesAtOnce)
	if !ok {
		p.goSlow(st)
		return false
	}
	p.send(st, frames)
	return true
}

// goSlow is called while the stream is held: it is waited for by who ends the stream, and so by who closes the service.
func (p *pushedStream) goSlow(st *stream) {
	st.service.wg.Go(func() {
		p.slow(st)
		p.over(st)
	})
}

// send sends frames at once. The caller holds the lock.
func (p *pushedStream) send(st *stream, frames []*feed.Frame) {
	p.frames = frames
	if len(frames) == 0 {
		return
	}
	for _, f := range frames {
		p.batch = append(p.batch, f.Message)
	}
	begun := time.Now()
	st.owe(frames)
	err := p.w.link.Stream.Send(p.batch...)
	st.sent.Store(monotonic())
	if err != nil {
		st.end(err, "the connection broke")
	} else {
		st.tellSent(p.ctx, frames, begun)
		st.framesSent(frames)
	}
	clear(p.batch)
	clear(p.frames)
	if p.batch = p.batch[:0]; cap(p.frames) > 4 {
		p.frames, p.batch = nil, nil // what a burst needed isn't kept
	}
}

// slow sends what there is, with what Redis says, until there is nothing more.
func (p *pushedStream) slow(st *stream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.w != nil && !p.w.link.Blocked() && p.ctx.Err() == nil {
		again, err := p.w.mail(p.ctx)
		if err != nil {
			st.end(err, "the connection broke")
			return
		}
		frames, feedErr := st.sub.Next(p.ctx, framesAtOnce)
		p.send(st, frames)
		if again || feedErr != nil {
			p.retry(st, again)
			return
		}
		if len(frames) == 0 {
			return
		}
	}
}

// retry has it looked again when Redis may be back. The caller holds the lock.
func (p *pushedStream) retry(st *stream, commands bool) {
	p.missing = p.missing || commands
	if p.retrying {
		return // one is enough: if each look that fails left another, they would multiply for as long as Redis is away
	}
	p.retrying = true
	time.AfterFunc(storeRetry, func() {
		p.mu.Lock()
		missing := p.missing
		p.retrying, p.missing = false, false
		p.mu.Unlock()
		st.note(func(m *mailbox) { m.commands = m.commands || missing })
	})
}

// begin has the pump write for the stream.
func (p *pushedStream) begin(ctx context.Context, st *stream, w *writer) {
	p.mu.Lock()
	p.w, p.ctx = w, ctx
	p.mu.Unlock()
	p.st.Store(st)
	p.schedule(st)
}

// end returns when the pump writes nothing more for the stream.
func (p *pushedStream) end() {
	p.st.Store(nil)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.w = nil
}

// slowest is what a peer that lags behind must take for its stream to count as going on, bytes in the time that it may be silent.
const slowest = 64 << 10

// stuck notes since when the peer takes nothing.
func (p *pushedStream) stuck(st *stream, now int64) {
	raw, ok := st.conn.(linked)
	if !ok || !raw.raw.Blocked() {
		st.sending.Store(0)
		return
	}
	if taken := raw.raw.Taken(); st.sending.Load() == 0 || taken-p.taken >= slowest {
		p.taken = taken
		st.sending.Store(now)
	}
}
