package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/fleetban/fleetban/scripts/lab/internal/await"
)

// Answer is what a person types when they read something.
type Answer struct {
	// Prompt is what is waited for, in what came since the last answer.
	Prompt string
	Type   string
}

// Terminal runs a shell's command line on a terminal of the machine, as a person would, and returns all that was to be read
// there, line ends as they are in files. It fails if the command does.
func (m *Machine) Terminal(ctx context.Context, line string, answers ...Answer) (string, error) {
	cmd, err := m.Command(ctx, nil, "script", "--quiet", "--return", "--flush", "--command", line, "/dev/null")
	if err != nil {
		return "", err
	}
	keyboard, err := cmd.StdinPipe()
	if err != nil {
		return "", err
	}
	screen := &screen{}
	cmd.Stdout, cmd.Stderr = screen, screen
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return "", err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	seen := 0
	for _, a := range answers {
		err := await.Until(ctx, fmt.Sprintf("%q on the terminal", a.Prompt), func() error {
			text := screen.text()
			at := strings.Index(text[seen:], a.Prompt)
			if at < 0 {
				return fmt.Errorf("there is:\n%s", text)
			}
			seen += at + len(a.Prompt)
			return nil
		})
		if err != nil {
			_ = cmd.Process.Kill()
			return screen.text(), errors.Join(err, <-ended)
		}
		if _, err := io.WriteString(keyboard, a.Type+"\n"); err != nil {
			return screen.text(), err
		}
	}
	if err := <-ended; err != nil {
		return screen.text(), fmt.Errorf("on %s: %s: %w:\n%s", m.Name, line, err, screen.text())
	}
	return screen.text(), nil
}

// screen keeps what was written.
type screen struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.ReplaceAll(s.b.String(), "\r\n", "\n")
}
