package insight

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/fleetban/fleetban/controlplane/internal/sets"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

const (
	usualPage = 200
	mostPage  = 1000
)

// ErrToken is returned for a page token that no answer to this search gave.
var ErrToken = errors.New("page token of another search")

// Search is what bans are wanted, and how.
type Search struct {
	// Text is what somebody typed of an address or a prefix: see wanted.
	Text string
	// Jail, HostID and Actor, each where it isn't empty, are those of one and the same claim.
	Jail, HostID, Actor string
	// IncludeUnpromoted adds what was observed only.
	IncludeUnpromoted bool
	Order             operatorv1.BanOrder
	Descending        bool
	// PageSize is at most 1000; 0 is 200.
	PageSize  int
	PageToken string
	// See is what the caller sees of an entry; false where that is nothing.
	See func(sets.Entry) (sets.Entry, bool)
}

// Result is one page.
type Result struct {
	Entries       []sets.Entry
	NextPageToken string
	// Matching is how many match, Total how many the caller sees that are in force.
	Matching, Total uint64
}

// Bans searches an organisation's bans: ErrTooMany, ErrToken, or an error of the store.
func (i *Insight) Bans(ctx context.Context, org string, q Search) (Result, error) {
	from, err := parseToken(q)
	if err != nil {
		return Result{}, err
	}
	b := held(i, i.books, org, newBook, func(b *book) *lease { return &b.lease })
	b.mu.Lock()
	now, err := b.refresh(ctx, i.sets, org)
	if err != nil {
		b.mu.Unlock()
		return Result{}, fmt.Errorf("search bans: %w", err)
	}
	all := b.in(q.Order)
	b.mu.Unlock()
	return q.run(all, now, from), nil
}

func (q Search) run(all []*page, now int64, from *place) Result {
	size := min(cmp.Or(q.PageSize, usualPage), mostPage)
	text := parseWanted(q.Text)
	var out Result
	var last *page
	visit := func(p *page) {
		seen, ok := p.live(now, q.See)
		if !ok {
			return
		}
		if seen.Expires > 0 {
			out.Total++
		}
		if !text.match(p) || !q.matches(seen) {
			return
		}
		out.Matching++
		switch {
		case from != nil && !from.before(p, q):
		case len(out.Entries) < size:
			out.Entries = append(out.Entries, seen)
			last = p
		default:
			out.NextPageToken = tokenOf(last, q)
		}
	}
	if q.Descending {
		for _, p := range slices.Backward(all) {
			visit(p)
		}
	} else {
		for _, p := range all {
			visit(p)
		}
	}
	return out
}

// wanted is what a text asks for. Somebody types it: each further character narrows what the one before it let through,
// but for what covers an address, which comes once the address is whole.
type wanted struct {
	// within is a prefix, for what lies within it and what covers it, or not valid.
	within netip.Prefix
	// begins and part are how an address begins and what stands anywhere in it, as it is written; "" asks for nothing.
	begins, part string
}

// parseWanted takes a prefix, with host bits or without ("203.0.113.9/24"); an address or its first digits up to at least
// one whole part ("203.0.", "2001:db8:"), which all that begin so match; or anything else, which matches wherever it stands.
func parseWanted(text string) wanted {
	text = strings.ToLower(strings.TrimSpace(text))
	address, _, hasBits := strings.Cut(text, "/")
	if hasBits {
		if p, err := netip.ParsePrefix(text); err == nil {
			if p, err := prefix.Parse(p.Masked().String()); err == nil {
				return wanted{within: p}
			}
		}
		if strings.HasSuffix(text, "/") {
			text = address // its length is still to come
		}
	}
	if p, err := prefix.Parse(text); err == nil {
		return wanted{within: p, begins: text}
	}
	if strings.IndexAny(text, ".:") > 0 {
		return wanted{begins: text}
	}
	return wanted{part: text}
}

func (w wanted) match(p *page) bool {
	switch {
	case w.within.IsValid() && w.within.Overlaps(p.Prefix):
		return true
	case w.begins != "":
		return strings.HasPrefix(p.text, w.begins)
	default:
		return !w.within.IsValid() && strings.Contains(p.text, w.part)
	}
}

// live is what the caller sees of a page, less what ran out since it was read.
func (p *page) live(now int64, see func(sets.Entry) (sets.Entry, bool)) (sets.Entry, bool) {
	e := p.Entry
	if slices.ContainsFunc(e.Claims, func(c sets.Claim) bool { return c.Expires <= now }) {
		e.Claims = slices.DeleteFunc(slices.Clone(e.Claims), func(c sets.Claim) bool { return c.Expires <= now })
	}
	if e.Expires <= now {
		e.Expires = 0
	}
	if len(e.Claims) == 0 {
		return e, false
	}
	if see == nil {
		return e, true
	}
	return see(e)
}

func (q Search) matches(e sets.Entry) bool {
	if e.Expires == 0 && !q.IncludeUnpromoted {
		return false
	}
	if q.Jail == "" && q.HostID == "" && q.Actor == "" {
		return true
	}
	return slices.ContainsFunc(e.Claims, func(c sets.Claim) bool {
		return (q.Jail == "" || c.Jail == q.Jail) && (q.HostID == "" || c.HostID == q.HostID) && (q.Actor == "" || c.Actor == q.Actor) &&
			(c.Counts() || q.IncludeUnpromoted)
	})
}

// place is where a page ended: the key and the prefix of its last entry. It means the same whatever changes around it.
type place struct {
	key    int64
	prefix netip.Prefix
}

// before reports whether the place is before p in the search's direction.
func (at *place) before(p *page, q Search) bool {
	c := cmp.Or(cmp.Compare(at.key, p.key(q.Order)), comparePrefixes(at.prefix, p.Prefix))
	return c < 0 != q.Descending && c != 0
}

func direction(q Search) byte {
	d := byte(q.Order) << 1 //nolint:gosec // a small enum, validated
	if q.Descending {
		d |= 1
	}
	return d
}

func tokenOf(p *page, q Search) string {
	raw := binary.BigEndian.AppendUint64([]byte{direction(q)}, uint64(p.key(q.Order))) //nolint:gosec // read back as it was
	return base64.RawURLEncoding.EncodeToString(prefix.AppendPacked(raw, p.Prefix))
}

func parseToken(q Search) (*place, error) {
	if q.PageToken == "" {
		return nil, nil //nolint:nilnil // from the beginning
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(q.PageToken)
	if err != nil || len(raw) < 9+prefix.PackedLen4 || raw[0] != direction(q) {
		return nil, ErrToken
	}
	p, err := prefix.Unpack(raw[9:])
	if err != nil {
		return nil, ErrToken
	}
	return &place{key: int64(binary.BigEndian.Uint64(raw[1:9])), prefix: p}, nil //nolint:gosec // as it was written
}
