package sim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// The chart's measures, pixels.
const (
	chartWidth, chartHeight = 760, 440
	chartLeft, chartRight   = 70, 230
	chartTop, chartBottom   = 50, 50
)

// chart is lines of milliseconds over a number, both logarithmic.
type chart struct {
	title, axis string
	lines       []line
}

type line struct {
	name, colour string
	points       []dot
}

// dot is a point of a line; y 0: nothing was measured.
type dot struct {
	x int
	y float64
}

// WriteSVG draws the time of one ban over the size of the fleet: what grows with the number of hosts is a straight line along the
// grey one.
func WriteSVG(out io.Writer, points []Point) error {
	c := chart{title: "One ban to every host of one replica, TLS: median milliseconds", axis: "hosts"}
	for _, s := range []struct {
		name, colour string
		of           func(Point) float64
	}{
		{"every receipt", "#b3261e", func(p Point) float64 { return p.Receipts }},
		{"the last host has it", "#1f5fa8", func(p Point) float64 { return p.Last }},
		{"NATS: the last delivery", "#4a7d2c", func(p Point) float64 { return p.NATS }},
	} {
		l := line{name: s.name, colour: s.colour}
		for _, p := range points {
			l.points = append(l.points, dot{p.Hosts, s.of(p)})
		}
		c.lines = append(c.lines, l)
	}
	return c.write(out)
}

// BansPoint is what an organisation of so many bans costs: a line of the file that the control plane's BenchmarkScale writes.
type BansPoint struct {
	Bans      int     `json:"bans"`
	Ban       float64 `json:"ban_redis_us"`
	Page      float64 `json:"page_ms"`
	Walk      float64 `json:"walk_ms"`
	Explain   float64 `json:"explain_ms"`
	Snapshot  float64 `json:"snapshot_ms"`
	Restart   float64 `json:"restart_ms"`
	Costliest float64 `json:"slowest_command_ms"`
}

// WriteBansSVG draws what bans cost over their number; figures are lines of JSON.
func WriteBansSVG(out io.Writer, figures io.Reader) error {
	var points []BansPoint
	for d := json.NewDecoder(figures); ; {
		var p BansPoint
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("read figures: %w", err)
		}
		if p.Bans <= 0 {
			return fmt.Errorf("figures of %d bans", p.Bans)
		}
		points = append(points, p)
	}
	slices.SortFunc(points, func(a, b BansPoint) int { return a.Bans - b.Bans })
	c := chart{title: "What an organisation's bans cost the control plane and Redis: milliseconds", axis: "bans"}
	for _, s := range []struct {
		name, colour string
		of           func(BansPoint) float64
	}{
		{"all bans listed, in pages", "#1f5fa8", func(p BansPoint) float64 { return p.Walk }},
		{"a whole snapshot", "#b3261e", func(p BansPoint) float64 { return p.Snapshot }},
		{"one page of the list", "#4a7d2c", func(p BansPoint) float64 { return p.Page }},
		{"Redis' slowest command", "#8a5a00", func(p BansPoint) float64 { return p.Costliest }},
		{"explain an address", "#6a3d9a", func(p BansPoint) float64 { return p.Explain }},
		{"Redis, for one more ban", "#333", func(p BansPoint) float64 { return p.Ban / 1000 }},
	} {
		l := line{name: s.name, colour: s.colour}
		for _, p := range points {
			l.points = append(l.points, dot{p.Bans, s.of(p)})
		}
		c.lines = append(c.lines, l)
	}
	return c.write(out)
}

func (c chart) write(out io.Writer) error {
	least, most := math.Inf(1), 0.0
	from, to := math.Inf(1), 0.0
	for _, l := range c.lines {
		for _, p := range l.points {
			from, to = min(from, float64(p.x)), max(to, float64(p.x))
			if p.y > 0 {
				least, most = min(least, p.y), max(most, p.y)
			}
		}
	}
	if most == 0 || from >= to {
		return errors.New("one size makes no chart")
	}
	low, high := math.Pow(10, math.Floor(math.Log10(least))), math.Pow(10, math.Ceil(math.Log10(most)))
	x := func(n float64) float64 {
		return chartLeft + (chartWidth-chartLeft-chartRight)*math.Log(n/from)/math.Log(to/from)
	}
	y := func(ms float64) float64 {
		return chartHeight - chartBottom - (chartHeight-chartTop-chartBottom)*math.Log(ms/low)/math.Log(high/low)
	}
	var b strings.Builder
	put := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	put(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`, chartWidth, chartHeight)
	put(`<title>%s, by the number of %s</title>`, c.title, c.axis)
	put(`<rect width="%d" height="%d" fill="#fff"/>`, chartWidth, chartHeight)
	put(`<text x="%d" y="24" font-size="15">%s</text>`, chartLeft, c.title)
	for at := low; at <= high*1.001; at *= 10 {
		put(`<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/>`, chartLeft, chartWidth-chartRight, y(at), y(at))
		put(`<text x="%d" y="%.1f" text-anchor="end">%g</text>`, chartLeft-8, y(at)+4, at)
	}
	for _, p := range c.lines[0].points {
		put(`<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#ddd"/>`, x(float64(p.x)), x(float64(p.x)), chartTop, chartHeight-chartBottom)
		put(`<text x="%.1f" y="%d" text-anchor="middle">%d</text>`, x(float64(p.x)), chartHeight-chartBottom+20, p.x)
	}
	put(`<text x="%d" y="%d" text-anchor="middle">%s</text>`, (chartLeft+chartWidth-chartRight)/2, chartHeight-10, c.axis)
	// Through the middle: what is twice as large takes twice as long. It ends where the chart does.
	begin := max(math.Sqrt(low*high/(to/from)), low)
	end := min(to, from*high/begin)
	put(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#999" stroke-dasharray="4 4"/>`, x(from), y(begin), x(end), y(begin*end/from))
	put(`<text x="%.1f" y="%.1f" fill="#777">linear</text>`, x(end)+8, y(begin*end/from)+4)
	for i, l := range c.lines {
		var path []string
		for _, p := range l.points {
			if p.y > 0 {
				path = append(path, fmt.Sprintf("%.1f,%.1f", x(float64(p.x)), y(p.y)))
				put(`<circle cx="%.1f" cy="%.1f" r="4" fill="%s"><title>%s, %d %s: %.3g ms</title></circle>`, x(float64(p.x)), y(p.y), l.colour, l.name, p.x, c.axis, p.y)
			}
		}
		put(`<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`, strings.Join(path, " "), l.colour)
		put(`<rect x="%d" y="%d" width="12" height="12" fill="%s"/><text x="%d" y="%d">%s</text>`,
			chartWidth-chartRight+50, chartTop+22*i, l.colour, chartWidth-chartRight+68, chartTop+22*i+11, l.name)
	}
	put(`</svg>`)
	_, err := io.WriteString(out, b.String())
	return err
}
