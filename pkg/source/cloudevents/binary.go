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

// prefix is what the headers of attributes begin with, as Go spells them.
const prefix = "Ce-"

var (
	errTwice     = errors.New("is sent more than once")
	errEncoding  = errors.New("is not percent-encoded UTF-8, as the HTTP binding has it")
	errForbidden = errors.New("must not be sent: in binary mode it is Content-Type")
)

// readBinary reads an event whose attributes are headers and whose data is the
// body.
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
		// The CloudEvents SDK for Go does not encode. A URI has no character
		// that must be, so what is none after decoding was not encoded.
		err = a.set(name, values[0])
	}
	return err
}

// decodeHeader reads an attribute's value as in the HTTP binding, section
// 3.1.3.2: quotes around it are taken off, and then percent-encoding. Quotes
// inside are read in two ways by readers of different versions.
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

// unquote reads a quoted string as in RFC 7230, section 3.2.6.
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

// single returns a header that may be there once.
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
