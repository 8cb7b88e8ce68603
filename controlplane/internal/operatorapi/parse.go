package operatorapi

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// The widest prefixes a person may ban: a mistyped length must not shut out a continent.
const (
	widest4 = 16
	widest6 = 32
)

// parsePrefixes parses what a person wrote, each prefix once, in order. where tells of each which one it was.
func parsePrefixes(texts []string) (parsed []netip.Prefix, where map[netip.Prefix]int, err error) {
	parsed = make([]netip.Prefix, 0, len(texts))
	where = make(map[netip.Prefix]int, len(texts))
	for i, text := range texts {
		p, err := prefix.Parse(text)
		if err != nil {
			return nil, nil, apierr.Invalid(field(i), fmt.Sprintf("%s: %v", field(i), err),
				"write an address such as 203.0.113.9 or a prefix such as 203.0.113.0/24")
		}
		if _, twice := where[p]; !twice {
			where[p] = i
			parsed = append(parsed, p)
		}
	}
	return parsed, where, nil
}

// targets is parsePrefixes of a change, whose audit entry names them.
func targets(ctx context.Context, texts []string) (parsed []netip.Prefix, where map[netip.Prefix]int, err error) {
	if parsed, where, err = parsePrefixes(texts); err == nil {
		audit.From(ctx).SetTargets(formatAll(parsed)...)
	}
	return parsed, where, err
}

// parseAddress parses the one address or prefix of a request.
func parseAddress(name, text string) (netip.Prefix, error) {
	p, err := prefix.Parse(text)
	if err != nil {
		return p, apierr.Invalid(name, fmt.Sprintf("%s: %v", name, err), "write an address such as 203.0.113.9 or a prefix such as 203.0.113.0/24")
	}
	return p, nil
}

// checkBannable holds what people may ban against the policy.
func checkBannable(parsed []netip.Prefix, where map[netip.Prefix]int) error {
	for _, p := range parsed {
		widest := widest4
		if p.Addr().Is6() {
			widest = widest6
		}
		if p.Bits() < widest {
			return apierr.New(connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_PREFIX_TOO_WIDE, field(where[p]),
				fmt.Sprintf("%s is wider than anyone may ban: /%d is the widest", prefix.Format(p), widest), "ban the narrower prefixes that are meant")
		}
		if reserved, is := prefix.Reserved(p); is {
			return apierr.New(connect.CodeInvalidArgument, fleetbanv1.Reason_REASON_PREFIX_PROTECTED, field(where[p]),
				fmt.Sprintf("%s lies in %s, which no attacker on the Internet has", prefix.Format(p), reserved),
				"ban it in the jail of the one host that sees it: fail2ban-client set JAIL banip ADDRESS")
		}
	}
	return nil
}

func field(i int) string { return fmt.Sprintf("prefixes[%d]", i) }

// parseTag turns "k=v" into the set of that tag; nothing is every host.
func parseTag(tag string) (set, k, v string, err error) {
	if tag == "" {
		return banset.All, "", "", nil
	}
	k, v, found := strings.Cut(tag, "=")
	if !found {
		return "", "", "", apierr.Invalid("tag", fmt.Sprintf("tag: %q is not of the form k=v", tag), "write for example --tag role=web")
	}
	if err := orgs.CheckTag(k, v); err != nil {
		return "", "", "", apierr.Invalid("tag", "tag: "+err.Error(), "write for example --tag role=web")
	}
	return banset.TagPrefix + k + "=" + v, k, v, nil
}

func formatAll(prefixes []netip.Prefix) []string {
	out := make([]string, 0, len(prefixes))
	for _, p := range prefixes {
		out = append(out, prefix.Format(p))
	}
	return out
}

func formatValid(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return prefix.Format(p)
}

func packAll(prefixes []netip.Prefix) [][]byte {
	out := make([][]byte, 0, len(prefixes))
	for _, p := range prefixes {
		out = append(out, prefix.Pack(p))
	}
	return out
}
