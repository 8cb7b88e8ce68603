package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
)

// The programs of Fleetban, as they are called in the bin folder.
const (
	programAgent        = "fleetban-agent"
	programControlPlane = "fleetban-controlplane"
	programCLI          = "fleetban"
)

// replicaPort is the port of the i-th replica on the control plane's machine, i from 1.
func replicaPort(i int) int { return 8440 + i }

// programs are what machines of a role find in /usr/local/bin.
func (l *Lab) programs(r role) map[string]string {
	programs := map[string]string{}
	add := func(name string) {
		path := filepath.Join(l.options.BinDir, name)
		if abs, err := filepath.Abs(path); err == nil {
			path = abs
		}
		if _, err := os.Stat(path); err == nil {
			programs[name] = path
		}
	}
	add(programCLI)
	switch r {
	case roleHost:
		add(programAgent)
	case roleControlPlane:
		add(programControlPlane)
	default:
	}
	return programs
}

func (l *Lab) startFleetban(context.Context) error { return errors.New("not wired yet") }

// URL is where hosts and people reach the control plane.
const URL = "https://" + ControlPlaneName

// OperatorEnv is the environment the operator's CLI needs. It holds the administrator's token.
func (l *Lab) OperatorEnv() []string {
	if l.token == "" {
		return nil
	}
	return []string{"FLEETBAN_URL=" + URL, "FLEETBAN_TOKEN=" + l.token}
}
