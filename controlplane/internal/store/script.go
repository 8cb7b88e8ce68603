package store

import (
	"context"
	"crypto/sha1" //nolint:gosec // Redis names scripts by it
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Script is a Lua script. Its text stands in an embedded .lua file with a header that says KEYS, ARGV, returns and cost.
type Script struct {
	name string
	text string
	sha  string
}

// names of all scripts, in the order in which they were made.
var (
	namesMu sync.Mutex
	names   []string
)

// Operations are what Options.Observe may be told of.
func Operations() []string {
	namesMu.Lock()
	defer namesMu.Unlock()
	return append(slices.Clone(names), operationCommand, operationPipeline)
}

// NewScript joins parts (shared functions first) into one script.
func NewScript(name string, parts ...string) *Script {
	text := strings.Join(parts, "\n")
	sum := sha1.Sum([]byte(text)) //nolint:gosec // see the import
	namesMu.Lock()
	names = append(names, name)
	namesMu.Unlock()
	return &Script{name: name, text: text, sha: hex.EncodeToString(sum[:])}
}

// Run runs the script, loading it where this Redis doesn't have it yet.
func (s *Script) Run(ctx context.Context, store *Store, keys []string, args ...any) *redis.Cmd {
	began := time.Now()
	cmd := store.client.EvalSha(ctx, s.sha, keys, args...)
	if err := cmd.Err(); err != nil && redis.HasErrorPrefix(err, "NOSCRIPT") {
		cmd = store.client.Eval(ctx, s.text, keys, args...)
	}
	if err := cmd.Err(); err != nil && err != redis.Nil { //nolint:errorlint // go-redis returns it bare
		cmd.SetErr(fmt.Errorf("redis script %s: %w", s.name, Classify(err)))
	}
	if store.observe != nil {
		store.observe(s.name, time.Since(began), failure(cmd.Err()))
	}
	return cmd
}
