package policy

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The policy file is TOML, read by a parser of the part of it that a policy can use: a library for all of TOML would be a
// seventieth of the agent's binary. What is accepted here means the same to any TOML parser; the rest is refused with its
// line.

// value is what a key is set to.
type value struct {
	line int
	kind string // what it is, for errors: "a string", "a number", "true or false", "a list"
	text string
	num  int
	yes  bool
	list []value // of strings
}

const (
	aString, aNumber, aBool, aList = "a string", "a number", "true or false", "a list"
)

// scanner stands somewhere in the file.
type scanner struct {
	rest []byte
	line int
}

// syntaxError is an error at a line.
type syntaxError struct {
	line    int
	problem string
}

func (s syntaxError) Error() string { return s.problem }

func (s *scanner) fail(format string, args ...any) error {
	return syntaxError{s.line, fmt.Sprintf(format, args...)}
}

// settings reads a file of settings.
func settings(data []byte) (map[string]value, error) {
	s := &scanner{rest: data, line: 1}
	if i := invalid(data); i >= 0 {
		return nil, syntaxError{1 + bytes.Count(data[:i], []byte("\n")), "has a character that is not text"}
	}
	found := map[string]value{}
	for s.blank(true); len(s.rest) > 0; s.blank(true) {
		if s.rest[0] == '[' {
			name, _, _ := bytes.Cut(s.rest[1:], []byte("]"))
			name, _, _ = bytes.Cut(name, []byte("\n"))
			return nil, s.unknown(string(name))
		}
		key := string(s.while("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"))
		line := s.line
		s.blank(false)
		switch {
		case key == "" || len(s.rest) == 0 || s.rest[0] != '=':
			return nil, s.fail("is not a line such as: level = \"ban\"")
		case !known(key):
			return nil, s.unknown(key)
		case found[key].line > 0:
			return nil, s.fail("%s is set a second time", key)
		}
		s.rest = s.rest[1:]
		s.blank(false)
		v, err := s.value()
		if err != nil {
			return nil, err
		}
		v.line = line
		found[key] = v
		if s.blank(false); len(s.rest) > 0 && s.rest[0] != '\n' {
			return nil, s.fail("has something behind the value of %s", key)
		}
	}
	return found, nil
}

func known(key string) bool {
	for _, k := range keys {
		if k == key {
			return true
		}
	}
	return false
}

func (s *scanner) unknown(key string) error {
	return s.fail("%.60q is not a setting; the settings are %s", key, strings.Join(keys, ", "))
}

// invalid finds what TOML has nowhere.
func invalid(data []byte) int {
	for i := 0; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		crlf := r == '\r' && i+1 < len(data) && data[i+1] == '\n'
		if r == utf8.RuneError && n == 1 || r == 0x7f || r < ' ' && r != '\t' && r != '\n' && !crlf {
			return i
		}
		i += n
	}
	return -1
}

// blank skips spaces and a comment, and further lines if told to.
func (s *scanner) blank(lines bool) {
	for len(s.rest) > 0 {
		switch c := s.rest[0]; {
		case c == ' ' || c == '\t' || c == '\r':
		case c == '#':
			i := bytes.IndexByte(s.rest, '\n')
			if i < 0 {
				i = len(s.rest)
			}
			s.rest = s.rest[i:]
			continue
		case c == '\n' && lines:
			s.line++
		default:
			return
		}
		s.rest = s.rest[1:]
	}
}

// while takes the characters that are of a set.
func (s *scanner) while(set string) []byte {
	i := 0
	for i < len(s.rest) && strings.IndexByte(set, s.rest[i]) >= 0 {
		i++
	}
	word := s.rest[:i]
	s.rest = s.rest[i:]
	return word
}

func (s *scanner) value() (value, error) {
	if len(s.rest) == 0 {
		return value{}, s.fail("ends where a value should be")
	}
	switch s.rest[0] {
	case '"', '\'':
		return s.text()
	case '[':
		return s.strings()
	}
	word := string(s.while("abcdefghijklmnopqrstuvwxyz0123456789-"))
	switch word {
	case "true", "false":
		return value{kind: aBool, yes: word == "true"}, nil
	}
	n, err := strconv.ParseInt(word, 10, 32)
	if err != nil || strconv.FormatInt(n, 10) != word {
		return value{}, s.fail("has a value that is no string in quotes, no plain number, and neither true nor false")
	}
	return value{kind: aNumber, num: int(n)}, nil
}

// text reads a string in quotes, of one line.
func (s *scanner) text() (value, error) {
	quote := s.rest[0]
	i := 1
	for ; i < len(s.rest) && s.rest[i] != quote; i++ {
		switch c := s.rest[i]; {
		case c == '\\' && quote == '"':
			return value{}, s.fail("has a backslash in a string; none is needed")
		case c == '\n' || c == '\r':
			return value{}, s.fail("has a string that doesn't end on its line")
		}
	}
	if i >= len(s.rest) {
		return value{}, s.fail("has a string that doesn't end on its line")
	}
	v := value{line: s.line, kind: aString, text: string(s.rest[1:i])}
	if s.rest = s.rest[i+1:]; v.text == "" && len(s.rest) > 0 && s.rest[0] == quote {
		return value{}, s.fail("has a string of several lines")
	}
	return v, nil
}

// strings reads a list of strings, over as many lines as it likes.
func (s *scanner) strings() (value, error) {
	v := value{kind: aList}
	begun := *s
	s.rest = s.rest[1:]
	for {
		s.blank(true)
		if len(s.rest) == 0 {
			return value{}, begun.fail("begins a list that doesn't end")
		}
		if s.rest[0] == ']' {
			s.rest = s.rest[1:]
			return v, nil
		}
		if s.rest[0] != '"' && s.rest[0] != '\'' {
			return value{}, s.fail("has something in a list that is no string in quotes")
		}
		e, err := s.text()
		if err != nil {
			return value{}, err
		}
		v.list = append(v.list, e)
		if s.blank(true); len(s.rest) > 0 && s.rest[0] == ',' {
			s.rest = s.rest[1:]
		} else if len(s.rest) > 0 && s.rest[0] != ']' {
			return value{}, s.fail("misses a comma in a list")
		}
	}
}
