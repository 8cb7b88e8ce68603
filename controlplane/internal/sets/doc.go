// Package sets keeps claims and the sets they make up, in Redis.
//
// A claim is one source's wish that a prefix be banned (or allowed, or protected). A set is the unit of versioning and
// delivery. What a set says of a prefix is the view over the prefix's counted claims and is never stored:
//
//	claims of a prefix ──view──▶ PRESENT until the latest of their expiries │ nothing
//
// Every mutation is one script over one organisation's keys:
//
//	clock ─▶ epoch (whose data) ─▶ idempotency, fence, policy ─▶ claims (staged) ─▶ views before and after
//	      ─▶ records ─▶ version+1, digest, log, events for people, doorbell
//
// The script stages in memory, and writes only when every mutation of the batch is decided: a mutation is applied
// whole or not at all, and one that is refused doesn't harm the others of its batch.
//
// # Keys
//
// All begin with fb:{ORG}: and so share a slot.
//
//	meta          hash    runid, replid, epoch, old_epoch, rebuild_until, clock; by package orgs: policy (its version), fresh (just made)
//	c:N           hash    packed prefix → its claims and tombstones, 25 bytes each; N, of 4096, from the prefix's SHA-1
//	due           zset    N → when something in the bucket may run out first
//	set:SET       hash    v (version), d (digest, hex), n (records), rc (records logged so far), rw (epochs: EPOCH:VERSION it began at,…)
//	log:SET       stream  VERSION-0 → d (digest), c (rc then), r (packed records); some 16,384 entries and 200,000 records
//	sets          hash    set → kind
//	names         hash    numbers inside claims: h, j, a, r, s and a name → number; H, J, A, R, S and the number → name
//	refs          hash    number of a reason → claims that give it
//	lens          hash    set number:address bytes:prefix length → records: where to look for what covers a prefix
//	idx:SET       zset    of allow and hosts: "4" or "6" and the packed prefix, in order of address
//	addresses     hash    host → its own addresses, as said last
//	hw            hash    host → spool and last event stored
//	h:HOST        hash    fence, written by package hosts: events under a smaller one are refused
//	events        stream  what people watch; some 10,000 entries
//	bell          sharded pub/sub: see store.Bell
//	lease:sweep   string  whose turn it is to sweep (package feed)
//
// # Invariants
//
//   - The digest of a set at a version is that of the views over the claims stored then (expired ones included, until
//     the sweep emits their EXPIRED records). Snapshot relies on it: any mixture of buckets read while versions a..b
//     were made becomes the state at b by applying the log from a+1 to b.
//   - Versions of a set grow by one and each has one log entry, until it is trimmed.
//   - A run id or replication id that isn't the stored one begins a new epoch before anything else is decided.
//   - A tombstone refuses claims begun before it, whoever makes them, replayed or late.
package sets
