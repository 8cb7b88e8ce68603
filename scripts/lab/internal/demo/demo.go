// Package demo shows Fleetban's main job on real parts, and checks each thing it shows: it fails where one doesn't hold.
package demo

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
)

// Options of a demo.
type Options struct {
	// Lab is what it is shown on.
	Lab lab.Options
	// Keep leaves the lab up afterwards.
	Keep bool
	Out  io.Writer
	// In is where a person at a terminal ends the demo.
	In *os.File
}

// show is a demo that runs.
type show struct {
	*screen
	lab *lab.Lab
}

// Run makes a lab and shows everything. It returns what didn't hold, and takes the lab down unless it is to be kept.
func Run(ctx context.Context, options Options) (err error) {
	s := &show{screen: newScreen(options.Out)}
	s.title("Hosts a, b, c (each its own sshd, fail2ban, nftables), two control-plane replicas, an attacker")
	s.busy("making the lab")
	begin := time.Now()
	options.Lab.Fleetban, options.Lab.Box, options.Lab.Leased = true, true, !options.Keep
	s.lab, err = lab.Up(ctx, options.Lab)
	if err != nil {
		s.failed("the lab comes up")
		return err
	}
	if !options.Keep {
		defer func() {
			if downErr := s.lab.Down(context.WithoutCancel(ctx)); err == nil {
				err = downErr
			}
		}()
	}
	s.ok("the lab is up: all hosts enrolled and online; a container-like box behind c", figure(time.Since(begin)))
	for _, part := range []func(context.Context) error{s.attack, s.explain, s.unban, s.replicaDies, s.ownSession} {
		if err := part(ctx); err != nil {
			s.failed("this did not hold: " + firstLine(err.Error()))
			return fmt.Errorf("the demo ended: %w", err)
		}
	}
	if err := s.console(ctx, !options.Keep && isTerminal(options.In)); err != nil {
		s.failed("the console: " + firstLine(err.Error()))
		return fmt.Errorf("the demo ended: %w", err)
	}
	s.lookAround(options.Keep)
	if !options.Keep && isTerminal(options.In) {
		fmt.Fprintf(options.Out, "\n  %s", s.bold("Enter takes the lab down. "))
		awaitLine(ctx, options.In)
	}
	return nil
}

// awaitLine returns at the end of a line, or of the context.
func awaitLine(ctx context.Context, in io.Reader) {
	line := make(chan struct{})
	go func() {
		_, _ = bufio.NewReader(in).ReadString('\n')
		close(line)
	}()
	select {
	case <-line:
	case <-ctx.Done():
	}
}

func isTerminal(f *os.File) bool {
	if f == nil {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// console makes an owner who can sign in, and where somebody stays to look has a browser reach the console.
func (s *show) console(ctx context.Context, stays bool) error {
	const email = "owner@example.com"
	password := rand.Text()[:16]
	if err := s.lab.MakeOwner(ctx, email, password); err != nil {
		return err
	}
	s.title("The console")
	if !stays {
		s.note("bin/fleetban-lab console has a browser reach it, while the lab is up.")
		s.note("Sign in as " + email + " with " + password)
		return nil
	}
	at, _, err := s.lab.Console(ctx, "localhost:0")
	if err != nil {
		return err
	}
	fmt.Fprintf(s.out, "  https://localhost:%d   sign in as %s with %s\n", at.Port(), s.bold(email), s.bold(password))
	s.note("The certificate is the lab's own, so your browser asks whether you trust it.")
	return nil
}

func (s *show) lookAround(keep bool) {
	name := ""
	if s.lab.Name() != "lab" {
		name = " --name " + s.lab.Name()
	}
	s.title("Look around")
	if !keep && !s.terminal {
		s.note("bin/fleetban-lab demo --keep leaves the lab up for this.")
	}
	hints := [][2]string{
		{"exec" + name + " admin -- fleetban watch", "what happens in the fleet, as it happens"},
		{"exec" + name + " admin -- fleetban hosts", "who is online and what it enforces"},
		{"exec" + name + " admin", "a shell where you are the operator"},
		{"exec" + name + " b -- fleetban-agent status", "how one host sees it"},
		{"exec" + name + " b -- nft list table inet fleetban", "what its kernel holds"},
		{"attack" + name + " a --source 1", "the attacker, from another address"},
	}
	if keep {
		hints = append(hints, [2]string{"down" + name, "and nothing is left"})
	}
	program := "bin/fleetban-lab "
	if os.Getenv("SUDO_USER") != "" {
		program = "sudo " + program
	}
	for _, hint := range hints {
		fmt.Fprintf(s.out, "  %-56s %s\n", program+hint[0], s.dim(hint[1]))
	}
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}
