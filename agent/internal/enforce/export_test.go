package enforce

import (
	"context"
	"time"

	"github.com/fleetban/fleetban/agent/internal/nft"
)

// AuditEvery is how many ticks lie between two audits.
const AuditEvery = auditEvery

// RunOn is Run with ticks of the test's own.
func (e *Engine) RunOn(ctx context.Context, ticks <-chan time.Time) error { return e.run(ctx, ticks) }

// ChangeUnheard changes the kernel's table where nobody hears of it: through the engine's own socket, whose changes the kernel
// doesn't announce to the engine.
func (e *Engine) ChangeUnheard(ctx context.Context, u nft.Update) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.kernel.Update(ctx, u)
}
