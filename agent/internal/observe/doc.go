// Package observe learns what the local fail2ban has banned, and how fail2ban is.
//
// fail2ban's log is read as it grows: a line is known within a millisecond. But a line is a hint, not a fact, for its text
// comes partly from attackers, and it has neither a duration nor a time zone. So each is confirmed over fail2ban's socket
// before it counts, durations are read back from fail2ban, and three nets catch what lines missed or never told: the
// jails' counters once a second, a full comparison every few minutes and after anything that breaks continuity, and polling
// alone where there is no log to read.
//
//	           socket answers                        counters at rest, read in full
//	┌──────┐ ──────────────────▶ ┌──────────┐ ─────────────────────────────▶ ┌────┐
//	│ down │                     │ starting │                                │ up │
//	└──────┘ ◀────────────────── └──────────┘ ◀───────────────────────────── └────┘
//	   ▲        broken, silent        ▲            another process answers      │
//	   │                              │                                        │ says it shuts down
//	   │                              └───────────────────┐                     ▼
//	   │                                                  │               ┌──────────┐
//	   └──────────────────────────────────────────────────┴────────────── │ stopping │
//	                                                                      └──────────┘
//
// fail2ban lifts every ban when it stops and reads them back when it starts. Between the two, unbans are ignored; new bans
// are told at once, also while it starts. The first look of all goes from down to up directly.
//
// A subscriber gets a baseline (everything that is banned), then changes. What can't be told as changes, or what a slow
// subscriber leaves behind, becomes a new baseline: memory stays bounded by what is banned.
package observe
