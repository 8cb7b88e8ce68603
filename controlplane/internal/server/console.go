package server

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
)

// console is a slog.Handler for people at a terminal: time, what happened, and the rest after it.
//
//	08:15:42  control plane listens  address=[::]:8443 replica=one
//	08:15:43  WARNING redis-server wants the machine set up otherwise  problem="…" fix="…"
type console struct {
	level slog.Level
	attrs string // given by With, as they are printed
	group string

	mu *sync.Mutex
	w  io.Writer
}

func newConsole(w io.Writer, level slog.Level) *console {
	return &console{level: level, mu: &sync.Mutex{}, w: w}
}

// Enabled implements slog.Handler.
func (c *console) Enabled(_ context.Context, level slog.Level) bool { return level >= c.level }

// Handle implements slog.Handler.
func (c *console) Handle(_ context.Context, r slog.Record) error {
	var b bytes.Buffer
	b.WriteString(r.Time.Format("15:04:05  "))
	switch {
	case r.Level >= slog.LevelError:
		b.WriteString("ERROR ")
	case r.Level >= slog.LevelWarn:
		b.WriteString("WARNING ")
	case r.Level < slog.LevelInfo:
		b.WriteString("debug ")
	}
	b.WriteString(r.Message)
	b.WriteByte(' ')
	b.WriteString(c.attrs)
	r.Attrs(func(a slog.Attr) bool {
		b.WriteString(attrText(c.group, a))
		return true
	})
	line := append(bytes.TrimRight(b.Bytes(), " "), '\n')
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.w.Write(line)
	return err //nolint:wrapcheck // slog drops it
}

// WithAttrs implements slog.Handler.
func (c *console) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := *c
	for _, a := range attrs {
		out.attrs += attrText(c.group, a)
	}
	return &out
}

// WithGroup implements slog.Handler.
func (c *console) WithGroup(name string) slog.Handler {
	out := *c
	out.group += name + "."
	return &out
}

func attrText(group string, a slog.Attr) string {
	value := a.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		var out strings.Builder
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, inner := range value.Group() {
			out.WriteString(attrText(group, inner))
		}
		return out.String()
	}
	return " " + group + a.Key + "=" + quoted(value.String())
}

// quoted is text as it is, or with quotes where it isn't one word, or could move a terminal's cursor.
func quoted(text string) string {
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == '"' || r == '=' || r == 0x7f || !strconv.IsPrint(r) }) {
		return strconv.Quote(text)
	}
	return text
}
