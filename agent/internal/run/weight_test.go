package run_test

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/fleetban/fleetban/agent/internal/fail2ban/fail2bantest"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// mostResident is what each half may have in memory, in bytes, shared pages of its file included.
const mostResident = 16_000_000

// rss is a process's resident memory in kB.
func rss(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	return 0
}

// TestResident holds each half to what the README says it takes, with 10,000 bans of the fleet in the kernel.
func TestResident(t *testing.T) {
	h := newHost(t)
	p, url := serve(t)
	h.enrol(url)
	helper, agent := h.start(true, "helper"), h.start(false, "run")
	c := p.next(t, 0)
	c.set(banset.All, fleetbanv1.SetKind_SET_KIND_BAN, 5, tenThousand()...)
	c.awaitAck(banset.All, 5)
	for name, cmd := range map[string]*exec.Cmd{"run": agent, "helper": helper} {
		t.Logf("%s has %d kB resident at once", name, rss(t, cmd))
		var kb int
		fail2bantest.Eventually(t, patience, name+" gives back what applying took", func() bool {
			kb = rss(t, cmd)
			return kb*1024 <= mostResident
		})
		t.Logf("%s has %d kB resident when settled", name, kb)
	}
}
