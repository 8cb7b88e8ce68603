package lab

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/proto/gen/go/fleetban/v1/fleetbanv1connect"
)

// Agents is the agents' API as a stranger reaches it, from the admin's machine, over a connection of its own.
func (l *Lab) Agents() fleetbanv1connect.AgentServiceClient {
	return fleetbanv1connect.NewAgentServiceClient(l.httpClient(""), URL, connect.WithGRPC())
}

// MakeOwner gives the organisation its first owner: somebody who signs in to the console and with `fleetban login`.
func (l *Lab) MakeOwner(ctx context.Context, email, password string) error {
	// The name, the mode and a token were settled when the lab was made: of all that, only the owner is new.
	argv := asUser(agentUser, programControlPlane, "setup", "--mode", l.options.Mode, "--email", email, "--password-stdin",
		"--redis-url", l.redisURL(), "--secret-file", secretPath, "--data-dir", "/var/lib/fleetban/setup", "--public-url", URL)
	if _, err := l.Node(ControlPlane).ExecInput(ctx, password+"\n", argv...); err != nil {
		return fmt.Errorf("make the organisation's owner: %w", err)
	}
	return nil
}

// RenewToken has the control plane make another administrator's token, which the lab uses from then on: Operators of
// before keep theirs.
func (l *Lab) RenewToken(ctx context.Context) error {
	printed, err := l.Node(ControlPlane).Exec(ctx, asUser(agentUser, programControlPlane, "token", "create",
		"--redis-url", l.redisURL(), "--secret-file", secretPath, "--data-dir", "/var/lib/fleetban/setup", "--public-url", URL)...)
	if err != nil {
		return fmt.Errorf("make another administrator's token: %w", err)
	}
	token := apiToken.FindString(printed)
	if token == "" {
		return fmt.Errorf("`token create` printed no token:\n%s", printed)
	}
	l.token = token
	return l.save()
}
