// Package spool keeps what fail2ban did on this host until the control plane has stored it.
//
// It is two things in one journal: the table of bans known to stand, and the queue of events that changed it. An
// observation becomes an event only where it changes the table, and both are one record of the journal, on disk before
// anything is sent: so each change is told exactly once, however often a baseline repeats it and whenever anything
// is killed.
//
//	Baseline, Change ─▶ table ─ differs? ─▶ journal (fdatasync) ─▶ Next ─▶ EventBatch
//	                      ▲                    │                              │
//	                      └───── Open ─────────┘        Ack ◀──── EventAck ◀──┘
//
// Events stay for a window after their acknowledgement, so that they can be sent again when the control plane lost
// them. An event is named by (host, spool id, sequence); the id is random and new whenever sequence numbers might be
// used twice: when a full disk kept events from being written and the process died, or when the control plane has
// acknowledged more than is here.
//
// When the disk refuses, events wait in a bounded buffer in memory. When the spool is full, changes are left out of the
// table as well, so that the next baseline finds them again; they are counted as lost until then.
package spool
