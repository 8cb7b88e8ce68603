package factors

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/fleetban/fleetban/controlplane/internal/people"
)

// deviceAhead is added to when a device was proved: clocks differ, and one that is given out with a new password must not
// seem older than that.
const deviceAhead = 5 * time.Second

const (
	devicePrefix = "fbd_"
	deviceBody   = 16 + 8 + 16 // the person's ULID, when it was made in Unix milliseconds, a random id
)

// NewDevice makes what a device shows at the next sign-in of a person: its attempts are counted apart from everyone else's.
// It lets nobody in, is a MAC, and is stored nowhere. "" where person is no id.
func (f *Factors) NewDevice(person string) string {
	id, err := ulid.ParseStrict(person)
	if err != nil {
		return ""
	}
	body := binary.BigEndian.AppendUint64(append(make([]byte, 0, deviceBody), id[:]...), uint64(f.now().Add(deviceAhead).UnixMilli())) //nolint:gosec // not before 1970
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails: crypto/rand ends the program instead
	body = append(body, random[:]...)
	return devicePrefix + base64.RawURLEncoding.EncodeToString(append(body, f.deviceMAC(body)...))
}

// Device parses what NewDevice made; the zero Device for everything else.
func (f *Factors) Device(text string) people.Device {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(strings.TrimPrefix(text, devicePrefix))
	if err != nil || len(raw) != deviceBody+sha256.Size || !strings.HasPrefix(text, devicePrefix) {
		return people.Device{}
	}
	body, mac := raw[:deviceBody], raw[deviceBody:]
	if !hmac.Equal(mac, f.deviceMAC(body)) {
		return people.Device{}
	}
	return people.Device{
		Person: ulid.ULID(body[:16]).String(), Made: int64(binary.BigEndian.Uint64(body[16:24])), ID: hex.EncodeToString(body[24:]), //nolint:gosec // as above
	}
}

func (f *Factors) deviceMAC(body []byte) []byte {
	mac := hmac.New(sha256.New, f.device[:])
	mac.Write(body)
	return mac.Sum(nil)
}
