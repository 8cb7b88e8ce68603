package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"net/url"
	"strings"

	"connectrpc.com/connect"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
)

// Exit codes, for scripts.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitIncomplete  = 3 // not enforced everywhere
	exitNotFound    = 4
	exitCredential  = 5
	exitUnavailable = 6
	exitWaits       = 7 // for a second person
)

const exitCodesHelp = `Exit codes: 0 done, 1 failed, 2 wrong usage or value, 3 done but not (yet) in force everywhere,
4 no such thing, 5 credential or permission, 6 the control plane can't be reached or has no answer now,
7 not done yet: it waits for a second person's approval (fleetban approvals).`

// failure is an error as a person or script gets it.
type failure struct {
	code    int
	reason  string // the API's name of it, for scripts
	field   string
	message string
	fix     string
	call    string // the request's id, which the control plane's log has
	subject string // what was made instead: an approval's id
	printed bool   // an answer was printed; the code says the rest
}

func (f *failure) Error() string { return f.message }

func usage(message, fix string) error { return &failure{code: exitUsage, message: message, fix: fix} }

// incomplete ends a command whose answer is printed and says what is missing.
func incomplete() error { return &failure{code: exitIncomplete, printed: true} }

// explain turns any error into what failed and what to do.
func explain(err error, serverURL string) *failure {
	var own *failure
	if errors.As(err, &own) {
		return own
	}
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return &failure{code: exitFailed, message: err.Error()}
	}
	for _, detail := range ce.Details() {
		value, err := detail.Value()
		if err != nil {
			continue
		}
		if info, ok := value.(*fleetbanv1.ErrorInfo); ok {
			code := exitCode(ce.Code())
			if info.GetReason() == fleetbanv1.Reason_REASON_APPROVAL_REQUIRED {
				code = exitWaits
			}
			return &failure{
				code: code, subject: info.GetSubject(), reason: strings.TrimPrefix(info.GetReason().String(), "REASON_"), field: info.GetField(),
				message: strings.TrimSuffix(ce.Message(), "; "+info.GetFix()), fix: info.GetFix(), call: info.GetRequestId(),
			}
		}
	}
	return unreached(ce, serverURL)
}

// unreached explains an error that isn't the control plane's own.
func unreached(ce *connect.Error, serverURL string) *failure {
	out := &failure{code: exitCode(ce.Code()), message: ce.Message(), call: ce.Meta().Get("X-Request-Id")}
	host := serverURL
	if u, err := url.Parse(serverURL); err == nil {
		host = u.Host
	}
	var pin *pinError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var verification *tls.CertificateVerificationError
	var dns *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(ce, &pin):
		return &failure{
			code: exitCredential, message: host + " isn't the pinned server: " + pin.Error(),
			fix: "if its key was changed on purpose, log in again with the new --pin; else someone stands in between",
		}
	case errors.As(ce, &unknown), errors.As(ce, &name), errors.As(ce, &verification):
		return &failure{
			code: exitCredential, message: "the certificate of " + host + " isn't trusted: " + ce.Message(),
			fix: "give --pin sha256//… as who runs it has it (fleetban join-token create prints it, too), or --ca-file with your authority",
		}
	case errors.As(ce, &dns):
		out.code, out.message, out.fix = exitUnavailable, "the name "+dns.Name+" can't be resolved", "check FLEETBAN_URL and the resolver"
	case ce.Code() == connect.CodeDeadlineExceeded, errors.Is(ce, context.DeadlineExceeded):
		out.code, out.message, out.fix = exitUnavailable, host+" did not answer in time", "see whether it is up, or allow more with --timeout"
	case errors.As(ce, &op):
		out.code, out.message, out.fix = exitUnavailable, host+" can't be reached: "+op.Err.Error(), "see whether the control plane is up and FLEETBAN_URL right"
	case ce.Code() == connect.CodeUnavailable:
		out.fix = "see whether the control plane is up and FLEETBAN_URL right"
	case ce.Code() == connect.CodeUnimplemented, ce.Code() == connect.CodeUnknown:
		out.fix = "check that " + serverURL + " is a Fleetban control plane, and of a release that knows this"
	}
	return out
}

func exitCode(code connect.Code) int {
	switch code {
	case connect.CodeInvalidArgument:
		return exitUsage
	case connect.CodeNotFound:
		return exitNotFound
	case connect.CodeUnauthenticated, connect.CodePermissionDenied:
		return exitCredential
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeResourceExhausted:
		return exitUnavailable
	default:
		return exitFailed
	}
}

// print writes a failure to standard error: a line and what to do, or a JSON object for programs.
func (f *failure) print(e *Env, format string) {
	if f.printed {
		return
	}
	if format == "json" || format == "jsonl" {
		text, err := json.Marshal(struct {
			Error    string `json:"error"`
			Fix      string `json:"fix,omitempty"`
			Reason   string `json:"reason,omitempty"`
			Field    string `json:"field,omitempty"`
			Call     string `json:"request_id,omitempty"`
			Approval string `json:"approval,omitempty"`
			Exit     int    `json:"exit"`
		}{f.message, f.fix, f.reason, f.field, f.call, f.subject, f.code})
		if err == nil {
			_, _ = e.Stderr.Write(append(asciiControls(text), '\n'))
			return
		}
	}
	text := "fleetban: " + escape(f.message, 2000) + "\n"
	if f.fix != "" {
		text += "  What to do: " + escape(f.fix, 2000) + ".\n"
	}
	// Who asked for the wrong thing finds nothing in the log that isn't here.
	if f.call != "" && f.code != exitUsage && f.code != exitNotFound {
		text += "  Request id: " + escape(f.call, 64) + "\n"
	}
	_, _ = e.Stderr.Write([]byte(text))
}
