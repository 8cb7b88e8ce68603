package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// colour of a cell, by what it says; plain where the output isn't a terminal or NO_COLOR is set.
type colour string

const (
	plain colour = ""
	good  colour = "\x1b[32m"
	warn  colour = "\x1b[33m"
	wrong colour = "\x1b[31m"
	dim   colour = "\x1b[2m"
	reset        = "\x1b[0m"
)

// printer writes answers: tables and sentences for people, JSON for programs.
type printer struct {
	out    io.Writer
	format string // table, json, jsonl
	colour bool
	clock  clock
	err    error
}

func (p *printer) people() bool { return p.format == "table" }

// line writes a sentence. Arguments of unknown origin must have gone through safe.
func (p *printer) line(format string, args ...any) {
	p.write(fmt.Appendf(nil, format+"\n", args...))
}

func (p *printer) write(b []byte) {
	if p.err == nil {
		_, p.err = p.out.Write(b)
	}
}

func (p *printer) paint(c colour, s string) string {
	if !p.colour || c == plain {
		return s
	}
	return string(c) + s + reset
}

// cell is one field of a table; text is made safe when it is written.
type cell struct {
	text   string
	colour colour
}

func c(text string) cell                   { return cell{text: text} }
func painted(col colour, text string) cell { return cell{text, col} }

// table writes aligned columns with two blanks between; no trailing blanks.
func (p *printer) table(header []string, rows [][]cell) {
	widths := make([]int, len(header))
	for i, h := range header {
		widths[i] = cells(h)
	}
	for _, row := range rows {
		for i := range row {
			row[i].text = safe(row[i].text)
			if row[i].text == "" && header[i] != "" {
				row[i].text = "-"
			}
			widths[i] = max(widths[i], cells(row[i].text))
		}
	}
	head := make([]cell, len(header))
	for i, h := range header {
		head[i] = painted(dim, h)
	}
	var b strings.Builder
	for _, row := range append([][]cell{head}, rows...) {
		for i, field := range row {
			b.WriteString(p.paint(field.colour, field.text))
			if last := i == len(row)-1 || i == len(row)-2 && row[i+1].text == ""; !last {
				b.WriteString(strings.Repeat(" ", widths[i]-cells(field.text)+2))
			}
		}
		b.WriteByte('\n')
	}
	p.write([]byte(b.String()))
}

// facts writes names and values, one a line.
func (p *printer) facts(pairs ...[2]string) {
	widest := 0
	for _, pair := range pairs {
		widest = max(widest, cells(pair[0]))
	}
	for _, pair := range pairs {
		if pair[1] != "" {
			p.line("%s%s  %s", p.paint(dim, pair[0]), strings.Repeat(" ", widest-cells(pair[0])), pair[1])
		}
	}
}

// json writes one value: a proto.Message as the API's JSON, anything else by encoding/json.
func (p *printer) json(value any) {
	raw, err := encodeJSON(value)
	if err == nil {
		var b bytes.Buffer
		if p.format == "jsonl" {
			err = json.Compact(&b, raw)
		} else {
			err = json.Indent(&b, raw, "", "  ")
		}
		raw = append(asciiControls(b.Bytes()), '\n')
	}
	if err != nil {
		p.err = fmt.Errorf("encode the answer: %w", err)
		return
	}
	p.write(raw)
}

// list writes many values: as the whole message in json, one a line in jsonl.
func list[T proto.Message](p *printer, whole proto.Message, items []T) {
	if p.format == "json" {
		p.json(whole)
		return
	}
	for _, item := range items {
		p.json(item)
	}
}

func encodeJSON(value any) ([]byte, error) {
	if m, ok := value.(proto.Message); ok {
		return protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(m)
	}
	return json.Marshal(value)
}

// raw lets a proto.Message stand inside a value of ours.
func raw(m proto.Message) json.RawMessage {
	b, err := encodeJSON(m)
	if err != nil {
		return json.RawMessage("null")
	}
	return b
}

func plural(n uint64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
