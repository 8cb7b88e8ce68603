package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// devices are the nodes of /dev that programs on a host need.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// inMemory are the folders a machine has for itself, empty at its start, in memory unless Config.OnDisk names them.
// Folders that don't exist on the surrounding machine are left out.
var inMemory = []string{"/run", "/tmp", "/root", "/home", "/var/log", "/var/lib", "/var/cache", "/usr/local/bin", "/etc"}

// buildRoot gives this mount namespace its own view of what a host writes to. Everything is prepared in one tmpfs on
// dir/stage and then bound over its place, /tmp last, for dir may be beneath it.
func buildRoot(dir string, cfg *Config) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	stage := filepath.Join(dir, "stage")
	if err := os.MkdirAll(stage, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount("lab", stage, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount the machine's tmpfs: %w", err)
	}
	if err := copyTree("/etc", filepath.Join(stage, "etc")); err != nil {
		return fmt.Errorf("copy /etc: %w", err)
	}
	if err := stagePrograms(filepath.Join(stage, "usr/local/bin"), cfg.Programs); err != nil {
		return err
	}
	if err := stageDevices(filepath.Join(stage, "dev")); err != nil {
		return err
	}
	onDisk := map[string]bool{}
	for _, path := range cfg.OnDisk {
		onDisk[path] = true
	}
	var tmp func() error
	for _, path := range inMemory {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		source := filepath.Join(stage, path)
		if onDisk[path] {
			source = filepath.Join(dir, "disk", path)
		}
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		bind := func() error {
			if err := syscall.Mount(source, path, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
				return fmt.Errorf("bind the machine's own %s: %w", path, err)
			}
			return nil
		}
		if path == "/tmp" {
			if err := os.Chmod(source, 0o777|os.ModeSticky); err != nil {
				return err
			}
			tmp = bind
			continue
		}
		if err := bind(); err != nil {
			return err
		}
	}
	for path, size := range cfg.Small {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount("small", path, "tmpfs", 0, "mode=755,size="+size); err != nil {
			return fmt.Errorf("mount the machine's small %s: %w", path, err)
		}
	}
	if err := syscall.Mount(filepath.Join(stage, "dev"), "/dev", "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("bind the machine's own /dev: %w", err)
	}
	if tmp != nil {
		if err := tmp(); err != nil {
			return err
		}
	}
	return mountKernel(cfg)
}

// mountKernel mounts a /proc that shows this PID namespace, with a boot id of its own, and a /sys of this network namespace.
func mountKernel(cfg *Config) error {
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := syscall.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	const bootID = "/run/lab-boot-id"
	if err := os.WriteFile(bootID, []byte(cfg.BootID+"\n"), 0o444); err != nil {
		return err
	}
	if err := syscall.Mount(bootID, "/proc/sys/kernel/random/boot_id", "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind the machine's boot id: %w", err)
	}
	return nil
}

func stagePrograms(folder string, programs map[string]string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for name, source := range programs {
		if err := bindFile(source, filepath.Join(folder, name)); err != nil {
			return err
		}
	}
	return nil
}

func stageDevices(folder string) error {
	for _, sub := range []string{"pts", "shm"} {
		if err := os.MkdirAll(filepath.Join(folder, sub), 0o755); err != nil {
			return err
		}
	}
	for _, name := range devices {
		if err := bindFile(filepath.Join("/dev", name), filepath.Join(folder, name)); err != nil {
			return err
		}
	}
	if err := syscall.Mount("devpts", filepath.Join(folder, "pts"), "devpts", 0, "newinstance,ptmxmode=0666,mode=0620,gid=5"); err != nil {
		return fmt.Errorf("mount /dev/pts: %w", err)
	}
	if err := os.Chmod(filepath.Join(folder, "shm"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	for link, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, filepath.Join(folder, link)); err != nil {
			return err
		}
	}
	return nil
}

func bindFile(source, target string) error {
	if err := os.WriteFile(target, nil, 0o644); err != nil {
		return err
	}
	if err := syscall.Mount(source, target, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", source, err)
	}
	return nil
}

// copyTree copies files, folders and links with owner and mode. Sockets, pipes and devices are left out.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := to + strings.TrimPrefix(path, from)
		info, err := entry.Info()
		if err != nil {
			return err
		}
		switch {
		case entry.IsDir():
			err = os.MkdirAll(target, 0o755)
		case entry.Type()&fs.ModeSymlink != 0:
			var link string
			if link, err = os.Readlink(path); err == nil {
				err = os.Symlink(link, target)
			}
		case entry.Type().IsRegular():
			var content []byte
			if content, err = os.ReadFile(path); err == nil {
				err = os.WriteFile(target, content, 0o600)
			}
		default:
			return nil
		}
		if err != nil {
			return err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			if err := os.Lchown(target, int(stat.Uid), int(stat.Gid)); err != nil {
				return err
			}
		}
		if entry.Type()&fs.ModeSymlink != 0 {
			return nil
		}
		return os.Chmod(target, info.Mode().Perm()|info.Mode()&(os.ModeSetuid|os.ModeSetgid|os.ModeSticky))
	})
}
