package sinks

import "strings"

// EscapeHeader percent-encodes an attribute's value for a header, as the HTTP
// binding has it (section 3.1.3.2) and the NATS binding after it: the space, the
// double quote, the percent sign, and all that is not printable ASCII. No value
// can then end its header and begin another.
func EscapeHeader(value string) string {
	return percent(value, &inAttribute)
}

// EscapeMediaType leaves a media type as it is, with the spaces and quotes of
// its parameters, save for what has no place in a header.
func EscapeMediaType(value string) string {
	return percent(value, &inMediaType)
}

// The bytes that stay as they are.
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

// percent encodes the bytes of s that are not clean.
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
