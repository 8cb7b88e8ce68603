package fail2ban

import (
	"errors"
	"fmt"
	"strings"
)

// What can be wrong with the server, apart from a command of its that failed (*ServerError). They are wrapped.
var (
	// ErrNoSocket: there is no socket file. fail2ban isn't running, or its socket is elsewhere.
	ErrNoSocket = errors.New("fail2ban's socket is missing")
	// ErrRefused: the socket file is there and nothing listens. fail2ban was killed.
	ErrRefused = errors.New("nothing listens on fail2ban's socket")
	// ErrDenied: this process may not use the socket.
	ErrDenied = errors.New("not allowed to use fail2ban's socket")
	// ErrLost: the connection broke before the reply was complete. Whether the command ran is unknown.
	ErrLost = errors.New("the connection to fail2ban broke")
	// ErrStopping: fail2ban is shutting down and takes no commands.
	ErrStopping = errors.New("fail2ban is shutting down")
	// ErrGarbage: what listens answers something that fail2ban wouldn't.
	ErrGarbage = errors.New("what answers on the socket isn't fail2ban")
	// ErrUnknownJail: fail2ban has no such jail now.
	ErrUnknownJail = errors.New("no such jail")
	// ErrBusy: another call of the same Client took too long. Nothing was sent.
	ErrBusy = errors.New("another command to fail2ban is still running")
	// ErrArgument: refused here, before anything was sent.
	ErrArgument = errors.New("refused argument")
	// ErrUnsupported: this version of fail2ban doesn't know the command.
	ErrUnsupported = errors.New("not known to this version of fail2ban")
)

// ServerError is an exception that a command raised in the server.
type ServerError struct {
	// Class is the exception's Python class, with its module where that isn't builtins: "ValueError",
	// "fail2ban.exceptions.UnknownJailException". Empty for a bare error string.
	Class string
	// Args are the exception's arguments as text, at most 8, each at most 512 bytes.
	Args []string
}

func (e *ServerError) Error() string {
	text := strings.Join(e.Args, ", ")
	if e.Class == "" {
		return fmt.Sprintf("fail2ban answers %q", text)
	}
	return fmt.Sprintf("fail2ban answers %s: %q", e.Class, text)
}

// Is makes an UnknownJailException match ErrUnknownJail, and what versions say to a command they lack ErrUnsupported.
func (e *ServerError) Is(target error) bool {
	switch target {
	case ErrUnknownJail:
		return strings.HasSuffix(e.Class, "UnknownJailException")
	case ErrUnsupported:
		return e.Class == "Exception" && len(e.Args) > 0 && strings.HasPrefix(e.Args[0], "Invalid command")
	}
	return false
}

func newServerError(payload any) *ServerError {
	const maxArgs, maxText = 8, 512
	cut := func(s string) string {
		if len(s) > maxText {
			return s[:maxText]
		}
		return s
	}
	obj, ok := payload.(*object)
	if !ok {
		s, _ := payload.(string)
		return &ServerError{Args: []string{cut(s)}}
	}
	e := &ServerError{Class: obj.name}
	if obj.module != "builtins" && obj.module != "exceptions" {
		e.Class = obj.module + "." + obj.name
	}
	for _, arg := range obj.args {
		if len(e.Args) == maxArgs {
			break
		}
		switch arg := arg.(type) {
		case string:
			e.Args = append(e.Args, cut(arg))
		case int64:
			e.Args = append(e.Args, fmt.Sprint(arg))
		default:
			e.Args = append(e.Args, "…")
		}
	}
	return e
}
