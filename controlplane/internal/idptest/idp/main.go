// Command idp runs a test's identity provider in a process of its own, for tests in a browser: idp CERTIFICATE NAME=GROUP,GROUP…
// Each person's address is NAME@example.com, and their password "idp NAME".
//
// It writes its certificate to a file and says where it listens; then it wants to read a line, where it is to send browsers back to, and
// answers from then on, until what it reads from ends.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/fleetban/fleetban/controlplane/internal/idptest"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "idp:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("name a file for the certificate")
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	// All have the same.
	other := idptest.Start(nil, "")
	other.Close()
	if err := os.WriteFile(args[0], other.Certificate(), 0o600); err != nil {
		return err
	}
	fmt.Printf("https://%s\n", l.Addr())
	redirect := bufio.NewScanner(os.Stdin)
	if !redirect.Scan() {
		return errors.New("nobody said where browsers are to be sent back to")
	}
	p := idptest.Start(l, redirect.Text())
	defer p.Close()
	for _, person := range args[1:] {
		name, groups, _ := strings.Cut(person, "=")
		p.Person(name, name+"@example.com", true, strings.Split(groups, ",")...)
	}
	for redirect.Scan() { //nolint:revive // until it ends
	}
	return nil
}
