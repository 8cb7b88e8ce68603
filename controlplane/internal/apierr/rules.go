package apierr

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// plain says in plain words which rule of its proto a field breaks. Rules that have no better words keep their own.
func plain(v *protovalidate.Violation) string {
	path := protovalidate.FieldPathString(v.Proto.GetField())
	own := strings.TrimSpace(path + ": " + v.Proto.GetMessage())
	if v.FieldDescriptor == nil || v.RuleDescriptor == nil {
		return own
	}
	if v.RuleDescriptor.Name() == "required" {
		return path + " is missing"
	}
	rules := rulesOf(v)
	if rules == nil || !v.FieldValue.IsValid() {
		return own
	}
	has := func(name protoreflect.Name) bool { return rules.Descriptor().Fields().ByName(name) != nil }
	switch {
	case has("min_items"):
		return length(path, rules, "items", size(v.FieldValue), "entry", "entries", own)
	case has("min_pairs"):
		return length(path, rules, "pairs", size(v.FieldValue), "entry", "entries", own)
	case rules.Descriptor().Name() == "StringRules":
		return length(path, rules, "len", size(v.FieldValue), "character", "characters", own)
	case rules.Descriptor().Name() == "BytesRules":
		return length(path, rules, "len", size(v.FieldValue), "byte", "bytes", own)
	case has("gte") && has("lte"):
		return between(path, rules, v.FieldValue, own)
	default:
		return own
	}
}

// rulesOf is the message that has the broken rule. Nil for rules of a list's entries, which protovalidate tells no more of.
func rulesOf(v *protovalidate.Violation) protoreflect.Message {
	all, err := protovalidate.ResolveFieldRules(v.FieldDescriptor)
	if err != nil || all == nil {
		return nil
	}
	m := all.ProtoReflect()
	kind := m.WhichOneof(m.Descriptor().Oneofs().ByName("type"))
	if kind == nil || kind.Message() == nil || kind.Message() != v.RuleDescriptor.Parent() {
		return nil
	}
	return m.Get(kind).Message()
}

// bound is a rule's number, as text; "" where the rule isn't given.
func bound(rules protoreflect.Message, name protoreflect.Name) string {
	f := rules.Descriptor().Fields().ByName(name)
	if f == nil || f.Message() != nil || !rules.Has(f) {
		return ""
	}
	return rules.Get(f).String()
}

func size(v protoreflect.Value) int {
	switch x := v.Interface().(type) {
	case string:
		return utf8.RuneCountInString(x)
	case []byte:
		return len(x)
	case protoreflect.List:
		return x.Len()
	case protoreflect.Map:
		return x.Len()
	default:
		return 0
	}
}

func length(path string, rules protoreflect.Message, what string, is int, one, many, own string) string {
	least, most, exact := bound(rules, protoreflect.Name("min_"+what)), bound(rules, protoreflect.Name("max_"+what)), bound(rules, protoreflect.Name(what))
	unit := func(n string) string {
		if n == "1" {
			return n + " " + one
		}
		return n + " " + many
	}
	broken := func(n string, isBelow bool) bool {
		limit, err := strconv.Atoi(n)
		return err == nil && (isBelow && is < limit || !isBelow && is > limit)
	}
	switch {
	case exact != "" && exact != strconv.Itoa(is):
		return fmt.Sprintf("%s must have %s, not %d", path, unit(exact), is)
	case is == 0 && broken(least, true):
		return path + " is empty"
	case broken(least, true), broken(most, false):
	default:
		return own // another rule of the same kind: a pattern
	}
	switch {
	case least == "" || least == "0":
		return fmt.Sprintf("%s may have at most %s, not %d", path, unit(most), is)
	case most == "":
		return fmt.Sprintf("%s must have at least %s, not %d", path, unit(least), is)
	default:
		return fmt.Sprintf("%s must have %s to %s, not %d", path, least, unit(most), is)
	}
}

// between is for numbers. Those whose field is named "…_s" are seconds, and people think of them as days.
func between(path string, rules protoreflect.Message, is protoreflect.Value, own string) string {
	least, most := bound(rules, "gte"), bound(rules, "lte")
	if least == "" && most == "" {
		return own
	}
	text := func(n string) string { return n }
	if seconds, found := strings.CutSuffix(path, "_s"); found {
		path, text = strings.ReplaceAll(seconds, "_", " "), spell
		if least == "0" {
			least = "" // "the default"
		}
	}
	switch {
	case least == "" && strings.HasPrefix(is.String(), "-"):
		return fmt.Sprintf("%s may not be negative, and at most %s; it is %s", path, text(most), text(is.String()))
	case least == "":
		return fmt.Sprintf("%s may be at most %s; it is %s", path, text(most), text(is.String()))
	case most == "":
		return fmt.Sprintf("%s must be at least %s; it is %s", path, text(least), text(is.String()))
	default:
		return fmt.Sprintf("%s must be %s to %s; it is %s", path, text(least), text(most), text(is.String()))
	}
}

// spell says a number of seconds in the largest unit that is whole.
func spell(seconds string) string {
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return seconds
	}
	unit := "second"
	for _, larger := range []struct {
		seconds int64
		unit    string
	}{{86400, "day"}, {3600, "hour"}, {60, "minute"}} {
		if n != 0 && n%larger.seconds == 0 {
			n, unit = n/larger.seconds, larger.unit
			break
		}
	}
	if n != 1 && n != -1 {
		unit += "s"
	}
	return strconv.FormatInt(n, 10) + " " + unit
}
