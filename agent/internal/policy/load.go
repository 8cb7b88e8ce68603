package policy

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"syscall"

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

// Parse reads a policy file's content; name is what errors call it. Every error is an *Error.
func Parse(data []byte, name string) (Policy, error) {
	if len(data) > maxFile {
		return Policy{}, &Error{File: name, Problem: fmt.Sprintf("is larger than %d bytes", maxFile), Fix: "shorten it"}
	}
	found, err := settings(data)
	if err != nil {
		e := &Error{File: name, Problem: err.Error(), Fix: "see the example file for how it is written"}
		var at syntaxError
		if errors.As(err, &at) {
			e.Line = at.line
		}
		return Policy{}, e
	}
	p := parser{name: name, found: found}
	out := Default()
	for _, n := range []struct {
		key  string
		a, b int
		to   *int
	}{
		{"largest_prefix_v4", 8, 32, &out.LargestPrefix4},
		{"largest_prefix_v6", 16, 128, &out.LargestPrefix6},
		{"largest_total_v4", 1, 32, &out.LargestTotal4},
		{"largest_total_v6", 3, 64, &out.LargestTotal6},
		{"commands_per_minute", 0, maxCommands, &out.CommandsPerMinute},
	} {
		if v, ok := p.get(n.key, aNumber); ok {
			if v.num < n.a || v.num > n.b {
				p.fail(v.line, fmt.Sprintf("%s is %d", n.key, v.num), fmt.Sprintf("write a number from %d to %d", n.a, n.b))
			}
			*n.to = v.num
		}
	}
	for key, to := range map[string]*bool{"send_matched_lines": &out.SendMatchedLines, "proxied": &out.Proxied} {
		if v, ok := p.get(key, aBool); ok {
			*to = v.yes
		}
	}
	for key, to := range map[string]*[]netip.Prefix{"never_ban": &out.NeverBan, "allow_reserved": &out.AllowReserved} {
		if v, ok := p.get(key, aList); ok {
			*to = p.prefixes(key, v)
		}
	}
	if v, ok := p.get("level", aString); ok {
		if out.Level, err = ParseLevel(v.text); err != nil {
			p.fail(v.line, err.Error(), `write "observe", "ban", "tune" or "configure"`)
		}
	}
	if v, ok := p.get("enforcer", aString); ok {
		if out.Enforcer = v.text; v.text != EnforcerNftables && v.text != EnforcerNone {
			p.fail(v.line, fmt.Sprintf("%.40q is not an enforcer", v.text), `write "nftables" or "none"`)
		}
	}
	if p.err != nil {
		return Policy{}, p.err
	}
	return out, nil
}

var keys = []string{
	"level", "never_ban", "allow_reserved", "largest_prefix_v4", "largest_prefix_v6", "largest_total_v4", "largest_total_v6",
	"commands_per_minute", "send_matched_lines", "proxied", "enforcer",
}

// parser makes a policy of settings, and keeps the first error in the file.
type parser struct {
	name  string
	found map[string]value
	err   *Error
}

func (p *parser) get(key, kind string) (value, bool) {
	v, ok := p.found[key]
	if ok && v.kind != kind {
		p.fail(v.line, fmt.Sprintf("%s is %s", key, v.kind), "write "+kind+"; see the example file")
		return v, false
	}
	return v, ok
}

func (p *parser) prefixes(key string, v value) (out []netip.Prefix) {
	if len(v.list) > maxNetworks {
		p.fail(v.line, fmt.Sprintf("%s has %d networks", key, len(v.list)), fmt.Sprintf("write at most %d", maxNetworks))
		return nil
	}
	for _, s := range v.list {
		parsed, err := prefix.Parse(s.text)
		if err != nil {
			p.fail(s.line, fmt.Sprintf("%s: %v", key, err), `write networks such as "198.51.100.0/24" or "2001:db8::1"`)
			return nil
		}
		out = append(out, parsed)
	}
	return out
}

func (p *parser) fail(line int, problem, fix string) {
	if p.err == nil || line < p.err.Line {
		p.err = &Error{File: p.name, Line: line, Problem: problem, Fix: fix}
	}
}

func reason(err error) string {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err.Error()
	}
	return err.Error()
}
