package sinks

import "strings"

// EscapeHeader percent-encodes the value of an attribute for a header, as in
// the HTTP binding (section 3.1.3.2) and the NATS binding: space, double quote,
// percent sign, and everything except printable ASCII. A value can therefore
// not end its header and start another header.
func EscapeHeader(value string) string {
	return percent(value, &inAttribute)
}

// EscapeMediaType keeps a media type unchanged, with the spaces and quotes of
// its parameters, except for characters that are invalid in a header.
func EscapeMediaType(value string) string {
	return percent(value, &inMediaType)
}

// The bytes to keep.
var (
	inAttribute = bytesOf(func(c byte) bool { return c > ' ' && c < 0x7f && c != '"' && c != '%' })
	inMediaType = bytesOf(func(c byte) bool { return c >= ' ' && c < 0x7f })
)

func bytesOf(in func(c byte) bool) (set [256]bool) {
	for c := range set {
		set[c] = in(byte(c))
	}
	return set
}

// percent encodes all bytes of s except clean bytes.
func percent(s string, clean *[256]bool) string {
	const hex = "0123456789ABCDEF"
	dirty := 0
	for i := range len(s) {
		if !clean[s[i]] {
			dirty++
		}
	}
	if dirty == 0 {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 2*dirty)
	for i := range len(s) {
		if c := s[i]; clean[c] {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}
