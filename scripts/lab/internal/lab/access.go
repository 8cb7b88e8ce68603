package lab

import (
	"bytes"
	"context"
	"fmt"
	"syscall"

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
	argv := asUser(agentUser, programControlPlane, "token", "create",
		"--redis-url", l.redisURL(), "--secret-file", secretPath, "--data-dir", "/var/lib/fleetban/setup", "--public-url", URL)
	node := l.Node(ControlPlane)
	cmd := node.Command(ctx, argv...)
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGQUIT) } // one that hangs says where
	var printed, problems bytes.Buffer
	if err := node.run(cmd, argv, &printed, &problems); err != nil {
		return fmt.Errorf("make another administrator's token: %w", err)
	}
	token := apiToken.FindString(printed.String())
	if token == "" {
		return fmt.Errorf("`token create` printed no token:\n%s", printed.String())
	}
	l.token = token
	return l.save()
}
