package feed

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/metrics"
	"github.com/fleetban/fleetban/controlplane/internal/sets"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// How long a decision about a cursor, and an encoded snapshot, serve others that come with the same.
const (
	resumeLife   = time.Second
	snapshotLife = 5 * time.Second
)

// mode is where a stream is in one set: see the package comment.
type mode uint8

const (
	modeResume mode = iota
	modeSnapshot
	modePages
	modeOffer
	modeTail
)

// position is a stream's in one set.
type position struct {
	set    string
	mode   mode
	cursor sets.Cursor // what the host has, or will when it has applied what was sent
	sub    *Subscription
	line   *line
	place  int // among the line's followers
	// generation of the line that the position was taken in.
	generation uint64
	node       *node
	pages      []*Frame
	after      *node // where to go on after the pages
	// since is when the stream last began to follow the line: what was heard before is old, not late.
	since Moment
	// partial: the last snapshot was, and a whole one follows when the rebuild is over.
	partial bool
}

// Subscription is one stream's position in its sets. Its methods are called from one goroutine at a time, but Ready,
// Offered and Resync, which may be called from others.
type Subscription struct {
	feed  *Feed
	ready chan struct{} // nil where there is wake
	wake  func()
	order []*position // never changed
	heard Moment

	mu      sync.Mutex
	offered map[string]bool
	resync  map[string]sets.Cursor
}

// Subscribe begins at what the stream holds: a cursor with epoch 0 holds nothing. Next then gives what is to be sent. wake
// is called when there may be something, and must not block nor call back; where it is nil, Ready tells.
func (f *Feed) Subscribe(cursors []sets.Cursor, wake func()) *Subscription {
	s := &Subscription{feed: f, wake: wake}
	if wake == nil {
		s.ready = make(chan struct{}, 1)
	}
	f.mu.Lock()
	for _, c := range cursors {
		if slices.ContainsFunc(s.order, func(p *position) bool { return p.set == c.Set }) {
			continue
		}
		l := f.lines[c.Set]
		if l == nil {
			l = &line{set: c.Set, kind: sets.KindOf(c.Set)}
			f.lines[c.Set] = l
			f.kick()
		}
		p := &position{set: c.Set, cursor: c, sub: s, line: l}
		l.follow(p)
		s.order = append(s.order, p)
	}
	f.subs[s] = struct{}{}
	f.mu.Unlock()
	// What protects goes before what bans.
	slices.SortStableFunc(s.order, func(a, b *position) int { return int(sets.KindOf(b.set)) - int(sets.KindOf(a.set)) })
	s.ring()
	return s
}

func (s *Subscription) ring() {
	if s.wake != nil {
		s.wake()
		return
	}
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

// Ready receives when Next may have something. It holds one element: sending to it never blocks.
func (s *Subscription) Ready() <-chan struct{} { return s.ready }

// Offered tells that the answer to an OfferRequest of the set is complete: its snapshot follows.
func (s *Subscription) Offered(set string) {
	s.mu.Lock()
	if s.offered == nil {
		s.offered = map[string]bool{}
	}
	s.offered[set] = true
	s.mu.Unlock()
	s.ring()
}

// Resync makes the stream start from a cursor again: what the host says it holds differs from what it was sent.
func (s *Subscription) Resync(cursor sets.Cursor) {
	s.mu.Lock()
	if s.resync == nil {
		s.resync = map[string]sets.Cursor{}
	}
	s.resync[cursor.Set] = cursor
	s.mu.Unlock()
	s.ring()
}

// Cursor is where the stream is in a set: what was returned by Next last.
func (s *Subscription) Cursor(set string) sets.Cursor {
	for _, p := range s.order {
		if p.set == set {
			return p.cursor
		}
	}
	return sets.Cursor{}
}

// Heard is when this replica heard of the oldest change among those that Next returned last and that are new, not made up
// for.
func (s *Subscription) Heard() Moment { return s.heard }

// Close ends the subscription.
func (s *Subscription) Close() {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	if _, open := s.feed.subs[s]; !open {
		return
	}
	delete(s.feed.subs, s)
	for _, p := range s.order {
		p.line.leave(p)
	}
}

// Next returns the next frames to send, in order, at most most; none when the stream is current. It may read from Redis
// (a resume, a snapshot). An error is of the store: the stream stays open, call again after a while.
//
// A frame is a Delta, a SnapshotPage, a SetSync, or an OfferRequest. After an OfferRequest the set waits until Offered,
// or until the rebuild is over.
func (s *Subscription) Next(ctx context.Context, most int) ([]*Frame, error) {
	var out []*Frame
	s.heard = 0
	for _, p := range s.order {
		s.redirect(p)
		for len(out) < most {
			frames, more, err := s.step(ctx, p, most-len(out))
			out = append(out, frames...)
			if err != nil {
				if len(out) > 0 {
					s.ring()
					return out, nil // what failed is tried again
				}
				return nil, err
			}
			if !more {
				break
			}
		}
		if len(out) >= most {
			s.ring()
			break
		}
	}
	return out, nil
}

// Held is Next for who must not wait: it appends to frames what is in memory. ok is false where that doesn't tell, and Next does.
func (s *Subscription) Held(frames []*Frame, most int) (out []*Frame, ok bool) {
	s.mu.Lock()
	elsewhere := len(s.offered) > 0 || len(s.resync) > 0
	s.mu.Unlock()
	if elsewhere {
		return frames, false
	}
	s.heard = 0
	f := s.feed
	var few [4]*node
	nodes := few[:0]
	f.mu.Lock()
	for _, p := range s.order {
		if p.mode != modeTail || p.node.dropped || p.generation != p.line.generation || p.partial && f.rebuildUntil.IsZero() {
			f.mu.Unlock()
			return frames, false
		}
	}
	full := false
	for _, p := range s.order {
		for p.node.next != nil && !full {
			p.node = p.node.next
			p.cursor = p.node.cursor()
			nodes = append(nodes, p.node)
			if heard := p.node.heard; heard > p.since && (s.heard == 0 || heard < s.heard) {
				s.heard = heard
			}
			full = len(nodes) >= most
		}
	}
	f.mu.Unlock()
	for _, n := range nodes {
		frames = append(frames, f.frameOf(n))
	}
	if full {
		s.ring()
	}
	return frames, true
}

// redirect applies what came from outside: Offered, Resync, a new generation, the end of a rebuild.
func (s *Subscription) redirect(p *position) {
	s.mu.Lock()
	offered := s.offered[p.set]
	delete(s.offered, p.set)
	again, ok := s.resync[p.set]
	delete(s.resync, p.set)
	s.mu.Unlock()
	f := s.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	rebuilding := !f.rebuildUntil.IsZero()
	switch {
	case ok:
		p.cursor, p.mode, p.partial = again, modeResume, false
	case p.mode != modeResume && p.line.loaded && p.generation != p.line.generation:
		p.mode = modeResume
	case p.mode == modeOffer && (offered || !rebuilding):
		p.mode = modeSnapshot
	case p.mode == modeTail && p.partial && !rebuilding:
		p.mode = modeSnapshot
	}
}

// step does one thing for a position. more: call again.
func (s *Subscription) step(ctx context.Context, p *position, most int) (frames []*Frame, more bool, err error) {
	f := s.feed
	switch p.mode {
	case modeResume:
		p.since = now()
		return s.resume(ctx, p)
	case modeSnapshot:
		snap, err := f.snapshot(ctx, p.line)
		if err != nil || snap == nil {
			return nil, false, err
		}
		f.feeds.o.Metrics.Resumed(metrics.ResumeSnapshot)
		p.pages, p.partial, p.after, p.generation, p.mode = snap.frames, snap.partial, snap.node, snap.generation, modePages
		return nil, true, nil
	case modePages:
		n := min(most, len(p.pages))
		frames, p.pages = p.pages[:n], p.pages[n:]
		if len(p.pages) == 0 {
			p.cursor = frames[n-1].Cursor
			p.node, p.after, p.pages, p.mode, p.since = p.after, nil, nil, modeTail, now()
		}
		return frames, true, nil
	case modeTail:
		return s.tail(p, most)
	default:
		return nil, false, nil
	}
}

func (s *Subscription) tail(p *position, most int) ([]*Frame, bool, error) {
	f := s.feed
	var nodes []*node
	f.mu.Lock()
	if p.node.dropped || p.generation != p.line.generation {
		p.mode = modeResume
		f.mu.Unlock()
		return nil, true, nil
	}
	for p.node.next != nil && len(nodes) < most {
		p.node = p.node.next
		nodes = append(nodes, p.node)
		if heard := p.node.heard; heard > p.since && (s.heard == 0 || heard < s.heard) {
			s.heard = heard
		}
	}
	f.mu.Unlock()
	frames := make([]*Frame, 0, len(nodes))
	for _, n := range nodes {
		frames = append(frames, f.frameOf(n))
		p.cursor = frames[len(frames)-1].Cursor
	}
	return frames, false, nil
}

// resume decides how a position goes on.
func (s *Subscription) resume(ctx context.Context, p *position) ([]*Frame, bool, error) {
	f := s.feed
	f.mu.Lock()
	if !p.line.loaded {
		f.mu.Unlock()
		return nil, false, nil // the catcher rings when it is
	}
	kind := p.line.kind
	// What the line keeps decides most cases without Redis.
	if n := p.line.at(p.cursor.Version); n != nil && p.cursor.Epoch == p.line.epoch && n.delta.Digest == p.cursor.Digest {
		p.node, p.generation, p.mode = n, p.line.generation, modeTail
		current := n.next == nil
		f.mu.Unlock()
		f.feeds.o.Metrics.Resumed(metrics.ResumeLine)
		if current {
			return []*Frame{syncFrame(p.cursor, kind)}, true, nil
		}
		return nil, true, nil
	}
	generation := p.line.generation
	f.mu.Unlock()

	decision, err := f.decide(ctx, p.cursor)
	if err != nil {
		return nil, false, err
	}
	switch decision.Action {
	case sets.ResumeCurrent, sets.ResumeDeltas:
		at := p.cursor
		at.Epoch = decision.State.Cursor.Epoch
		f.mu.Lock()
		if p.line.generation != generation || p.line.epoch != at.Epoch {
			f.reload = true
			f.kick()
			f.mu.Unlock()
			return nil, false, nil
		}
		n := p.line.at(at.Version)
		current := n != nil && n.next == nil
		if n == nil && at.Version > p.line.last.delta.Version {
			p.line.behind = true // decided by what the line doesn't have yet
			f.kick()
			f.mu.Unlock()
			return nil, false, nil
		}
		f.mu.Unlock()
		if n != nil {
			f.feeds.o.Metrics.Resumed(metrics.ResumeLine)
			renamed := p.cursor.Epoch != at.Epoch
			p.cursor, p.node, p.generation, p.mode = at, n, generation, modeTail
			if current || renamed {
				return []*Frame{syncFrame(at, kind)}, true, nil
			}
			return nil, true, nil
		}
		return s.fromLog(ctx, p, at, decision, kind)
	case sets.ResumeOffer:
		f.feeds.o.Metrics.Resumed(metrics.ResumeOffer)
		p.mode, p.generation = modeOffer, generation
		return []*Frame{offerFrame(p.set, decision.After)}, false, nil
	default:
		p.mode = modeSnapshot
		return nil, true, nil
	}
}

// fromLog gives a stream that is behind what the line keeps a piece of Redis's log; or a snapshot, where that is less.
func (s *Subscription) fromLog(ctx context.Context, p *position, at sets.Cursor, decision sets.Resume, kind fleetbanv1.SetKind) ([]*Frame, bool, error) {
	const piece = 200
	if decision.State.Cursor.Version-at.Version > decision.State.Records+piece {
		p.mode = modeSnapshot
		return nil, true, nil
	}
	deltas, err := s.feed.feeds.o.Sets.Log(ctx, s.feed.org, p.set, at.Version, piece)
	if err != nil {
		return nil, false, err
	}
	s.feed.feeds.o.Metrics.Resumed(metrics.ResumeLog)
	var frames []*Frame
	if p.cursor.Epoch != at.Epoch {
		frames = append(frames, syncFrame(at, kind))
	}
	p.cursor = at
	for _, d := range deltas {
		if d.Epoch != at.Epoch {
			break
		}
		frame := s.feed.deltaFrame(d)
		frames = append(frames, frame)
		p.cursor = frame.Cursor
	}
	return frames, len(frames) > 0, nil
}

// decide asks sets.Resume once for all streams with the same cursor.
func (f *Feed) decide(ctx context.Context, c sets.Cursor) (sets.Resume, error) {
	f.mu.Lock()
	r := f.resumes[c]
	if r == nil || !r.made.IsZero() && time.Since(r.made) > resumeLife {
		if len(f.resumes) > 1000 {
			clear(f.resumes)
		}
		r = &shared[sets.Resume]{done: make(chan struct{})}
		if !f.spawn(func() {
			r.value, r.err = f.feeds.o.Sets.Resume(f.ctx, f.org, c)
			f.mu.Lock()
			r.made = time.Now()
			if r.err != nil && f.resumes[c] == r {
				delete(f.resumes, c)
			}
			f.mu.Unlock()
			close(r.done)
		}) {
			f.mu.Unlock()
			return sets.Resume{}, ErrClosed
		}
		f.resumes[c] = r
	}
	f.mu.Unlock()
	select {
	case <-r.done:
		return r.value, r.err
	case <-ctx.Done():
		return sets.Resume{}, ctx.Err()
	}
}

// cachedSnapshot is one that streams share for some seconds.
type cachedSnapshot struct {
	shared[*encodedSnapshot]
}

type encodedSnapshot struct {
	frames     []*Frame
	node       *node
	generation uint64
	partial    bool
}

// snapshot takes one of a line, or shares one that was taken lately. Nil without an error: not now, the catcher rings.
func (f *Feed) snapshot(ctx context.Context, l *line) (*encodedSnapshot, error) {
	f.mu.Lock()
	c := l.snapshot
	rebuilding := !f.rebuildUntil.IsZero()
	stale := c == nil
	if c != nil && !c.made.IsZero() {
		e := c.value
		stale = time.Since(c.made) > snapshotLife || e == nil || e.generation != l.generation || e.node.dropped || e.partial != rebuilding
	}
	if stale {
		c = &cachedSnapshot{shared[*encodedSnapshot]{done: make(chan struct{})}}
		if !f.spawn(func() {
			value, err := f.takeSnapshot(l)
			f.mu.Lock()
			c.value, c.err, c.made = value, err, time.Now()
			if (err != nil || value == nil) && l.snapshot == c {
				l.snapshot = nil
			}
			f.mu.Unlock()
			close(c.done)
		}) {
			f.mu.Unlock()
			return nil, ErrClosed
		}
		l.snapshot = c
	}
	f.mu.Unlock()
	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *Feed) takeSnapshot(l *line) (*encodedSnapshot, error) {
	began := time.Now()
	snap, err := f.feeds.o.Sets.Snapshot(f.ctx, f.org, l.set)
	if err != nil {
		return nil, err
	}
	// The line was live before the snapshot was begun, so it has the snapshot's version or will in a moment.
	f.mu.Lock()
	if !l.loaded || l.epoch != snap.State.Cursor.Epoch {
		f.reload = true
		f.kick()
		f.mu.Unlock()
		return nil, nil
	}
	n := l.at(snap.State.Cursor.Version)
	generation := l.generation
	if snap.Partial == f.rebuildUntil.IsZero() {
		f.reload = true // a rebuild began or ended, and the catcher doesn't know yet
		f.kick()
		f.mu.Unlock()
		return nil, nil
	}
	if n == nil {
		l.behind = true
		f.kick()
		f.mu.Unlock()
		return nil, nil
	}
	f.mu.Unlock()
	frames := f.snapshotFrames(snap)
	f.feeds.o.Metrics.SnapshotTaken(time.Since(began))
	return &encodedSnapshot{frames: frames, node: n, generation: generation, partial: snap.Partial}, nil
}
