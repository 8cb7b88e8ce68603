package metrics

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// Definition is one metric.
type Definition struct {
	// Section is the heading that it stands under.
	Section string
	// Name is whole; its unit is its end: _seconds, _bytes, _total.
	Name string
	// Type is counter, gauge or histogram.
	Type string
	// Labels, most have none.
	Labels []Label
	// Help says what it counts, one sentence.
	Help string
	// Bad says when it is bad and what to do then; empty where it only explains others.
	Bad string
}

// Label of a metric.
type Label struct {
	Name string
	// Values it may have: a list, or a sentence.
	Values string
}

// other is the value of what isn't in a label's list.
const other = "other"

// catalog is where metrics are declared.
type catalog struct {
	registry *prometheus.Registry
	section  string
	all      []Definition
}

func (c *catalog) note(kind, name, help, bad string, labels ...Label) {
	c.all = append(c.all, Definition{Section: c.section, Name: name, Type: kind, Labels: labels, Help: help, Bad: bad})
}

func (c *catalog) counter(name, help, bad string) prometheus.Counter {
	c.note("counter", name, help, bad)
	out := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	c.registry.MustRegister(out)
	return out
}

func (c *catalog) histogram(name, help, bad string, buckets []float64) prometheus.Histogram {
	c.note("histogram", name, help, bad)
	out := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	c.registry.MustRegister(out)
	return out
}

// counters is a counter with one label of few values, all there from the start: a rate over one that appears only when it
// is first counted would miss that first time. The map is never changed.
type counters map[string]prometheus.Counter

func (c *catalog) counters(name, help, bad, label string, values ...string) counters {
	values = withOther(values)
	c.note("counter", name, help, bad, Label{label, list(values)})
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	c.registry.MustRegister(vec)
	out := make(counters, len(values))
	for _, v := range values {
		out[v] = vec.WithLabelValues(v)
	}
	return out
}

func (c counters) of(value string) prometheus.Counter {
	if known, ok := c[value]; ok {
		return known
	}
	return c[other]
}

// histograms is a histogram with one label of few values.
type histograms map[string]prometheus.Observer

func (c *catalog) histograms(name, help, bad string, buckets []float64, label Label, values []string) histograms {
	values = withOther(values)
	if label.Values == "" {
		label.Values = list(values)
	}
	c.note("histogram", name, help, bad, label)
	vec := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, []string{label.Name})
	c.registry.MustRegister(vec)
	out := make(histograms, len(values))
	for _, v := range values {
		out[v] = vec.WithLabelValues(v)
	}
	return out
}

func (h histograms) of(value string) prometheus.Observer {
	if known, ok := h[value]; ok {
		return known
	}
	return h[other]
}

func withOther(values []string) []string {
	if slices.Contains(values, other) {
		return values
	}
	return append(slices.Clone(values), other)
}

func list(values []string) string {
	var out string
	for i, v := range values {
		if i > 0 {
			out += ", "
		}
		out += v
	}
	return out
}

// What takes milliseconds, and what takes Redis a part of one; seconds.
var (
	latencies      = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}
	shortLatencies = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 3}
)
