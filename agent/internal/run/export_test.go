package run

import "time"

// WithCallAtMost bounds calls of the helper by less than a test would wait for.
func (c Config) WithCallAtMost(d time.Duration) Config {
	c.callAtMost = d
	return c
}
