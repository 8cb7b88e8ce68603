package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// config is what `fleetban login` writes.
type config struct {
	URL    string `json:"url"`
	Token  string `json:"token,omitempty"`
	Pin    string `json:"pin,omitempty"`
	CAFile string `json:"ca_file,omitempty"`
	// Session is that of a person; with it there is no Token.
	Session *session `json:"session,omitempty"`
	// Devices have this machine known at the next sign-in, by address. They let nobody in.
	Devices map[string]string `json:"devices,omitempty"`

	// path is the file.
	path string
}

// configPath is --config, FLEETBAN_CONFIG, or the user's configuration folder.
func (e *Env) configPath(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	dir := e.Getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home := e.Getenv("HOME")
		if home == "" {
			return "", usage("neither HOME nor XDG_CONFIG_HOME is set", "name the configuration with --config FILE")
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "fleetban", "config.json"), nil
}

// loadConfig reads the file; one that isn't there is an empty configuration, one that others may read is refused.
func loadConfig(path string) (config, error) {
	var cfg config
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return cfg, nil
	}
	if err != nil {
		return cfg, fmt.Errorf("read configuration: %w", err)
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return cfg, fmt.Errorf("read configuration: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return cfg, &failure{code: exitCredential, message: path + " holds a token and others may read it", fix: "chmod 600 " + path}
	}
	decoder := json.NewDecoder(file)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&cfg); err != nil {
		return config{}, &failure{code: exitFailed, message: path + " can't be read: " + err.Error(), fix: "write it anew with fleetban login"}
	}
	return cfg, nil
}

// save writes the file whole or not at all, for its owner only.
func (cfg config) save(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	text, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	temporary, err := os.CreateTemp(filepath.Dir(path), ".config-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	defer func() { _ = os.Remove(temporary.Name()) }()
	_, err = temporary.Write(append(text, '\n'))
	if err = errors.Join(err, temporary.Sync(), temporary.Close()); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := os.Rename(temporary.Name(), path); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

// resolve joins flags and environment (which kong has merged), and the file, in that order of weight.
func (g *grammar) resolve(e *Env) (config, error) {
	path, err := e.configPath(g.Config)
	if err != nil && g.URL == "" {
		return config{}, err
	}
	var file config
	if err == nil {
		if file, err = loadConfig(path); err != nil {
			return config{}, err
		}
	}
	token := e.Getenv("FLEETBAN_TOKEN")
	cfg := config{URL: g.URL, Token: token, Pin: g.Pin, CAFile: g.CAFile}
	// A pin or token of the file belongs to the file's URL: a token is never sent to another server by accident.
	if cfg.URL == "" || cfg.URL == file.URL {
		cfg.URL = file.URL
		if cfg.Token == "" {
			cfg.Token, cfg.Session, cfg.path = file.Token, file.Session, path
		}
		if cfg.Pin == "" {
			cfg.Pin = file.Pin
		}
		if cfg.CAFile == "" {
			cfg.CAFile = file.CAFile
		}
	}
	switch {
	case cfg.URL == "":
		return config{}, usage("no control plane is named", "set FLEETBAN_URL and FLEETBAN_TOKEN, or run fleetban login --url URL --email E-MAIL, or with --token-stdin")
	case cfg.Token == "" && cfg.Session == nil:
		return config{}, &failure{
			code: exitCredential, message: "there is no API token for " + cfg.URL + ", and nobody is signed in",
			fix: "set FLEETBAN_TOKEN, or run fleetban login --url URL --email E-MAIL, or with --token-stdin",
		}
	}
	return cfg, checkURL(cfg.URL)
}

func checkURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
		strings.Trim(u.Path, "/") != "" {
		return usage(fmt.Sprintf("the URL %q can't be used", s), "write https://HOST or https://HOST:PORT")
	}
	return nil
}
