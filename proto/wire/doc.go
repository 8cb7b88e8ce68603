// Package wire holds what the messages in proto mean and both sides must agree on to the byte: packed prefixes
// (package prefix), the digest of a set (package banset) and a host's proof of identity (package hostauth).
//
// It depends on the generated code and golang-jwt only, for the agent links it.
package wire
