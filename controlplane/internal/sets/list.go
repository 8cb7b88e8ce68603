package sets

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// List lists what is kept, in pages: every entry that stands all the while is listed once.
func (s *Sets) List(ctx context.Context, org string, in ListInput) (ListResult, error) {
	const most, usual = 5000, 100
	if in.PageSize <= 0 {
		in.PageSize = usual
	}
	in.PageSize = min(in.PageSize, most)
	if in.Kind == fleetbanv1.SetKind_SET_KIND_UNSPECIFIED {
		in.Kind = fleetbanv1.SetKind_SET_KIND_BAN
	}
	bucket, after, err := parsePageToken(in.PageToken)
	if err != nil {
		return ListResult{}, err
	}
	states, err := s.States(ctx, org)
	if err != nil {
		return ListResult{}, fmt.Errorf("list: %w", err)
	}
	var out ListResult
	for _, set := range states.Sets {
		if set.Kind == in.Kind {
			out.Total += set.Records
		}
	}
	var allowed *allowlist
	if in.Kind == fleetbanv1.SetKind_SET_KIND_BAN {
		if allowed, err = s.allowed(ctx, org); err != nil {
			return ListResult{}, fmt.Errorf("list: %w", err)
		}
	}
	for bucket < buckets && len(out.Entries) < in.PageSize {
		// As many buckets at once as will probably fill the page.
		step := pipelined
		if perBucket := int(out.Total/buckets) + 1; !in.filters() { //nolint:gosec // far below
			step = min(step, (in.PageSize-len(out.Entries))/perBucket+1)
		}
		last := min(bucket+step, buckets)
		read, err := s.readBuckets(ctx, org, bucket, last)
		if err != nil {
			return ListResult{}, fmt.Errorf("list: %w", err)
		}
		var raw []rawEntry
		for _, entries := range read {
			for _, e := range entries {
				if (after == nil || bytes.Compare(e.packed, after) > 0) && in.selects(e.claims, states.Now) {
					raw = append(raw, e)
				}
			}
			after = nil
		}
		entries, err := s.entries(ctx, org, raw, states.Now, allowed)
		if err != nil {
			return ListResult{}, fmt.Errorf("list: %w", err)
		}
		bucket = last
		for _, e := range entries {
			if !in.named(e) || in.Keep != nil && !in.Keep(e) {
				continue
			}
			if len(out.Entries) == in.PageSize {
				prev := prefix.Pack(out.Entries[len(out.Entries)-1].Prefix)
				out.NextPageToken = pageToken(bucketOf(prev), prev)
				return out, nil
			}
			out.Entries = append(out.Entries, e)
		}
	}
	if bucket < buckets {
		out.NextPageToken = pageToken(bucket, nil)
	}
	return out, nil
}

func (in ListInput) filters() bool { return in.Jail != "" || in.HostID != "" || in.Keep != nil }

// selects is what can be told without names.
func (in ListInput) selects(claims []rawClaim, now int64) bool {
	return slices.ContainsFunc(claims, func(c rawClaim) bool {
		return !c.tomb() && c.expires > now && kindOfNumber(c.set) == in.Kind && (c.counts() || in.IncludeUnpromoted)
	})
}

func (in ListInput) named(e Entry) bool {
	return in.Jail == "" && in.HostID == "" || slices.ContainsFunc(e.Claims, func(c Claim) bool {
		return (in.Jail == "" || c.Jail == in.Jail) && (in.HostID == "" || c.HostID == in.HostID) && (c.Counts() || in.IncludeUnpromoted)
	})
}

// A page token is the bucket to go on in and, after a dot, the last prefix listed of it.
func pageToken(bucket int, after []byte) string {
	return strconv.Itoa(bucket) + "." + hex.EncodeToString(after)
}

func parsePageToken(token string) (bucket int, after []byte, err error) {
	if token == "" {
		return 0, nil, nil
	}
	number, rest, ok := strings.Cut(token, ".")
	bucket, err = strconv.Atoi(number)
	if err != nil || !ok || bucket < 0 || bucket >= buckets {
		return 0, nil, ErrPageToken
	}
	if after, err = hex.DecodeString(rest); err != nil || len(after) > prefix.PackedLen6 {
		return 0, nil, ErrPageToken
	}
	if len(after) == 0 {
		after = nil
	}
	return bucket, after, nil
}
