package sinks_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/postwire/postwire/sinks"
)

func TestEscapeHeader(t *testing.T) {
	for value, want := range map[string]string{
		"plain/a.b:c%": "plain/a.b:c%25", "Euro € 😀": "Euro%20%E2%82%AC%20%F0%9F%98%80", "a\r\nb: \"c\"\x00\x7f": "a%0D%0Ab:%20%22c%22%00%7F", "": "",
	} {
		if got := sinks.EscapeHeader(value); got != want {
			t.Errorf("%q becomes %q, want %q", value, got, want)
		}
	}
	const mediaType = `text/plain; charset="utf-8"`
	if got := sinks.EscapeMediaType(mediaType + "\r\nü"); got != mediaType+"%0D%0A%C3%BC" {
		t.Errorf("the media type becomes %q", got)
	}
}

func FuzzEscapeHeader(f *testing.F) {
	f.Add("a b\"%\r\nü\x00")
	f.Fuzz(func(t *testing.T, s string) {
		got := sinks.EscapeHeader(s)
		if strings.ContainsFunc(got, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' }) {
			t.Errorf("%q becomes %q", s, got)
		}
		if back, err := url.PathUnescape(got); err != nil || back != s {
			t.Errorf("%q becomes %q, and that %q, %v", s, got, back, err)
		}
	})
}
