package hostcli

import (
	"io"
	"strings"
	"unicode"
)

// plain lets nothing through to a terminal that could steer it, but the colours of paint: hosts' names, replicas' names and
// what went wrong are other people's texts.
type plain struct{ io.Writer }

func (p plain) Write(b []byte) (int, error) {
	var out strings.Builder
	out.Grow(len(b))
	text := strings.ToValidUTF8(string(b), "\uFFFD")
	for i, r := range text {
		if unicode.IsControl(r) && r != '\n' && r != '\t' && (r != '\x1b' || !colourAt(text[i:])) {
			r = '\uFFFD'
		}
		out.WriteRune(r)
	}
	if _, err := io.WriteString(p.Writer, out.String()); err != nil {
		return 0, err
	}
	return len(b), nil
}

func colourAt(s string) bool {
	for _, c := range []string{red, green, yellow, "0"} {
		if strings.HasPrefix(s, "\x1b["+c+"m") {
			return true
		}
	}
	return false
}
