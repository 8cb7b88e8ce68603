// Command fleetban is the operator's tool: it bans, unbans, explains and watches, on every host of a fleet at once.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/fleetban/fleetban/controlplane/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, os.Args[1:], cli.OS())
	stop()
	os.Exit(code)
}
