// Package chaos breaks a fleet of real processes again and again while bans are made and lifted, and holds what hosts and
// the API show against what callers were told.
//
// A round has a plan of its own, made from the seed and the round's number alone: which faults, when and for how long, and
// what callers do meanwhile. When it is over and everything was mended, the fleet has a while to settle; then the checker
// looks. It shares no code with the product: it reads kernels with nft, the API as JSON over HTTP, and the journal of what
// callers were told.
//
// What it holds the fleet to:
//
//  1. What was acknowledged is never lost, whatever was killed.
//  2. Once faults are over every kernel is what the fleet desires, and the API says so.
//  3. No ban outlives its end or its unban.
//  4. What is on the allowlist is in no kernel, at no time.
//  5. While everything else is down, hosts go on enforcing, and fail2ban keeps its own bans.
//  6. No observed ban is told twice, and none that was acknowledged is missing: history is watched from its beginning as a
//     program does.
//
// A fleet of an odd seed has two Redis servers and Sentinels. Where those promote a replica that lacks what its master
// acknowledged last, bans that any host held and all that fail2ban made must come back; what nobody had may be lost, and then
// the history must show that something was.
//
// Redis' clock is set forward and back; the fleet's clock never goes back, so bans may end earlier by as much as it was set forward,
// and later by as long as the fleet's then stands still. Until it goes on, hosts may differ in what ends meanwhile.
package chaos
