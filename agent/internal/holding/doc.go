// Package holding keeps the sets that this host holds: their records, how far each set was followed, and all of it on
// disk, so that a host enforces what it knew after a crash, a reboot or a year without its control plane.
//
// A set is at a cursor (epoch, version, digest). What moves it:
//
//	          Delta, digest as announced            Delta that doesn't follow, other digest
//	at v ───────────────────────────────▶ at v'     ───────────────▶ GAP: nothing changes, a snapshot is needed
//	          last page, digest as announced
//	at v ───────────────────────────────▶ exactly the snapshot
//	          last page, partial
//	at v ───────────────────────────────▶ merged: deltas go on without their digests, until a whole snapshot
//	                                               or a sync with our digest
//
// The control plane is the authority on every record; the holder only refuses what it can't follow. Expiry is a record
// of its own (EXPIRED), so that digests agree, but an end that has passed is no ban: whoever enforces looks at the clock.
//
// On disk there is one file of frames (see disk.go). A frame is written before an Apply answers, synced within a
// second; a torn tail is cut off at load and leaves an older, consistent state.
package holding
