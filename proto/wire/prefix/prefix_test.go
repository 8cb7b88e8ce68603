package prefix_test

import (
	"strings"
	"testing"

	"github.com/fleetban/fleetban/proto/wire/prefix"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"203.0.113.9":            "203.0.113.9/32",
		"\t203.0.113.9 ":         "203.0.113.9/32",
		"203.0.113.0/24":         "203.0.113.0/24",
		"::ffff:203.0.113.9":     "203.0.113.9/32",
		"::ffff:203.0.113.0/120": "203.0.113.0/24",
		"2001:db8::1":            "2001:db8::1/128",
		"2001:DB8::/32":          "2001:db8::/32",
	} {
		got, err := prefix.Parse(in)
		if err != nil || got.String() != want {
			t.Errorf("Parse(%q) = %v, %v; want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", "x", "1.2.3", "1.2.3.4/33", "fe80::1%eth0", "203.0.113.9/24", "::ffff:0:0/90", "1.2.3.4/-1", strings.Repeat("9", 1000)} {
		if got, err := prefix.Parse(in); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", in, got)
		}
	}
	if _, err := prefix.Parse("203.0.113.9/24"); err == nil || !strings.Contains(err.Error(), "did you mean 203.0.113.0/24") {
		t.Errorf("host bits: %v", err)
	}
}

func TestReserved(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]bool{
		"10.1.2.3": true, "127.0.0.1": true, "100.64.1.1": true, "169.254.1.1": true, "::1": true, "fe80::1": true, "0.0.0.0/0": true, "::/0": true,
		"203.0.113.9": false, "198.51.100.0/24": false, "2001:db8::1": false, "8.8.8.8": false,
	} {
		p, err := prefix.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if _, got := prefix.Reserved(p); got != want {
			t.Errorf("Reserved(%s) = %v, want %v", in, got, want)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add([]byte{203, 0, 113, 9, 32})
	f.Add([]byte{203, 0, 113, 9, 24})
	f.Add(make([]byte, 17))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := prefix.Unpack(b)
		if err != nil {
			return
		}
		if got := prefix.Pack(p); string(got) != string(b) {
			t.Fatalf("Pack(Unpack(%x)) = %x", b, got)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"203.0.113.9", "2001:db8::/64", "::ffff:1.2.3.4/99", "1.2.3.4/24"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := prefix.Parse(s)
		if err != nil {
			return
		}
		if p != p.Masked() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			t.Fatalf("Parse(%q) = %v is not canonical", s, p)
		}
		back, err := prefix.Unpack(prefix.Pack(p))
		if err != nil || back != p {
			t.Fatalf("Unpack(Pack(%v)) = %v, %v", p, back, err)
		}
		again, err := prefix.Parse(prefix.Format(p))
		if err != nil || again != p {
			t.Fatalf("Parse(Format(%v)) = %v, %v", p, again, err)
		}
	})
}
