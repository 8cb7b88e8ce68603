// Package host simulates hosts of a fleet. The stream is the agent's own (package stream of the agent); what stands on
// either side of it is simulated in memory: fail2ban and the spool of events is a Source, the kernel's sets are a Sink.
//
//	fail2ban: Ban, Unban ─▶ Spool ─▶ ┌────────┐ ── TCP, TLS or h2c ──▶ control plane
//	kernel: records, digest ◀─ Kernel │ stream │ ◀─────────────────────
//	                                  └────────┘
//
// All hosts of a process share a [World]: records are the same on each of them, so each host holds their numbers and the World what they
// mean. What comes in the same bytes is decoded once for all of them, as if hosts were what they are, machines of their own that do that
// at once. A host still has its own idea of what is in each set, and its own digest over it: it compares that with the control plane's
// for each change.
package host
