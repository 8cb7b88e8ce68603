// The program fleetban-controlplane serves agents, people's programs and the installer. Any number of replicas may run
// over one Redis; without one it brings its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/fleetban/fleetban/controlplane/internal/server"
	"github.com/fleetban/fleetban/controlplane/internal/version"
)

type program struct {
	Serve   serveCommand   `cmd:"" help:"Run a replica. Where nobody has set the control plane up yet, one prints the link with which to do it."`
	Setup   setupCommand   `cmd:"" help:"Set the control plane up without a link: make the first organisation and print its administrator's token, and with --email its first owner."`
	Link    linkCommand    `cmd:"" name:"setup-link" help:"Print a new set-up link, as long as nobody has set the control plane up."`
	Reset   resetCommand   `cmd:"" name:"reset-link" help:"Print a link by which a person sets a new password."`
	Token   tokenCommand   `cmd:"" help:"Administrator's tokens."`
	Sign    signCommand    `cmd:"" help:"After an upgrade from a release that didn't: sign the members and API tokens that Redis keeps, and list them."`
	Check   checkCommand   `cmd:"" help:"Say whether a replica with these settings would be ready, and what mends it if not."`
	Version versionCommand `cmd:"" help:"Print the version."`
}

type (
	serveCommand struct{ server.Config }
	setupCommand struct{ server.SetupOptions }
	linkCommand  struct{ server.SetupLinkOptions }
	resetCommand struct{ server.ResetLinkOptions }
	tokenCommand struct {
		Create tokenCreateCommand `cmd:"" help:"Make a token that may do everything, for who has lost theirs."`
	}
	tokenCreateCommand struct{ server.TokenOptions }
	signCommand        struct{ server.SignOptions }
	checkCommand       struct{ server.CheckOptions }
	versionCommand     struct{}
)

func (c *serveCommand) Run(ctx context.Context) error {
	if err := c.Complete(); err != nil {
		return err
	}
	logger := c.NewLogger(os.Stderr)
	slog.SetDefault(logger)
	s, err := server.New(ctx, c.Config, logger, os.Stderr)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

func (c *setupCommand) Run(ctx context.Context) error {
	return server.Setup(ctx, c.SetupOptions, c.NewLogger(os.Stderr), os.Stdin, os.Stdout)
}

func (c *linkCommand) Run(ctx context.Context) error {
	return server.SetupLink(ctx, c.SetupLinkOptions, c.NewLogger(os.Stderr), os.Stdout)
}

func (c *resetCommand) Run(ctx context.Context) error {
	return server.ResetLink(ctx, c.ResetLinkOptions, c.NewLogger(os.Stderr), os.Stdout)
}

func (c *tokenCreateCommand) Run(ctx context.Context) error {
	return server.CreateToken(ctx, c.TokenOptions, c.NewLogger(os.Stderr), os.Stdout)
}

func (c *signCommand) Run(ctx context.Context) error {
	return server.Sign(ctx, c.SignOptions, c.NewLogger(os.Stderr), os.Stdout)
}

func (c *checkCommand) Run(ctx context.Context) error {
	return server.Check(ctx, c.CheckOptions, c.NewLogger(os.Stderr), os.Stdout)
}

func (versionCommand) Run() error {
	_, err := fmt.Println(version.Version)
	return err
}

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	var p program
	parsed := kong.Parse(&p, kong.Name("fleetban-controlplane"), kong.UsageOnError(),
		kong.Description("Fleetban's control plane: joins every fail2ban host of an organisation into one fleet."),
		kong.BindTo(ctx, (*context.Context)(nil)))
	if err := parsed.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "fleetban-controlplane: "+err.Error())
		var config *server.ConfigError
		if errors.As(err, &config) {
			return 2
		}
		return 1
	}
	return 0
}
