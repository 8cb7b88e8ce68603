package feed

import (
	"sync"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// What a line keeps for streams that are behind; beyond it they resume from Redis's log.
const (
	keptNodes   = 4096
	keptRecords = 20_000
)

// line is one set in memory: its newest versions as a linked list. Guarded by the feed's mutex.
//
//	first ─▶ node v ─▶ node v+1 ─▶ … ─▶ last
//
// The first node is a position without a frame to send; a stream holds the node it has sent. A node that is dropped is
// cut off and marked, so that a stream that still holds it keeps nothing else alive.
type line struct {
	set  string
	kind fleetbanv1.SetKind
	// generation grows when what is kept no longer continues what was: a new epoch, or a gap that the log can't fill.
	generation uint64
	epoch      uint64
	first      *node
	last       *node
	nodes      int
	records    int
	// loaded: first and last are set.
	loaded bool
	// behind: the doorbell told of versions that aren't here.
	behind bool
	// lacks is what the last look found.
	lacks behind

	snapshot *cachedSnapshot

	followers []*position
}

func (l *line) follow(p *position) {
	p.place = len(l.followers)
	l.followers = append(l.followers, p)
}

func (l *line) leave(p *position) {
	last := len(l.followers) - 1
	l.followers[p.place] = l.followers[last]
	l.followers[p.place].place = p.place
	l.followers[last] = nil
	l.followers = l.followers[:last]
}

// node is one version of a set.
type node struct {
	delta   sets.Delta
	heard   Moment
	next    *node
	dropped bool
	once    sync.Once
	frame   *Frame
}

// cursor is what a holder has that applied the version.
func (n *node) cursor() sets.Cursor {
	return sets.Cursor{Set: n.delta.Set, Epoch: n.delta.Epoch, Version: n.delta.Version, Digest: n.delta.Digest}
}

func (l *line) reset(at sets.Cursor) {
	for n := l.first; n != nil; {
		next := n.next
		n.dropped, n.next = true, nil
		n = next
	}
	start := &node{delta: sets.Delta{Set: l.set, Kind: l.kind, Epoch: at.Epoch, Version: at.Version, Digest: at.Digest}}
	l.generation++
	l.epoch = at.Epoch
	l.first, l.last, l.nodes, l.records = start, start, 0, 0
	l.loaded, l.behind, l.snapshot = true, false, nil
}

// push appends the version after the last.
func (l *line) push(d sets.Delta) {
	n := &node{delta: d, heard: now()}
	l.last.next = n
	l.last = n
	l.nodes++
	l.records += len(d.Records)
	for l.nodes > keptNodes || l.records > keptRecords && l.nodes > 1 {
		gone := l.first
		l.first = gone.next
		gone.dropped, gone.next = true, nil
		l.nodes--
		l.records -= len(l.first.delta.Records)
	}
}

// contradicts reports whether the line isn't what Redis has at a cursor: it was farther before that was read, or had another digest
// there. Who tells of an epoch must not have told another story of it, but no host is to be stale for good if somebody did.
func (l *line) contradicts(at sets.Cursor, before *node) bool {
	if !l.loaded || before != nil && before.delta.Epoch == at.Epoch && before.delta.Version > at.Version {
		return true
	}
	n := l.at(at.Version)
	return n != nil && n.delta.Digest != at.Digest
}

// at finds the node of a version among those kept.
func (l *line) at(version uint64) *node {
	if !l.loaded || version < l.first.delta.Version || version > l.last.delta.Version {
		return nil
	}
	n := l.first
	for n.delta.Version < version {
		n = n.next
	}
	return n
}
