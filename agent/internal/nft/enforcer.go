package nft

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Forever is the remaining time of an element that doesn't expire.
const Forever time.Duration = -1

// shortest is the least remaining time that is worth an element. The kernel counts in ticks of up to 10 ms, and what
// rounds down to no tick at all stays for ever.
const shortest = 20 * time.Millisecond

// Element is one prefix in a set, and how long it has to stay: Forever, or counted from now.
type Element struct {
	Prefix    netip.Prefix
	Remaining time.Duration
}

// ErrGone says that the table isn't there: somebody flushed the ruleset. Replace puts it back.
var ErrGone = errors.New("the nftables table is gone")

// RefusedError says that the kernel took everything but these.
type RefusedError struct {
	Prefixes []netip.Prefix
	// Err is the kernel's refusal of the first.
	Err error
}

// Error says how many, and why the first.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("the kernel refused %d elements, the first (%s): %v", len(e.Prefixes), e.Prefixes[0], e.Err)
}

// Unwrap is the kernel's refusal.
func (e *RefusedError) Unwrap() error { return e.Err }

// Config is which table, and where.
type Config struct {
	// Table is its name in the inet family. Default: "fleetban".
	Table string
	// NetNS is the path of a network namespace; empty for the caller's.
	NetNS string
	// MaxElements bounds each set; 0 doesn't.
	MaxElements uint32
}

// Enforcer is our table in the kernel. Safe for concurrent use.
type Enforcer struct {
	cfg Config

	mu   sync.Mutex
	sock *socket
	// sets are those that the table has, as far as we know.
	sets map[setID]bool
	// packets and bytes dropped by tables that Replace took out.
	past Counters
}

// Open opens the kernel's socket and changes nothing. Whether nftables can be used, Probe tells.
func Open(cfg Config) (*Enforcer, error) {
	if cfg.Table == "" {
		cfg.Table = "fleetban"
	}
	s, err := openSocket(cfg.NetNS)
	if err != nil {
		return nil, err
	}
	return &Enforcer{cfg: cfg, sock: s, sets: make(map[setID]bool)}, nil
}

// Close lets go of the socket. The kernel goes on enforcing.
func (e *Enforcer) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sock.close()
}

func (e *Enforcer) writer(room int) writer {
	return writer{batch: e.sock.newBatch(room), table: e.cfg.Table, size: e.cfg.MaxElements}
}

// Probe tells whether nftables can be used as we need it, by making a table of our shape and taking it out again in
// one transaction. The error says what to do.
func (e *Enforcer) Probe(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	w := e.writer(0)
	w.table = e.cfg.Table + "_probe"
	w.dropTable()
	w.skeleton()
	w.newSet(setID{bits: 24}, 1)
	w.newSet(setID{six: true, bits: 64}, 2)
	w.dropTable()
	err := w.commit(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("nftables refuses: %w; the helper must run as root with CAP_NET_ADMIN", err)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("the kernel lacks something of nftables: %w; load its modules (modprobe nf_tables nft_ct) or update the kernel", err)
	default:
		return fmt.Errorf("nftables can't be used: %w", err)
	}
}

// Desired is the whole state. Its sequences may be gone through more than once.
type Desired struct {
	Bans, Allows iter.Seq[Element]
}

// Replace makes the table equal to d. What was enforced before stays so until it is replaced, in one transaction where
// the kernel takes one so large (some 300,000 elements), else the rest follows in further ones. Where the kernel
// refuses elements, the others are in force and the error is a *RefusedError.
func (e *Enforcer) Replace(ctx context.Context, d Desired) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	past, _ := e.counters(ctx)
	old := e.sets
	e.sets = make(map[setID]bool)
	w := e.writer(1 << 16)
	e.begin(w)
	f := filler{e: e, w: w, lists: make(map[setID]*list)}
	err := f.fill(ctx, d)
	if err == nil {
		e.past = past
		return nil
	}
	if f.committed == 0 {
		e.sets = old // nothing happened: the old table stands
		if fatal(err) {
			return fmt.Errorf("replace the nftables table: %w", err)
		}
		e.sets = make(map[setID]bool)
		w := e.writer(0)
		e.begin(w)
		if err := w.commit(ctx); err != nil {
			e.sets = old
			return fmt.Errorf("replace the nftables table: %w", err)
		}
	}
	// Some element is refused. Find which, a thousand at a time.
	e.past = past
	return e.refill(ctx, d)
}

// usual are the sets that nearly every fleet comes to need. A set that comes with its first element takes tens of
// milliseconds, for the kernel waits until nobody uses the old rules; without elements a set costs next to nothing.
var usual = []setID{{bits: 32}, {six: true, bits: 128}, {six: true, bits: 64}}

// begin writes the table anew, with the usual sets.
func (e *Enforcer) begin(w writer) {
	w.dropTable()
	w.skeleton()
	for _, id := range usual {
		e.need(w, id)
	}
}

// refill adds everything of d in small transactions.
func (e *Enforcer) refill(ctx context.Context, d Desired) error {
	var refused *RefusedError
	var bans, allows []Element
	flush := func() error {
		err := e.update(ctx, Update{Add: bans, Allow: allows})
		bans, allows = bans[:0], allows[:0]
		var r *RefusedError
		if errors.As(err, &r) {
			refused = refused.join(r)
			return nil
		}
		return err
	}
	for _, part := range []struct {
		seq iter.Seq[Element]
		to  *[]Element
	}{{d.Allows, &allows}, {d.Bans, &bans}} {
		if part.seq == nil {
			continue
		}
		for el := range part.seq {
			if *part.to = append(*part.to, el); len(*part.to) == mostElements {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	if refused != nil {
		return refused
	}
	return nil
}

func (e *RefusedError) join(other *RefusedError) *RefusedError {
	if e == nil {
		return other
	}
	e.Prefixes = append(e.Prefixes, other.Prefixes...)
	return e
}

// fatal tells errors that no smaller transaction would mend.
func fatal(err error) bool {
	var k *KernelError
	if !errors.As(err, &k) {
		return true
	}
	switch k.Errno {
	case unix.EPERM, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT:
		return true
	default:
		return false
	}
}

// list is elements of one set on their way into a message.
type list struct {
	buf []byte
	n   int
}

// filler writes elements into a batch as they come, and commits when the batch is full.
type filler struct {
	e         *Enforcer
	w         writer
	lists     map[setID]*list
	committed int
}

func (f *filler) fill(ctx context.Context, d Desired) error {
	for _, part := range []struct {
		seq   iter.Seq[Element]
		allow bool
	}{{d.Allows, true}, {d.Bans, false}} {
		if part.seq == nil {
			continue
		}
		for el := range part.seq {
			if err := f.add(ctx, el, part.allow); err != nil {
				return err
			}
		}
	}
	for id, l := range f.lists {
		if l.n > 0 {
			f.w.elements(unix.NFT_MSG_NEWSETELEM, id, l.buf)
		}
	}
	return f.commit(ctx)
}

func (f *filler) add(ctx context.Context, el Element, allow bool) error {
	if el.Remaining != Forever && el.Remaining < shortest {
		return nil
	}
	id := setOf(el.Prefix, allow)
	l := f.lists[id]
	if l == nil {
		l = new(list)
		f.lists[id] = l
	}
	f.e.need(f.w, id)
	l.buf = appendElement(l.buf, el.Prefix, el.Remaining)
	if l.n++; l.n < mostElements {
		return nil
	}
	f.w.elements(unix.NFT_MSG_NEWSETELEM, id, l.buf)
	l.buf, l.n = l.buf[:0], 0
	// Room is left for one last message of each set.
	if len(f.w.buf)+(len(f.lists)+1)*mostElements*40 > f.e.sock.largest {
		return f.commit(ctx)
	}
	return nil
}

func (f *filler) commit(ctx context.Context) error {
	if err := f.w.commit(ctx); err != nil {
		return err
	}
	f.committed++
	f.w = f.e.writer(0)
	return nil
}

// need makes the set unless it is there.
func (e *Enforcer) need(w writer, id setID) {
	if !e.sets[id] {
		e.sets[id] = true
		w.newSet(id, uint32(len(e.sets))) //nolint:gosec // at most 324
	}
}

// Update is a change of the table. An element that is there already gets the new remaining time; one that isn't there
// may be removed.
type Update struct {
	Add    []Element
	Remove []netip.Prefix
	// Allow and Disallow are the same for the prefixes that are never dropped.
	Allow    []Element
	Disallow []netip.Prefix
}

func (u Update) size() int { return len(u.Add) + len(u.Remove) + len(u.Allow) + len(u.Disallow) }

// Update applies u, in one transaction if it isn't larger than some thousands. ErrGone: the table isn't there, nothing
// was done. *RefusedError: everything but these is done.
func (e *Enforcer) Update(ctx context.Context, u Update) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.update(ctx, u)
}

// mostChanges is how many changes one transaction of Update takes.
const mostChanges = 5000

func (e *Enforcer) update(ctx context.Context, u Update) error {
	var refused *RefusedError
	for u.size() > 0 {
		var part Update
		room := mostChanges
		part.Disallow, u.Disallow, room = cut(u.Disallow, room)
		part.Allow, u.Allow, room = cut(u.Allow, room)
		part.Remove, u.Remove, room = cut(u.Remove, room)
		part.Add, u.Add, _ = cut(u.Add, room)
		err := e.apply(ctx, part)
		if err == nil {
			continue
		}
		if fatal(err) {
			return fmt.Errorf("change the nftables table: %w", err)
		}
		if errors.Is(err, unix.ENOENT) && e.gone(ctx) {
			e.sets = make(map[setID]bool)
			return ErrGone
		}
		r, err := e.bisect(ctx, part, err, nil)
		if err != nil {
			return err
		}
		if r != nil {
			refused = refused.join(r)
		}
	}
	if refused != nil {
		return refused
	}
	return nil
}

func cut[T any](all []T, room int) (part, rest []T, left int) {
	n := min(len(all), room)
	return all[:n], all[n:], room - n
}

// mostRefused is how many refusals are looked for one by one; the rest of the same change is then taken for refused.
const mostRefused = 1000

// bisect applies what it can of u, which the kernel refused whole.
func (e *Enforcer) bisect(ctx context.Context, u Update, cause error, refused *RefusedError) (*RefusedError, error) {
	if u.size() == 1 || (refused != nil && len(refused.Prefixes) >= mostRefused) {
		r := &RefusedError{Err: cause}
		for _, el := range append(u.Add, u.Allow...) {
			r.Prefixes = append(r.Prefixes, el.Prefix)
		}
		// A removal is never refused but for a set that somebody took away: then it isn't enforced either.
		if len(r.Prefixes) == 0 {
			return refused, nil
		}
		return refused.join(r), nil
	}
	half := u.size() / 2
	var a, b Update
	a.Disallow, b.Disallow, half = cut(u.Disallow, half)
	a.Allow, b.Allow, half = cut(u.Allow, half)
	a.Remove, b.Remove, half = cut(u.Remove, half)
	a.Add, b.Add, _ = cut(u.Add, half)
	for _, part := range []Update{a, b} {
		err := e.apply(ctx, part)
		if err == nil {
			continue
		}
		if fatal(err) {
			return refused, err
		}
		if refused, err = e.bisect(ctx, part, err, refused); err != nil {
			return refused, err
		}
	}
	return refused, nil
}

// apply is one transaction.
func (e *Enforcer) apply(ctx context.Context, u Update) error {
	if u.size() == 0 {
		return nil
	}
	w := e.writer(512 + 128*u.size())
	known := len(e.sets)
	var made []setID
	e.remove(w, u.Remove, false)
	e.remove(w, u.Disallow, true)
	for _, part := range []struct {
		elements []Element
		allow    bool
	}{{u.Allow, true}, {u.Add, false}} {
		group(part.elements, func(el Element) (netip.Prefix, time.Duration) {
			if el.Remaining != Forever && el.Remaining < shortest {
				return netip.Prefix{}, 0
			}
			return el.Prefix, el.Remaining
		}, part.allow, func(id setID, buf []byte) {
			if !e.sets[id] {
				made = append(made, id)
			}
			e.need(w, id)
			// Adding alone doesn't change the end of what is there on every kernel, and deleting what isn't there fails.
			w.elements(unix.NFT_MSG_NEWSETELEM, id, buf)
			w.elements(unix.NFT_MSG_DELSETELEM, id, buf)
			w.elements(unix.NFT_MSG_NEWSETELEM, id, buf)
		})
	}
	err := w.commit(ctx)
	if err != nil && len(e.sets) != known {
		for _, id := range made {
			delete(e.sets, id)
		}
	}
	return err
}

func (e *Enforcer) remove(w writer, prefixes []netip.Prefix, allow bool) {
	group(prefixes, func(p netip.Prefix) (netip.Prefix, time.Duration) {
		if !e.sets[setOf(p, allow)] {
			return netip.Prefix{}, 0
		}
		return p, time.Minute
	}, allow, func(id setID, buf []byte) {
		w.elements(unix.NFT_MSG_NEWSETELEM, id, buf)
		w.elements(unix.NFT_MSG_DELSETELEM, id, buf)
	})
}

// group writes items as lists of elements, one set at a time, and calls f with each list. Items for which get returns no
// prefix are left out.
func group[T any](items []T, get func(T) (netip.Prefix, time.Duration), allow bool, f func(setID, []byte)) {
	if len(items) == 0 {
		return
	}
	lists := make(map[setID]*list, 1)
	for _, item := range items {
		p, remaining := get(item)
		if !p.IsValid() {
			continue
		}
		id := setOf(p, allow)
		l := lists[id]
		if l == nil {
			l = new(list)
			lists[id] = l
		}
		l.buf = appendElement(l.buf, p, remaining)
		if l.n++; l.n == mostElements {
			f(id, l.buf)
			l.buf, l.n = l.buf[:0], 0
		}
	}
	for id, l := range lists {
		if l.n > 0 {
			f(id, l.buf)
		}
	}
}

// Off takes the table out of the kernel: nothing is dropped any more.
func (e *Enforcer) Off(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	past, _ := e.counters(ctx)
	w := e.writer(0)
	w.dropTable()
	if err := w.commit(ctx); err != nil {
		return fmt.Errorf("take out the nftables table: %w", err)
	}
	e.sets = make(map[setID]bool)
	e.past = past
	return nil
}

// Counters is what was dropped since Open.
type Counters struct {
	Packets, Bytes uint64
}

// Counters reads what was dropped since Open.
func (e *Enforcer) Counters(ctx context.Context) (Counters, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.counters(ctx)
}

func (e *Enforcer) counters(ctx context.Context) (Counters, error) {
	total := e.past
	var q batch
	q.text(unix.NFTA_OBJ_TABLE, e.cfg.Table)
	q.text(unix.NFTA_OBJ_NAME, counterName)
	q.u32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
	err := e.sock.get(ctx, unix.NFT_MSG_GETOBJ, q.buf, func(attrs []byte) error {
		for kind, value := range attributes(attrs) {
			if kind != unix.NFTA_OBJ_DATA {
				continue
			}
			for k, v := range attributes(value) {
				switch {
				case k == unix.NFTA_COUNTER_PACKETS && len(v) == 8:
					total.Packets += wire.Uint64(v)
				case k == unix.NFTA_COUNTER_BYTES && len(v) == 8:
					total.Bytes += wire.Uint64(v)
				}
			}
		}
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		return total, nil
	}
	return total, err
}

// gone tells whether the table isn't there.
func (e *Enforcer) gone(ctx context.Context) bool {
	var q batch
	q.text(unix.NFTA_TABLE_NAME, e.cfg.Table)
	err := e.sock.get(ctx, unix.NFT_MSG_GETTABLE, q.buf, func([]byte) error { return nil })
	return errors.Is(err, unix.ENOENT)
}
