package chaos

import (
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"time"
)

// verdict is what must be true of a prefix at a moment.
type verdict int

const (
	either verdict = iota // nobody was told for sure
	banned
	free
)

// Bans end by clocks of several machines, and kernels are read in a moment that takes some time.
const (
	early = time.Second
	late  = 4 * time.Second
)

// hostsForget is how long a host whose stream stands may think that the server's clock is ahead when it no longer is: it believes
// the earliest of its last eight words, which come every 20 s.
const hostsForget = 3 * time.Minute

// fact is what callers were told of one prefix. Each prefix has one caller at a time.
type fact struct {
	prefix netip.Prefix
	// host is whose fail2ban banned it; empty: the API did.
	host string
	// acknowledged says that the last call of a ban succeeded; else its outcome isn't known.
	acknowledged bool
	// ends is when the ban ends at the latest; earliest when it may.
	ends, earliest time.Time
	// lifting says that an unban was asked for, lifted that it was acknowledged.
	lifting, lifted bool
	// shaken says that the host's fail2ban was killed around its ban or unban: whether it still bans is its own affair.
	shaken bool
	// tail says that Redis may have lost what it acknowledged of this ban; held are the hosts whose kernels had it, gone
	// says that one of those dropped it after its unban was asked for: what a host knows comes back.
	tail bool
	held map[string]bool
	gone bool
	// early and late are how much earlier and later it may end because the server's clock was set.
	early, late time.Duration
	// allowed prefixes are on the allowlist.
	allowed bool
	round   int
}

// verdict says what must hold of f at a moment. It holds of kernels once the fleet has had time to settle.
func (f *fact) verdict(at time.Time) verdict {
	switch {
	case f.allowed && f.tail && !at.After(f.over()): // the allowlist's entry may be what was lost
		return either
	case f.allowed:
		return free
	case at.After(f.over()):
		return free
	case at.After(f.earliest.Add(-early - f.early)):
		return either
	case f.tail && f.lifting && !f.gone, f.tail && f.host == "" && len(f.held) == 0: // a host's events are kept and sent again
		return either
	case f.lifted && !f.shaken:
		return free
	case f.lifting, f.shaken, !f.acknowledged:
		return either
	default:
		return banned
	}
}

// verdictWithoutTail is what would have to hold if Redis had lost nothing.
func (f *fact) verdictWithoutTail(at time.Time) verdict {
	g := *f
	g.tail = false
	return g.verdict(at)
}

// over is when no kernel may have it any more.
func (f *fact) over() time.Time { return f.ends.Add(late + f.late) }

func (f *fact) String() string {
	who := "a person"
	if f.host != "" {
		who = "fail2ban on " + f.host
	}
	return fmt.Sprintf("%s (round %d, by %s; acknowledged %t, ends %s, lifting %t, lifted %t, shaken %t, tail %t, held by %d, gone %t)",
		f.prefix, f.round, who, f.acknowledged, f.ends.Format("15:04:05.000"), f.lifting, f.lifted, f.shaken, f.tail, len(f.held), f.gone)
}

// journal is what callers were told, of every prefix that a kernel could still hold.
type journal struct {
	mu    sync.Mutex
	facts map[netip.Prefix]*fact
	next  uint32
	// tail says that Redis may lose what it acknowledges now.
	tail bool
	// Until behind the server's clock may stand still, for it never goes back; hosts' idea of it goes on meanwhile, and bans
	// that are made then may end earlier by what it was ahead and for how long it stood.
	ahead  time.Duration
	behind time.Time
}

func newJournal() *journal { return &journal{facts: map[netip.Prefix]*fact{}} }

// fresh is an address that nobody has used, of a range that nothing in a lab has.
func (j *journal) fresh() netip.Prefix {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.next++
	n := j.next
	if n%5 == 0 { // IPv6 bans are of a /64
		a := netip.MustParseAddr("2a05:4500::").As16()
		a[4], a[5], a[6], a[7] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
		return netip.PrefixFrom(netip.AddrFrom16(a), 64)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{45, byte(n >> 16), byte(n >> 8), byte(n)}), 32)
}

func (j *journal) note(f fact) *fact {
	j.mu.Lock()
	defer j.mu.Unlock()
	f.tail = j.tail
	f.late = max(0, time.Until(j.behind))
	if time.Now().Before(j.behind.Add(hostsForget)) {
		f.early = j.ahead
	}
	f.held = map[string]bool{}
	j.facts[f.prefix] = &f
	return &f
}

func (j *journal) find(p netip.Prefix) *fact {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.facts[p]
}

// about is what callers were told of a single address, in words.
func (j *journal) about(address string) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return err.Error()
	}
	f := j.find(netip.PrefixFrom(a, a.BitLen()))
	if f == nil {
		return "nobody remembers it"
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return f.String()
}

// change changes a fact under the lock.
func (j *journal) change(f *fact, with func(*fact)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	with(f)
}

// begin begins a round, in which Redis may or may not lose what it acknowledges.
func (j *journal) begin(loses bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.tail = loses
}

// stepped notes that the server's clock will be set by so much within a while from now, and right again.
func (j *journal) stepped(now time.Time, by, within time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if now.After(j.behind.Add(hostsForget)) {
		j.ahead = 0
	}
	j.ahead += max(0, by) + within // while it stands still, time that passes counts as none
	if until := now.Add(within + max(0, by)); until.After(j.behind) {
		j.behind = until
	}
	for _, f := range j.facts {
		f.early += j.ahead
		f.late += j.behind.Sub(now)
	}
}

// rightAgain is when all of the fleet's clock goes on as it should, after it was ahead.
func (j *journal) rightAgain() time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.behind.Add(hostsForget)
}

// saw notes what a host's kernel held; of one that was flushed, not what it lacked.
func (j *journal) saw(host string, kernel map[netip.Prefix]time.Duration, flushed bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, f := range j.facts {
		if _, is := kernel[f.prefix]; is {
			f.held[host] = true
		} else if f.held[host] && f.lifted && !flushed {
			f.gone = true
		}
	}
}

// all is a copy of every fact.
func (j *journal) all() []fact {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make([]fact, 0, len(j.facts))
	for _, f := range j.facts {
		c := *f
		c.held = maps.Clone(f.held)
		out = append(out, c)
	}
	return out
}

// forget drops what no kernel can hold any more and nobody asks about again.
func (j *journal) forget(now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for p, f := range j.facts {
		if !f.allowed && now.After(f.over().Add(time.Minute)) {
			delete(j.facts, p)
		}
	}
}
