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
//  6. No observed ban is told twice.
package chaos
