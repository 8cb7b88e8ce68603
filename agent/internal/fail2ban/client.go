package fail2ban

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// maxBatch is how many addresses one command carries. fail2ban answers nobody else while it runs a command: at 7 ms a ban
// for an nftables action, 0.7 s.
const maxBatch = 100

// Counts are the counters of a jail. The totals count from the jail's start: fewer than before means that it was restarted.
type Counts struct {
	Failed, TotalFailed, Banned, TotalBanned uint64
}

// Ping asks whether the server answers. A server that answers may still have no jail up.
func (c *Client) Ping(ctx context.Context) error {
	v, err := c.call(ctx, "ping")
	if err != nil {
		return fmt.Errorf("ping fail2ban: %w", err)
	}
	if v != "pong" {
		return fmt.Errorf("ping fail2ban: %w: it doesn't answer pong", ErrGarbage)
	}
	return nil
}

// Version returns the server's version, at most 64 bytes: "1.0.2".
func (c *Client) Version(ctx context.Context) (string, error) {
	s, err := c.text(ctx, "version")
	if len(s) > 64 {
		return "", fmt.Errorf("ask fail2ban's version: %w: %d bytes", ErrGarbage, len(s))
	}
	return s, err
}

// Jails lists the jails that are up, in the server's order. Names beyond ValidJail's grammar are left out.
func (c *Client) Jails(ctx context.Context) ([]string, error) {
	v, err := c.call(ctx, "status")
	if err != nil {
		return nil, fmt.Errorf("list fail2ban's jails: %w", err)
	}
	pairs, err := pairsOf(v)
	if err != nil {
		return nil, fmt.Errorf("list fail2ban's jails: %w", err)
	}
	text, ok := pairs["Jail list"].(string)
	if !ok {
		return nil, fmt.Errorf("list fail2ban's jails: %w: no list", ErrGarbage)
	}
	var jails []string
	for name := range strings.SplitSeq(text, ",") {
		if name = strings.TrimSpace(name); ValidJail(name) {
			jails = append(jails, name)
		}
	}
	return jails, nil
}

// JailCounts returns the counters of a jail: 0.05 ms however many are banned.
func (c *Client) JailCounts(ctx context.Context, jail string) (Counts, error) {
	counts, _, err := c.status(ctx, jail, "short")
	return counts, err
}

func (c *Client) status(ctx context.Context, jail string, flavour ...string) (Counts, []any, error) {
	v, err := c.jailCall(ctx, append([]string{"status", jail}, flavour...)...)
	if err != nil {
		return Counts{}, nil, fmt.Errorf("ask the status of jail %q: %w", jail, err)
	}
	sections, err := pairsOf(v)
	if err != nil {
		return Counts{}, nil, fmt.Errorf("ask the status of jail %q: %w", jail, err)
	}
	filter, err1 := pairsOf(sections["Filter"])
	actions, err2 := pairsOf(sections["Actions"])
	if err := errors.Join(err1, err2); err != nil {
		return Counts{}, nil, fmt.Errorf("ask the status of jail %q: %w", jail, err)
	}
	number := func(m map[string]any, key string) uint64 {
		n, ok := m[key].(int64)
		if !ok || n < 0 {
			err = fmt.Errorf("%w: no %q", ErrGarbage, key)
		}
		return uint64(max(n, 0))
	}
	counts := Counts{
		Banned:      number(actions, "Currently banned"),
		TotalBanned: number(actions, "Total banned"),
	}
	if err != nil {
		return Counts{}, nil, fmt.Errorf("ask the status of jail %q: %w", jail, err)
	}
	// A jail without a log has no filter's counters.
	if n, ok := filter["Currently failed"].(int64); ok && n > 0 {
		counts.Failed = uint64(n)
	}
	if n, ok := filter["Total failed"].(int64); ok && n > 0 {
		counts.TotalFailed = uint64(n)
	}
	banned, _ := itemsOf(actions["Banned IP list"])
	return counts, banned, nil
}

// askOneByOne is up to how many addresses are asked for by name. For each, fail2ban compares all that is banned, at about
// 0.7 µs a comparison (measured: 4 ms at 10,000), so that to list all is cheaper for more.
const askOneByOne = 8

// Banned reports for each of prefixes whether the jail bans exactly it.
func (c *Client) Banned(ctx context.Context, jail string, prefixes ...netip.Prefix) ([]bool, error) {
	texts, err := formatAll(prefixes)
	if err != nil || len(texts) == 0 {
		return nil, err
	}
	var items []any
	question := []string{"get", jail, "banned"}
	if len(texts) <= askOneByOne {
		question = append(question, texts...)
	}
	if !c.noBannedQuery.Load() {
		v, err := c.jailCall(ctx, question...)
		switch {
		case err == nil && len(texts) <= askOneByOne:
			return bannedAnswer(v, len(texts))
		case err == nil:
			items, err = itemsOf(v)
		case errors.Is(err, ErrUnsupported):
			c.noBannedQuery.Store(true)
			err = nil
		}
		if err != nil {
			return nil, fmt.Errorf("ask whether jail %q bans %s: %w", jail, texts[0], err)
		}
	}
	if c.noBannedQuery.Load() {
		if _, items, err = c.status(ctx, jail); err != nil {
			return nil, err
		}
	}
	is := make(map[netip.Prefix]bool, len(items))
	for _, e := range parseListing(items, false).Entries {
		is[e.Addr] = true
	}
	answer := make([]bool, len(prefixes))
	for i, p := range prefixes {
		answer[i] = is[canonical(p)]
	}
	return answer, nil
}

func bannedAnswer(v any, want int) ([]bool, error) {
	// One address is answered with a number, several with a list.
	items := []any{v}
	if l, err := itemsOf(v); err == nil {
		items = l
	}
	if len(items) != want {
		return nil, fmt.Errorf("%w: %d answers to %d questions", ErrGarbage, len(items), want)
	}
	answer := make([]bool, want)
	for i, item := range items {
		switch n := item.(type) {
		case int64:
			answer[i] = n != 0
		case bool:
			answer[i] = n
		default:
			return nil, fmt.Errorf("%w: neither yes nor no", ErrGarbage)
		}
	}
	return answer, nil
}

// BannedWithTime lists what the jail bans, with times where the version knows them (from 0.11.1). It blocks the server
// for 0.005 ms an entry.
func (c *Client) BannedWithTime(ctx context.Context, jail string) (Listing, error) {
	if !c.noTimes.Load() {
		v, err := c.jailCall(ctx, "get", jail, "banip", "--with-time")
		switch {
		case err == nil:
			items, err := itemsOf(v)
			if err != nil {
				return Listing{}, fmt.Errorf("list what jail %q bans: %w", jail, err)
			}
			return parseListing(items, true), nil
		case !errors.Is(err, ErrUnsupported):
			return Listing{}, fmt.Errorf("list what jail %q bans: %w", jail, err)
		}
		c.noTimes.Store(true)
	}
	return c.list(ctx, jail)
}

func (c *Client) list(ctx context.Context, jail string) (Listing, error) {
	_, items, err := c.status(ctx, jail)
	if err != nil {
		return Listing{}, err
	}
	return parseListing(items, false), nil
}

// BanTime returns the jail's ban time. -1 s and less, for ever, is Forever.
func (c *Client) BanTime(ctx context.Context, jail string) (time.Duration, error) {
	n, err := c.jailNumber(ctx, jail, "bantime")
	return seconds(n), err
}

// FindTime returns the time in which the jail counts failures.
func (c *Client) FindTime(ctx context.Context, jail string) (time.Duration, error) {
	n, err := c.jailNumber(ctx, jail, "findtime")
	return seconds(n), err
}

// MaxRetry returns how many failures make a ban.
func (c *Client) MaxRetry(ctx context.Context, jail string) (int64, error) {
	return c.jailNumber(ctx, jail, "maxretry")
}

// SetBanTime sets the jail's ban time until the next reload, whole seconds or Forever. It changes running bans too, except
// those that carry a time of their own.
func (c *Client) SetBanTime(ctx context.Context, jail string, d time.Duration) error {
	if d != Forever && (d < time.Second || d > 100*365*24*time.Hour) {
		return fmt.Errorf("set the ban time of jail %q: %w: %s is neither for ever nor within 1 s and 100 years", jail, ErrArgument, d)
	}
	n := int64(-1)
	if d != Forever {
		n = int64(d / time.Second)
	}
	return c.setNumber(ctx, jail, "bantime", n)
}

func (c *Client) setNumber(ctx context.Context, jail, key string, n int64) error {
	// The server evaluates some of these as Python: nothing but digits ever goes there.
	if _, err := c.jailCall(ctx, "set", jail, key, strconv.FormatInt(n, 10)); err != nil {
		return fmt.Errorf("set %s of jail %q: %w", key, jail, err)
	}
	return nil
}

// LogTarget returns where the server logs: a path as the server sees it, or SYSLOG, STDOUT, STDERR, SYSOUT, SYSTEMD-JOURNAL.
func (c *Client) LogTarget(ctx context.Context) (string, error) {
	return c.text(ctx, "get", "logtarget")
}

// LogLevel returns the server's log level: CRITICAL, ERROR, WARNING, NOTICE, INFO, DEBUG, …
func (c *Client) LogLevel(ctx context.Context) (string, error) { return c.text(ctx, "get", "loglevel") }

// DBFile returns the path of the server's database as the server sees it, "" where it keeps none.
func (c *Client) DBFile(ctx context.Context) (string, error) {
	v, err := c.call(ctx, "get", "dbfile")
	if err != nil {
		return "", fmt.Errorf("ask fail2ban: get dbfile: %w", err)
	}
	s, _ := v.(string)
	return s, nil
}

// IgnoreIPs returns what the jail never bans. Host names among it are left out.
func (c *Client) IgnoreIPs(ctx context.Context, jail string) ([]netip.Prefix, error) {
	v, err := c.jailCall(ctx, "get", jail, "ignoreip")
	if err != nil {
		return nil, fmt.Errorf("ask what jail %q ignores: %w", jail, err)
	}
	if v == nil {
		return nil, nil
	}
	items, err := itemsOf(v)
	if err != nil {
		return nil, fmt.Errorf("ask what jail %q ignores: %w", jail, err)
	}
	var out []netip.Prefix
	for _, item := range items {
		s, _ := item.(string)
		if p, ok := parsePrefix(s); ok {
			out = append(out, p)
		}
	}
	return out, nil
}

// AddIgnoreIP makes the jail ignore prefixes until the next reload.
func (c *Client) AddIgnoreIP(ctx context.Context, jail string, prefixes ...netip.Prefix) error {
	_, err := c.batches(ctx, prefixes, "set", jail, "addignoreip")
	if err != nil {
		return fmt.Errorf("add to what jail %q ignores: %w", jail, err)
	}
	return nil
}

// DelIgnoreIP makes the jail ignore prefixes no more. Those it didn't ignore are no error.
func (c *Client) DelIgnoreIP(ctx context.Context, jail string, prefixes ...netip.Prefix) error {
	texts, err := formatAll(prefixes)
	if err != nil {
		return err
	}
	for _, text := range texts { // one at a time: so the server has it
		var se *ServerError
		_, err := c.jailCall(ctx, "set", jail, "delignoreip", text)
		if err != nil && (!errors.As(err, &se) || se.Class != "ValueError" && se.Class != "KeyError") {
			return fmt.Errorf("take %s from what jail %q ignores: %w", text, jail, err)
		}
	}
	return nil
}

// BanIP bans prefixes in the jail for its ban time and returns how many weren't banned before. The server doesn't tell
// whether its firewall took them, and answers nobody else until its actions are done: give ctx the time for that.
func (c *Client) BanIP(ctx context.Context, jail string, prefixes ...netip.Prefix) (int, error) {
	n, err := c.batches(ctx, prefixes, "set", jail, "banip")
	if err != nil {
		return n, fmt.Errorf("ban in jail %q: %w", jail, err)
	}
	return n, nil
}

// UnbanIP unbans prefixes in the jail and returns how many were banned. A prefix lifts each ban within it.
func (c *Client) UnbanIP(ctx context.Context, jail string, prefixes ...netip.Prefix) (int, error) {
	n, err := c.batches(ctx, prefixes, "set", jail, "unbanip")
	if err != nil {
		return n, fmt.Errorf("unban in jail %q: %w", jail, err)
	}
	return n, nil
}

// UnbanEverywhere unbans prefixes in all jails and returns how many bans it lifted.
func (c *Client) UnbanEverywhere(ctx context.Context, prefixes ...netip.Prefix) (int, error) {
	n, err := c.batches(ctx, prefixes, "unban")
	if err != nil {
		return n, fmt.Errorf("unban in all jails: %w", err)
	}
	return n, nil
}

// FlushLogs makes the server open its log file anew.
func (c *Client) FlushLogs(ctx context.Context) error {
	if _, err := c.call(ctx, "flushlogs"); err != nil {
		return fmt.Errorf("flush fail2ban's logs: %w", err)
	}
	return nil
}

// batches runs a command for prefixes, some hundreds at a time, and adds the counts up. Repeating one changes nothing
// but its count.
func (c *Client) batches(ctx context.Context, prefixes []netip.Prefix, command ...string) (int, error) {
	texts, err := formatAll(prefixes)
	if err != nil {
		return 0, err
	}
	if len(command) > 1 && !ValidJail(command[1]) {
		return 0, fmt.Errorf("%w: %q can't be a jail", ErrArgument, command[1])
	}
	total := 0
	for len(texts) > 0 {
		batch := texts[:min(len(texts), maxBatch)]
		texts = texts[len(batch):]
		v, err := c.call(ctx, append(append([]string{}, command...), batch...)...)
		if err != nil {
			return total, err
		}
		if n, ok := v.(int64); ok {
			total += int(n)
		}
	}
	return total, nil
}

// jailCall is call for a command about the jail that is its second word; repeating it changes nothing.
func (c *Client) jailCall(ctx context.Context, args ...string) (any, error) {
	if !ValidJail(args[1]) {
		return nil, fmt.Errorf("%w: %q can't be a jail", ErrArgument, args[1])
	}
	return c.call(ctx, args...)
}

func (c *Client) jailNumber(ctx context.Context, jail, key string) (int64, error) {
	v, err := c.jailCall(ctx, "get", jail, key)
	if err != nil {
		return 0, fmt.Errorf("ask %s of jail %q: %w", key, jail, err)
	}
	switch n := v.(type) {
	case int64:
		return n, nil
	case float64:
		if n >= -1 && n < 1e15 {
			return int64(n), nil
		}
	}
	return 0, fmt.Errorf("ask %s of jail %q: %w: not a number", key, jail, ErrGarbage)
}

func (c *Client) text(ctx context.Context, args ...string) (string, error) {
	v, err := c.call(ctx, args...)
	if err != nil {
		return "", fmt.Errorf("ask fail2ban: %s: %w", strings.Join(args, " "), err)
	}
	s, ok := v.(string)
	if !ok || len(s) > 4096 {
		return "", fmt.Errorf("ask fail2ban: %s: %w: not a text", strings.Join(args, " "), ErrGarbage)
	}
	return s, nil
}

func formatAll(prefixes []netip.Prefix) ([]string, error) {
	texts := make([]string, len(prefixes))
	for i, p := range prefixes {
		if !p.IsValid() || p.Addr().Zone() != "" {
			return nil, fmt.Errorf("%w: an invalid address", ErrArgument)
		}
		texts[i] = prefix.Format(canonical(p))
	}
	return texts, nil
}

// canonical is the form that replies are parsed into.
func canonical(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}
