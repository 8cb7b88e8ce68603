package sets

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
)

// packWithin says to the script what an unban is restricted to: the sets, and of the hosts those that claim now. What
// another host of the part claims a moment later is later than the unban.
func (s *Sets) packWithin(ctx context.Context, org string, prefixes []netip.Prefix, w *Within) ([]byte, error) {
	if w == nil {
		return nil, nil
	}
	if len(w.Sets) == 0 {
		return nil, fmt.Errorf("%w: a part of the fleet without a set", ErrInvalid)
	}
	var out []byte
	add := func(kind, text string) {
		text = kind + text
		out = append(append(out, byte(len(text))), text...)
	}
	for _, set := range w.Sets {
		if !validSet(set, false) {
			return nil, fmt.Errorf("%w: set %.40q", ErrInvalid, set)
		}
		add("s", set)
	}
	now, err := s.now(ctx, org)
	if err != nil {
		return nil, err
	}
	raw, err := s.readPrefixes(ctx, org, prefixes)
	if err != nil {
		return nil, err
	}
	entries, err := s.entries(ctx, org, raw, now, nil)
	if err != nil {
		return nil, err
	}
	var seen []string
	for _, e := range entries {
		for _, c := range e.Claims {
			if id := c.HostID; id != "" && len(id) < 200 && !slices.Contains(seen, id) && w.Host(id) {
				seen = append(seen, id)
				add("h", id)
			}
		}
	}
	return out, nil
}
