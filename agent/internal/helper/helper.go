// Package helper is the agent's privileged half: HelperService on a Unix socket, over the packages that speak to
// fail2ban and to the kernel.
//
// It is the only part of Fleetban that is root, faces no network, and takes a closed list of typed verbs. What the host's
// policy file doesn't allow is refused here, whoever asks.
package helper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/fleetban/fleetban/agent/internal/enforce"
	"github.com/fleetban/fleetban/agent/internal/fail2ban"
	"github.com/fleetban/fleetban/agent/internal/lately"
	"github.com/fleetban/fleetban/agent/internal/localrpc"
	"github.com/fleetban/fleetban/agent/internal/observe"
)

// Config is what the helper is started with.
type Config struct {
	// StateDir holds the saved sets, switches and executed commands.
	StateDir string
	// Socket is where HelperService is served.
	Socket string
	// Fail2banSocket is fail2ban's own.
	Fail2banSocket string
	// Fail2banConfigDir is the folder of fail2ban's configuration. Read only, and only for what the socket can't tell.
	Fail2banConfigDir string
	// PolicyPath is the host's policy file.
	PolicyPath string
	// RunUser is the user that `run` runs as: a name or a number.
	RunUser string
	// Table is the name of the nftables table; empty for the default.
	Table string
	Log   *slog.Logger
}

// Helper is the running process.
type Helper struct {
	cfg      Config
	log      *slog.Logger
	engine   *enforce.Engine
	client   *fail2ban.Client
	observer *observe.Observer
	commands *commandLog
	ignore   *ignorer
	runUID   uint32
	runGID   int
	findings findingSet
	lately   lately.Log
	agent    presence
	// clockOff: a person was told that this host's clock is off.
	clockOff atomic.Bool
}

// Run serves until ctx ends. ready, if not nil, is called once the saved sets are enforced and the socket is there.
func Run(ctx context.Context, cfg Config, ready func()) error {
	h := &Helper{cfg: cfg, log: cfg.Log, client: fail2ban.New(cfg.Fail2banSocket)}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("make the state folder: %w", err)
	}
	uid, gid, err := LookUpUser(cfg.RunUser)
	if err != nil {
		return err
	}
	h.lately.Log = cfg.Log
	h.agent.ending = ctx
	h.runUID, h.runGID = uint32(uid), gid //nolint:gosec // ids are 32 bits
	h.observer = observe.New(observe.Config{Client: h.client, StatePath: filepath.Join(cfg.StateDir, "observed"), Logger: cfg.Log, Lately: &h.lately})
	h.ignore = newIgnorer(filepath.Join(cfg.StateDir, "ignored"), h.client, h.observer, cfg.Log)
	h.engine, err = enforce.Open(ctx, enforce.Config{
		StateDir: cfg.StateDir, PolicyPath: cfg.PolicyPath, Table: cfg.Table, Log: cfg.Log, Lately: &h.lately, OnAllow: h.ignore.allowed,
	})
	if err != nil {
		return fmt.Errorf("start enforcing: %w", err)
	}
	h.ignore.engine = h.engine
	defer h.engine.Close() //nolint:errcheck // what counts is saved as it changes
	// By the server's clock, for that is what a command's time is told in.
	if h.commands, err = openCommands(filepath.Join(cfg.StateDir, "commands"), h.engine.ServerNow()); err != nil {
		h.log.Error("commands of the fleet are refused until they can be saved: free space or make the state folder writable", "error", err)
	}
	defer h.commands.Close() //nolint:errcheck // every line was synced when it was written

	server, err := localrpc.Listen(ctx, cfg.Socket, localrpc.SocketOptions{Mode: 0o660, UID: -1, GID: h.runGID}, cfg.Log, h.procedures()...)
	if err != nil {
		return err
	}
	h.log.Info("helper is up", "socket", cfg.Socket, "run_user", cfg.RunUser, "policy", h.engine.Policy().Policy.Level.String())
	if ready != nil {
		ready()
	}
	return together(ctx, server.Serve, h.engine.Run, h.observer.Run, h.ignore.run)
}

// together runs what must all run, until ctx ends or one of them does.
func together(ctx context.Context, parts ...func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make([]error, len(parts))
	for i, part := range parts {
		wg.Go(func() {
			defer cancel()
			if err := part(ctx); err != nil && !errors.Is(err, context.Canceled) {
				errs[i] = err
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// LookUpUser finds the ids of the user that `run` runs as: a name or a number.
func LookUpUser(name string) (uid, gid int, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		if n, numErr := strconv.ParseUint(name, 10, 31); numErr == nil {
			return int(n), int(n), nil
		}
		return 0, 0, fmt.Errorf("the user of `run`, %q, is unknown: make it (useradd --system --no-create-home --shell /usr/sbin/nologin %s) or name another with --run-user", name, name)
	}
	if uid, err = strconv.Atoi(u.Uid); err == nil {
		gid, err = strconv.Atoi(u.Gid)
	}
	return uid, gid, err
}
