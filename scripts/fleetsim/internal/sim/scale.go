package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/fleetban/fleetban/scripts/fleetsim/internal/peer"
)

// Point is what one size of fleet costs. Durations are milliseconds.
type Point struct {
	Hosts int
	// Connected is how long all took to connect, in steps, and be in sync.
	Connected float64
	// PerStream is the replica's resident memory, kB; Idle its share of a core, percent.
	PerStream, Idle float64
	// Last is from an order until the last host has the ban, and Receipts until every acknowledgement is stored: medians.
	Last, Receipts float64
	// CPU is what a replica uses for a ban and host, one ban at a time, µs.
	CPU float64
	// Delivered is bans a second of a storm, over all hosts.
	Delivered float64
	// NATS is a NATS server's last delivery of one message to as many, median, and NATSDelivered its messages a second; 0 without it.
	NATS, NATSDelivered float64
	// NATSAnswered is until it has an answer of each, median.
	NATSAnswered float64
	// SecureNATS and SecureNATSAnswered are the same two with connections of TLS.
	SecureNATS, SecureNATSAnswered float64
}

// Scale plays the same with fleets of several sizes on one replica.
func Scale(ctx context.Context, o Options, sizes []int) ([]Point, error) {
	var out []Point
	o.Scenario, o.Replicas, o.Peers = "single,storm", 1, true
	for _, n := range sizes {
		o.Hosts, o.report = n, nil
		o.Progress("%d hosts", n)
		r, err := Run(ctx, o)
		if r == nil {
			return out, err
		}
		out = append(out, r.point())
		if err != nil {
			if errors.Is(err, ErrViolated) {
				err = fmt.Errorf("%w: %v", err, r.Violations)
			}
			return out, fmt.Errorf("with %d hosts: %w", n, err)
		}
	}
	return out, nil
}

func (r *Report) point() Point {
	p := Point{Hosts: r.Hosts, Connected: r.Connected.TookMS, PerStream: float64(r.IdlePerStream) / 1000, Idle: r.IdleCPU}
	for _, s := range r.Scenarios {
		for _, h := range s.Hists {
			switch {
			case s.Name == nameSingle && h.Name == histLast:
				p.Last = h.P50
			case s.Name == nameSingle && h.Name == histReceipts:
				p.Receipts = h.P50
			}
		}
		for _, row := range s.Rows {
			switch {
			case s.Name == nameSingle && row.Name == rowEach:
				p.CPU = row.Value
			case row.Name == rowDelivered:
				p.Delivered = row.Value
			}
		}
	}
	for _, other := range r.Peers {
		var answered float64
		if other.Answered != nil {
			answered = other.Answered.P50
		}
		switch other.Name {
		case peer.NATS:
			p.NATS, p.NATSDelivered, p.NATSAnswered = other.Last.P50, other.PerSecond, answered
		case peer.SecureNATS:
			p.SecureNATS, p.SecureNATSAnswered = other.Last.P50, answered
		}
	}
	return p
}

// PrintScale writes the table for people.
func PrintScale(out io.Writer, points []Point) {
	w := tabwriter.NewWriter(out, 2, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "hosts\tconnected s\tkB a stream\tidle % of a core\tlast host ms\tlast receipt ms\tNATS ms\treceipt : NATS\treceipt : NATS answered\tNATS TLS ms\treceipt : NATS TLS answered\tCPU µs a ban and host\tstorm, bans/s\tNATS, messages/s\tstorm : NATS\t")
	for _, p := range points {
		fmt.Fprintf(w, "%d\t%.1f\t%.1f\t%.1f\t%.0f\t%.0f\t%.0f\t%s\t%s\t%.0f\t%s\t%.1f\t%.0f\t%.0f\t%s\t\n", p.Hosts, p.Connected/1000, p.PerStream, p.Idle,
			p.Last, p.Receipts, p.NATS, ratio(p.Receipts, p.NATS), ratio(p.Receipts, p.NATSAnswered),
			p.SecureNATS, ratio(p.Receipts, p.SecureNATSAnswered), p.CPU, p.Delivered, p.NATSDelivered, ratio(p.Delivered, p.NATSDelivered))
	}
	_ = w.Flush()
}

func ratio(a, b float64) string {
	if a == 0 || b == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", a/b)
}
