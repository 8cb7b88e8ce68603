package server

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	"github.com/fleetban/fleetban/controlplane/internal/apierr"
	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// grpcFrame is what stands before a message of gRPC, bytes.
const grpcFrame = 5

// limitUnary refuses requests of unary procedures that are larger than most bytes. Connect refuses them too, but before
// any interceptor, and so without the detail that says what is wrong and what to do. One that doesn't say how long it is
// is read whole first; it is no longer than most.
func limitUnary(next http.Handler, most int64) http.Handler {
	writer := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || streams[r.URL.Path] || !writer.IsSupported(r) {
			next.ServeHTTP(w, r)
			return
		}
		most := most
		if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			most += grpcFrame
		}
		tooLarge := r.ContentLength > most
		if r.ContentLength < 0 {
			var read bytes.Buffer
			n, err := read.ReadFrom(io.LimitReader(r.Body, most+1))
			tooLarge = n > most
			rest := io.Reader(&read)
			if err != nil {
				rest = io.MultiReader(&read, broken{err})
			}
			r.Body = body{rest, r.Body}
		}
		if tooLarge {
			_ = writer.Write(w, r, apierr.From(r.Context(), apierr.New(connect.CodeResourceExhausted, fleetbanv1.Reason_REASON_MESSAGE_TOO_LARGE, "",
				fmt.Sprintf("the request is larger than %d bytes; nothing was changed", most), "send it in several smaller ones")))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// body is what was read of a request's body.
type body struct {
	io.Reader
	io.Closer
}

// broken goes on failing as the connection did.
type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }
