package server_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What docs/security.md says of a test is true as far as that there is one: each that it names is in the tree.
func TestSecurityNamesTests(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..", "..")
	text, err := os.ReadFile(filepath.Join(root, "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)[A-Z]\w*)\(`)
	there := map[string]bool{}
	for _, module := range []string{"agent", "controlplane", "proto", "scripts"} {
		if err := filepath.WalkDir(filepath.Join(root, module), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			source, err := os.ReadFile(path)
			for _, found := range declared.FindAllSubmatch(source, -1) {
				there[string(found[1])] = true
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	named := regexp.MustCompile("`((?:Test|Fuzz|Benchmark)[A-Z]\\w*)`").FindAllSubmatch(text, -1)
	if len(named) < 50 || len(there) < 200 {
		t.Fatalf("%d names, %d tests: is it the right file?", len(named), len(there))
	}
	for _, found := range named {
		if !there[string(found[1])] {
			t.Errorf("docs/security.md names %s, which is no test", found[1])
		}
	}
}
