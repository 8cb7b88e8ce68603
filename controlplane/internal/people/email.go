package people

import (
	"fmt"
	"strings"
)

// Bounds of an address, bytes (RFC 5321).
const (
	maxEmailLen = 254
	maxLocalLen = 64
	maxLabelLen = 63
)

// Email is an address as accounts are found by it: parsed, and in lower case. Two people can't hold accounts whose
// addresses differ in case alone.
//
// Only ASCII is taken. Letters that look or fold alike (ＡＤＭＩＮ, admın, the Kelvin sign) are refused instead of
// mapped: a mapping that a mail server doesn't share would give one person's invitations to another.
type Email struct{ text string }

// String is the folded address.
func (e Email) String() string { return e.text }

// ParseEmail parses an address of the form local@domain: a dot-atom and a host name, without comments or quotes.
func ParseEmail(s string) (Email, error) {
	bad := func(why string) (Email, error) {
		return Email{}, fmt.Errorf("%w e-mail address: %s", ErrInvalid, why)
	}
	if len(s) > maxEmailLen {
		return bad(fmt.Sprintf("it has %d bytes, %d are possible", len(s), maxEmailLen))
	}
	local, domain, found := strings.Cut(s, "@")
	if !found || strings.Contains(domain, "@") {
		return bad("write it as name@example.com")
	}
	if local == "" || len(local) > maxLocalLen {
		return bad(fmt.Sprintf("what stands before the @ has %d bytes, 1 to %d are possible", len(local), maxLocalLen))
	}
	for _, atom := range strings.Split(local, ".") {
		if atom == "" || strings.IndexFunc(atom, func(r rune) bool { return !isAtom(r) }) >= 0 {
			return bad("before the @ are letters, digits and !#$%&'*+-/=?^_`{|}~ possible, and dots between them")
		}
	}
	for _, label := range strings.Split(domain, ".") {
		if label == "" || len(label) > maxLabelLen || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.IndexFunc(label, func(r rune) bool { return !isAlphanumeric(r) && r != '-' }) >= 0 {
			return bad("after the @ stands a host's name; one with other letters than a to z is written as xn--…")
		}
	}
	return Email{strings.ToLower(s)}, nil
}

func isAlphanumeric(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

func isAtom(r rune) bool {
	return isAlphanumeric(r) || r < 0x80 && strings.ContainsRune("!#$%&'*+-/=?^_`{|}~", r)
}
