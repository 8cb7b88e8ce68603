// Package stream is the client side of AgentService.Connect: it keeps one stream to the control plane, for ever.
//
// It holds nothing that outlives it and touches no disk: what it carries comes from a [Source] of events and goes to a
// [Sink] that keeps and enforces sets. The agent gives it its spool and its helper; a simulator gives it thousands of
// small ones.
//
//	            ┌──────────── backoff: first at once, then 0.2 s … 30 s, jittered, for ever ─────────────┐
//	            │             long (a minute and more): host cloned, disabled, wrong key, protocol      │
//	            ▼                                                                                       │
//	dial ──▶ Hello ──▶ Welcome ──▶ up ──▶ lost: closed, silent for 2.5 heartbeats, gap, unknown error ──┤
//	 ▲         │                    │                                                                   │
//	 │         └─ 401 clock skew: correct the offset, once, at once                                     │
//	 │                              ▼                                                                   │
//	 │                          Drain: after the pause it names, dial anew; the old stream               │
//	 └───────────────────────── goes on until the new one is welcome, then it is closed ◀───────────────┘
//
// While a stream is up one goroutine receives and gives to the Sink, one sends. Where a change came alone, nothing else is being sent
// and the socket is empty, the one that receives acknowledges it itself; it never waits for the other end to read. What is sent:
//   - events, in order, from welcome.events_through+1, at most [maxUnacked] ahead of the acknowledgement;
//   - acknowledgements of sets, once the Sink has them in the kernel: at once where nothing else waits to be applied,
//     else gathered, at most a second;
//   - health when it changes, results of commands, offers, and a heartbeat each interval.
//
// Invariants:
//   - nothing is acknowledged that the Sink didn't say is applied; a delta of an unknown kind never is;
//   - after a gap nothing more of any set is applied before a fresh Hello told the true cursors;
//   - a Sink that is away loses no set: the stream stays up for events and health, sets are left unread, and Resync
//     (when it is back) begins anew with a Hello.
package stream
