package terminal_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/postwire/postwire/internal/terminal"
)

func TestText(t *testing.T) {
	for _, tt := range []struct{ name, in, text, line string }{
		{"plain", "größe 日本 😀 e\u0301", "größe 日本 😀 e\u0301", "größe 日本 😀 e\u0301"},
		{"lines", "a\n\tb\r\nc", "a\n\tb\nc", `a\u000a\u0009b\u000d\u000ac`},
		{"escape sequence", "\x1b[2J\x1b]0;title\a", `\u001b[2J\u001b]0;title\u0007`, `\u001b[2J\u001b]0;title\u0007`},
		{"carriage return", "good\rbad", `good\u000dbad`, `good\u000dbad`},
		{"backspace and DEL", "a\b\x7f", `a\u0008\u007f`, `a\u0008\u007f`},
		{"C1", "a\u009b2Jb\u0085", `a\u009b2Jb\u0085`, `a\u009b2Jb\u0085`},
		{"raw C1 bytes", "a\x9b2J", `a\x9b2J`, `a\x9b2J`},
		{"bidi", "a\u202eb\u2066c\u2069\u200f\u061c", `a\u202eb\u2066c\u2069\u200f\u061c`, `a\u202eb\u2066c\u2069\u200f\u061c`},
		{"separators", "a\u2028b\u2029", `a\u2028b\u2029`, `a\u2028b\u2029`},
		{"not UTF-8", "a\xff\xc3", `a\xff\xc3`, `a\xff\xc3`},
		{"the replacement character", "a\ufffd", "a\ufffd", "a\ufffd"},
		{"zero byte", "a\x00", `a\u0000`, `a\u0000`},
	} {
		if got := terminal.Text(tt.in); got != tt.text {
			t.Errorf("%s: the text is %q, want %q", tt.name, got, tt.text)
		}
		if got := terminal.Line(tt.in); got != tt.line {
			t.Errorf("%s: the line is %q, want %q", tt.name, got, tt.line)
		}
	}
}

// JSON stays the JSON that it was.
func TestJSONKeepsItsMeaning(t *testing.T) {
	const value = "a\u202e\u009b\x7f\x1b\n\u2028 größe"
	var out bytes.Buffer
	w := terminal.NewWriter(&out)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(value); err != nil {
		t.Fatal(err)
	}
	var got string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got != value {
		t.Errorf("%s is %q, %v", out.String(), got, err)
	}
}

// FuzzWriter: however text is cut into writes, what comes out is the same, and
// holds nothing that a terminal obeys.
func FuzzWriter(f *testing.F) {
	f.Add([]byte("a\u202e\x1b[0m😀\xf0\x9f"), uint8(1))
	f.Add([]byte("\xe2\x80"), uint8(2))
	f.Fuzz(func(t *testing.T, text []byte, step uint8) {
		var out strings.Builder
		w := terminal.NewWriter(&out)
		for rest := text; len(rest) > 0; {
			n := min(len(rest), int(step%7)+1)
			if written, err := w.Write(rest[:n]); written != n || err != nil {
				t.Fatal(written, err)
			}
			rest = rest[n:]
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		got := out.String()
		if !bytes.Contains(text, []byte("\r")) && got != terminal.Text(string(text)) {
			t.Errorf("%q, want %q", got, terminal.Text(string(text)))
		}
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool {
			return r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 || r == 0x202e || r == 0x2067
		}) {
			t.Errorf("%q is not harmless", got)
		}
	})
}
