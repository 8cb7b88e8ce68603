package server_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/agent/stream"
	"github.com/fleetban/fleetban/controlplane/internal/cli"
	"github.com/fleetban/fleetban/controlplane/internal/metrics/metricstest"
	"github.com/fleetban/fleetban/controlplane/internal/requestid"
	"github.com/fleetban/fleetban/controlplane/internal/server"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
)

func get(t *testing.T, client *http.Client, url string) (int, string) {
	t.Helper()
	res, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func join(t *testing.T, p *process, token string) string {
	t.Helper()
	joins := operatorv1connect.NewJoinTokenServiceClient(httpClient(t, p.Pin()), "https://"+p.addr(), bearer(token))
	made, err := joins.CreateJoinToken(t.Context(), connect.NewRequest(operatorv1.CreateJoinTokenRequest_builder{Uses: 5}.Build()))
	if err != nil {
		t.Fatal(err)
	}
	return made.Msg.GetSecret()
}

// What a replica serves on its metrics listener: every metric that is declared, none that isn't, and nothing from outside.
func TestMetricsListener(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	backend := server.Backend{RedisURL: redis.URL(), SecretFile: secretFile(t, 1)}
	token := setup(t, backend)
	p := serve(t, server.Config{Backend: backend, MetricsListen: "127.0.0.1:0"})
	p.awaitReady(t)
	private, client := p.MetricsAddr().String(), httpClient(t, p.Pin())
	for path, want := range map[string]string{"/livez": "ok", "/healthz": "ok", "/readyz": `"ready": true`, "/debug/pprof/goroutine?debug=1": "goroutine profile"} {
		if code, text := get(t, http.DefaultClient, "http://"+private+path); code != http.StatusOK || !strings.Contains(text, want) {
			t.Errorf("%s answers %d: %.200s", path, code, text)
		}
	}
	for path, want := range map[string]int{"/metrics": 404, "/debug/pprof/": 404, "/livez": 200} {
		if code, _ := get(t, client, "https://"+p.addr()+path); code != want {
			t.Errorf("the public listener answers %d to %s, want %d", code, path, want)
		}
	}

	testwait.For(t, "/readyz says when each job was done last, and by whom", func() bool {
		_, report := ready(t, p)
		return report.Jobs != nil && report.Jobs.Holder != "" && len(report.Jobs.Runs) == 4 && report.Jobs.Runs[0].Term == report.Jobs.Term
	})
	fleet := operatorv1connect.NewFleetServiceClient(client, "https://"+p.addr(), bearer(token))
	if m, err := fleet.GetFleet(t.Context(), connect.NewRequest(&operatorv1.GetFleetRequest{})); err != nil || len(m.Msg.GetLeases()) != 1 || len(m.Msg.GetLeases()[0].GetRuns()) != 4 {
		t.Errorf("the API says of leases: %v, %v", m, err)
	}

	const name, banned = "host-of-somebody", "203.0.113.9"
	a := enrol(t, "https://"+p.addr(), p.Pin(), join(t, p, token), name)
	testwait.For(t, "it is connected", func() bool { return a.Status().Connected })
	a.source.ban("sshd", banned)
	testwait.For(t, "the ban is back", func() bool { return a.sink.holds("all", banned) })
	// The first may have come with what a stream begins with; the next one is heard while it follows.
	a.source.ban("sshd", "203.0.113.10")
	bad := operatorv1connect.NewFleetServiceClient(client, "https://"+p.addr(), bearer("fbt_wrong"))
	if _, err := bad.GetFleet(t.Context(), connect.NewRequest(&operatorv1.GetFleetRequest{})); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Fatal(err)
	}
	var got metricstest.Samples
	testwait.For(t, "the ban's receipt is measured", func() bool {
		got = metricstest.Get(t, private)
		return got["fleetban_receipt_seconds_count"] > 0 && got["fleetban_events_total"] == 2
	})
	for sample, want := range map[string]float64{
		"fleetban_ready": 1, `fleetban_not_ready{reason="clock"}`: 0, `fleetban_redis_durability{class="always"}`: 1, "fleetban_streams": 1,
		`fleetban_requests_total{code="unauthenticated",procedure="FleetService/GetFleet"}`: 1, `fleetban_requests_open{procedure="AgentService/Connect"}`: 1,
		`fleetban_requests_total{code="ok",procedure="AgentService/Enroll"}`: 1, "fleetban_password_hashes_total": 0,
	} {
		if is, ok := got[sample]; !ok || is != want {
			t.Errorf("%s is %v, want %v", sample, is, want)
		}
	}
	own, err := handshake(p.addr(), pinned(p.Pin()))
	if err != nil {
		t.Fatal(err)
	}
	if ends := got["fleetban_certificate_expires_timestamp_seconds"]; ends != float64(own.NotAfter.Unix()) {
		t.Errorf("the certificate ends at %f, it is said, and does at %d", ends, own.NotAfter.Unix())
	}
	if got[`fleetban_redis_seconds_count{operation="apply"}`] < 1 || got[`fleetban_redis_seconds_count{operation="command"}`] < 1 ||
		got[`fleetban_redis_seconds_count{operation="other"}`] != 0 {
		t.Error("calls to Redis aren't measured by their names")
	}

	declared := map[string]bool{}
	for _, d := range server.NewMetrics().Definitions() {
		declared[d.Name] = false
	}
	suffix := regexp.MustCompile(`_(bucket|sum|count)$`)
	for sample := range got {
		name, labels, _ := strings.Cut(sample, "{")
		if !strings.HasPrefix(name, "fleetban_") {
			continue
		}
		if _, ok := declared[name]; !ok {
			name = suffix.ReplaceAllString(name, "")
		}
		if _, ok := declared[name]; !ok {
			t.Errorf("%s is served and not declared", name)
		}
		declared[name] = true
		for _, outside := range []string{a.name, banned, `"test"`, "sshd"} {
			if strings.Contains(labels, outside) {
				t.Errorf("%s{%s tells what comes from outside", name, labels)
			}
		}
	}
	for name, seen := range declared {
		if !seen {
			t.Errorf("%s is declared and not served", name)
		}
	}

	redis.Kill()
	testwait.For(t, "Redis' absence shows", func() bool {
		got = metricstest.Get(t, private)
		return got["fleetban_ready"] == 0 && got[`fleetban_not_ready{reason="redis-unreachable"}`] == 1 && got[`fleetban_redis_errors_total{kind="unavailable"}`] > 0
	})
	if code, text := get(t, http.DefaultClient, "http://"+private+"/livez"); code != http.StatusOK {
		t.Errorf("without Redis the process lives: %d %s", code, text)
	}
	redis.Start()
	testwait.For(t, "it is ready again", func() bool { return metricstest.Get(t, private)["fleetban_ready"] == 1 })
	if log := p.log.String(); !strings.Contains(log, "not ready to serve") || !strings.Contains(log, "ready to serve") {
		t.Error("the log doesn't tell")
	}
}

// One id in the answer, the error's detail, the log, what a person is shown, and on the other side of a stream.
func TestRequestID(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	backend := server.Backend{RedisURL: redis.URL(), SecretFile: secretFile(t, 1)}
	token := setup(t, backend)
	p := serve(t, server.Config{Backend: backend})
	p.awaitReady(t)
	base, client := "https://"+p.addr(), httpClient(t, p.Pin())

	bad := operatorv1connect.NewFleetServiceClient(client, base, bearer("fbt_wrong"))
	for given, kept := range map[string]bool{"caller-7": true, "": false, "two words": false, strings.Repeat("x", 65): false} {
		req := connect.NewRequest(&operatorv1.GetFleetRequest{})
		if given != "" {
			req.Header().Set(requestid.Header, given)
		}
		_, err := bad.GetFleet(t.Context(), req)
		id := stream.InfoOf(err).GetRequestId()
		var ce *connect.Error
		if !errors.As(err, &ce) || ce.Meta().Get(requestid.Header) != id || id == "" || (id == given) != kept {
			t.Errorf("%q: the detail says %q, the header %q", given, id, ce.Meta().Get(requestid.Header))
		}
	}
	good := operatorv1connect.NewFleetServiceClient(client, base, bearer(token))
	res, err := good.GetFleet(t.Context(), connect.NewRequest(&operatorv1.GetFleetRequest{}))
	if err != nil || len(res.Header().Get(requestid.Header)) != 16 {
		t.Errorf("%v, %v", res, err)
	}

	a := enrol(t, base, p.Pin(), join(t, p, token), "a")
	up := regexp.MustCompile(`is up".* request_id=([0-9a-f]{16})\b`)
	testwait.For(t, "the agent tells of its stream", func() bool { return up.MatchString(a.log.String()) })
	id := up.FindStringSubmatch(a.log.String())[1]
	testwait.For(t, "the replica tells of it by the same name", func() bool {
		for line := range strings.Lines(p.log.String()) {
			if strings.Contains(line, "host connected") && strings.Contains(line, `"request_id":"`+id+`"`) {
				return true
			}
		}
		return false
	})

	redis.Kill()
	var stderr bytes.Buffer
	env := map[string]string{"FLEETBAN_URL": base, "FLEETBAN_TOKEN": token, "FLEETBAN_PIN": p.Pin(), "HOME": t.TempDir()}
	run := func(args ...string) int {
		stderr.Reset()
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		return cli.Run(ctx, args, &cli.Env{
			Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: &stderr, Now: time.Now, Getenv: func(name string) string { return env[name] },
		})
	}
	code := run("ban", "203.0.113.9", "--for", "1h")
	shown := regexp.MustCompile(`Request id: ([0-9a-f]{16})\n`).FindStringSubmatch(stderr.String())
	if code == 0 || shown == nil {
		t.Fatalf("without Redis a ban ends with %d: %s", code, stderr.String())
	}
	testwait.For(t, "the log has it", func() bool {
		return regexp.MustCompile(`"request failed".*BanService/Ban.*"request_id":"` + shown[1]).MatchString(p.log.String())
	})
	if run("ban", "203.0.113.9", "--for", "1h", "-o", "json"); !strings.Contains(stderr.String(), `"request_id":"`) {
		t.Errorf("for programs: %s", stderr.String())
	}
}
