package sim_test

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/fleetban/fleetban/scripts/fleetsim/internal/sim"
)

// TestSVG: the chart is XML, and holds what was measured.
func TestSVG(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	if err := sim.WriteSVG(&out, []sim.Point{{Hosts: 1000, Last: 20, Receipts: 31, NATS: 9}, {Hosts: 15000, Last: 300, Receipts: 477}}); err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(strings.NewReader(out.String())); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"every receipt, 15000 hosts: 477 ms", "NATS: the last delivery, 1000 hosts: 9 ms"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it doesn't say %q", want)
		}
	}
	if strings.Contains(out.String(), "NaN") || sim.WriteSVG(io.Discard, []sim.Point{{Hosts: 5, Last: 1}}) == nil {
		t.Error("a chart is made of what can't be one")
	}
}
