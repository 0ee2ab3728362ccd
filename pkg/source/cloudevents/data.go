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

// Data is JSON, text or bytes. It matters where a sink writes structured mode:
// JSON stands there as it is, if it is JSON (event.Structured looks); text is a
// string, which has no place for bytes that are not UTF-8, so that these go as
// bytes.
type kind int

const (
	bytesData kind = iota
	textData
	jsonData
)

// kindOf is what a media type says of its data. Without one it is bytes.
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

// goesAsBytes tells of data that came as bytes whether it is to go as bytes in
// structured mode, too.
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

// fromString reads data that came as a string, because its type is not JSON.
func fromString(contentType string, value jsontext.Value) ([]byte, error) {
	if value.Kind() != '"' {
		return nil, errText
	}
	text, err := jsontext.AppendUnquote(nil, value)
	if err != nil || len(text) == 0 {
		return nil, err
	}
	// The media type was parsed when it was set.
	if _, parameters, _ := mime.ParseMediaType(contentType); !utf8Compatible(parameters["charset"]) {
		for _, c := range text {
			if c >= utf8.RuneSelf {
				return nil, errCharset
			}
		}
	}
	return text, nil
}
