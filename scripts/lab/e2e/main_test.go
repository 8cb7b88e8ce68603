// Package e2e tests Fleetban end to end: real hosts, a real attack, a real Redis, and faults. Each test makes a lab of its
// own or shares its group's; all need root.
package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/lab"
	"github.com/fleetban/fleetban/scripts/lab/internal/node"
)

func TestMain(m *testing.M) {
	node.Main()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "The end-to-end tests make network namespaces, which needs root: run them with sudo.")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// up makes a lab for the test, which ends with it. The name is made unique for this run.
func up(t *testing.T, options lab.Options) *lab.Lab {
	t.Helper()
	options.Leased = true
	options.Name = fmt.Sprintf("%s-%d", options.Name, os.Getpid())
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	l, err := lab.Up(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.Report(context.WithoutCancel(t.Context())))
		}
		if err := l.Down(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return l
}

// limited is a context that ends in time for the test to say what it waited for.
func limited(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}
