// Package await waits for conditions that nothing signals: a process of another program came up, a line is in a log, a
// packet is answered. It is the only place of the lab that polls.
package await

import (
	"context"
	"fmt"
	"time"
)

// Interval is the pause between two looks at a condition.
const Interval = 5 * time.Millisecond

// Until looks at cond until it returns nil or the context ends; then the error says what was waited for, for how long,
// and what was missing at the last look.
func Until(ctx context.Context, what string, cond func() error) error {
	begin := time.Now()
	ticker := time.NewTicker(Interval)
	defer ticker.Stop()
	for {
		err := cond()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %s for %s: %w", time.Since(begin).Round(time.Millisecond), what, err)
		case <-ticker.C:
		}
	}
}

// Within is Until with a deadline of its own.
func Within(ctx context.Context, limit time.Duration, what string, cond func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return Until(ctx, what, cond)
}
