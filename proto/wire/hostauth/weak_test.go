package hostauth_test

import (
	"crypto/ed25519"
	"encoding/hex"
	"slices"
	"strconv"
	"testing"

	"github.com/fleetban/fleetban/proto/wire/hostauth"
)

// Of the keys that are refused nobody needs the private half: one signature, of nothing, is good for many messages.
func TestSound(t *testing.T) {
	t.Parallel()
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if !hostauth.Sound(public) || hostauth.Sound(public[1:]) || hostauth.Sound(nil) {
		t.Error("a good key is refused, or one that is too short isn't")
	}
	// R is the identity and S zero: S·B = R + k·A wherever k·A is the identity.
	signature := make([]byte, ed25519.SignatureSize)
	signature[0] = 1
	for _, text := range []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0000000000000000000000000000000000000000000000000000000000000080",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	} {
		key, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		messages := make([]int, 300)
		for i := range messages {
			messages[i] = i
		}
		forged := slices.ContainsFunc(messages, func(n int) bool { return ed25519.Verify(key, []byte(strconv.Itoa(n)), signature) })
		if !forged {
			t.Errorf("%s: nothing is forged by it, and it is in the list", text)
		}
		if hostauth.Sound(key) {
			t.Errorf("%s is taken", text)
		}
	}
}
