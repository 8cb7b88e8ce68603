package enforce

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"google.golang.org/protobuf/proto"

	fleetbanv1 "github.com/fleetban/fleetban/proto/gen/go/fleetban/v1"
	"github.com/fleetban/fleetban/proto/wire/banset"
)

const (
	stateName = "switches.json"
	// forever stands for "until somebody says otherwise" where an end is kept.
	forever = banset.Never
	// mostAllows bounds the exemptions of one host.
	mostAllows = 1000
)

// saved is what has to survive a restart beside the sets.
type saved struct {
	// OffUntil is when TurnOff ends; 0: it is on.
	OffUntil int64 `json:"off_until_unix_ms,omitempty"`
	// Allows are the exemptions of this host and their ends.
	Allows map[netip.Prefix]int64 `json:"local_allows,omitempty"`
	// Settings is a fleetban.v1.Settings.
	Settings []byte `json:"settings,omitempty"`
	// ControlPlane is where it was last.
	ControlPlane []netip.Addr `json:"control_plane,omitempty"`
	// ClockOffset is the server's clock less the host's, and LastServer the last that was known of it.
	ClockOffset int64 `json:"clock_offset_ms,omitempty"`
	LastServer  int64 `json:"last_server_unix_ms,omitempty"`
	// ServerTold says that these come from the server, not from the host's clock alone.
	ServerTold bool `json:"server_told,omitempty"`

	settings *fleetbanv1.Settings
}

// loadState reads the state. A file that can't be understood is put aside: what it switched off is on again, which the
// caller logs.
func loadState(dir string) (saved, error) {
	s := saved{Allows: make(map[netip.Prefix]int64)}
	name := filepath.Join(dir, stateName)
	data, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		if err = json.Unmarshal(data, &s); err == nil && len(s.Settings) > 0 {
			s.settings = new(fleetbanv1.Settings)
			err = proto.Unmarshal(s.Settings, s.settings)
		}
	}
	if err != nil {
		_ = os.Rename(name, name+".unreadable")
		return saved{Allows: make(map[netip.Prefix]int64)}, fmt.Errorf("read %s: %w", name, err)
	}
	if s.Allows == nil {
		s.Allows = make(map[netip.Prefix]int64)
	}
	return s, nil
}

func (s *saved) marshal() ([]byte, error) {
	if s.settings != nil {
		b, err := proto.Marshal(s.settings)
		if err != nil {
			return nil, err
		}
		s.Settings = b
	}
	return json.Marshal(s)
}

// stateFile is where the state is saved. Its lock is its own, so that no ban waits while a disk syncs.
type stateFile struct {
	mu      sync.Mutex
	written uint64
}

// write saves data, which is the numbered state, unless a later one is there; it is either the old or the new one
// after a crash.
func (f *stateFile) write(dir string, data []byte, number uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if number <= f.written {
		return nil
	}
	name := filepath.Join(dir, stateName)
	file, err := os.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	f.written = number
	return nil
}
