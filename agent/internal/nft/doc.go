// Package nft enforces bans in an nftables table of its own.
//
//	table inet fleetban {
//	    counter dropped { }
//	    set allow4_24 { type ipv4_addr; flags timeout; }       one set per kind, family and prefix length in use
//	    set ban4_32   { type ipv4_addr; flags timeout; }
//	    set ban6_64   { type ipv6_addr; flags timeout; }
//	    chain prerouting {
//	        type filter hook prerouting priority -150; policy accept;
//	        ct direction reply accept                          what this host asked for itself
//	        jump allowed
//	        jump banned
//	    }
//	    chain allowed { ip saddr & 255.255.255.0 @allow4_24 accept }
//	    chain banned  { ip saddr @ban4_32 counter name dropped drop … }
//	}
//
// Why so: an input hook would miss containers behind DNAT, and priority raw would cut the host's own connections to a
// banned address. A hash set per prefix length (rather than one interval set) takes an element in microseconds at any
// size and lets nested prefixes keep their own ends. An accept here ends this chain only: other tables decide after it.
//
// The kernel is spoken to directly (netlink), for three things that no library here gives: the whole table swapped in
// one transaction whatever its size, reading 100,000 elements back without holding them, and events of other
// programs without those of our own.
package nft
