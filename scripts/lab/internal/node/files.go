package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const certificateBundle = "/etc/ssl/certs/ca-certificates.crt"

// writeFiles makes the copied root this machine's own: accounts, host name, configuration.
func writeFiles(cfg *Config) error {
	if err := syscall.Sethostname([]byte(cfg.Name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := writeAccounts(cfg.Users); err != nil {
		return err
	}
	for _, pattern := range cfg.Remove {
		matches, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, path := range matches {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	files := append([]File{
		{Path: "/etc/hostname", Mode: 0o644, Content: cfg.Name + "\n"},
		{Path: "/etc/machine-id", Mode: 0o444, Content: cfg.MachineID + "\n"},
	}, cfg.Files...)
	dirs := append([]Dir{{Path: "/run/lock", Mode: 0o1777}, {Path: LogDir, Mode: 0o755}}, cfg.Dirs...)
	for _, d := range dirs {
		if err := os.MkdirAll(d.Path, 0o755); err != nil {
			return err
		}
		if err := own(d.Path, d.Owner, d.Mode); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := os.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
			return err
		}
		// A link (resolv.conf often is one) would lead out of the copy.
		if err := os.Remove(f.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(f.Path, []byte(f.Content), 0o600); err != nil {
			return err
		}
		if err := own(f.Path, f.Owner, f.Mode); err != nil {
			return err
		}
	}
	if cfg.Trust == "" {
		return nil
	}
	bundle, err := os.ReadFile(certificateBundle)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(certificateBundle), 0o755); err != nil {
		return err
	}
	return os.WriteFile(certificateBundle, append(bundle, cfg.Trust...), 0o644)
}

func own(path, owner string, mode os.FileMode) error {
	if owner != "" {
		uid, gid, err := lookup(owner)
		if err != nil {
			return err
		}
		if err := os.Chown(path, uid, gid); err != nil {
			return err
		}
	}
	unix := mode.Perm()
	if mode&0o1000 != 0 {
		unix |= os.ModeSticky
	}
	return os.Chmod(path, unix)
}

// writeAccounts locks every password that came with the copy and adds the machine's own accounts.
func writeAccounts(users []User) error {
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return err
	}
	group, err := os.ReadFile("/etc/group")
	if err != nil {
		return err
	}
	added := map[string]bool{}
	for _, u := range users {
		added[u.Name] = true
	}
	keep := func(content []byte) (kept []string) {
		for _, line := range strings.Split(strings.TrimSpace(string(content)), "\n") {
			if name, _, _ := strings.Cut(line, ":"); !added[name] {
				kept = append(kept, line)
			}
		}
		return kept
	}
	passwdLines, groupLines := keep(passwd), keep(group)
	var shadowLines []string
	for _, line := range passwdLines {
		name, _, _ := strings.Cut(line, ":")
		shadowLines = append(shadowLines, name+":*:19000:0:99999:7:::")
	}
	for _, u := range users {
		shell, hash := u.Shell, u.PasswordHash
		if shell == "" {
			shell = "/usr/sbin/nologin"
		}
		if hash == "" {
			hash = "*"
		}
		passwdLines = append(passwdLines, fmt.Sprintf("%s:x:%d:%d::%s:%s", u.Name, u.UID, u.UID, u.Home, shell))
		groupLines = append(groupLines, fmt.Sprintf("%s:x:%d:", u.Name, u.UID))
		shadowLines = append(shadowLines, fmt.Sprintf("%s:%s:19000:0:99999:7:::", u.Name, hash))
	}
	for path, lines := range map[string][]string{"/etc/passwd": passwdLines, "/etc/group": groupLines, "/etc/shadow": shadowLines} {
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			return err
		}
	}
	if err := os.Chmod("/etc/shadow", 0o600); err != nil {
		return err
	}
	for _, u := range users {
		if !strings.HasPrefix(u.Home, "/home/") {
			continue
		}
		if err := os.MkdirAll(u.Home, 0o755); err != nil {
			return err
		}
		if err := os.Chown(u.Home, u.UID, u.UID); err != nil {
			return err
		}
	}
	return nil
}

// lookup finds an account in this machine's /etc/passwd. os/user may have been linked with the C library, which caches.
func lookup(name string) (uid, gid int, err error) {
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return 0, 0, err
	}
	for _, line := range strings.Split(string(passwd), "\n") {
		fields := strings.Split(line, ":")
		if len(fields) < 4 || fields[0] != name {
			continue
		}
		if uid, err = strconv.Atoi(fields[2]); err != nil {
			return 0, 0, err
		}
		gid, err = strconv.Atoi(fields[3])
		return uid, gid, err
	}
	return 0, 0, fmt.Errorf("there is no user %q on this machine", name)
}
