package metrics_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fleetban/fleetban/controlplane/internal/metrics"
	"github.com/fleetban/fleetban/controlplane/internal/metrics/metricstest"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

func handler(m *metrics.Metrics) http.Handler { return m.Handler(slog.New(slog.DiscardHandler)) }

func everything() *metrics.Metrics {
	m := metrics.New(metrics.Options{
		Operations: []string{"apply", "command"}, Procedures: []string{"/fleetban.operator.v1.BanService/Ban"}, Version: "v1",
	})
	m.Observe(metrics.Sources{
		Agents: func() metrics.AgentState { return metrics.AgentState{} }, Redis: func() metrics.RedisState { return metrics.RedisState{} },
		Sets: func() []metrics.SetState {
			return []metrics.SetState{{Organisation: "O", Set: "all", Builtin: true, Version: 7}}
		},
		Replica: func() metrics.ReplicaState {
			return metrics.ReplicaState{Reasons: []string{"clock", "of a later release"}, Notes: []string{"failover"}, Durability: "everysec", ClockOffset: -2 * time.Second, CertificateEnds: time.Unix(1, 0), CertificateLife: time.Hour}
		},
	})
	return m
}

// Names follow Prometheus' conventions, each is declared once and says what it is.
func TestDefinitions(t *testing.T) {
	t.Parallel()
	m := everything()
	seen := map[string]bool{}
	for _, d := range m.Definitions() {
		if seen[d.Name] || !strings.HasPrefix(d.Name, "fleetban_") {
			t.Errorf("%s: declared twice, or without its prefix", d.Name)
		}
		seen[d.Name] = true
		if (d.Type == "counter") != strings.HasSuffix(d.Name, "_total") || d.Type == "histogram" && !strings.HasSuffix(d.Name, "_seconds") {
			t.Errorf("%s is a %s", d.Name, d.Type)
		}
		if d.Section == "" || !strings.HasSuffix(d.Help, ".") || d.Bad != "" && !strings.HasSuffix(d.Bad, ".") {
			t.Errorf("%s is not explained: %q, %q", d.Name, d.Help, d.Bad)
		}
		for _, l := range d.Labels {
			if l.Values == "" {
				t.Errorf("%s: nobody says what %s may be", d.Name, l.Name)
			}
		}
	}
	w := httptest.NewRecorder()
	handler(m).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	text, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	promtool(t, text, "check", "metrics")
}

// Nobody needs metrics to work: every method does nothing on none.
func TestNone(t *testing.T) {
	t.Parallel()
	var none *metrics.Metrics
	v := reflect.ValueOf(none)
	for i := range v.NumMethod() {
		method := v.Type().Method(i)
		if method.Name == "Definitions" || method.Name == "Handler" {
			continue
		}
		args := make([]reflect.Value, 0, method.Type.NumIn()-1)
		for n := 1; n < method.Type.NumIn(); n++ {
			args = append(args, reflect.Zero(method.Type.In(n)))
		}
		v.Method(i).Call(args)
	}
}

// Whatever is told, the number of series has a bound.
func TestLabelsAreBounded(t *testing.T) {
	t.Parallel()
	m := everything()
	before := len(metricstest.Scrape(t, handler(m)))
	for n := range 1000 {
		outside := "198.51.100." + strconv.Itoa(n)
		m.StreamEnded(outside)
		m.StreamRefused(fleetbanv1.Reason(1000 + n))
		m.Rang(outside)
		m.Resumed(outside)
		m.Redis(outside, time.Millisecond, outside)
	}
	many := make([]metrics.SetState, 0, 1000)
	for n := range cap(many) {
		many = append(many, metrics.SetState{Organisation: strconv.Itoa(n), Set: "all", Builtin: true, Lag: uint64(n), Behind: time.Duration(n) * time.Second},
			metrics.SetState{Organisation: strconv.Itoa(n), Set: "tag-of-somebody"})
	}
	m.Observe(metrics.Sources{Sets: func() []metrics.SetState { return many }})
	got := metricstest.Scrape(t, handler(m))
	if len(got) > before+25 {
		t.Errorf("%d series became %d", before, len(got))
	}
	for name, want := range map[string]float64{
		`fleetban_streams_ended_total{cause="other"}`: 1000, `fleetban_streams_refused_total{reason="other"}`: 1000, `fleetban_doorbell_rings_total{kind="other"}`: 1000,
		`fleetban_redis_seconds_count{operation="other"}`: 1000, "fleetban_set_lag_versions": 999, "fleetban_set_lag_seconds": 999,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	for name := range got {
		if strings.Contains(name, "198.51.100") || strings.Contains(name, "somebody") {
			t.Errorf("%s tells what comes from outside", name)
		}
	}
}

func TestState(t *testing.T) {
	t.Parallel()
	got := metricstest.Scrape(t, handler(everything()))
	for name, want := range map[string]float64{
		"fleetban_ready": 0, `fleetban_not_ready{reason="clock"}`: 1, `fleetban_not_ready{reason="schema"}`: 0, `fleetban_not_ready{reason="other"}`: 1,
		`fleetban_notes{note="failover"}`: 1, `fleetban_notes{note="other"}`: 0, "fleetban_clock_offset_seconds": -2,
		`fleetban_redis_durability{class="everysec"}`: 1, `fleetban_redis_durability{class="always"}`: 0, `fleetban_set_version{organisation="O",set="all"}`: 7,
		`fleetban_build_info{version="v1"}`: 1,
	} {
		if is, ok := got[name]; !ok || is != want {
			t.Errorf("%s is %v, want %v", name, is, want)
		}
	}
}

// What measuring adds to sending a frame, to a call of Redis, and to an RPC.
func BenchmarkHotPath(b *testing.B) {
	m := everything()
	b.Run("frame-sent", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				m.FramesSent(1, 100, 3*time.Millisecond)
			}
		})
	})
	b.Run("redis", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m.Redis("apply", time.Millisecond, "")
		}
	})
}
