// Package lab makes real hosts out of namespaces: for the demo, the end-to-end tests and the benchmark.
//
//	               203.0.113.0/24, 2001:db8:113::/64
//	┌────────┬────────┬────────┬──────────┐
//	a        b        c ─ box  cp         │      a…: sshd, fail2ban, a web server, the agent
//	                DNAT       Redis,     │      cp: two control-plane replicas behind haproxy
//	               8080, 8007  replicas   │
//	                                    switch   bridge and router
//	                                      │
//	                      ┌───────────────┴───┐
//	                   attacker             admin
//	         198.51.100.0/24,               192.0.2.128/25
//	         192.0.2.0/25, 2001:db8:bad::/48    2001:db8:ad::/64
//
// The addresses are the documentation's, which count as public ones; nothing has a way out to a real network. The attacker
// owns every address of its prefixes without a line of configuration each (AnyIP), so it can come from thousands.
//
// All of it lives in namespaces held by one process a machine (package node), beneath one folder. Labs share nothing, so
// any number can run at once with the same addresses, and Down needs nothing but the lab's name.
package lab
