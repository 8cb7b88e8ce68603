package installer_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/fleetban/fleetban/controlplane/internal/installer"
)

const pin = "sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

// The embedded files are copies: `make generate` makes them, and this sees when it was forgotten.
func TestCopiesAreEqual(t *testing.T) {
	t.Parallel()
	top := filepath.Join("..", "..", "..")
	for copied, original := range map[string]string{
		"install.sh":              "scripts/install.sh",
		"policy.toml":             "agent/internal/policy/policy.example.toml",
		"fleetban-agent.service":  "infra/systemd/fleetban-agent.service",
		"fleetban-helper.service": "infra/systemd/fleetban-helper.service",
	} {
		want, err := os.ReadFile(filepath.Join(top, original))
		if err != nil {
			t.Error(err)
			continue
		}
		if got, err := os.ReadFile(copied); err != nil || string(got) != string(want) {
			t.Errorf("%s is not a copy of %s (%v): make generate", copied, original, err)
		}
	}
}

func TestShellcheck(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("shellcheck", "--shell=sh", "install.sh").CombinedOutput()
	if err != nil {
		t.Fatalf("shellcheck (make setup installs it): %v\n%s", err, out)
	}
	script, err := os.ReadFile("install.sh")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(string(script), "\n{ main \"$@\"; }\n") {
		t.Error("the last line doesn't call main")
	}
	// Cut anywhere, it does nothing: a connection that breaks must not leave half an installation.
	lines := strings.SplitAfter(string(script), "\n")
	whole := strings.Join(lines[:len(lines)-2], "") // without the last line
	for _, share := range []int{10, 30, 50, 70, 90, 100} {
		part := whole[:len(whole)*share/100]
		cmd := exec.Command("sh")
		cmd.Stdin = strings.NewReader(part)
		if out, _ := cmd.Output(); len(out) != 0 {
			t.Errorf("%d %% of the script does something: %q", share, out)
		}
	}
	// Nor does it forget the options, where it is the last line that is cut.
	last := lines[len(lines)-2]
	for n := range len(last) - 1 {
		cmd := exec.Command("sh", "-s", "--", "--help")
		cmd.Stdin, cmd.Env = strings.NewReader(whole+last[:n]), []string{"PATH=/nowhere"}
		if out, _ := cmd.CombinedOutput(); strings.Contains(string(out), "fleetban: ") || strings.Contains(string(out), "Options: ") {
			t.Errorf("the script does something after %q: %q", last[:n], out)
		}
	}
}

// built is what a build embeds.
func built(t *testing.T, agents map[string]string) fstest.MapFS {
	t.Helper()
	script, err := os.ReadFile("install.sh")
	if err != nil {
		t.Fatal(err)
	}
	files := fstest.MapFS{
		"install.sh": {Data: script}, "policy.toml": {Data: []byte("level = \"ban\"\n")},
		"fleetban-agent.service": {Data: []byte("agent")}, "fleetban-helper.service": {Data: []byte("helper")},
	}
	for arch, contents := range agents {
		files["dist/fleetban-agent-linux-"+arch] = &fstest.MapFile{Data: []byte(contents)}
	}
	return files
}

func serve(t *testing.T, o installer.Options, files fs.FS) (*installer.Installer, func(path string) (int, string)) {
	t.Helper()
	i, err := installer.NewFrom(o, files)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	i.Register(mux)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return i, func(path string) (int, string) {
		t.Helper()
		res, err := http.Get(server.URL + path) //nolint:noctx // a test's own server
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err = errors.Join(err, res.Body.Close()); err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body)
	}
}

func TestServes(t *testing.T) {
	t.Parallel()
	i, get := serve(t, installer.Options{PublicURL: "https://203.0.113.5:8443/", Pin: pin}, built(t, map[string]string{"amd64": "binary"}))
	sum := sha256.Sum256([]byte("binary"))
	code, script := get("/install.sh")
	if code != http.StatusOK {
		t.Fatal(code, script)
	}
	for _, want := range []string{"url='https://203.0.113.5:8443'\n", "pin='" + pin + "'", "sha256_amd64='" + hex.EncodeToString(sum[:]) + "'\n", "sha256_arm64=''\n"} {
		if !strings.Contains(script, want) {
			t.Errorf("the script lacks %q", want)
		}
	}
	for line := range strings.Lines(script) {
		if strings.Contains(line, "='@") {
			t.Errorf("left unfilled: %s", line)
		}
	}
	if code, body := get("/agent/linux-amd64"); code != http.StatusOK || body != "binary" {
		t.Error(code, body)
	}
	if code, body := get("/agent/linux-amd64.sha256"); code != http.StatusOK || body != hex.EncodeToString(sum[:])+"  fleetban-agent\n" {
		t.Error(code, body)
	}
	if code, body := get("/agent/fleetban-helper.service"); code != http.StatusOK || body != "helper" {
		t.Error(code, body)
	}
	for _, path := range []string{"/agent/linux-arm64", "/agent/linux-arm64.sha256"} {
		if code, body := get(path); code != http.StatusServiceUnavailable || !strings.Contains(body, "make build") {
			t.Error(path, code, body)
		}
	}
	for _, path := range []string{"/agent/linux-mips", "/agent/install.sh", "/agent/..%2finstall.sh", "/agent/dist"} {
		if code, _ := get(path); code != http.StatusNotFound {
			t.Error(path, code)
		}
	}
	if want := "curl -fsSL -k --pinnedpubkey '" + pin + "' https://203.0.113.5:8443/install.sh | sh"; i.Line() != want {
		t.Errorf("line %q, want %q", i.Line(), want)
	}
	if m := i.Missing(); len(m) != 1 || m[0] != "arm64" {
		t.Errorf("missing %v", m)
	}
	i, _ = serve(t, installer.Options{PublicURL: "https://fleet.example.org"}, built(t, nil))
	if want := "curl -fsSL https://fleet.example.org/install.sh | sh"; i.Line() != want {
		t.Errorf("line %q, want %q", i.Line(), want)
	}
}

// What goes into a script that root runs is taken in plain forms only.
func TestRefusesWhatIsNotPlain(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"", "fleet.example.org", "ftp://x", "https://", "https://x/y", "https://x?y", "https://x#y", "https://u:p@x", "https://x'; id; '", "https://$(id)", "https://x y", "https://x\n",
	} {
		if _, err := installer.New(installer.Options{PublicURL: url}); err == nil {
			t.Errorf("the URL %q is taken", url)
		}
	}
	for _, p := range []string{"sha256//x", "'", pin + "'", strings.Replace(pin, "A", "'", 1), "sha256//" + strings.Repeat("A", 44)} {
		if _, err := installer.New(installer.Options{PublicURL: "https://x", Pin: p}); err == nil {
			t.Errorf("the pin %q is taken", p)
		}
	}
}
