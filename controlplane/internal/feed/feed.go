// Package feed carries an organisation's sets from Redis to any number of streams of one replica.
//
// There is one reader a replica and organisation, however many streams hang on it. It listens to the doorbell, reads
// the logs where the doorbell left something out, and encodes each delta once: every stream sends the same bytes.
//
//	doorbell ─▶ reader ─▶ set "all":   [d7]▶[d8]▶[d9]▶…      a linked list of encoded frames
//	   logs ──▶           set "allow": [d2]▶…                 a stream holds a position in each
//
// A stream never blocks the reader and the reader holds no queue a stream: one that lags behind what is kept is told
// to start from a snapshot again.
package feed

import (
	"context"
	"log/slog"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	"github.com/fleetban/fleetban/controlplane/internal/store"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Frame is one encoded fleetbanv1.ConnectResponse, shared by all streams that send it: never to be changed.
type Frame struct {
	// Message is what Bytes encode, for transports that encode themselves. Shared and never to be changed.
	Message *fleetbanv1.ConnectResponse
	// Bytes is Message in protobuf's binary form.
	Bytes []byte
	// Cursor is what a holder has when it has applied the frame (of a snapshot: the last page).
	Cursor sets.Cursor
}

// Options of New.
type Options struct {
	Store *store.Store
	Sets  *sets.Sets
	// Sign makes a record's MAC under the organisation's key: 16 bytes.
	Sign func(org, set string, r sets.Record) []byte
	// Logger; default slog.Default().
	Logger *slog.Logger
}

// Feeds holds the feeds of all organisations that have streams here.
type Feeds struct{}

// New makes a Feeds.
func New(o Options) *Feeds { return &Feeds{} }

// Close ends all feeds and waits for their readers.
func (f *Feeds) Close() {}

// Acquire returns the organisation's feed, started if it is the first; release it when the stream ends.
func (f *Feeds) Acquire(org string) (feed *Feed, release func()) { return &Feed{}, func() {} }

// Feed is one organisation's.
type Feed struct{}

// Listen calls back with doorbells that aren't deltas or probes (command, kick, settings, acks, events, epoch), from
// the reader's goroutine: the callback must not block. Rings may be missed while Redis is away; after each
// (re)subscription the callback gets a Bell of kind BellEpoch, which means "look at everything again". stop ends it.
func (f *Feed) Listen(callback func(store.Bell)) (stop func()) { return func() {} }

// Subscription is one stream's position in some sets. Not safe for concurrent use, but for Ready.
type Subscription struct{}

// Subscribe begins at what the stream holds: a cursor with epoch 0 holds nothing. Next then gives what is to be sent.
func (f *Feed) Subscribe(cursors []sets.Cursor) *Subscription { return &Subscription{} }

// Ready is closed-over channel that receives when Next may have something. One element, never blocks the sender.
func (s *Subscription) Ready() <-chan struct{} { return nil }

// Next returns the next frames to send, in order, at most max; none when the stream is current. It may read from Redis
// (a resume, a snapshot, an offer). An error is of the store: the stream stays open, call again after a while.
//
// A frame is a Delta, a SnapshotPage, a SetSync, or an OfferRequest. After an OfferRequest the set waits until Offered.
func (s *Subscription) Next(ctx context.Context, max int) ([]*Frame, error) { return nil, nil }

// Offered tells that the answer to an OfferRequest of the set is complete: its snapshot follows.
func (s *Subscription) Offered(set string) {}

// Cursor is where the stream is in a set: what was returned by Next last.
func (s *Subscription) Cursor(set string) sets.Cursor { return sets.Cursor{} }

// Resync makes the stream start from a cursor again: what the host says it holds differs from what it was sent.
func (s *Subscription) Resync(cursor sets.Cursor) {}

// Close ends the subscription.
func (s *Subscription) Close() {}
