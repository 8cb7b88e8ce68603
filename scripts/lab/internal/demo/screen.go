package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// width is how wide the text of a step is before its time.
const width = 76

// screen writes steps: what happens while it happens, if it is a terminal, and how long it took.
type screen struct {
	out      io.Writer
	terminal bool
}

func newScreen(out io.Writer) *screen {
	s := &screen{out: out}
	if f, ok := out.(*os.File); ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" {
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		s.terminal = err == nil
	}
	return s
}

func (s *screen) paint(code, text string) string {
	if !s.terminal {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s *screen) bold(text string) string { return s.paint("1", text) }
func (s *screen) dim(text string) string  { return s.paint("2", text) }

// title begins a part.
func (s *screen) title(text string) { fmt.Fprintf(s.out, "\n%s\n", s.bold(text)) }

// busy shows what is being done, until the next line takes its place.
func (s *screen) busy(text string) {
	if s.terminal {
		fmt.Fprintf(s.out, "\r\x1b[K  %s %s", s.dim("·"), s.dim(text))
	}
}

// ok says what was seen to hold, and the time that belongs to it, if any.
func (s *screen) ok(text, figure string) { s.line(s.paint("32", "✓"), text, figure) }

// failed says what was not.
func (s *screen) failed(text string) { s.line(s.paint("31", "✗"), text, "") }

func (s *screen) line(mark, text, figure string) {
	if s.terminal {
		fmt.Fprint(s.out, "\r\x1b[K")
	}
	if figure == "" {
		fmt.Fprintf(s.out, "  %s %s\n", mark, text)
		return
	}
	gap := max(1, width-utf8.RuneCountInString(text))
	fmt.Fprintf(s.out, "  %s %s%s%s\n", mark, text, strings.Repeat(" ", gap), s.paint("36", fmt.Sprintf("%9s", figure)))
}

// quote shows a command and what it printed.
func (s *screen) quote(command, output string) {
	if s.terminal {
		fmt.Fprint(s.out, "\r\x1b[K")
	}
	fmt.Fprintf(s.out, "    %s %s\n", s.dim("$"), s.bold(command))
	for _, line := range strings.Split(strings.TrimRight(output, "\n"), "\n") {
		fmt.Fprintln(s.out, strings.TrimRight("    "+line, " "))
	}
}

// note is a line of explanation.
func (s *screen) note(text string) { fmt.Fprintf(s.out, "  %s\n", s.dim(text)) }

// figure writes a duration as a reader wants it.
func figure(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	default:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
}
