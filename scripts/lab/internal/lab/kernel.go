package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/await"
)

// agentTable is the nftables table that the agent owns.
const agentTable = "fleetban"

// Kernel reads what the agent's table on a host bans: each prefix and how long it has left there. A host without the table
// bans nothing.
func (n *Node) Kernel(ctx context.Context) (map[netip.Prefix]time.Duration, error) {
	output, err := n.Exec(ctx, "nft", "-j", "list", "table", "inet", agentTable)
	if err != nil {
		if strings.Contains(err.Error(), "No such file or directory") {
			return nil, nil
		}
		return nil, err
	}
	return parseTable(output)
}

func parseTable(output string) (map[netip.Prefix]time.Duration, error) {
	var listing struct {
		Nftables []struct {
			Set *struct {
				Name string            `json:"name"`
				Elem []json.RawMessage `json:"elem"`
			} `json:"set"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(output), &listing); err != nil {
		return nil, fmt.Errorf("read what nft lists: %w", err)
	}
	bans := map[netip.Prefix]time.Duration{}
	for _, object := range listing.Nftables {
		if object.Set == nil || !strings.HasPrefix(object.Set.Name, "ban") {
			continue
		}
		_, bitsText, _ := strings.Cut(object.Set.Name, "_")
		bits, err := strconv.Atoi(bitsText)
		if err != nil {
			return nil, fmt.Errorf("a set of the agent is called %q", object.Set.Name)
		}
		for _, raw := range object.Set.Elem {
			var element struct {
				Elem struct {
					Val     string  `json:"val"`
					Expires float64 `json:"expires"`
				} `json:"elem"`
			}
			var plain string
			if json.Unmarshal(raw, &plain) == nil {
				element.Elem.Val = plain
			} else if err := json.Unmarshal(raw, &element); err != nil {
				return nil, fmt.Errorf("read an element of %s: %w", object.Set.Name, err)
			}
			addr, err := netip.ParseAddr(element.Elem.Val)
			if err != nil {
				return nil, fmt.Errorf("read an element of %s: %w", object.Set.Name, err)
			}
			bans[netip.PrefixFrom(addr, bits)] = time.Duration(element.Elem.Expires * float64(time.Second))
		}
	}
	return bans, nil
}

// AwaitKernel waits until the kernels of all given hosts ban a prefix, or none does.
func AwaitKernel(ctx context.Context, prefix netip.Prefix, banned bool, hosts ...*Node) error {
	return parallel(hosts, func(n *Node) error {
		what := "not to ban"
		if banned {
			what = "to ban"
		}
		return await.Until(ctx, fmt.Sprintf("the kernel of %s %s %s", n.Name, what, prefix), func() error {
			bans, err := n.Kernel(ctx)
			if err != nil {
				return err
			}
			if _, is := bans[prefix]; is != banned {
				return fmt.Errorf("it bans %d others", len(bans))
			}
			return nil
		})
	})
}
