package embedded

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var versionLine = regexp.MustCompile(`^(Redis|Valkey) server v=(([0-9]+)\.[0-9.]+)`)

// signalLine is what it prints about a signal, otherwise than all else.
var signalLine = regexp.MustCompile(`^[0-9]+:signal-handler `)

// checkVersion refuses a server without what the scripts and the doorbell need: Redis before 7.
func checkVersion(ctx context.Context, binary string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "--version").Output() //nolint:gosec // the administrator's or PATH's
	if err != nil {
		return fmt.Errorf("embedded Redis: %s --version: %w", binary, err)
	}
	m := versionLine.FindStringSubmatch(string(out))
	if m == nil {
		return nil // another build of it, perhaps
	}
	if major, _ := strconv.Atoi(m[3]); m[1] == "Redis" && major < 7 {
		return fmt.Errorf("embedded Redis: %s is Redis %s, and 7 or any Valkey is needed: install a later one, or give --redis-url", binary, m[2])
	}
	return nil
}

// logs passes on what the server prints, and returns the last few lines: they say why it ended.
func (s *Server) logs(r io.Reader) string {
	var last []string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		text, loud := parseLine(lines.Text())
		if text == "" {
			continue
		}
		if loud {
			last = append(last, text)
			last = last[max(0, len(last)-4):]
		}
		s.pass(text, loud)
	}
	_, _ = io.Copy(io.Discard, r) // a line too long: keep the child from blocking
	return strings.Join(last, "; ")
}

// pass logs a line. The server's warnings about the machine are said in plain words and once.
func (s *Server) pass(text string, loud bool) {
	level := slog.LevelDebug
	if loud && !routine(text) {
		level = slog.LevelWarn
		for _, a := range advices {
			if !strings.Contains(text, a.of) {
				continue
			}
			s.mu.Lock()
			again := s.said[a.of]
			s.said[a.of] = true
			s.mu.Unlock()
			if !again {
				s.options.Logger.Warn("redis-server wants the machine set up otherwise", slog.String("problem", a.problem), slog.String("fix", a.fix))
			}
			level = slog.LevelDebug
		}
	}
	s.options.Logger.Log(context.Background(), level, "redis-server", slog.String("line", text))
}

var advices = []struct{ of, problem, fix string }{
	{"overcommit", "saving may fail when memory is short", "sysctl -w vm.overcommit_memory=1, and the same in /etc/sysctl.d"},
	{"Transparent Huge Pages", "answers may be slow while it saves", "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"},
}

// routine are lines of every start and end, which Redis marks as loudly as its warnings.
func routine(text string) bool {
	for _, p := range []string{
		"oO0OoO0", "Redis version=", "Valkey version=", "Configuration loaded", "Server initialized", "User requested shutdown",
		"Redis is now ready to exit", "Valkey is now ready to exit", "Received SIGTERM", "Removing the unix socket", "Calling fsync() on the AOF",
	} {
		if strings.HasPrefix(text, p) {
			return true
		}
	}
	return false
}

// parseLine reads "PID:ROLE DAY MON YEAR TIME LEVEL TEXT"; loud is the highest of the levels. What looks otherwise is an
// error that was printed before logging began.
func parseLine(line string) (text string, loud bool) {
	if signalLine.MatchString(line) {
		return strings.TrimSpace(line), false
	}
	fields := strings.SplitN(strings.TrimSpace(line), " ", 7)
	if len(fields) == 6 && (fields[5] == "#" || fields[5] == "*") {
		return "", false // what it says begins on the next line
	}
	if len(fields) == 7 {
		switch fields[5] {
		case ".", "-", "*":
			return fields[6], false
		case "#":
			return fields[6], true
		}
	}
	return strings.TrimSpace(line), true
}
