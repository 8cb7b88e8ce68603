package sets

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/fleetban/fleetban/controlplane/internal/store"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

const (
	// pipelined is how many buckets are read in one round trip.
	pipelined = 256
	// mostWithin bounds what Allow and Disallow name.
	mostWithin = 100
	// mostAllowed bounds how much of an allowlist is held in memory to tell what it suppresses.
	mostAllowed = 100_000
)

// rawEntry is what is stored of one prefix.
type rawEntry struct {
	packed []byte
	prefix netip.Prefix
	claims []rawClaim
}

func bucketKey(org string, n int) string { return store.Key(org, "c", strconv.Itoa(n)) }

// readBuckets reads the buckets first..last-1 in one round trip, each sorted by packed prefix.
func (s *Sets) readBuckets(ctx context.Context, org string, first, last int) ([][]rawEntry, error) {
	replies := make([]*redis.MapStringStringCmd, 0, last-first)
	_, err := s.store.Client().Pipelined(ctx, func(p redis.Pipeliner) error {
		for n := first; n < last; n++ {
			replies = append(replies, p.HGetAll(ctx, bucketKey(org, n)))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read buckets: %w", store.Classify(err))
	}
	out := make([][]rawEntry, len(replies))
	for i, reply := range replies {
		for field, value := range reply.Val() {
			e, err := parseEntry(field, value)
			if err != nil {
				return nil, err
			}
			out[i] = append(out[i], e)
		}
		slices.SortFunc(out[i], func(a, b rawEntry) int { return bytes.Compare(a.packed, b.packed) })
	}
	return out, nil
}

func parseEntry(field, value string) (rawEntry, error) {
	p, err := prefix.Unpack([]byte(field))
	if err != nil {
		return rawEntry{}, fmt.Errorf("%w: %w", errCorrupt, err)
	}
	claims, err := unpackClaims([]byte(value))
	if err != nil {
		return rawEntry{}, fmt.Errorf("%w (of %s)", err, p)
	}
	return rawEntry{packed: []byte(field), prefix: p, claims: claims}, nil
}

// readPrefixes reads what is stored of each prefix, in order.
func (s *Sets) readPrefixes(ctx context.Context, org string, prefixes []netip.Prefix) ([]rawEntry, error) {
	out := make([]rawEntry, 0, len(prefixes))
	for chunk := range slices.Chunk(prefixes, 1000) {
		replies := make([]*redis.StringCmd, 0, len(chunk))
		_, err := s.store.Client().Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, pre := range chunk {
				packed := prefix.Pack(pre)
				replies = append(replies, p.HGet(ctx, bucketKey(org, bucketOf(packed)), string(packed)))
			}
			return nil
		})
		if err != nil && !errors.Is(err, redis.Nil) {
			return nil, fmt.Errorf("read prefixes: %w", store.Classify(err))
		}
		for i, reply := range replies {
			if err := reply.Err(); err != nil && !errors.Is(err, redis.Nil) {
				return nil, fmt.Errorf("read prefixes: %w", store.Classify(err))
			}
			e, err := parseEntry(string(prefix.Pack(chunk[i])), reply.Val())
			if err != nil {
				return nil, err
			}
			out = append(out, e)
		}
	}
	return out, nil
}

// names resolves the numbers inside claims. They are read anew each time: after a loss of Redis a number may mean
// another host.
type names map[string]string

func (n names) want(c rawClaim) {
	for _, field := range c.nameFields() {
		if field != "" {
			n[field] = ""
		}
	}
}

// nameFields are the fields of the names hash for who, what and set.
func (c rawClaim) nameFields() [3]string {
	field := func(class string, n uint64) string {
		if n == 0 {
			return ""
		}
		return class + strconv.FormatUint(n, 10)
	}
	var out [3]string
	switch {
	case c.person():
		out[0], out[1] = field("A", uint64(c.host)), field("R", uint64(c.slot))
	case c.source == sourceTomb:
		out[0] = field("A", uint64(c.host))
	default:
		out[0], out[1] = field("H", uint64(c.host)), field("J", uint64(c.slot))
	}
	if c.set > numberHosts {
		out[2] = field("S", uint64(c.set))
	}
	return out
}

func (n names) setName(c rawClaim) string {
	switch c.set {
	case 0:
		return ""
	case numberAll:
		return banset.All
	case numberAllow:
		return banset.Allow
	case numberHosts:
		return banset.Hosts
	default:
		return n[c.nameFields()[2]]
	}
}

func (n names) resolve(ctx context.Context, s *Sets, org string) error {
	if len(n) == 0 {
		return nil
	}
	fields := make([]string, 0, len(n))
	for field := range n {
		fields = append(fields, field)
	}
	for chunk := range slices.Chunk(fields, 1000) {
		values, err := s.store.Client().HMGet(ctx, store.Key(org, "names"), chunk...).Result()
		if err != nil {
			return fmt.Errorf("read names: %w", store.Classify(err))
		}
		for i, v := range values {
			n[chunk[i]], _ = v.(string)
		}
	}
	return nil
}

// entries makes what callers see of what is stored, less what ran out at now.
func (s *Sets) entries(ctx context.Context, org string, raw []rawEntry, now int64, allowed *allowlist) ([]Entry, error) {
	n := names{}
	for _, e := range raw {
		for _, c := range e.claims {
			if c.expires > now {
				n.want(c)
			}
		}
	}
	if err := n.resolve(ctx, s, org); err != nil {
		return nil, err
	}
	out := make([]Entry, 0, len(raw))
	for _, e := range raw {
		entry := Entry{Prefix: e.prefix}
		for _, c := range e.claims {
			if c.expires <= now {
				continue
			}
			fields := c.nameFields()
			if c.tomb() {
				t := Tombstone{Prefix: e.prefix, At: c.since, Expires: c.expires, Set: n.setName(c)}
				if c.source == sourceTomb {
					t.Actor = n[fields[0]]
				} else {
					t.HostID, t.Jail = n[fields[0]], n[fields[1]]
				}
				entry.Tombstones = append(entry.Tombstones, t)
				continue
			}
			entry.Claims = append(entry.Claims, c.claim(n[fields[0]], n[fields[1]], n.setName(c)))
			if c.counts() && kindOfNumber(c.set) == fleetbanv1.SetKind_SET_KIND_BAN {
				entry.Expires = max(entry.Expires, c.expires)
			}
		}
		if allowed != nil {
			entry.SuppressedBy = allowed.covering(e.prefix)
		}
		out = append(out, entry)
	}
	return out, nil
}

// allowlist is what the allowlist had when it was read.
type allowlist struct {
	prefixes map[netip.Prefix]bool
	bits     [2][]int // lengths in use, widest first, of IPv4 and IPv6
}

func (s *Sets) allowed(ctx context.Context, org string) (*allowlist, error) {
	now, err := s.now(ctx, org)
	if err != nil {
		return nil, err
	}
	raw, err := s.readIndexed(ctx, org, banset.Allow)
	if err != nil {
		return nil, err
	}
	a := &allowlist{prefixes: map[netip.Prefix]bool{}}
	for _, e := range raw {
		if _, _, ok := viewOf(e.claims, numberAllow, now); ok {
			a.prefixes[e.prefix] = true
			f := family(e.prefix)
			if !slices.Contains(a.bits[f], e.prefix.Bits()) {
				a.bits[f] = append(a.bits[f], e.prefix.Bits())
			}
		}
	}
	slices.Sort(a.bits[0])
	slices.Sort(a.bits[1])
	return a, nil
}

func family(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 0
	}
	return 1
}

// covering is the narrowest entry that covers p; not valid when none does.
func (a *allowlist) covering(p netip.Prefix) netip.Prefix {
	for _, bits := range slices.Backward(a.bits[family(p)]) {
		if bits > p.Bits() {
			continue
		}
		if q := netip.PrefixFrom(p.Addr(), bits).Masked(); a.prefixes[q] {
			return q
		}
	}
	return netip.Prefix{}
}

// readIndexed reads the entries of a set that has an index of its prefixes: allow and hosts.
func (s *Sets) readIndexed(ctx context.Context, org, set string) ([]rawEntry, error) {
	members, err := s.store.Client().ZRange(ctx, store.Key(org, "idx", set), 0, mostAllowed-1).Result()
	if err != nil {
		return nil, fmt.Errorf("read index of %s: %w", set, store.Classify(err))
	}
	prefixes := make([]netip.Prefix, 0, len(members))
	for _, m := range members {
		p, err := prefix.Unpack([]byte(m[min(1, len(m)):]))
		if err != nil {
			return nil, fmt.Errorf("%w: index of %s: %w", errCorrupt, set, err)
		}
		prefixes = append(prefixes, p)
	}
	return s.readPrefixes(ctx, org, prefixes)
}

// now is the server's clock as the scripts have it.
func (s *Sets) now(ctx context.Context, org string) (int64, error) {
	h, _, err := s.scripts.run(ctx, org, statesScript, nil)
	return h.now, err
}

// bannedWithin lists bans in force inside these prefixes, at most mostWithin.
func (s *Sets) bannedWithin(ctx context.Context, org string, prefixes []netip.Prefix) ([]netip.Prefix, error) {
	if len(prefixes) == 0 {
		return nil, nil
	}
	now, err := s.now(ctx, org)
	if err != nil {
		return nil, err
	}
	banned := func(e rawEntry) bool {
		return slices.ContainsFunc(e.claims, func(c rawClaim) bool {
			return c.counts() && kindOfNumber(c.set) == fleetbanv1.SetKind_SET_KIND_BAN && c.expires > now
		})
	}
	var out []netip.Prefix
	if !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return !p.IsSingleIP() }) {
		raw, err := s.readPrefixes(ctx, org, prefixes)
		if err != nil {
			return nil, err
		}
		for _, e := range raw {
			if len(out) < mostWithin && banned(e) {
				out = append(out, e.prefix)
			}
		}
		return out, nil
	}
	for first := 0; first < buckets; first += pipelined {
		read, err := s.readBuckets(ctx, org, first, first+pipelined)
		if err != nil {
			return nil, err
		}
		for _, e := range slices.Concat(read...) {
			inside := func(p netip.Prefix) bool { return prefix.Covers(p, e.prefix) }
			if banned(e) && slices.ContainsFunc(prefixes, inside) {
				if out = append(out, e.prefix); len(out) == mostWithin {
					return out, nil
				}
			}
		}
	}
	return out, nil
}

// Explain tells everything kept about one address or prefix.
func (s *Sets) Explain(ctx context.Context, org string, p netip.Prefix) (Explanation, error) {
	if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
		return Explanation{}, fmt.Errorf("explain: %w: %s", ErrInvalid, p)
	}
	now, err := s.now(ctx, org)
	if err != nil {
		return Explanation{}, fmt.Errorf("explain: %w", err)
	}
	wider := make([]netip.Prefix, 0, p.Bits()+1)
	for bits := p.Bits(); bits >= 0; bits-- {
		wider = append(wider, netip.PrefixFrom(p.Addr(), bits).Masked())
	}
	raw, err := s.readPrefixes(ctx, org, wider)
	if err != nil {
		return Explanation{}, fmt.Errorf("explain: %w", err)
	}
	allowed, err := s.allowed(ctx, org)
	if err != nil {
		return Explanation{}, fmt.Errorf("explain: %w", err)
	}
	entries, err := s.entries(ctx, org, raw, now, allowed)
	if err != nil {
		return Explanation{}, fmt.Errorf("explain: %w", err)
	}
	var out Explanation
	for i, e := range entries {
		var bans, allows Entry
		bans, allows = e, e
		bans.Claims, allows.Claims = nil, nil
		for _, c := range e.Claims {
			switch KindOf(c.Set) {
			case fleetbanv1.SetKind_SET_KIND_ALLOW:
				allows.Claims = append(allows.Claims, c)
			case fleetbanv1.SetKind_SET_KIND_PROTECT:
				if !out.Protected.IsValid() {
					out.Protected = e.Prefix
				}
			default: // observations too
				bans.Claims = append(bans.Claims, c)
			}
		}
		if len(bans.Claims) > 0 || i == 0 && len(bans.Tombstones) > 0 {
			out.Entries = append(out.Entries, bans)
		}
		if len(allows.Claims) > 0 {
			allows.Tombstones = nil
			out.AllowedBy = append(out.AllowedBy, allows)
		}
	}
	if !out.Protected.IsValid() && !p.IsSingleIP() {
		hosts, err := s.readIndexed(ctx, org, banset.Hosts)
		if err != nil {
			return Explanation{}, fmt.Errorf("explain: %w", err)
		}
		for _, h := range hosts {
			if _, _, ok := viewOf(h.claims, numberHosts, now); ok && prefix.Covers(p, h.prefix) {
				out.Protected = h.prefix
				break
			}
		}
	}
	return out, nil
}
