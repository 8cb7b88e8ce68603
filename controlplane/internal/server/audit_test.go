package server_test

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/fleetban/fleetban/controlplane/internal/audit"
	"github.com/fleetban/fleetban/controlplane/internal/keys"
	"github.com/fleetban/fleetban/controlplane/internal/orgs"
	"github.com/fleetban/fleetban/controlplane/internal/server"
	"github.com/fleetban/fleetban/controlplane/internal/store/redistest"
	operatorv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/operator/v1"
)

// What the control plane's own commands change is in the log too, and no secret.
func TestCommandsAreRecorded(t *testing.T) {
	t.Parallel()
	redis, secret := redistest.Start(t), secretFile(t, 1)
	backend := server.Backend{RedisURL: redis.URL(), SecretFile: secret, DataDir: t.TempDir()}
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	var out bytes.Buffer
	if err := server.Setup(t.Context(), server.SetupOptions{Backend: backend, Organisation: "Lab", Mode: "watch"}, logger, nil, &out); err != nil {
		t.Fatal(err)
	}
	if err := server.CreateToken(t.Context(), server.TokenOptions{Backend: backend, Name: "second"}, logger, &out); err != nil {
		t.Fatal(err)
	}
	k, err := keys.Load(secret)
	if err != nil {
		t.Fatal(err)
	}
	st := redis.Open()
	id, err := orgs.New(st, nil).FirstID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	log := audit.New(audit.Options{Store: st, Signer: k})
	entries, _, err := log.List(t.Context(), id, audit.Filter{Actor: "operator command"}, 100, "")
	if err != nil {
		t.Fatal(err)
	}
	var actions []string
	for _, e := range entries {
		actions = append(actions, e.GetAction())
		text, _ := protojson.Marshal(e)
		for _, shown := range apiToken.FindAllString(out.String(), -1) {
			if strings.Contains(string(text), shown[4:]) {
				t.Errorf("a secret is recorded: %s", text)
			}
		}
		if e.GetOutcome() != operatorv1.AuditOutcome_AUDIT_OUTCOME_OK {
			t.Errorf("recorded as %v", e)
		}
	}
	if !slices.Equal(actions, []string{"token.create", "organisation.create"}) {
		t.Errorf("recorded %v", actions)
	}
	if v, err := log.Verify(t.Context(), id, audit.Head{}); err != nil || !v.GetIntact() {
		t.Errorf("%v, %v", v, err)
	}
}
