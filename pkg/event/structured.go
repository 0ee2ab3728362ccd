package event

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"strings"
	"unicode/utf8"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/go-json-experiment/json/jsontext"
)

// IsJSON reports whether data of a media type is JSON: application/json, text/json
// and any */*+json (RFC 6839). Data without a media type is JSON (CloudEvents,
// section 3.1.1).
func IsJSON(contentType string) bool {
	if contentType == "" {
		return true
	}
	media, _, err := mime.ParseMediaType(contentType)
	_, subtype, _ := strings.Cut(media, "/")
	// A media type is one whatever becomes of its parameters.
	return (err == nil || errors.Is(err, mime.ErrInvalidMediaParameter)) && (subtype == "json" || strings.HasSuffix(subtype, "+json"))
}

// MaxDepth is how deep JSON may nest: as deep as the strictest common readers
// (Jackson) follow, with room for the envelope of structured mode.
const MaxDepth = 900

// Deeper reports whether JSON nests deeper than most. It reads tokens only where
// there are brackets enough, and as far as there are any.
func Deeper(data []byte, most int) bool {
	if bytes.Count(data, []byte{'['})+bytes.Count(data, []byte{'{'}) <= most {
		return false
	}
	d := jsontext.NewDecoder(bytes.NewReader(data), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	for {
		if _, err := d.ReadToken(); err != nil {
			return false
		}
		if d.StackDepth() > most {
			return true
		}
	}
}

// bom may stand before JSON (RFC 8259, section 8.1).
var bom = []byte("\ufeff")

// TrimBOM returns JSON without a byte order mark before it.
func TrimBOM(data []byte) []byte { return bytes.TrimPrefix(data, bom) }

// Structured writes e in the JSON format of CloudEvents. Every reader can parse
// it: data of a JSON media type is the member data, less a byte order mark, if
// every reader can parse the data; text in UTF-8 is a string; everything else is
// data_base64. It reports as opaque that data of a JSON media type had to be
// data_base64.
func Structured(e Event) (body []byte, opaque bool, err error) {
	ce := e.CloudEvent
	data := ce.DataEncoded
	ce.DataEncoded = nil
	body, err = ce.MarshalJSON()
	if err != nil || len(data) == 0 {
		return body, false, err
	}
	name, value := "data_base64", []byte(nil)
	contentType := ce.DataContentType()
	if contentType != "" && IsJSON(contentType) || contentType == "" && !ce.DataBase64 {
		if text := TrimBOM(data); jsontext.Value(text).IsValid() && !Deeper(text, MaxDepth) {
			name, value = "data", text
		} else {
			opaque = true
		}
	} else if !ce.DataBase64 && utf8.Valid(data) {
		if value, err = json.Marshal(string(data)); err != nil {
			return nil, false, fmt.Errorf("writing the data as text: %w", err)
		}
		name = "data"
	}
	if value == nil {
		value = base64.StdEncoding.AppendEncode([]byte{'"'}, data)
		value = append(value, '"')
	}
	body = append(bytes.TrimSuffix(body, []byte{'}'}), `,"`...)
	body = append(append(append(body, name...), `":`...), value...)
	return append(body, '}'), opaque, nil
}

// StructuredType is the media type of what Structured writes.
const StructuredType = cloudevents.ApplicationCloudEventsJSON
