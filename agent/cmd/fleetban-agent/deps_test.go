package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What the agent's binary may link besides the standard library and our own packages. It runs on other people's machines,
// in part as root: a new line here is a decision.
var allowed = []string{
	"connectrpc.com/connect",                // the protocol
	"google.golang.org/protobuf/",           // its messages
	"github.com/hashicorp/go-cleanhttp",     // of go-retryablehttp
	"github.com/hashicorp/go-retryablehttp", // enrolment
	"golang.org/x/sys/unix",                 // what os and syscall lack
	"vendor/",                               // the standard library's own
}

// Packages of the standard library that would keep the linker from dropping code, or are not needed and large.
var forbidden = []string{"text/template", "html/template", "testing", "net/http/pprof", "expvar", "encoding/gob", "encoding/xml", "database/sql", "plugin"}

func TestDependencies(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{else}}std {{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		path := strings.TrimSpace(line)
		if std, ok := strings.CutPrefix(path, "std "); ok {
			for _, f := range forbidden {
				if std == f {
					t.Errorf("links %s", f)
				}
			}
			continue
		}
		if strings.HasPrefix(path, "github.com/fleetban/fleetban/") {
			continue
		}
		ok := false
		for _, a := range allowed {
			ok = ok || path == a || strings.HasPrefix(path, strings.TrimSuffix(a, "/")+"/")
		}
		if !ok {
			t.Errorf("links %s, which is not among what it may", path)
		}
	}
}

// maxSize is what the binary may weigh as it is shipped, in bytes, for amd64.
const maxSize = 10_000_000

func TestSize(t *testing.T) {
	t.Parallel()
	bin := filepath.Join(t.TempDir(), "fleetban-agent")
	cmd := exec.CommandContext(t.Context(), "../../../scripts/build-agent", bin)
	cmd.Env = append(os.Environ(), "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	fi, err := os.Stat(bin)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", fi.Size())
	if fi.Size() > maxSize {
		t.Errorf("it weighs %d bytes, at most %d are wanted", fi.Size(), maxSize)
	}
}
