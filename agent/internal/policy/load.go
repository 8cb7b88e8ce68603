package policy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/BurntSushi/toml"

	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// Bounds of what a policy file may hold.
const (
	maxFile     = 1 << 20
	maxNetworks = 10_000
	maxCommands = 6_000
)

// Error says what is wrong with a policy file and what to write instead.
type Error struct {
	File string
	// Line is from 1; 0 where the whole file is meant.
	Line    int
	Problem string
	Fix     string
}

// Error is "FILE:LINE: problem; fix".
func (e *Error) Error() string {
	at := e.File
	if e.Line > 0 {
		at = fmt.Sprintf("%s:%d", e.File, e.Line)
	}
	if e.Fix == "" {
		return at + ": " + e.Problem
	}
	return at + ": " + e.Problem + "; " + e.Fix
}

// Load reads the policy file at path. A file that isn't there is Default. Every error is an *Error.
func Load(path string) (Policy, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return Policy{}, &Error{File: path, Problem: "can't be opened: " + reason(err), Fix: "make it readable by root, or remove it for the defaults"}
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		return Policy{}, &Error{File: path, Problem: "can't be examined: " + reason(err)}
	}
	if !info.Mode().IsRegular() {
		return Policy{}, &Error{File: path, Problem: "is not a regular file", Fix: "replace it by a file, or remove it for the defaults"}
	}
	if info.Mode().Perm()&0o022 != 0 {
		return Policy{}, &Error{File: path, Problem: "others than its owner may write to it", Fix: "chmod 0644 " + path}
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return Policy{}, &Error{File: path, Problem: fmt.Sprintf("belongs to uid %d", st.Uid), Fix: "chown root: " + path}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return Policy{}, &Error{File: path, Problem: "can't be read: " + reason(err)}
	}
	return Parse(data, path)
}

// file is the policy file as written.
type file struct {
	Level             string   `toml:"level"`
	NeverBan          []string `toml:"never_ban"`
	AllowReserved     []string `toml:"allow_reserved"`
	LargestPrefix4    int      `toml:"largest_prefix_v4"`
	LargestPrefix6    int      `toml:"largest_prefix_v6"`
	LargestTotal4     int      `toml:"largest_total_v4"`
	LargestTotal6     int      `toml:"largest_total_v6"`
	CommandsPerMinute int      `toml:"commands_per_minute"`
	SendMatchedLines  bool     `toml:"send_matched_lines"`
	Proxied           bool     `toml:"proxied"`
	Enforcer          string   `toml:"enforcer"`
}

// Parse reads a policy file's content; name is what errors call it. Every error is an *Error.
func Parse(data []byte, name string) (Policy, error) {
	if len(data) > maxFile {
		return Policy{}, &Error{File: name, Problem: fmt.Sprintf("is larger than %d bytes", maxFile), Fix: "shorten it"}
	}
	d := Default()
	raw := file{
		Level: d.Level.String(), Enforcer: d.Enforcer, CommandsPerMinute: d.CommandsPerMinute,
		LargestPrefix4: d.LargestPrefix4, LargestPrefix6: d.LargestPrefix6,
		LargestTotal4: d.LargestTotal4, LargestTotal6: d.LargestTotal6,
	}
	meta, err := toml.NewDecoder(bytes.NewReader(data)).Decode(&raw)
	if err != nil {
		return Policy{}, syntaxError(name, err)
	}
	p := parser{name: name, data: data}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		key := unknown[0].String()
		return Policy{}, p.fail(unknown[0][len(unknown[0])-1], fmt.Sprintf("%.60q is not a setting", key),
			"the settings are "+strings.Join(keys, ", "))
	}
	out := Policy{SendMatchedLines: raw.SendMatchedLines, Proxied: raw.Proxied, Enforcer: raw.Enforcer}
	if out.Level, err = ParseLevel(raw.Level); err != nil {
		return Policy{}, p.fail("level", err.Error(), `write "observe", "ban", "tune" or "configure"`)
	}
	if out.NeverBan, err = p.prefixes("never_ban", raw.NeverBan); err != nil {
		return Policy{}, err
	}
	if out.AllowReserved, err = p.prefixes("allow_reserved", raw.AllowReserved); err != nil {
		return Policy{}, err
	}
	for _, n := range []struct {
		key         string
		value, a, b int
		to          *int
	}{
		{"largest_prefix_v4", raw.LargestPrefix4, 8, 32, &out.LargestPrefix4},
		{"largest_prefix_v6", raw.LargestPrefix6, 16, 128, &out.LargestPrefix6},
		{"largest_total_v4", raw.LargestTotal4, 1, 32, &out.LargestTotal4},
		{"largest_total_v6", raw.LargestTotal6, 3, 64, &out.LargestTotal6},
		{"commands_per_minute", raw.CommandsPerMinute, 0, maxCommands, &out.CommandsPerMinute},
	} {
		if n.value < n.a || n.value > n.b {
			return Policy{}, p.fail(n.key, fmt.Sprintf("%s is %d", n.key, n.value), fmt.Sprintf("write a number from %d to %d", n.a, n.b))
		}
		*n.to = n.value
	}
	if out.Enforcer != EnforcerNftables && out.Enforcer != EnforcerNone {
		return Policy{}, p.fail("enforcer", fmt.Sprintf("%.40q is not an enforcer", out.Enforcer), `write "nftables" or "none"`)
	}
	return out, nil
}

var keys = []string{
	"level", "never_ban", "allow_reserved", "largest_prefix_v4", "largest_prefix_v6", "largest_total_v4", "largest_total_v6",
	"commands_per_minute", "send_matched_lines", "proxied", "enforcer",
}

type parser struct {
	name string
	data []byte
}

func (p parser) prefixes(key string, in []string) ([]netip.Prefix, error) {
	if len(in) > maxNetworks {
		return nil, p.fail(key, fmt.Sprintf("%s has %d networks", key, len(in)), fmt.Sprintf("write at most %d", maxNetworks))
	}
	var out []netip.Prefix
	for _, s := range in {
		parsed, err := prefix.Parse(s)
		if err != nil {
			e := p.fail(key, fmt.Sprintf("%s: %v", key, err), `write networks such as "198.51.100.0/24" or "2001:db8::1"`)
			if at := p.line(`"` + s + `"`); at > 0 {
				e.Line = at
			}
			return nil, e
		}
		out = append(out, parsed)
	}
	return out, nil
}

func (p parser) fail(key, problem, fix string) *Error {
	return &Error{File: p.name, Line: p.lineOfKey(key), Problem: problem, Fix: fix}
}

// lineOfKey finds where a key or table of that name is, by text: the decoder doesn't tell.
func (p parser) lineOfKey(key string) int {
	n := 0
	for line := range bytes.Lines(p.data) {
		n++
		text := strings.TrimLeft(string(line), " \t[\"'")
		if rest, ok := strings.CutPrefix(text, key); ok {
			if rest = strings.TrimLeft(rest, " \t\"'"); rest != "" && strings.ContainsRune("=].", rune(rest[0])) {
				return n
			}
		}
	}
	return 0
}

func (p parser) line(text string) int {
	i := bytes.Index(p.data, []byte(text))
	if i < 0 {
		return 0
	}
	return 1 + bytes.Count(p.data[:i], []byte("\n"))
}

func syntaxError(name string, err error) *Error {
	var parse toml.ParseError
	if errors.As(err, &parse) {
		problem := parse.Message
		if problem == "" {
			problem = strings.TrimPrefix(parse.Error(), "toml: ")
		}
		return &Error{File: name, Line: parse.Position.Line, Problem: problem, Fix: "see the example file for how it is written"}
	}
	// A value of the wrong type comes as text only: `line 3 (last key "proxied"): incompatible types: …`.
	problem, line := strings.TrimPrefix(err.Error(), "toml: "), 0
	if rest, ok := strings.CutPrefix(problem, "line "); ok {
		digits, _, _ := strings.Cut(rest, " ")
		line, _ = strconv.Atoi(digits) // 0 is the whole file
		if _, rest, ok = strings.Cut(problem, "): "); ok {
			problem = rest
		}
	}
	return &Error{File: name, Line: line, Problem: problem, Fix: "see the example file for how it is written"}
}

func reason(err error) string {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err.Error()
	}
	return err.Error()
}
