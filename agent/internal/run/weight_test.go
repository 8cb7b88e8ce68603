package run_test

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/fleetban/fleetban/agent/internal/fail2ban/fail2bantest"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

// mostResident is what each half may have in memory, in bytes, shared pages of its file included. The README promises 16 MB.
const mostResident = 15_500_000

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

// TestResident holds each half to what the README says it takes, with 10,000 bans of the fleet in the kernel, however they
// came: as one snapshot, or as they were made.
func TestResident(t *testing.T) {
	h := newHost(t)
	p, url := serve(t)
	h.enrol(url)
	halves := map[string]*exec.Cmd{"helper": h.start(true, "helper"), "run": h.start(false, "run")}
	c := p.next(t, 0)
	settles := func(after string) {
		t.Helper()
		for name, cmd := range halves {
			t.Logf("%s has %d kB resident at once after %s", name, rss(t, cmd), after)
			var kb int
			fail2bantest.Eventually(t, patience, name+" gives back what applying took", func() bool {
				kb = rss(t, cmd)
				return kb*1024 <= mostResident
			})
			t.Logf("%s has %d kB resident when settled", name, kb)
		}
	}
	all := tenThousand()
	version := uint64(1)
	c.set(banset.All, fleetbanv1.SetKind_SET_KIND_BAN, version)
	c.awaitAck(banset.All, version)
	digest := uint64(0)
	delta := func(addrs ...string) {
		version++
		records := recordsOf(addrs...)
		for _, r := range records {
			digest ^= banset.Hash(r.GetPrefix(), r.GetExpiresUnixMs())
		}
		c.send(fleetbanv1.ConnectResponse_builder{Delta: fleetbanv1.Delta_builder{
			Set: banset.All, Kind: fleetbanv1.SetKind_SET_KIND_BAN, Epoch: 1, FromVersion: version - 1, Version: version, Digest: digest, Records: records,
		}.Build()}.Build())
	}
	for part := range slices.Chunk(all[:9000], 1000) {
		delta(part...)
	}
	for _, addr := range all[9000:] {
		delta(addr)
	}
	c.awaitAck(banset.All, version)
	settles("deltas")
	version++
	c.set(banset.All, fleetbanv1.SetKind_SET_KIND_BAN, version, all...)
	c.awaitAck(banset.All, version)
	settles("a snapshot")
}
