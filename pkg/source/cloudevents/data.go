package cloudevents

import (
	"errors"
	"mime"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source/jsonbody"
)

// Data is JSON, text or bytes. The kind matters in structured mode: JSON data is a JSON
// value if event.Structured accepts the data, text is a string, and bytes or text that is
// not UTF-8 become data_base64.
type kind int

const (
	bytesData kind = iota
	textData
	jsonData
)

// kindOf returns the kind of data of a media type; bytes without a media type.
func kindOf(contentType string) kind {
	mediaType, parameters, err := mime.ParseMediaType(contentType)
	if err != nil {
		return bytesData
	}
	switch _, subtype, _ := strings.Cut(mediaType, "/"); {
	case contentType != "" && event.IsJSON(contentType):
		return jsonData
	case !utf8Compatible(parameters["charset"]):
		return bytesData
	case strings.HasPrefix(mediaType, "text/") || subtype == "xml" || strings.HasSuffix(subtype, "+xml"):
		return textData
	}
	return bytesData
}

// goesAsBytes reports whether received bytes are sent as bytes in structured mode.
func goesAsBytes(contentType string, data []byte) (bool, error) {
	switch kindOf(contentType) {
	case jsonData:
		if err := jsonbody.CheckDepth(data); err != nil {
			return false, err
		}
		return false, nil
	case textData:
		return !utf8.Valid(data), nil
	case bytesData:
	}
	return true, nil
}

var (
	errText    = errors.New("is not a string, which data must be that is not JSON")
	errCharset = errors.New("is text in another charset than UTF-8")
)

// fromString decodes data from a JSON string, because its media type is not JSON.
func fromString(contentType string, value jsontext.Value) ([]byte, error) {
	if value.Kind() != '"' {
		return nil, errText
	}
	text, err := jsontext.AppendUnquote(nil, value)
	if err != nil || len(text) == 0 {
		return nil, err
	}
	// The media type was valid when it was set.
	if _, parameters, _ := mime.ParseMediaType(contentType); !utf8Compatible(parameters["charset"]) {
		for _, c := range text {
			if c >= utf8.RuneSelf {
				return nil, errCharset
			}
		}
	}
	return text, nil
}
