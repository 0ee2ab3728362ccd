package cloudevents

import (
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	ceevent "github.com/cloudevents/sdk-go/v2/event"
)

// prefix is the prefix of attribute headers in Go's canonical form.
const prefix = "Ce-"

var (
	errTwice     = errors.New("is sent more than once")
	errEncoding  = errors.New("is not percent-encoded UTF-8, as the HTTP binding has it")
	errForbidden = errors.New("must not be sent: in binary mode it is Content-Type")
)

// readBinary parses an event with attributes in headers and data in the body.
func readBinary(h http.Header, contentType string, body []byte) ([]ceevent.Event, error) {
	var a attributes
	for _, header := range slices.Sorted(maps.Keys(h)) {
		name, ok := strings.CutPrefix(header, prefix)
		if !ok {
			continue
		}
		if err := a.setHeader(strings.ToLower(name), h[header]); err != nil {
			return nil, malformed(strings.ToLower(header), err)
		}
	}
	if contentType != "" {
		if err := a.set("datacontenttype", contentType); err != nil {
			return nil, malformed("Content-Type", err)
		}
	}
	if name := a.missing(); name != "" {
		return nil, malformed("ce-"+name, errMissing)
	}
	e := ceevent.Event{Context: &a.EventContextV1}
	if len(body) > 0 {
		asBytes, err := goesAsBytes(contentType, body)
		if err != nil {
			return nil, err
		}
		e.DataEncoded, e.DataBase64 = body, asBytes
	}
	return []ceevent.Event{e}, nil
}

// setHeader sets an attribute from its header.
func (a *attributes) setHeader(name string, values []string) error {
	switch {
	case !validName(name):
		return errName
	case name == "datacontenttype":
		return errForbidden
	case len(values) != 1:
		return errTwice
	}
	text, err := decodeHeader(values[0])
	if err != nil {
		return err
	}
	err = a.set(name, text)
	if errors.Is(err, errURI) && text != values[0] {
		// The CloudEvents SDK for Go does not encode. A decoded text that is not a URI was
		// not encoded, because a URI has no character to encode.
		err = a.set(name, values[0])
	}
	return err
}

// decodeHeader decodes an attribute header (HTTP binding, section 3.1.3.2): the outer
// quotes, then percent-encoding. Inner quotes are an error, because versions of readers
// differ there.
func decodeHeader(value string) (string, error) {
	if strings.HasPrefix(value, `"`) {
		var ok bool
		if value, ok = unquote(value); !ok {
			return "", errEncoding
		}
	} else if strings.Contains(value, `"`) {
		return "", errEncoding
	}
	text, err := url.PathUnescape(value)
	if err != nil || !utf8.ValidString(text) {
		return "", errEncoding
	}
	return text, nil
}

// unquote decodes a quoted string (RFC 7230, section 3.2.6).
func unquote(s string) (string, bool) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), i == len(s)-1
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", false
}

// single returns a header that may occur once.
func single(h http.Header, name string) (string, error) {
	switch values := h[name]; len(values) {
	case 0:
		return "", nil
	case 1:
		return values[0], nil
	default:
		return "", malformed(name, errTwice)
	}
}
