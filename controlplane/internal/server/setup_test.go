package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	"github.com/fleetban/fleetban/controlplane/internal/operatorapi"
	"github.com/fleetban/fleetban/controlplane/internal/server"
	first "github.com/fleetban/fleetban/controlplane/internal/setup"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	"github.com/fleetban/fleetban/controlplane/internal/testwait"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1/operatorv1connect"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

var setupLink = regexp.MustCompile(`https?://\S+/setup#fbs_[0-9A-Za-z_-]{43}(\.[0-9A-Za-z_-]{43})?`)

// useLink sets a control plane up with the link, at the replica p.
func useLink(t *testing.T, p *process, link, email string) (*operatorv1.SetupResponse, error) {
	t.Helper()
	client, base := http.DefaultClient, "http://"+p.addr()
	if p.Pin() != "" {
		client, base = httpClient(t, p.Pin()), "https://"+p.addr()
	}
	_, token, _ := strings.Cut(link, "#")
	res, err := operatorv1connect.NewSetupServiceClient(client, base).Setup(t.Context(), connect.NewRequest(operatorv1.SetupRequest_builder{
		Token: token, Email: email, Password: ownerPassword,
	}.Build()))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

// Two replicas on one empty Redis: one shows a link, nothing but the set-up answers, and of many who use the link at once,
// at both, one becomes the owner.
func TestSetupLink(t *testing.T) {
	t.Parallel()
	backend := server.Backend{RedisURL: redistest.Start(t).URL(), SecretFile: secretFile(t, 7)}
	var replicas []*process
	for range 2 {
		replicas = append(replicas, serve(t, server.Config{Backend: backend, TLSOff: true, MetricsListen: "off"}))
	}
	for _, p := range replicas {
		testwait.For(t, "it waits to be set up", func() bool {
			code, body := fetch(t, "http://"+p.addr()+"/readyz")
			return code == http.StatusOK && strings.Contains(body, "not-set-up")
		})
	}
	shown := setupLink.FindAllString(replicas[0].notices.String()+replicas[1].notices.String(), -1)
	if len(shown) != 1 {
		t.Fatalf("%d links are shown, want 1: %v", len(shown), shown)
	}
	for _, p := range replicas {
		nothingAnswers(t, p)
	}

	for _, wrong := range []string{shown[0] + "x", strings.Replace(shown[0], "fbs_", "fbs_A", 1), "https://x/setup#", "https://x/setup#fbt_x"} {
		if _, err := useLink(t, replicas[1], wrong, ownerEmail); err == nil || apierr.ReasonOf(err) != fleetbanv1.Reason_REASON_BAD_CREDENTIAL &&
			apierr.ReasonOf(err) != fleetbanv1.Reason_REASON_INVALID_FIELD {
			t.Errorf("%s: %v", wrong, err)
		}
	}
	const attempts = 16
	type outcome struct {
		made *operatorv1.SetupResponse
		err  error
	}
	outcomes := make([]outcome, attempts)
	var all sync.WaitGroup
	for i := range attempts {
		all.Go(func() {
			made, err := useLink(t, replicas[i%2], shown[0], fmt.Sprintf("p%d@example.com", i))
			outcomes[i] = outcome{made, err}
		})
	}
	all.Wait()
	var owner *operatorv1.SetupResponse
	for i, o := range outcomes {
		switch reason := apierr.ReasonOf(o.err); {
		case o.err == nil && owner == nil:
			owner = o.made
		case o.err == nil:
			t.Errorf("attempt %d won too", i)
		case reason != fleetbanv1.Reason_REASON_SET_UP_ALREADY && reason != fleetbanv1.Reason_REASON_RATE_LIMITED && reason != fleetbanv1.Reason_REASON_BAD_CREDENTIAL:
			t.Errorf("attempt %d: %v", i, o.err)
		}
	}
	if owner == nil {
		t.Fatal("nobody won")
	}
	for i, p := range replicas {
		base := "http://" + p.addr()
		members, err := operatorv1connect.NewMemberServiceClient(http.DefaultClient, base, bearer(owner.GetTokens().GetAccessToken())).
			ListMembers(t.Context(), connect.NewRequest(&operatorv1.ListMembersRequest{}))
		if err != nil || len(members.Msg.GetMembers()) != 1 || members.Msg.GetMembers()[0].GetRole() != operatorv1.Role_ROLE_OWNER {
			t.Errorf("replica %d: %v, %v", i, members, err)
		}
		if _, err := useLink(t, p, shown[0], ownerEmail); apierr.ReasonOf(err) != fleetbanv1.Reason_REASON_SET_UP_ALREADY {
			t.Errorf("the used link, at replica %d: %v", i, err)
		}
		if code, body := fetch(t, base+"/setup"); code != http.StatusOK || !strings.Contains(body, "set up before") {
			t.Errorf("/setup: %d %s", code, body)
		}
		if code, body := fetch(t, base+"/install.sh"); code != http.StatusOK || strings.Contains(body, "not set up") {
			t.Errorf("/install.sh: %d", code)
		}
	}
	for i := range attempts {
		email := fmt.Sprintf("p%d@example.com", i)
		_, err := operatorv1connect.NewSessionServiceClient(http.DefaultClient, "http://"+replicas[i%2].addr()).
			SignIn(t.Context(), connect.NewRequest(operatorv1.SignInRequest_builder{Email: email, Password: ownerPassword}.Build()))
		if (err == nil) != (email == owner.GetPerson().GetEmail()) {
			t.Errorf("%s signs in: %v", email, err)
		}
	}
	linkBackend := backend
	linkBackend.DataDir = t.TempDir()
	if err := server.SetupLink(t.Context(), server.SetupLinkOptions{Backend: linkBackend}, slog.New(slog.DiscardHandler), io.Discard); !errors.Is(err, first.ErrDone) {
		t.Errorf("another link, once it is set up: %v", err)
	}
}

// nothingAnswers calls every RPC but the set-up's.
func nothingAnswers(t *testing.T, p *process) {
	t.Helper()
	base := "http://" + p.addr()
	for _, service := range operatorapi.Services() {
		for i := range service.Methods().Len() {
			method := service.Methods().Get(i)
			if service.Name() == "SetupService" || method.IsStreamingServer() {
				continue
			}
			procedure := fmt.Sprintf("/%s/%s", service.FullName(), method.Name())
			res, err := http.Post(base+procedure, "application/json", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if !strings.Contains(string(body), "failed_precondition") || !strings.Contains(string(body), "REASON_NOT_SET_UP") {
				t.Errorf("%s answers %s", procedure, body)
			}
		}
	}
	stream, err := operatorv1connect.NewFleetServiceClient(http.DefaultClient, base, bearer("fbt_x")).Watch(t.Context(), connect.NewRequest(&operatorv1.WatchRequest{}))
	if err == nil {
		stream.Receive()
		err = errors.Join(stream.Err(), stream.Close())
	}
	if apierr.ReasonOf(err) != fleetbanv1.Reason_REASON_NOT_SET_UP {
		t.Errorf("a stream: %v", err)
	}
	_, err = fleetbanv1connect.NewAgentServiceClient(http.DefaultClient, base).Enroll(t.Context(), connect.NewRequest(&fleetbanv1.EnrollRequest{}))
	if apierr.ReasonOf(err) != fleetbanv1.Reason_REASON_NOT_SET_UP {
		t.Errorf("enrolment: %v", err)
	}
	for path, want := range map[string]struct {
		code int
		says string
	}{
		"/": {503, "not set up"}, "/nothing": {503, "not set up"}, "/agent/policy.toml": {503, "not set up"}, "/invitation": {503, "not set up"},
		"/install.sh": {200, "exit 1"}, "/healthz": {200, ""}, "/readyz": {200, "setup-link"}, "/setup": {200, "<form"}, "/setup/script.js": {200, "SetupService"},
	} {
		if code, body := fetch(t, base+path); code != want.code || !strings.Contains(body, want.says) {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}

// An operator's command shows another link, which ends the first; what is wrong with a request leaves the link good.
func TestSetupLinkAgain(t *testing.T) {
	t.Parallel()
	backend := server.Backend{RedisURL: redistest.Start(t).URL(), SecretFile: secretFile(t, 7)}
	command := backend
	command.DataDir = t.TempDir()
	another := func() (string, error) {
		var out bytes.Buffer
		err := server.SetupLink(t.Context(), server.SetupLinkOptions{Backend: command}, slog.New(slog.DiscardHandler), &out)
		return setupLink.FindString(out.String()), err
	}
	if link, err := another(); !errors.Is(err, first.ErrNoURL) {
		t.Errorf("a link to nowhere: %q, %v", link, err)
	}
	p := serve(t, server.Config{Backend: backend, MetricsListen: "off"})
	testwait.For(t, "it shows a link", func() bool { return setupLink.MatchString(p.notices.String()) })
	shown := setupLink.FindString(p.notices.String())
	second, err := another()
	if err != nil || second == shown || len(second) != len(shown) {
		t.Fatal(shown, second, err)
	}
	if _, err := useLink(t, p, shown, ownerEmail); apierr.ReasonOf(err) != fleetbanv1.Reason_REASON_BAD_CREDENTIAL {
		t.Errorf("the link that was replaced: %v", err)
	}
	service := operatorv1connect.NewSetupServiceClient(httpClient(t, p.Pin()), "https://"+p.addr())
	_, token, _ := strings.Cut(second, "#")
	request := func(change func(*operatorv1.SetupRequest_builder)) error {
		b := operatorv1.SetupRequest_builder{Token: token, Email: ownerEmail, Password: ownerPassword, OrganisationName: "Häuser & Söhne", Mode: fleetbanv1.Mode_MODE_WATCH}
		change(&b)
		_, err := service.Setup(context.WithoutCancel(t.Context()), connect.NewRequest(b.Build()))
		return err
	}
	for what, change := range map[string]func(*operatorv1.SetupRequest_builder){
		"a weak password":   func(b *operatorv1.SetupRequest_builder) { b.Password = "password1234" },
		"no address":        func(b *operatorv1.SetupRequest_builder) { b.Email = "ada at example.com" },
		"a strange address": func(b *operatorv1.SetupRequest_builder) { b.Email = "ad\u0430@example.com" },
		"a name of escapes": func(b *operatorv1.SetupRequest_builder) { b.OrganisationName = "x\x1b[2J" },
		"a mode":            func(b *operatorv1.SetupRequest_builder) { b.Mode = 99 },
	} {
		if err := request(change); apierr.ReasonOf(err) != fleetbanv1.Reason_REASON_INVALID_FIELD {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := request(func(*operatorv1.SetupRequest_builder) {}); err != nil {
		t.Fatal(err)
	}
	done, err := service.GetSetup(t.Context(), connect.NewRequest(&operatorv1.GetSetupRequest{}))
	if err != nil || !done.Msg.GetDone() {
		t.Error(done, err)
	}
}
