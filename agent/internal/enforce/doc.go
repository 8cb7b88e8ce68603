// Package enforce joins what the fleet says (holding), what this host never bans (protect), what its owner lets the
// fleet do (policy) and the kernel (nft) into one Engine.
//
//	Delta, page ─▶ holding ─ change ─▶ decide ─▶ nft ─▶ kernel
//	                                     ▲
//	              policy, protections, ──┘
//	              allowlist, off, pause
//
// What the Engine keeps true, whatever happens in between:
//   - the kernel holds exactly the bans in force less the exceptions, or Health says why it doesn't;
//   - a record that is refused is in Exceptions, with its reason, for as long as it is;
//   - no element outlives its record: each carries its own timeout in the kernel;
//   - what was held is enforced again at start, before anything is asked of a network.
package enforce
