package hostcli

import (
	"os"
	"testing"
)

// TestMain lets a test start this binary as the agent: the proxy's variables are read once in a process.
func TestMain(m *testing.M) {
	if os.Getenv("FLEETBAN_TEST_AGENT") != "" {
		os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}
