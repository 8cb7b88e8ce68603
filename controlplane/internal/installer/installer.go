// Package installer serves what turns a machine into a host of the fleet: /install.sh and, below /agent/, the agent's
// binaries, its systemd units and its policy file.
//
// The script carries the SHA-256 of everything it will download and the pin of the server's key. So what a person
// trusts is the one line they paste: it names the key, the key vouches for the script, the script for the rest.
package installer

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// The folder dist is filled by `make build`; the other files are copies of scripts/install.sh, infra/systemd and the
// agent's example of a policy, made by `make generate`, for a module can't embed what lies outside it.
//
//go:embed all:dist *.s* *.toml
var files embed.FS

// Architectures are those that agents are built for.
var Architectures = []string{"amd64", "arm64"}

// Options say where the control plane is reached.
type Options struct {
	// PublicURL is https://HOST[:PORT], as hosts reach it.
	PublicURL string
	// Pin is the server's key as curl writes it, sha256//BASE64; empty where its certificate is publicly trusted.
	Pin string
}

// Installer serves the files. Safe for concurrent use.
type Installer struct {
	o      Options
	script []byte
	served map[string]file // by path
}

type file struct {
	contents []byte
	sha256   string
	kind     string
}

var (
	hostForm = regexp.MustCompile(`^[A-Za-z0-9._:\[\]-]+$`)
	pinForm  = regexp.MustCompile(`^sha256//[A-Za-z0-9+/]{43}=$`)
)

// Pin writes a certificate's public key (its SubjectPublicKeyInfo, DER) as curl's --pinnedpubkey and Fleetban's programs
// take it.
func Pin(subjectPublicKeyInfo []byte) string {
	sum := sha256.Sum256(subjectPublicKeyInfo)
	return "sha256//" + base64.StdEncoding.EncodeToString(sum[:])
}

// New renders the script. URL and pin go into a script that root runs: anything but their plain forms is refused.
func New(o Options) (*Installer, error) { return newFrom(o, files) }

func newFrom(o Options, source fs.FS) (*Installer, error) {
	o.PublicURL = strings.TrimRight(o.PublicURL, "/")
	u, err := url.Parse(o.PublicURL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || !hostForm.MatchString(u.Host) || o.PublicURL != u.Scheme+"://"+u.Host {
		return nil, fmt.Errorf("public URL %q: it must be https://HOST or https://HOST:PORT", o.PublicURL)
	}
	if o.Pin != "" && !pinForm.MatchString(o.Pin) {
		return nil, fmt.Errorf("pin %q: it must be sha256// and 32 bytes in base64", o.Pin)
	}
	i := &Installer{o: o, served: map[string]file{}}
	sums := map[string]string{"@URL@": o.PublicURL, "@PIN@": o.Pin}
	for name, placeholder := range map[string]string{
		"fleetban-agent.service": "@SHA256_AGENT_SERVICE@", "fleetban-helper.service": "@SHA256_HELPER_SERVICE@", "policy.toml": "@SHA256_POLICY@",
	} {
		if sums[placeholder], err = i.add(source, name, "/agent/"+name, "text/plain; charset=utf-8"); err != nil {
			return nil, err
		}
	}
	for _, arch := range Architectures {
		sum, err := i.add(source, "dist/fleetban-agent-linux-"+arch, "/agent/linux-"+arch, "application/octet-stream")
		if err != nil {
			return nil, err
		}
		sums["@SHA256_"+strings.ToUpper(arch)+"@"] = sum
		if sum != "" {
			line := []byte(sum + "  fleetban-agent\n")
			i.served["/agent/linux-"+arch+".sha256"] = newFile(line, "text/plain; charset=utf-8")
		}
	}
	text, err := fs.ReadFile(source, "install.sh")
	if err != nil {
		return nil, fmt.Errorf("read embedded install.sh: %w", err)
	}
	pairs := make([]string, 0, 2*len(sums))
	for placeholder, value := range sums {
		if !bytes.Contains(text, []byte(placeholder)) {
			return nil, fmt.Errorf("install.sh has no place for %s", placeholder)
		}
		pairs = append(pairs, placeholder, value)
	}
	i.script = []byte(strings.NewReplacer(pairs...).Replace(string(text)))
	return i, nil
}

// add serves a file, if this build has it, and returns its SHA-256.
func (i *Installer) add(source fs.FS, name, path, kind string) (string, error) {
	contents, err := fs.ReadFile(source, name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read embedded %s: %w", name, err)
	}
	f := newFile(contents, kind)
	i.served[path] = f
	return f.sha256, nil
}

func newFile(contents []byte, kind string) file {
	sum := sha256.Sum256(contents)
	return file{contents: contents, sha256: hex.EncodeToString(sum[:]), kind: kind}
}

// Missing names the architectures that this build has no agent for.
func (i *Installer) Missing() []string {
	var out []string
	for _, arch := range Architectures {
		if _, ok := i.served["/agent/linux-"+arch]; !ok {
			out = append(out, arch)
		}
	}
	return out
}

// Line is the line to paste on a host. It holds no secret: the script asks for the join token.
func (i *Installer) Line() string {
	if i.o.Pin == "" {
		return "curl -fsSL " + i.o.PublicURL + "/install.sh | sh"
	}
	return "curl -fsSL -k --pinnedpubkey '" + i.o.Pin + "' " + i.o.PublicURL + "/install.sh | sh"
}

// Register puts the files on mux.
func (i *Installer) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET /install.sh", func(w http.ResponseWriter, r *http.Request) {
		// Of one build and one URL: never an old one from a cache, whose hashes no longer hold.
		w.Header().Set("Cache-Control", "no-store")
		serve(w, r, newFile(i.script, "text/x-shellscript; charset=utf-8"))
	})
	mux.HandleFunc("GET /agent/{name}", func(w http.ResponseWriter, r *http.Request) {
		f, ok := i.served[r.URL.Path]
		if !ok {
			i.missing(w, r)
			return
		}
		w.Header().Set("Cache-Control", "no-cache")
		serve(w, r, f)
	})
}

func serve(w http.ResponseWriter, r *http.Request, f file) {
	w.Header().Set("Content-Type", f.kind)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Etag", `"`+f.sha256+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.contents))
}

func (i *Installer) missing(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimSuffix(r.PathValue("name"), ".sha256")
	for _, arch := range Architectures {
		if name == "linux-"+arch {
			http.Error(w, "this control plane was built without the agent for "+arch+
				"; on the machine where it is built: make build, then start it anew", http.StatusServiceUnavailable)
			return
		}
	}
	http.Error(w, "there is no such file; see /install.sh", http.StatusNotFound)
}
