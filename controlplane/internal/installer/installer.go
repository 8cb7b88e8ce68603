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
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
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
	script func() (file, error) // rendered once
	served map[string]file      // by path
}

// file is a file to serve. Its contents stay in the program's own file until somebody asks: they are several times what
// the control plane needs to run.
type file struct {
	open func() (io.ReadSeeker, error)
	sum  func() (string, error) // SHA-256, hexadecimal; computed once
	kind string
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
	placeholders := map[string]string{} // of a path's SHA-256
	for name, placeholder := range map[string]string{
		"fleetban-agent.service": "@SHA256_AGENT_SERVICE@", "fleetban-helper.service": "@SHA256_HELPER_SERVICE@", "policy.toml": "@SHA256_POLICY@",
	} {
		i.add(source, name, "/agent/"+name, "text/plain; charset=utf-8")
		placeholders[placeholder] = "/agent/" + name
	}
	for _, arch := range Architectures {
		path := "/agent/linux-" + arch
		i.add(source, "dist/fleetban-agent-linux-"+arch, path, "application/octet-stream")
		placeholders["@SHA256_"+strings.ToUpper(arch)+"@"] = path
		if binary, ok := i.served[path]; ok {
			i.served[path+".sha256"] = made(func() ([]byte, error) {
				sum, err := binary.sum()
				return []byte(sum + "  fleetban-agent\n"), err
			}, "text/plain; charset=utf-8")
		}
	}
	text, err := fs.ReadFile(source, "install.sh")
	if err != nil {
		return nil, fmt.Errorf("read embedded install.sh: %w", err)
	}
	for _, placeholder := range append(slices.Collect(maps.Keys(placeholders)), "@URL@", "@PIN@") {
		if !bytes.Contains(text, []byte(placeholder)) {
			return nil, fmt.Errorf("install.sh has no place for %s", placeholder)
		}
	}
	i.script = sync.OnceValues(func() (file, error) {
		pairs := []string{"@URL@", o.PublicURL, "@PIN@", o.Pin}
		for placeholder, path := range placeholders {
			sum := ""
			if f, ok := i.served[path]; ok {
				var err error
				if sum, err = f.sum(); err != nil {
					return file{}, err
				}
			}
			pairs = append(pairs, placeholder, sum)
		}
		rendered := []byte(strings.NewReplacer(pairs...).Replace(string(text)))
		return made(func() ([]byte, error) { return rendered, nil }, "text/x-shellscript; charset=utf-8"), nil
	})
	return i, nil
}

// add serves a file, if this build has it.
func (i *Installer) add(source fs.FS, name, path, kind string) {
	if _, err := fs.Stat(source, name); err != nil {
		return
	}
	i.served[path] = newFile(func() (io.ReadSeeker, error) {
		f, err := source.Open(name)
		if err != nil {
			return nil, fmt.Errorf("open embedded %s: %w", name, err)
		}
		// A file that is part of the program: there is nothing to close.
		if seeker, ok := f.(io.ReadSeeker); ok {
			return seeker, nil
		}
		contents, err := io.ReadAll(f)
		return bytes.NewReader(contents), errors.Join(err, f.Close())
	}, kind)
}

// made is a file that isn't there but made.
func made(contents func() ([]byte, error), kind string) file {
	return newFile(func() (io.ReadSeeker, error) {
		raw, err := contents()
		return bytes.NewReader(raw), err
	}, kind)
}

func newFile(open func() (io.ReadSeeker, error), kind string) file {
	return file{open: open, kind: kind, sum: sync.OnceValues(func() (string, error) {
		r, err := open()
		if err != nil {
			return "", err
		}
		h := sha256.New()
		if _, err := io.Copy(h, r); err != nil {
			return "", fmt.Errorf("read an embedded file: %w", err)
		}
		return hex.EncodeToString(h.Sum(nil)), nil
	})}
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
		script, err := i.script()
		if err != nil {
			http.Error(w, "the installer can't be read: "+err.Error(), http.StatusInternalServerError)
			return
		}
		serve(w, r, script)
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
	sum, err := f.sum()
	var contents io.ReadSeeker
	if err == nil {
		contents, err = f.open()
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", f.kind)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Etag", `"`+sum+`"`)
	http.ServeContent(w, r, "", time.Time{}, contents)
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
