package hostcli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fleetban/fleetban/agent/internal/helper"
	"github.com/fleetban/fleetban/agent/internal/identity"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// maxToken is the longest join token that the control plane takes.
const maxToken = 256

func (c *cli) enroll(ctx context.Context, _ []string) error {
	o := &c.opts
	if o.url == "" {
		return &usageError{"enroll needs --url, the control plane's address"}
	}
	uid, gid, err := c.owner()
	if err != nil {
		return err
	}
	r := identity.Request{
		Dir: o.agentDir, URL: o.url, Pin: o.pin, CAFile: o.caFile, Name: o.name, Facts: identity.Facts(), Force: o.force, UID: uid, GID: gid,
	}
	if r.Name == "" {
		r.Name = hostName(r.Facts.GetHostname())
	}
	// Asked for only if it is needed: an enrolled host needs none.
	if old, err := identity.Load(o.agentDir); err != nil || o.force || !identity.SameURL(old.URL, o.url) {
		if err == nil && !o.force {
			return &identity.OtherURLError{Have: old.URL, Want: o.url}
		}
		if r.Token, err = c.token(); err != nil {
			return err
		}
	}
	if err := o.makeStateDir(); err != nil {
		return err
	}
	res, err := identity.Enroll(ctx, r)
	if err != nil {
		return err
	}
	id := res.Identity
	if res.Already {
		c.printf("This host is enrolled already: %s of %s, with %s.\n", id.HostName, id.Organisation, id.URL)
		return nil
	}
	c.printf("Enrolled: %s of %s, with %s.\n", id.HostName, id.Organisation, id.URL)
	switch res.Mode {
	case fleetbanv1.Mode_MODE_WATCH:
		c.printf("The fleet is watching: it records what it would ban, and bans nothing yet.\n")
	case fleetbanv1.Mode_MODE_ENFORCE:
		c.printf("The fleet enforces: what one host bans, all ban. What %s forbids is refused here.\n", o.policy)
	default: // a mode of a later version
	}
	return nil
}

// owner is who is to own what is written for run; -1 where this is no root.
func (c *cli) owner() (uid, gid int, err error) {
	if os.Geteuid() != 0 {
		return -1, -1, nil
	}
	return helper.LookUpUser(c.opts.runUser)
}

func (c *cli) rotateKey(ctx context.Context, _ []string) error {
	uid, gid, err := c.owner()
	if err != nil {
		return err
	}
	id, err := identity.Rotate(ctx, c.opts.agentDir, uid, gid)
	if err != nil {
		return fmt.Errorf("the key was not changed, or not to its end: %w; run this again, nothing is lost", err)
	}
	c.printf("%s of %s has a new key. The former one is refused; a running agent connects anew.\n", id.HostName, id.Organisation)
	return nil
}

// hostName makes a name that the control plane takes of what the machine is called.
func hostName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || r == '.' || r == '-' || r == '_' {
			return r
		}
		return '-'
	}, s)
	s = strings.Trim(s, ".-_")
	if s == "" {
		return "host"
	}
	return s
}

// token reads the join token from a file, the environment or the terminal; never from the command line, which everyone
// on the machine can read.
func (c *cli) token() (string, error) {
	var t string
	switch {
	case c.opts.tokenFile == "-":
		b, err := io.ReadAll(io.LimitReader(c.in, maxToken+2))
		if err != nil {
			return "", err
		}
		t = string(b)
	case c.opts.tokenFile != "":
		f, err := os.Open(c.opts.tokenFile)
		if err != nil {
			return "", fmt.Errorf("--token-file: %w", err)
		}
		b, err := io.ReadAll(io.LimitReader(f, maxToken+2))
		_ = f.Close()
		if err != nil {
			return "", fmt.Errorf("--token-file: %w", err)
		}
		t = string(b)
	case os.Getenv("FLEETBAN_JOIN_TOKEN") != "":
		t = os.Getenv("FLEETBAN_JOIN_TOKEN")
	case isTerminal(c.in):
		var err error
		if t, err = c.ask("Join token: "); err != nil {
			return "", err
		}
	default:
		return "", &usageError{"enroll needs a join token: --token-file FILE, or FLEETBAN_JOIN_TOKEN, or a terminal to ask on"}
	}
	t = strings.TrimSpace(t)
	if t == "" || len(t) > maxToken {
		return "", fmt.Errorf("the join token is empty or longer than %d characters; make one with fleetban join-token create", maxToken)
	}
	return t, nil
}

// ask reads a line from the terminal without showing it.
func (c *cli) ask(prompt string) (string, error) {
	fd := int(c.in.Fd()) //nolint:gosec // a descriptor fits
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return "", err
	}
	silent := *before
	silent.Lflag &^= unix.ECHO
	silent.Lflag |= unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(fd, unix.TCSETSF, &silent); err != nil {
		return "", err
	}
	defer unix.IoctlSetTermios(fd, unix.TCSETSF, before) //nolint:errcheck // best effort
	_, _ = io.WriteString(c.err, prompt)
	line, err := bufio.NewReader(io.LimitReader(c.in, maxToken+2)).ReadString('\n')
	_, _ = io.WriteString(c.err, "\n")
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return line, nil
}

func (c *cli) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(c.out, format, args...)
}
