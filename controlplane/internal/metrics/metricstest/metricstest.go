// Package metricstest reads what Prometheus would read.
package metricstest

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
)

// Samples are the values of a scrape by their name with labels, as they are written: `fleetban_streams`,
// `fleetban_not_ready{reason="clock"}`.
type Samples map[string]float64

// Scrape reads what a handler serves at /metrics.
func Scrape(t testing.TB, h http.Handler) Samples {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("/metrics answers %d: %s", w.Code, w.Body)
	}
	return parse(t, w.Body)
}

// Get reads what a listener serves at /metrics.
func Get(t testing.TB, address string) Samples {
	t.Helper()
	res, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		t.Fatalf("/metrics answers %s", res.Status)
	}
	return parse(t, res.Body)
}

func parse(t testing.TB, from io.Reader) Samples {
	t.Helper()
	out := Samples{}
	for lines := bufio.NewScanner(from); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if at < 0 || err != nil {
			t.Fatalf("%q is no sample: %v", line, err)
		}
		out[line[:at]] = value
	}
	return out
}
