package sim

import (
	"fmt"
	"io"
	"math"
	"strings"
)

// The chart's measures, pixels.
const (
	chartWidth, chartHeight = 760, 440
	chartLeft, chartRight   = 70, 230
	chartTop, chartBottom   = 50, 50
)

type series struct {
	name, colour string
	of           func(Point) float64
}

// WriteSVG draws the time of one ban over the size of the fleet, both logarithmic: what grows with the number of hosts is a
// straight line along the grey one.
func WriteSVG(out io.Writer, points []Point) error {
	all := []series{
		{"every receipt", "#b3261e", func(p Point) float64 { return p.Receipts }},
		{"the last host has it", "#1f5fa8", func(p Point) float64 { return p.Last }},
		{"NATS: the last delivery", "#4a7d2c", func(p Point) float64 { return p.NATS }},
	}
	least, most := math.Inf(1), 0.0
	from, to := math.Inf(1), 0.0
	for _, p := range points {
		from, to = min(from, float64(p.Hosts)), max(to, float64(p.Hosts))
		for _, s := range all {
			if v := s.of(p); v > 0 {
				least, most = min(least, v), max(most, v)
			}
		}
	}
	if len(points) < 2 || most == 0 || from == to {
		return fmt.Errorf("%d sizes make no chart", len(points))
	}
	low, high := math.Pow(10, math.Floor(math.Log10(least))), math.Pow(10, math.Ceil(math.Log10(most)))
	x := func(hosts float64) float64 {
		return chartLeft + (chartWidth-chartLeft-chartRight)*math.Log(hosts/from)/math.Log(to/from)
	}
	y := func(ms float64) float64 {
		return chartHeight - chartBottom - (chartHeight-chartTop-chartBottom)*math.Log(ms/low)/math.Log(high/low)
	}
	var b strings.Builder
	put := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	put(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`, chartWidth, chartHeight)
	put(`<title>How long one ban takes, by the number of hosts on one replica</title>`)
	put(`<rect width="%d" height="%d" fill="#fff"/>`, chartWidth, chartHeight)
	put(`<text x="%d" y="24" font-size="15">One ban to every host of one replica, TLS: median milliseconds</text>`, chartLeft)
	for at := low; at <= high*1.001; at *= 10 {
		put(`<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/>`, chartLeft, chartWidth-chartRight, y(at), y(at))
		put(`<text x="%d" y="%.1f" text-anchor="end">%g</text>`, chartLeft-8, y(at)+4, at)
	}
	for _, p := range points {
		put(`<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#ddd"/>`, x(float64(p.Hosts)), x(float64(p.Hosts)), chartTop, chartHeight-chartBottom)
		put(`<text x="%.1f" y="%d" text-anchor="middle">%d</text>`, x(float64(p.Hosts)), chartHeight-chartBottom+20, p.Hosts)
	}
	put(`<text x="%d" y="%d" text-anchor="middle">hosts</text>`, (chartLeft+chartWidth-chartRight)/2, chartHeight-10)
	// Through the middle of the first size: what is twice as large takes twice as long.
	begin := math.Sqrt(low * high / (to / from))
	put(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#999" stroke-dasharray="4 4"/>`, x(from), y(begin), x(to), y(begin*to/from))
	put(`<text x="%.1f" y="%.1f" fill="#777">linear</text>`, x(to)+8, y(begin*to/from)+4)
	for i, s := range all {
		var path []string
		for _, p := range points {
			if v := s.of(p); v > 0 {
				path = append(path, fmt.Sprintf("%.1f,%.1f", x(float64(p.Hosts)), y(v)))
				put(`<circle cx="%.1f" cy="%.1f" r="4" fill="%s"><title>%s, %d hosts: %.0f ms</title></circle>`, x(float64(p.Hosts)), y(v), s.colour, s.name, p.Hosts, v)
			}
		}
		put(`<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`, strings.Join(path, " "), s.colour)
		put(`<rect x="%d" y="%d" width="12" height="12" fill="%s"/><text x="%d" y="%d">%s</text>`,
			chartWidth-chartRight+50, chartTop+22*i, s.colour, chartWidth-chartRight+68, chartTop+22*i+11, s.name)
	}
	put(`</svg>`)
	_, err := io.WriteString(out, b.String())
	return err
}
