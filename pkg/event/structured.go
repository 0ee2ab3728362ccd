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

// IsJSON reports whether a media type is JSON: application/json, text/json and any */*+json
// (RFC 6839). An empty media type is JSON (CloudEvents, section 3.1.1).
func IsJSON(contentType string) bool {
	if contentType == "" {
		return true
	}
	media, _, err := mime.ParseMediaType(contentType)
	_, subtype, _ := strings.Cut(media, "/")
	// Invalid parameters do not change the media type.
	return (err == nil || errors.Is(err, mime.ErrInvalidMediaParameter)) && (subtype == "json" || strings.HasSuffix(subtype, "+json"))
}

// MaxDepth is the maximum nesting of JSON data: the limit of the strictest common readers
// (Jackson), less the envelope of structured mode.
const MaxDepth = 900

// Deeper reports whether JSON is nested deeper than limit. It parses only data with enough
// brackets, and stops at the last bracket.
func Deeper(data []byte, limit int) bool {
	if bytes.Count(data, []byte{'['})+bytes.Count(data, []byte{'{'}) <= limit {
		return false
	}
	d := jsontext.NewDecoder(bytes.NewReader(data), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	for {
		if _, err := d.ReadToken(); err != nil {
			return false
		}
		if d.StackDepth() > limit {
			return true
		}
	}
}

// bom is a byte order mark, allowed before JSON (RFC 8259, section 8.1).
var bom = []byte("\ufeff")

// TrimBOM removes a byte order mark before JSON.
func TrimBOM(data []byte) []byte { return bytes.TrimPrefix(data, bom) }

// Structured encodes e in the JSON format of CloudEvents, so that every reader can parse
// the result. Data of a JSON media type becomes the member data, without a byte order mark,
// if every reader can parse the data. UTF-8 text becomes a string. All other data becomes
// data_base64. Structured reports opaque if data of a JSON media type became data_base64.
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

// StructuredType is the media type of the result of Structured.
const StructuredType = cloudevents.ApplicationCloudEventsJSON
