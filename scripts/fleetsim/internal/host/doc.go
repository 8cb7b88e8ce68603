// Package host simulates hosts of a fleet. The stream is the agent's own (package stream of the agent); what stands on
// either side of it is simulated in memory: fail2ban and the spool of events is a Source, the kernel's sets are a Sink.
//
//	fail2ban: Ban, Unban ─▶ Spool ─▶ ┌────────┐ ── TCP, TLS or h2c ──▶ control plane
//	kernel: records, digest ◀─ Kernel │ stream │ ◀─────────────────────
//	                                  └────────┘
//
// All hosts of a process share a [World]: records are the same on each of them, so each host holds four bytes a record
// and the World holds what they mean. A host still has its own idea of what is in each set, and its own digest over it.
package host
