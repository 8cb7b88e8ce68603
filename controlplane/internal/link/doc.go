// Package link carries one stream of gRPC on one connection, for a server that holds many thousand of them.
//
// net/http serves HTTP/2 for everybody: for each stream it keeps three goroutines, buffers for many streams and tables for
// headers that never come, and it passes each message through two of them. An agent has one connection with one stream on
// it, which it speaks for weeks. So here the goroutine that serves the stream reads the connection itself, and nothing but
// the reader waits: a write that the network doesn't take is kept and finished by a goroutine that exists only then.
//
//	reader (one goroutine) ◀── frames ── TLS ◀── Wire ◀── socket
//	whoever has a message  ──▶ frames ─▶ TLS ──▶ Wire ──▶ socket        never blocks
//	                              │                └─ what the socket doesn't take: finished later, then Drained
//	                              └─ what the peer's window doesn't take: sent when it opens, then Drained
//
// It speaks HTTP/2 (RFC 9113) to a client that keeps to one request on a connection and that said so (see Protocol): other
// requests on the connection are refused in the way that clients try elsewhere. Everything the peer can make it hold is
// bounded.
package link

import "time"

// Protocol is what an agent adds to the protocols that it offers in its TLS handshake (ALPN) to say that its connection is for one
// stream and ends at the agent, not at a proxy that would carry other requests on it. What is agreed on is Agreed where the
// agent offers that too, else "h2".
const Protocol = "fleetban-agent"

// Agreed is so much of HTTP/2 as this package needs, spoken by agents whose end of the connection is as little as this one: each header
// is one frame of literals that no table shortens, and a client may send MaxMessage and 64 KiB ahead from the first byte.
const Agreed = "fleetban-link"

// Call is what an agent adds to the protocols that it offers for a call that is no stream: that it is a host's, which may be asked for a
// client certificate. It is never agreed on.
const Call = "fleetban-agent-call"

// MaxMessage bounds a message of the peer, bytes.
const MaxMessage = 1 << 20

// busyFrom is the first of the alerts that Busy sends. TLS has none of these numbers in use, nor room for a delay in others.
const busyFrom = 200

// MaxBusy is the longest delay that Busy can tell.
const MaxBusy = 55 * time.Second

// Busy is what a server answers to a ClientHello of an agent that it has no time for: a TLS alert, before anything costly is
// done, whose number is 200 and the seconds after which to come again. Its sender isn't proven, as nothing is that comes so early;
// who can forge it can as well cut the connection.
func Busy(after time.Duration) []byte {
	seconds := (min(max(after, time.Second), MaxBusy) + time.Second - 1) / time.Second
	return []byte{21, 3, 3, 0, 2, 2, busyFrom + byte(seconds)}
}
