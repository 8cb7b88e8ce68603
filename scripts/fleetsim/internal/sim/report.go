package sim

import (
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/fleetban/fleetban/scripts/fleetsim/internal/host"
)

// Report is what a run has measured and found. Durations are milliseconds, sizes bytes.
type Report struct {
	Hosts     int    `json:"hosts"`
	Replicas  int    `json:"replicas"`
	TLS       bool   `json:"tls"`
	Seed      uint64 `json:"seed"`
	Enrolled  Figure `json:"enrolled"`
	Connected Figure `json:"connected"`
	// Idle is what replicas take while nothing happens.
	IdlePerStream int64    `json:"idle_rss_per_stream"`
	IdleCPU       float64  `json:"idle_cpu_percent_of_a_core"`
	SelfPerStream int64    `json:"simulator_rss_per_stream"`
	Scenarios     []*Part  `json:"scenarios"`
	Peers         []Peer   `json:"peers,omitempty"`
	Checked       bool     `json:"checked"`
	Violations    []string `json:"violations"`
	Events        int      `json:"events_read"`
	WatchGaps     int      `json:"watch_gaps"`

	Retried atomic.Int64            `json:"-"`
	Calls   int64                   `json:"operator_calls_retried"`
	Acked   *hdrhistogram.Histogram `json:"-"`
	mu      sync.Mutex
}

// Figure is how long so many took.
type Figure struct {
	Count  int     `json:"count"`
	TookMS float64 `json:"took_ms"`
}

// Part is one scenario's.
type Part struct {
	Name   string         `json:"name"`
	TookMS float64        `json:"took_ms"`
	Bans   int            `json:"bans"`
	Hists  []Distribution `json:"distributions"`
	Rows   []Row          `json:"figures"`
}

// Distribution is a histogram's quantiles, milliseconds.
type Distribution struct {
	Name  string  `json:"name"`
	Count int64   `json:"count"`
	P50   float64 `json:"p50"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p99_9"`
	Max   float64 `json:"max"`
}

// Row is one figure with its unit.
type Row struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit,omitempty"`
}

// Peer is what something simpler takes for the same.
type Peer struct {
	Name string `json:"name"`
	// Last is from one message until the last of as many subscribers as there were hosts has it.
	Last Distribution `json:"last_delivery"`
	// Answered is from one message until its publisher has an answer of each of them, as a ban is acknowledged; none where they can't
	// give one.
	Answered *Distribution `json:"last_answer,omitempty"`
	// PerSecond is deliveries a second, of many messages at once.
	PerSecond float64 `json:"deliveries_per_second"`
}

func (r *Report) observe(h *hdrhistogram.Histogram, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	host.Observe(h, d)
}

// takeAcked is the histogram of acknowledgements since the last call.
func (r *Report) takeAcked() *hdrhistogram.Histogram {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := r.Acked
	r.Acked = host.Histogram()
	return h
}

func distribution(name string, h *hdrhistogram.Histogram) Distribution {
	ms := func(us int64) float64 { return float64(us) / 1000 }
	return Distribution{
		Name: name, Count: h.TotalCount(), P50: ms(h.ValueAtQuantile(50)), P99: ms(h.ValueAtQuantile(99)), P999: ms(h.ValueAtQuantile(99.9)), Max: ms(h.Max()),
	}
}

func (p *Part) hist(name string, h *hdrhistogram.Histogram) {
	if h.TotalCount() > 0 {
		p.Hists = append(p.Hists, distribution(name, h))
	}
}

func (p *Part) row(name string, value float64, unit string) {
	p.Rows = append(p.Rows, Row{name, value, unit})
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Print writes the report for people.
func (r *Report) Print(out io.Writer) {
	kind := "h2c"
	if r.TLS {
		kind = "TLS"
	}
	fmt.Fprintf(out, "%d hosts, %s, %d replicas, seed %d\n", r.Hosts, kind, r.Replicas, r.Seed)
	fmt.Fprintf(out, "  enrolled in %.1f s (%.0f a second), all connected and in sync after %.1f s (%.0f a second)\n",
		r.Enrolled.TookMS/1000, float64(r.Enrolled.Count)/r.Enrolled.TookMS*1000, r.Connected.TookMS/1000, float64(r.Connected.Count)/r.Connected.TookMS*1000)
	fmt.Fprintf(out, "  at rest: %.1f kB RSS of a replica a stream, %.1f %% of a core for all replicas; the simulator itself takes %.1f kB a host\n",
		float64(r.IdlePerStream)/1000, r.IdleCPU, float64(r.SelfPerStream)/1000)
	for _, p := range r.Scenarios {
		fmt.Fprintf(out, "\n%s: %d bans in %.1f s\n", p.Name, p.Bans, p.TookMS/1000)
		w := tabwriter.NewWriter(out, 2, 0, 2, ' ', tabwriter.AlignRight)
		if len(p.Hists) > 0 {
			fmt.Fprintf(w, "  milliseconds\tcount\tp50\tp99\tp99.9\tmax\t\n")
		}
		for _, h := range p.Hists {
			printDistribution(w, h)
		}
		_ = w.Flush()
		for _, row := range p.Rows {
			fmt.Fprintf(out, "  %s: %s %s\n", row.Name, number(row.Value), row.Unit)
		}
	}
	for _, p := range r.Peers {
		fmt.Fprintf(out, "\nbeside it, %s to as many TCP connections: last delivery of one message p50 %.1f ms, max %.1f ms; %s deliveries a second\n",
			p.Name, p.Last.P50, p.Last.Max, number(p.PerSecond))
		for _, row := range r.ratios(p) {
			fmt.Fprintf(out, "  %s: %s\n", row.Name, number(row.Value))
		}
		if p.Answered == nil {
			continue
		}
		fmt.Fprintf(out, "%s, each subscriber answering: last answer to one message p50 %.1f ms, max %.1f ms\n", p.Name, p.Answered.P50, p.Answered.Max)
		for _, row := range r.answerRatios(p) {
			fmt.Fprintf(out, "  %s: %s\n", row.Name, number(row.Value))
		}
	}
	if r.WatchGaps > 0 {
		fmt.Fprintf(out, "\nthe watch of events had %d gaps: what was not recorded can't be told from what was trimmed\n", r.WatchGaps)
	}
	if !r.Checked {
		fmt.Fprintf(out, "\nthe run ended early: nothing was checked\n")
		return
	}
	if len(r.Violations) == 0 {
		fmt.Fprintf(out, "\nall invariants hold (%d events read, %d calls of the operator tried again)\n", r.Events, r.Calls)
		return
	}
	fmt.Fprintf(out, "\nVIOLATED (seed %d):\n", r.Seed)
	for _, v := range r.Violations {
		fmt.Fprintf(out, "  - %s\n", v)
	}
}

// ratios sets a peer's figures beside what was measured of Fleetban in the same run.
func (r *Report) ratios(p Peer) (out []Row) {
	for _, s := range r.Scenarios {
		for _, h := range s.Hists {
			if h.Name == histLast && p.Last.P50 > 0 {
				out = append(out, Row{Name: s.Name + ", " + h.Name + ", p50: times that of " + p.Name, Value: h.P50 / p.Last.P50})
			}
			if h.Name == histReceipts && p.Last.P50 > 0 {
				out = append(out, Row{Name: s.Name + ", " + h.Name + ", p50: times the last delivery of " + p.Name, Value: h.P50 / p.Last.P50})
			}
		}
		for _, row := range s.Rows {
			if row.Name == rowDelivered && p.PerSecond > 0 {
				out = append(out, Row{Name: s.Name + ", " + row.Name + ": times that of " + p.Name, Value: row.Value / p.PerSecond})
			}
		}
	}
	return out
}

// answerRatios sets a peer's last answer beside the last receipt.
func (r *Report) answerRatios(p Peer) (out []Row) {
	for _, s := range r.Scenarios {
		for _, h := range s.Hists {
			if h.Name == histReceipts && p.Answered.P50 > 0 {
				out = append(out, Row{Name: s.Name + ", " + h.Name + ", p50: times the last answer of " + p.Name + ", each subscriber answering", Value: h.P50 / p.Answered.P50})
			}
		}
	}
	return out
}

func printDistribution(w io.Writer, h Distribution) {
	fmt.Fprintf(w, "  %s\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t\n", h.Name, h.Count, h.P50, h.P99, h.P999, h.Max)
}

// number writes a figure to three digits or as a whole.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// Names of what is looked for in a report.
const (
	histLive     = "ban made -> on another host"
	histSlow     = "... on a slow host"
	histLate     = "... on a host that was away"
	histLast     = "ban made -> on the last host"
	histReceipts = "ban ordered -> every receipt"
	histAcked    = "ban made -> acknowledged"
	rowDelivered = "bans delivered a second"
	rowEach      = "CPU of the replicas, a ban and host"
	nameSingle   = "single"
)
