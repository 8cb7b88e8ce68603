// Package fail2ban speaks to a fail2ban server over its Unix socket, natively: no program is started.
//
// A request is the pickle of a list of strings, a reply the pickle of (code, payload), each followed by an end marker.
// Whoever can write to that socket is root, for the server unpickles anything and offers commands that run a shell, so
// this package offers only typed commands whose arguments are addresses, numbers and names of a bounded grammar. Its
// decoder is closed: it knows the few opcodes that fail2ban sends, never looks a class up, and bounds what it builds.
//
// fail2ban serves its socket on one thread with a backlog of one. A Client therefore holds one connection, lets one call
// through at a time, and dials again when the next call needs it.
package fail2ban
