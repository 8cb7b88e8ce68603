package fail2ban

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestDecodeRecordedReplies(t *testing.T) {
	files, err := filepath.Glob("testdata/replies/*")
	if err != nil || len(files) < 8 {
		t.Fatalf("%d recorded replies, %v", len(files), err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		v, err := decode(b)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if pair, ok := v.(tuple); !ok || len(pair) != 2 {
			if _, ok := v.(string); !ok {
				t.Errorf("%s is %T", file, v)
			}
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"empty":             "",
		"protocol 0 code":   "cos\nsystem\n(S'id'\ntR.",
		"unknown opcode":    "\x80\x05\x8e.",
		"instance":          "\x80\x02(ios\nsystem\n.",
		"new object":        "\x80\x02cos\nx\n)\x81.",
		"trailing":          "\x80\x02N.N",
		"mark as value":     "\x80\x02(.",
		"class as value":    "\x80\x02cos\nsystem\n.",
		"call of a string":  "\x80\x02\x8c\x01a)R.",
		"short string":      "\x80\x02X\xff\xff\xff\xffab.",
		"unknown memo":      "\x80\x02h\x05.",
		"memo far ahead":    "\x80\x02Nr\xff\xff\xff\x7f.",
		"append to nothing": "\x80\x02Na.",
		"deep marks":        "\x80\x02" + strings.Repeat("(", maxMarks+1),
		"key no string":     "\x80\x02}K\x01Ns.",
	} {
		if v, err := decode([]byte(in)); err == nil {
			t.Errorf("%s: decoded to %v", name, v)
		}
	}
}

func TestDecodeCallsNothing(t *testing.T) {
	v, err := decode([]byte("\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R."))
	if err != nil {
		t.Fatal(err)
	}
	want := &object{module: "posix", name: "system", args: []any{"id"}}
	if !reflect.DeepEqual(v, want) {
		t.Fatalf("got %#v", v)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, args := range map[string][]string{
		"nothing": {}, "marker": {"a<F2B_END_COMMAND>b"}, "nul": {"a\x00"}, "long": {strings.Repeat("a", maxArgument+1)},
		"not UTF-8": {"\xff"},
	} {
		if b, err := encode(args); err == nil {
			t.Errorf("%s: encoded to %q", name, b)
		}
	}
	b, err := encode([]string{"set", "sshd"})
	if want := "\x80\x02](X\x03\x00\x00\x00setX\x04\x00\x00\x00sshde.<F2B_END_COMMAND>"; err != nil || string(b) != want {
		t.Fatalf("got %q, %v", b, err)
	}
}

func TestParseEntry(t *testing.T) {
	e, ok := parseEntry("192.0.2.1 \t2026-01-02 03:04:05 + 600 = 2026-01-02 03:14:05")
	if !ok || e.Addr.String() != "192.0.2.1/32" || e.Duration != 10*time.Minute || e.BannedAt.Hour() != 3 {
		t.Fatalf("got %+v, %v", e, ok)
	}
	e, ok = parseEntry("2001:db8::/64 \t2026-01-02 03:04:05 + -1 = 9999-12-31 23:59:59")
	if !ok || e.Duration != Forever || e.Addr.Bits() != 64 {
		t.Fatalf("got %+v, %v", e, ok)
	}
	for _, s := range []string{
		"", "x", "192.0.2.1", "host \t2026-01-02 03:04:05 + 600 = x", "192.0.2.1 \tnever + 600 = x",
		"192.0.2.1 \t2026-01-02 03:04:05 + ten = x", "fe80::1%eth0 \t2026-01-02 03:04:05 + 1 = x",
	} {
		if e, ok := parseEntry(s); ok {
			t.Errorf("%q is %+v", s, e)
		}
	}
}

func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("testdata/replies/*")
	if err != nil || len(files) == 0 {
		f.Fatalf("no recorded replies: %v", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("\x80\x02](h\x00e."))
	f.Fuzz(func(t *testing.T, in []byte) {
		v, err := decode(in)
		if err != nil {
			return
		}
		// What decodes goes through everything that reads results; none may panic.
		_ = newServerError(v).Error()
		if items, err := itemsOf(v); err == nil {
			_ = parseListing(items, true)
			_, _ = bannedAnswer(v, len(items))
		}
		_, _ = pairsOf(v)
	})
}

func FuzzEncodeDecode(f *testing.F) {
	f.Add("set", "sshd")
	f.Add("<F2B_END_", "COMMAND>")
	f.Fuzz(func(t *testing.T, a, b string) {
		out, err := encode([]string{a, b})
		if err != nil {
			return
		}
		if n := strings.Count(string(out), endMarker); n != 1 {
			t.Fatalf("%d end markers", n)
		}
		v, err := decode(out[:len(out)-len(endMarker)])
		if err != nil {
			t.Fatal(err)
		}
		l, ok := v.(*list)
		if !ok || !reflect.DeepEqual(l.items, []any{a, b}) {
			t.Fatalf("came back as %#v", v)
		}
	})
}
