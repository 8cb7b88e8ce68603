package hostcli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/fleetban/fleetban/agent/internal/footprint"
	"github.com/fleetban/fleetban/agent/internal/helper"
	"github.com/fleetban/fleetban/agent/internal/run"
	"github.com/fleetban/fleetban/agent/internal/sdnotify"
)

func (c *cli) runAgent(ctx context.Context, _ []string) error {
	log, err := c.logger()
	if err != nil {
		return err
	}
	every, err := parseDuration(c.opts.rotateEvery)
	if err != nil && c.opts.rotateEvery != "0" {
		return err
	}
	ctx, stop := sdnotify.Watchdog(ctx)
	defer stop()
	return run.Run(ctx, run.Config{
		RotateKeyEvery: every, StateDir: c.opts.agentDir, HelperSocket: c.opts.helperSocket, Socket: c.opts.socket, Log: log,
	}, sdnotify.Ready)
}

func (c *cli) runHelper(ctx context.Context, _ []string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("helper needs root, for fail2ban's socket and nftables; start it with systemctl start fleetban-helper or sudo")
	}
	log, err := c.logger()
	if err != nil {
		return err
	}
	footprint.Limit()
	uid, gid, err := helper.LookUpUser(c.opts.runUser)
	if err != nil {
		return err
	}
	if err := c.opts.makeStateDir(); err != nil {
		return err
	}
	// Where the unprivileged half makes its socket: it can't make the folder itself.
	if err := ownedDir(filepath.Dir(c.opts.socket), uid, gid); err != nil {
		return err
	}
	ctx, stop := sdnotify.Watchdog(ctx)
	defer stop()
	return helper.Run(ctx, helper.Config{
		StateDir: c.opts.helperDir, Socket: c.opts.helperSocket, Fail2banSocket: c.opts.fail2banSocket,
		Fail2banConfigDir: c.opts.fail2banConfigDir, PolicyPath: c.opts.policy, RunUser: c.opts.runUser, Table: c.opts.table, Log: log,
	}, sdnotify.Ready)
}

// makeStateDir makes the folder of --state-dir, through which both halves reach what is theirs.
func (o *options) makeStateDir() error {
	if o.stateDir == "" {
		return nil
	}
	return os.MkdirAll(o.stateDir, 0o755) //nolint:gosec // nothing in it is open to others
}

// ownedDir makes a folder for a user, unless there is one already.
func ownedDir(path string, uid, gid int) error {
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	err := os.MkdirAll(path, 0o755) //nolint:gosec // others reach the socket through it
	if errors.Is(err, unix.EROFS) { // in the unit's sandbox; there the other half's unit makes it
		return nil
	}
	if err != nil {
		return err
	}
	return os.Lchown(path, uid, gid)
}
