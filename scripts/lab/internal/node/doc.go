// Package node is the first process of every machine in the lab.
//
// A machine is a set of namespaces (network, mount, UTS, IPC, PID) and this process is its PID 1: it gives the machine a
// name, an /etc, /run, /var, /dev and boot id of its own, keeps its syslog, and supervises its services as systemd would.
// The namespaces have no names and are held by this process alone, so killing it takes everything with it, to the
// last process, interface and mount; the machine that the lab runs on is never changed.
//
//	lab (any process)                      node, PID 1 of its namespaces
//	  │ clone(NEWNET|NEWNS|NEWPID|…)  ───▶   reads DIR/config.json
//	  │                                      mounts, files, /dev/log
//	  │ ◀─── "ok" or an error on fd 3        listens on DIR/control
//	  │ Request over DIR/control      ───▶   configure the network, start, stop, signal, list
package node
