// Command fleetban-agent joins a host's fail2ban to a fleet. See package hostcli for its verbs.
package main

import (
	"os"

	"github.com/fleetban/fleetban/agent/internal/hostcli"
)

func main() { os.Exit(hostcli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
