package node

import (
	"os"
	"time"
)

// Config is everything a node needs before its network is there. It is written to config.json in the node's folder.
type Config struct {
	// Name is the machine's name in the lab and its host name.
	Name string
	// MachineID and BootID are what /etc/machine-id and /proc/sys/kernel/random/boot_id hold.
	MachineID, BootID string
	// Programs are files of the surrounding machine that appear in /usr/local/bin, by name.
	Programs map[string]string
	// Users are added to /etc/passwd. All accounts of the surrounding machine are kept, with their passwords locked.
	Users []User
	// Dirs are created before Files are written.
	Dirs []Dir
	// Files are written over the machine's copy of /etc and elsewhere.
	Files []File
	// Remove are globs of what is dropped from the copy of /etc before Files are written.
	Remove []string
	// Trust is appended to the bundle of certificate authorities, PEM.
	Trust string
	// Sysctls are written beneath /proc/sys, keys with slashes. Only those of a network namespace make sense.
	Sysctls map[string]string
	// OnDisk are folders of the machine kept on the disk the lab's folder is on, where others live in memory: what
	// calls fsync should pay for it as it would on a real host.
	OnDisk []string
	// Small are folders that are file systems in memory of their own, with their sizes as mount(8) takes them.
	Small map[string]string
}

// User is an account of a machine.
type User struct {
	Name string
	UID  int
	Home string
	// PasswordHash is a crypt(5) hash; empty locks the password.
	PasswordHash string
	Shell        string
}

// Dir is a folder of a machine.
type Dir struct {
	Path  string
	Mode  os.FileMode
	Owner string
}

// File is a file of a machine. Its folder is made if it is missing.
type File struct {
	Path    string
	Mode    os.FileMode
	Owner   string
	Content string
}

// Service is a program that a node keeps running.
type Service struct {
	Name string
	// Path is the program; empty looks Argv[0] up.
	Path string
	Argv []string
	// Env is added to a small clean environment, as KEY=VALUE.
	Env []string
	// User is whose the process is; empty is root.
	User string
	// Dir is the working folder; empty is "/".
	Dir string
	// Restart starts it again when it ends, after RestartDelay; systemd's default of 100 ms if that is zero.
	Restart      bool
	RestartDelay time.Duration
}

// State is a service as it is now.
type State struct {
	Name string
	// PID in the node's own PID namespace; 0 if it doesn't run.
	PID int
	// Starts counts how often it was started.
	Starts int
	// Wanted says whether it is meant to run.
	Wanted bool
	// LastExit says how it ended last, empty if it never did.
	LastExit string
}

// Request is one order to a node. One request and one response a connection, as JSON.
type Request struct {
	Op Op
	// IPBatch is for OpNetwork: lines for `ip -batch`.
	IPBatch string
	// Nft is for OpNetwork: a ruleset for `nft -f`, loaded after the addresses are there.
	Nft string
	// Service is for OpStart.
	Service Service
	// Name is the service for OpStop, OpSignal and OpRestart.
	Name string
	// Signal is sent by OpStop (0 is SIGTERM) and OpSignal.
	Signal int
}

// Response answers a Request.
type Response struct {
	Error    string
	Services []State
}

// Op is the kind of a Request.
type Op string

// What a node can be asked.
const (
	OpNetwork Op = "network"
	// OpStart starts a service, or one of that name again with what it was started with before if Argv is empty.
	OpStart Op = "start"
	// OpStop ends a service and answers when it has ended; it stays down until OpStart.
	OpStop Op = "stop"
	// OpSignal sends a signal; a service that ends by it is restarted if it is one to be.
	OpSignal Op = "signal"
	OpList   Op = "list"
)

// LogDir is where the output of each service goes, in the node: LogDir/NAME.log.
const LogDir = "/var/log/lab"
