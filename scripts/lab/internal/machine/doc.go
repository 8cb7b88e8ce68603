// Package machine boots whole systems: systemd as their first process, units, journal, network, reboots. Each is a
// container of systemd-nspawn whose programs are this machine's own /usr, with an /etc, /var and network of its own, so that
// nothing is downloaded. What a test installs there, it installs on a machine.
//
// A Site is a network with machines on it. Everything of it lives in mount, network and PID namespaces that end with the
// Site, however it ends: this machine's own mounts, firewall and processes are never touched. Only control groups are
// shared with it; they are removed at the end.
package machine
