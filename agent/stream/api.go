package stream

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/fleetban/fleetban/agent/internal/lately"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Sink keeps and enforces sets. Its methods may be called by two goroutines at once while one stream takes over from
// another.
type Sink interface {
	// Cursors is what is held.
	Cursors(ctx context.Context) ([]*fleetbanv1.SetCursor, error)
	// Begin takes in what a Welcome said. serverMS is the server's clock now; peers are the addresses of the control plane
	// that this host is connected to.
	Begin(ctx context.Context, w *fleetbanv1.Welcome, serverMS int64, peers []netip.Addr) error
	// Apply applies one update and returns when it is in force. An error means that the sink is away.
	Apply(ctx context.Context, u Update, serverMS int64) (Applied, error)
	// Settings takes in new settings of the organisation; nil: the server's clock was set, and that is all.
	Settings(ctx context.Context, s *fleetbanv1.Settings, serverMS int64) error
	// Exceptions is what is held and not enforced.
	Exceptions(ctx context.Context) (Exceptions, error)
	// Held gives the records of a set above a version, in pages of at most 1000.
	Held(ctx context.Context, set string, above uint64, page func([]*fleetbanv1.Record) error) error
	// Execute carries out a command. It may take seconds; the next one waits for it.
	Execute(ctx context.Context, c *fleetbanv1.Command, serverMS int64) *fleetbanv1.CommandResult
}

// Update is one of a Delta, a SnapshotPage and a SetSync.
type Update struct {
	Delta *fleetbanv1.Delta
	Page  *fleetbanv1.SnapshotPage
	Sync  *fleetbanv1.SetSync
}

// Outcome is what became of an update.
type Outcome int

// What Apply can answer.
const (
	// Done: in force, or held already. It may be acknowledged.
	Done Outcome = iota + 1
	// More: a page that isn't the last. Nothing is in force yet.
	More
	// Gap: doesn't follow what is held, or another digest came out.
	Gap
	// UnknownKind: has a kind of record that the sink doesn't know.
	UnknownKind
)

// Applied is the answer to an update.
type Applied struct {
	Outcome Outcome
	// Cursor is what is held of the set now.
	Cursor *fleetbanv1.SetCursor
	// ExceptionsChanged asks for Exceptions to be told with the acknowledgement.
	ExceptionsChanged bool
}

// Exceptions is what is in force nowhere on this host.
type Exceptions struct {
	// List holds at most 1000 of them, Total counts all.
	List  []*fleetbanv1.SetException
	Total uint32
	Inert fleetbanv1.Inert
}

// Source is a queue of events.
type Source interface {
	// ID names the queue: sequence numbers are its own.
	ID() string
	// Begin says through which event the control plane has stored. An error ends the stream; the next begins at once.
	Begin(through uint64) error
	// Next is up to limit events after a sequence, oldest first, with their ages as of now.
	Next(after uint64, limit int) ([]*fleetbanv1.Event, error)
	// Ack says that everything through a sequence of the queue of that id is stored.
	Ack(id string, through uint64)
	// Appended is signalled when there are more events.
	Appended() <-chan struct{}
}

// Config is what a Client needs. All but the marked fields are required.
type Config struct {
	// URL of the control plane: https, or http (h2c) in a lab.
	URL *url.URL
	// TLS for https; nil for the system's trust. It is cloned.
	TLS *tls.Config
	// Proxy finds the proxy of a request. Optional; http.ProxyFromEnvironment in the agent.
	Proxy func(*http.Request) (*url.URL, error)
	// Dial makes the TCP connection. Optional; a simulator chooses replicas with it, as a balancer would.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Key, HostID, Audience and Grant are the host's identity.
	Key                     ed25519.PrivateKey
	HostID, Audience, Grant string
	// Credentials gives Key and Grant as they are now, for each attempt. Optional; for a host that changes its key.
	Credentials func(ctx context.Context) (key ed25519.PrivateKey, grant string)
	// Instance is new with each start of the process.
	Instance string
	// Features are the names of optional behaviours. Optional.
	Features []string
	// Facts says what the host is. Called for each Hello.
	Facts func() *fleetbanv1.HostFacts
	// Health says how the host is. Called for each Hello and after HealthChanged.
	Health func() *fleetbanv1.Health
	Sink   Sink
	Source Source
	// Log gets one line when the state changes. Optional.
	Log *slog.Logger
	// Lately remembers what happened to the control plane's store. Optional.
	Lately *lately.Log
	// Changed is called, by the goroutine of Run or of a stream, after the status changed. Optional.
	Changed func()
	// Decode reads a message of the control plane; b is used again afterwards. Optional; for a process of many hosts, who are sent the
	// same bytes. Streams that net/http carries don't use it.
	Decode func(b []byte) (*fleetbanv1.ConnectResponse, error)
	// Patience bounds how long dialling and the Welcome may take. Optional; 15 s.
	Patience time.Duration
}

// Status is how the stream is.
type Status struct {
	Connected bool
	// Replica serves the stream.
	Replica string
	// Since when Connected is what it is.
	Since time.Time
	// Problem is why it isn't connected, and what would mend it.
	Problem string
	// Retry is when it is tried next.
	Retry time.Time
	// Reconnects counts streams that were welcomed, less one.
	Reconnects uint64
	// RoundTrip is the time from the last message that the server answers to its answer.
	RoundTrip time.Duration
	// Offset is the server's clock less the host's.
	Offset time.Duration
	// StoreAway is since when the control plane can't reach its store, by its own word; zero when it can.
	StoreAway time.Time
	// HostName and Organisation are what the last Welcome said.
	HostName, Organisation string
	// Cursors is what the Sink last said, on the last stream that was welcome.
	Cursors []*fleetbanv1.SetCursor
}
