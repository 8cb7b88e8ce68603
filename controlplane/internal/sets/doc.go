// Package sets keeps claims and the sets they make up, in Redis.
//
// A claim is one source's wish that a prefix be banned (or allowed, or protected). A set is the unit of versioning and
// delivery. What a set says of a prefix is the view over the prefix's counted claims and is never stored:
//
//	claims of a prefix ──view──▶ PRESENT until the latest of their expiries │ nothing
//
// Every mutation is one script over one organisation's keys:
//
//	clock ─▶ epoch (run id) ─▶ idempotency, fence, policy ─▶ claims (staged) ─▶ views before and after
//	      ─▶ records ─▶ version+1, digest, log, events for people, doorbell
//
// The script stages in memory, and writes only when every mutation of the batch is decided: a mutation is applied
// whole or not at all, and one that is refused doesn't harm the others of its batch.
//
// # Invariants
//
//   - The digest of a set at a version is that of the views over the claims stored then (expired ones included, until
//     the sweep emits their EXPIRED records). Snapshot relies on it: any mixture of buckets read while versions a..b
//     were made becomes the state at b by applying the log from a+1 to b.
//   - Versions of a set grow by one and each has one log entry, until it is trimmed.
//   - A run id that isn't the stored one begins a new epoch before anything else is decided.
//   - A tombstone refuses claims begun before it, whoever makes them, replayed or late.
package sets
