package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"
)

// Fail2banSocket is an open connection to a host's fail2ban, for where its client's 50 ms a call would be in the way. It
// speaks just enough: a pickled list of strings there, and whether it worked back.
type Fail2banSocket struct {
	conn net.Conn
	buf  []byte
}

const (
	fail2banSocketPath = "/run/fail2ban/fail2ban.sock"
	endOfCommand       = "<F2B_END_COMMAND>"
	commandLimit       = 5 * time.Second
)

// DialFail2ban connects to the host's fail2ban.
func (n *Node) DialFail2ban(ctx context.Context) (*Fail2banSocket, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", n.Path(fail2banSocketPath))
	if err != nil {
		return nil, fmt.Errorf("connect to fail2ban on %s: %w", n.Name, err)
	}
	return &Fail2banSocket{conn: conn, buf: make([]byte, 64<<10)}, nil
}

// Close ends the connection.
func (s *Fail2banSocket) Close() { _ = s.conn.Close() }

// Command sends a command and waits for its answer, which is told only if it is a failure.
func (s *Fail2banSocket) Command(words ...string) error {
	message := []byte{0x80, 2, ']', '('} // protocol 2, empty list, mark
	for _, w := range words {
		message = append(message, 'X')
		message = binary.LittleEndian.AppendUint32(message, uint32(len(w)))
		message = append(message, w...)
	}
	message = append(append(message, 'e', '.'), endOfCommand...) // append all, stop
	if err := s.conn.SetDeadline(time.Now().Add(commandLimit)); err != nil {
		return err
	}
	if _, err := s.conn.Write(message); err != nil {
		return err
	}
	var answer []byte
	for !bytes.HasSuffix(answer, []byte(endOfCommand)) {
		n, err := s.conn.Read(s.buf)
		if err != nil {
			return fmt.Errorf("fail2ban's answer to %q: %w", words, err)
		}
		answer = append(answer, s.buf[:n]...)
	}
	// A tuple that begins with the integer 0 is a success: protocol header, frame, K 0.
	if at := bytes.IndexByte(answer, 'K'); at < 0 || at+1 >= len(answer) || answer[at+1] != 0 {
		return errors.New("fail2ban refuses " + fmt.Sprintf("%q: %q", words, answer))
	}
	return nil
}
