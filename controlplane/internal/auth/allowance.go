package auth

import (
	"context"
	"net/http"
	"strconv"
	"time"
)

// Allowance is what is left to a caller of a rate, as answers tell it: RateLimit-Limit, RateLimit-Remaining and
// RateLimit-Reset (seconds until all of it is there again), and where the call was refused, Retry-After.
type Allowance struct {
	Limit, Remaining  int
	Reset, RetryAfter time.Duration
}

type answerKey struct{}

// WithAnswer lets limits be told in the header of the answer to an HTTP request. The header's owner must not touch it while
// the request is being handled.
func WithAnswer(ctx context.Context, header http.Header) context.Context {
	return context.WithValue(ctx, answerKey{}, header)
}

// Tell puts the allowance in the answer's header, for every protocol and error alike.
func (a Allowance) Tell(ctx context.Context) {
	header, ok := ctx.Value(answerKey{}).(http.Header)
	if !ok || a.Limit == 0 {
		return
	}
	header["Ratelimit-Limit"] = []string{strconv.Itoa(a.Limit)}
	header["Ratelimit-Remaining"] = []string{strconv.Itoa(max(a.Remaining, 0))}
	header["Ratelimit-Reset"] = []string{seconds(a.Reset)}
	if a.RetryAfter > 0 {
		retryAfter(ctx, a.RetryAfter)
	}
}

func retryAfter(ctx context.Context, wait time.Duration) {
	if header, ok := ctx.Value(answerKey{}).(http.Header); ok {
		header.Set("Retry-After", seconds(max(wait, time.Second)))
	}
}

// seconds rounds up: who waits as long is not refused again.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((max(d, 0)+time.Second-1)/time.Second), 10)
}
