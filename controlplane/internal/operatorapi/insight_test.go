package operatorapi_test

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"testing"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/operatorapi/apitest"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
)

func insightOf(cp *apitest.ControlPlane, token string) operatorv1connect.InsightServiceClient {
	return operatorv1connect.NewInsightServiceClient(&http.Client{Transport: cp.HTTP.Transport}, cp.URL, connect.WithInterceptors(bearer(token)))
}

func prefixesIn(bans []*operatorv1.FleetBan) []string {
	out := make([]string, 0, len(bans))
	for _, b := range bans {
		out = append(out, b.GetPrefix())
	}
	return out
}

func TestSearchBans(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	a, insight := with(cp, cp.Token), insightOf(cp, cp.Token)
	h := cp.Enrol("web-1", nil).Attach()
	for i := range 40 {
		ask(t, a.bans.Ban, ban(int64(600+i), fmt.Sprintf("45.%d.0.7", 39-i)))
	}
	ask(t, a.bans.Ban, ban(900, "2001:db8::/64"))
	h.Report(banOf("sshd", 1, "203.0.113.1/32", "all"), banOf("recidive", 2, "203.0.113.2/32", ""))
	search := func(q operatorv1.SearchBansRequest_builder) *operatorv1.SearchBansResponse {
		t.Helper()
		return ask(t, insight.SearchBans, q.Build())
	}

	t.Run("pages list each once, in order", func(t *testing.T) {
		for _, order := range []operatorv1.BanOrder{
			operatorv1.BanOrder_BAN_ORDER_ADDRESS, operatorv1.BanOrder_BAN_ORDER_EXPIRES, operatorv1.BanOrder_BAN_ORDER_SINCE,
		} {
			for _, down := range []bool{false, true} {
				var all []*operatorv1.FleetBan
				for token := ""; ; {
					page := search(operatorv1.SearchBansRequest_builder{Order: order, Descending: down, PageSize: 7, PageToken: token})
					all = append(all, page.GetBans()...)
					if page.GetMatching() != 42 || page.GetTotal() != 42 {
						t.Fatalf("%v: %d of %d", order, page.GetMatching(), page.GetTotal())
					}
					if token = page.GetNextPageToken(); token == "" {
						break
					}
				}
				if seen := prefixesIn(all); len(seen) != 42 || len(slices.Compact(slices.Sorted(slices.Values(seen)))) != 42 {
					t.Fatalf("%v: %v", order, seen)
				}
				key := func(b *operatorv1.FleetBan) int64 {
					switch order {
					case operatorv1.BanOrder_BAN_ORDER_EXPIRES:
						return b.GetExpiresUnixMs()
					case operatorv1.BanOrder_BAN_ORDER_SINCE:
						return b.GetClaims()[0].GetSinceUnixMs()
					default:
						p, _ := netip.ParsePrefix(b.GetPrefix())
						addr, _ := netip.ParseAddr(b.GetPrefix())
						if p.IsValid() {
							addr = p.Addr()
						}
						raw := addr.As16()
						return int64(addr.BitLen())<<40 | int64(raw[12])<<24 | int64(raw[13])<<16 | int64(raw[14])<<8 | int64(raw[15])
					}
				}
				if !slices.IsSortedFunc(all, func(x, y *operatorv1.FleetBan) int {
					if down {
						x, y = y, x
					}
					return cmp.Compare(key(x), key(y))
				}) {
					t.Errorf("%v, descending %t: %v", order, down, prefixesIn(all))
				}
			}
		}
	})
	t.Run("filters", func(t *testing.T) {
		for name, c := range map[string]struct {
			q    operatorv1.SearchBansRequest_builder
			want []string
		}{
			"part of an address": {operatorv1.SearchBansRequest_builder{Text: ".0.113"}, []string{"203.0.113.1"}},
			"what covers it":     {operatorv1.SearchBansRequest_builder{Text: "2001:db8::5"}, []string{"2001:db8::/64"}},
			"what lies within":   {operatorv1.SearchBansRequest_builder{Text: "45.4.0.0/15"}, []string{"45.4.0.7", "45.5.0.7"}},
			"host bits":          {operatorv1.SearchBansRequest_builder{Text: " 45.4.1.2/15 "}, []string{"45.4.0.7", "45.5.0.7"}},
			"a jail":             {operatorv1.SearchBansRequest_builder{Jail: "sshd"}, []string{"203.0.113.1"}},
			"a host":             {operatorv1.SearchBansRequest_builder{Host: "web-1", IncludeUnpromoted: true}, []string{"203.0.113.1", "203.0.113.2"}},
			"jail of a person":   {operatorv1.SearchBansRequest_builder{Jail: "sshd", Actor: "nobody"}, nil},
			"nonsense":           {operatorv1.SearchBansRequest_builder{Text: "45.3.0.7/xx"}, nil},
		} {
			c.q.Order = operatorv1.BanOrder_BAN_ORDER_ADDRESS
			if got := prefixesIn(search(c.q).GetBans()); !slices.Equal(got, c.want) {
				t.Errorf("%s: %v", name, got)
			}
		}
		refused(t, insight.SearchBans, operatorv1.SearchBansRequest_builder{Host: "nobody"}.Build(), notFound, "host", "no such host")
	})
	t.Run("each character typed narrows", func(t *testing.T) {
		ask(t, a.bans.Ban, ban(600, "198.18.113.5", "198.18.113.57", "198.18.113.60", "198.18.114.5", "18.198.18.113", "2001:db8:7::5f", "2001:db8:7::60"))
		all := []string{"198.18.113.5", "198.18.113.57", "198.18.113.60", "198.18.114.5"}
		for text, want := range map[string][]string{
			"198.":             all,
			"198.18":           all,
			"198.18.":          all,
			"198.18.113.":      all[:3],
			"198.18.113.5":     all[:2],
			"198.18.113.57":    all[1:2],
			"198.18.113.58":    nil,
			"198.18.113.0/":    nil,
			"198.18.113.0/24":  all[:3],
			"198.18.113.57/31": all[1:2],
			"198.18.113.6/1":   append(slices.Clone(all), "203.0.113.1"),
			"198.18.112.0/22":  all,
			"2001:DB8:7:":      {"2001:db8:7::5f", "2001:db8:7::60"},
			"2001:db8:7::":     {"2001:db8:7::5f", "2001:db8:7::60"},
			"2001:db8:7::5":    {"2001:db8:7::5f"},
			"2001:db8:7::/48":  {"2001:db8:7::5f", "2001:db8:7::60"},
		} {
			got := prefixesIn(search(operatorv1.SearchBansRequest_builder{Text: text, Order: operatorv1.BanOrder_BAN_ORDER_ADDRESS}).GetBans())
			if !slices.Equal(got, want) {
				t.Errorf("%q: %v, want %v", text, got, want)
			}
		}
		// Pages of what was typed, while others come.
		first := search(operatorv1.SearchBansRequest_builder{Text: "198.18.", PageSize: 2, Order: operatorv1.BanOrder_BAN_ORDER_ADDRESS})
		ask(t, a.bans.Ban, ban(600, "198.18.0.1"))
		rest := search(operatorv1.SearchBansRequest_builder{
			Text: "198.18.", PageSize: 9, Order: operatorv1.BanOrder_BAN_ORDER_ADDRESS, PageToken: first.GetNextPageToken(),
		})
		if got := append(prefixesIn(first.GetBans()), prefixesIn(rest.GetBans())...); !slices.Equal(got, all) || rest.GetMatching() != 5 {
			t.Errorf("in two pages: %v, %d match", got, rest.GetMatching())
		}
		ask(t, a.bans.Unban, operatorv1.UnbanRequest_builder{Prefixes: append(all, "18.198.18.113", "2001:db8:7::5f", "2001:db8:7::60", "198.18.0.1")}.Build())
	})
	t.Run("what changes shows in the next answer", func(t *testing.T) {
		ask(t, a.bans.Ban, ban(600, "198.51.100.1"))
		if got := search(operatorv1.SearchBansRequest_builder{Text: "198.51.100.1"}); got.GetMatching() != 1 || got.GetTotal() != 43 {
			t.Errorf("a new ban: %v", got)
		}
		ask(t, a.allow.Allow, operatorv1.AllowRequest_builder{Prefixes: []string{"198.51.100.0/24"}, DurationS: 60}.Build())
		if got := search(operatorv1.SearchBansRequest_builder{Text: "198.51.100.1"}); got.GetBans()[0].GetSuppressedBy() != "198.51.100.0/24" {
			t.Errorf("an exempt one: %v", got)
		}
		ask(t, a.bans.Unban, operatorv1.UnbanRequest_builder{Prefixes: []string{"198.51.100.1", "45.0.0.7"}}.Build())
		if got := search(operatorv1.SearchBansRequest_builder{}); got.GetTotal() != 41 || slices.Contains(prefixesIn(got.GetBans()), "45.0.0.7") {
			t.Errorf("after an unban: %v", got.GetTotal())
		}
	})
	t.Run("page tokens are of one search", func(t *testing.T) {
		page := search(operatorv1.SearchBansRequest_builder{Order: operatorv1.BanOrder_BAN_ORDER_SINCE, PageSize: 3})
		for _, q := range []operatorv1.SearchBansRequest_builder{
			{Order: operatorv1.BanOrder_BAN_ORDER_ADDRESS, PageToken: page.GetNextPageToken()},
			{Order: operatorv1.BanOrder_BAN_ORDER_SINCE, Descending: true, PageToken: page.GetNextPageToken()},
			{PageToken: "AAAA"},
			{PageToken: "!"},
		} {
			refused(t, insight.SearchBans, q.Build(), invalidField, "page_token", "another search")
		}
	})
	t.Run("a team sees its own", func(t *testing.T) {
		mine := insightOf(cp, teamToken(t, cp, "web"))
		got := ask(t, mine.SearchBans, operatorv1.SearchBansRequest_builder{Jail: "sshd", IncludeUnpromoted: true}.Build())
		if len(got.GetBans()) != 0 {
			t.Errorf("by the jail of a host that isn't the team's: %v", got)
		}
		activity := ask(t, mine.GetActivity, &operatorv1.GetActivityRequest{})
		if len(activity.GetHosts()) != 0 || len(activity.GetJails()) != 0 {
			t.Errorf("what happened elsewhere: %v", activity)
		}
	})
}

func TestActivity(t *testing.T) {
	t.Parallel()
	cp := apitest.Start(t)
	a, insight := with(cp, cp.Token), insightOf(cp, cp.Token)
	h := cp.Enrol("web-1", nil).Attach()
	h.Report(banOf("sshd", 1, "203.0.113.1/32", "all"), banOf("sshd", 2, "203.0.113.2/32", "all"), banOf("recidive", 3, "203.0.113.1/32", ""))
	sum := func() (observed, banned, unbanned uint32, res *operatorv1.GetActivityResponse) {
		res = ask(t, insight.GetActivity, operatorv1.GetActivityRequest_builder{WindowS: 600}.Build())
		for _, b := range res.GetBuckets() {
			observed, banned, unbanned = observed+b.GetObserved(), banned+b.GetBanned(), unbanned+b.GetUnbanned()
		}
		return observed, banned, unbanned, res
	}
	observed, banned, _, res := sum()
	if observed != 3 || banned != 2 || len(res.GetBuckets()) != 60 || res.GetStepMs() != 10_000 || res.GetKeptSinceUnixMs() != 0 {
		t.Errorf("%d observed, %d banned, %d buckets of %d ms", observed, banned, len(res.GetBuckets()), res.GetStepMs())
	}
	if j := res.GetJails(); len(j) != 2 || j[0].GetName() != "sshd" || j[0].GetCount() != 2 {
		t.Errorf("jails %v", j)
	}
	if ad := res.GetAddresses(); len(ad) != 2 || ad[0].GetName() != "203.0.113.1" || ad[0].GetCount() != 2 {
		t.Errorf("addresses %v", ad)
	}
	if hs := res.GetHosts(); len(hs) != 1 || hs[0].GetName() != "web-1" || hs[0].GetCount() != 3 {
		t.Errorf("hosts %v", hs)
	}
	ask(t, a.bans.Unban, operatorv1.UnbanRequest_builder{Prefixes: []string{"203.0.113.2"}}.Build())
	if _, _, unbanned, _ := sum(); unbanned != 1 {
		t.Errorf("%d unbanned", unbanned)
	}
}
