// Package version is what this build calls itself.
package version

// Version is set by the build (-ldflags -X).
var Version = "dev"
