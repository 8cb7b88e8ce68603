package sets

import (
	"context"
	_ "embed"
	"fmt"
	"net/netip"
	"slices"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

//go:embed lua/withdraw.lua
var luaWithdraw string

// WithdrawHost retracts everything that a host's jails claim, and returns how many claims that were. Bans that nothing else
// claims end. It goes in pieces: after an error some may be retracted, and a repetition does the rest. What the host claims
// meanwhile is not looked for: the caller has ended its stream. Works when Redis is full.
func (s *Sets) WithdrawHost(ctx context.Context, org, hostID, actor string) (int, error) {
	if err := checkTexts(actor, ""); err != nil {
		return 0, fmt.Errorf("withdraw host: %w", err)
	}
	var prefixes []netip.Prefix
	for token := ""; ; {
		page, err := s.List(ctx, org, ListInput{
			PageSize: 5000, PageToken: token, HostID: hostID, Kind: fleetbanv1.SetKind_SET_KIND_BAN, IncludeUnpromoted: true,
		})
		if err != nil {
			return 0, fmt.Errorf("withdraw host: %w", err)
		}
		for _, e := range page.Entries {
			prefixes = append(prefixes, e.Prefix)
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	retracted := 0
	for piece := range slices.Chunk(prefixes, batchPrefixes) {
		packed, kept, err := packPrefixes(piece)
		if err != nil {
			return retracted, fmt.Errorf("withdraw host: %w", err)
		}
		_, r, err := s.mutate(ctx, org, "withdraw host", newMutation(true, len(kept), "withdraw", hostID, actor, packed))
		if err != nil {
			return retracted, err
		}
		retracted += int(r.number())
		if r.err != nil {
			return retracted, fmt.Errorf("withdraw host: %w", r.err)
		}
	}
	return retracted, nil
}
