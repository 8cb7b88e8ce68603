package sets

import (
	"context"
	"fmt"
	"net/netip"
)

// Entries reads what is kept of each prefix, in order; one of which nothing is kept has neither claims nor tombstones.
func (s *Sets) Entries(ctx context.Context, org string, prefixes []netip.Prefix) ([]Entry, error) {
	now, err := s.now(ctx, org)
	if err != nil {
		return nil, fmt.Errorf("read entries: %w", err)
	}
	raw, err := s.readPrefixes(ctx, org, prefixes)
	if err != nil {
		return nil, fmt.Errorf("read entries: %w", err)
	}
	allowed, err := s.allowed(ctx, org)
	if err != nil {
		return nil, fmt.Errorf("read entries: %w", err)
	}
	out, err := s.entries(ctx, org, raw, now, allowed)
	if err != nil {
		return nil, fmt.Errorf("read entries: %w", err)
	}
	return out, nil
}
