package keys

import (
	"crypto/hmac"
	"crypto/sha256"
)

// SealMAC is the proof that this control plane wrote data as a part of an organisation's state ("" is the fleet's): 32 bytes.
func (k *Keys) SealMAC(org string, data []byte) []byte {
	mac := hmac.New(sha256.New, k.sealKey(org))
	mac.Write(data)
	return mac.Sum(nil)
}

// maxSealKeys bounds the keys that are kept; each costs 2 µs to derive.
const maxSealKeys = 10_000

func (k *Keys) sealKey(org string) []byte {
	k.sealMu.Lock()
	defer k.sealMu.Unlock()
	key := k.seals[org]
	if key == nil {
		key = k.derive("fleetban seal v1 "+org, sha256.Size)
		if k.seals == nil || len(k.seals) >= maxSealKeys {
			k.seals = make(map[string][]byte)
		}
		k.seals[org] = key
	}
	return key
}
