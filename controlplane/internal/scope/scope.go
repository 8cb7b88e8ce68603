// Package scope says which hosts of an organisation a caller sees and steers.
//
// A member or token may be restricted to tags: "this team sees and steers the hosts with team=web". A host is within the
// scope if it has one of the tags, and so is the set of bans for each of them. No tags is the whole fleet; so what can be
// narrowed to nothing (Narrow) says so beside the tags.
package scope

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/fleetban/fleetban/proto/wire/banset"
)

// Max is how many tags one scope has. Access tokens carry them, and headers are bounded.
const Max = 8

// ErrInvalid is wrapped by refusals of a tag; the text says what would be right.
var ErrInvalid = errors.New("invalid")

// Tag is one that hosts have.
type Tag struct{ Key, Value string }

// String is "k=v".
func (t Tag) String() string { return t.Key + "=" + t.Value }

// Set is the set of bans for hosts with the tag.
func (t Tag) Set() string { return banset.TagPrefix + t.String() }

var (
	tagKey   = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,59}$`)
	tagValue = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,59}$`)
)

// Check says whether k=v can be a host's tag.
func Check(k, v string) error {
	if !tagKey.MatchString(k) {
		return fmt.Errorf("%w tag name %q: lower-case letters, digits, '.', '_' and '-', at most 60", ErrInvalid, k)
	}
	if !tagValue.MatchString(v) {
		return fmt.Errorf("%w tag value %q: letters, digits, '.', '_' and '-', at most 60", ErrInvalid, v)
	}
	return nil
}

// Tags are a scope: sorted, each once. None is the whole fleet.
type Tags []Tag

// Parse reads "k=v" each; at most Max.
func Parse(texts []string) (Tags, error) {
	var out Tags
	for _, text := range texts {
		k, v, found := strings.Cut(text, "=")
		if !found {
			return nil, fmt.Errorf("%w tag %q: it is not of the form k=v", ErrInvalid, text)
		}
		if err := Check(k, v); err != nil {
			return nil, err
		}
		out = append(out, Tag{k, v})
	}
	slices.SortFunc(out, func(a, b Tag) int { return strings.Compare(a.String(), b.String()) })
	out = slices.Compact(out)
	if len(out) > Max {
		return nil, fmt.Errorf("%w tags: %d, %d are possible", ErrInvalid, len(out), Max)
	}
	return out, nil
}

// Strings is what Parse reads; nil for the whole fleet.
func (t Tags) Strings() []string {
	if len(t) == 0 {
		return nil
	}
	out := make([]string, 0, len(t))
	for _, tag := range t {
		out = append(out, tag.String())
	}
	return out
}

// Whole reports whether it is the whole fleet.
func (t Tags) Whole() bool { return len(t) == 0 }

// Has reports whether a host with these tags is within.
func (t Tags) Has(host map[string]string) bool {
	return t.Whole() || slices.ContainsFunc(t, func(tag Tag) bool {
		v, ok := host[tag.Key]
		return ok && v == tag.Value
	})
}

// Names reports whether it is restricted to exactly this tag, among others: whether bans for the tag stay within.
func (t Tags) Names(k, v string) bool { return t.Whole() || slices.Contains(t, Tag{k, v}) }

// Shows reports whether a set's bans are in force on hosts within: those for every host are.
func (t Tags) Shows(set string) bool {
	tag, is := strings.CutPrefix(set, banset.TagPrefix)
	if !is || t.Whole() {
		// What every host protects is of each of them alone.
		return t.Whole() || set != banset.Hosts
	}
	k, v, _ := strings.Cut(tag, "=")
	return t.Names(k, v)
}

// Narrow is what is within both, as far as tags can say: hosts that have a tag of each but none that both name are left
// out. ok is false where that is nothing.
func (t Tags) Narrow(by Tags) (both Tags, ok bool) {
	switch {
	case t.Whole():
		return by, true
	case by.Whole():
		return t, true
	}
	for _, tag := range t {
		if slices.Contains(by, tag) {
			both = append(both, tag)
		}
	}
	return both, len(both) > 0
}
