package hostcli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/fleetban/fleetban/agent/internal/localrpc"
	hostv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1"
	"github.com/fleetban/fleetban/proto/gen/go/fleetban/host/v1/hostv1connect"
	"github.com/fleetban/fleetban/proto/wire/prefix"
)

// callHelper asks the helper, and says what to do where it can't be asked.
func (c *cli) callHelper(ctx context.Context, procedure string, req, res proto.Message) error {
	client := localrpc.NewClient(c.opts.helperSocket)
	defer client.Close()
	return explain(client.Call(ctx, procedure, req, res), "fleetban-helper")
}

func explain(err error, unit string) error {
	if err == nil {
		return nil
	}
	var unreachable *localrpc.UnreachableError
	if errors.As(err, &unreachable) {
		if strings.Contains(err.Error(), "permission denied") {
			return fmt.Errorf("%w. Run this as root", err)
		}
		return fmt.Errorf("%w. Start it: systemctl start %s (journalctl -u %s says why it stopped)", err, unit, unit)
	}
	if info := localrpc.InfoOf(err); info.GetFix() != "" {
		var e *connect.Error
		if errors.As(err, &e) {
			return fmt.Errorf("%s. %s", e.Message(), info.GetFix())
		}
	}
	return err
}

// parseDuration reads a time as people write it: Go's units, and d for days. Empty is 0.
func parseDuration(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n int
		if n, err = strconv.Atoi(days); err == nil && n < 36_500 {
			d = time.Duration(n) * 24 * time.Hour
		}
	}
	if err != nil || d < time.Second {
		return 0, &usageError{fmt.Sprintf("--for %.20q: write it like 90s, 30m, 1h or 7d", s)}
	}
	return d, nil
}

func (c *cli) off(ctx context.Context, _ []string) error {
	d, err := parseDuration(c.opts.duration)
	if err != nil {
		return err
	}
	var res hostv1.TurnOffResponse
	if err := c.callHelper(ctx, hostv1connect.HelperServiceTurnOffProcedure, hostv1.TurnOffRequest_builder{DurationMs: d.Milliseconds()}.Build(), &res); err != nil {
		return err
	}
	if d == 0 {
		c.printf("Off: this host enforces no fleet ban until you run fleetban-agent on. fail2ban's own bans stand.\n")
	} else {
		c.printf("Off for %s: this host enforces no fleet ban until %s, or until you run fleetban-agent on. fail2ban's own bans stand.\n",
			c.opts.duration, time.Now().Add(d).Format("15:04:05 on 2 January"))
	}
	return nil
}

func (c *cli) on(ctx context.Context, _ []string) error {
	if err := c.callHelper(ctx, hostv1connect.HelperServiceTurnOnProcedure, &hostv1.TurnOnRequest{}, &hostv1.TurnOnResponse{}); err != nil {
		return err
	}
	c.printf("On: this host enforces the fleet's bans.\n")
	return nil
}

func (c *cli) allow(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return &usageError{"allow needs an address or a prefix"}
	}
	d, err := parseDuration(c.opts.duration)
	if err != nil {
		return err
	}
	for _, arg := range args {
		p, err := prefix.Parse(arg)
		if err != nil {
			return &usageError{err.Error()}
		}
		var res hostv1.AllowLocalResponse
		req := hostv1.AllowLocalRequest_builder{Prefix: prefix.Pack(p), DurationMs: d.Milliseconds(), Remove: c.opts.remove}.Build()
		if err := c.callHelper(ctx, hostv1connect.HelperServiceAllowLocalProcedure, req, &res); err != nil {
			return err
		}
		switch {
		case c.opts.remove:
			c.printf("%s is no longer exempt on this host.\n", prefix.Format(p))
			continue
		case d == 0:
			c.printf("%s is never banned on this host.\n", prefix.Format(p))
		default:
			c.printf("%s is not banned on this host for %s.\n", prefix.Format(p), c.opts.duration)
		}
		if jails := res.GetUnbannedIn(); len(jails) > 0 {
			c.printf("Its ban in fail2ban was lifted: %s.\n", strings.Join(jails, ", "))
		}
	}
	return nil
}
