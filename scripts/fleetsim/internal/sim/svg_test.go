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

// TestBansSVG: the chart of bans is XML too, in the order of their number, and nothing is drawn of what isn't figures.
func TestBansSVG(t *testing.T) {
	t.Parallel()
	const figures = `{"bans":1000000,"ban_redis_us":31,"page_ms":2.5,"snapshot_ms":2100}
{"bans":1000,"ban_redis_us":30,"page_ms":2,"snapshot_ms":3}`
	var out strings.Builder
	if err := sim.WriteBansSVG(&out, strings.NewReader(figures)); err != nil {
		t.Fatal(err)
	}
	if err := xml.Unmarshal([]byte(out.String()), new(struct{ XMLName xml.Name })); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"a whole snapshot, 1000000 bans: 2.1e+03 ms", "Redis, for one more ban, 1000 bans: 0.03 ms"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it doesn't say %q", want)
		}
	}
	for _, bad := range []string{"", "x", `{"bans":5,"page_ms":1}`, `{"bans":0}`} {
		if sim.WriteBansSVG(io.Discard, strings.NewReader(bad)) == nil {
			t.Errorf("%q makes a chart", bad)
		}
	}
}
