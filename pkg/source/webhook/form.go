package webhook

import (
	"errors"
	"fmt"
	"mime"
	"net/url"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/jsonbody"
)

// wholeForm is the value of the key form that converts all fields to JSON.
const wholeForm = "*"

// content returns the JSON of a request: the body, or the JSON in a form.
func (s *Source) content(r *source.Request) ([]byte, error) {
	if s.form == "" {
		return r.Body, nil
	}
	// Content-Type is not signed. A JSON body is never a form: otherwise a stranger with
	// one signed body could send the body as a form, with fields from a text inside.
	if jsontext.Value(event.TrimBOM(r.Body)).IsValid(jsonbody.Lenient()) {
		return r.Body, nil
	}
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/x-www-form-urlencoded" {
		return r.Body, nil //nolint:nilerr // a body without a valid media type is JSON
	}
	fields, err := url.ParseQuery(string(r.Body))
	if err != nil { // the error would quote the body
		return nil, malformed("", errors.New("is no form"))
	}
	if s.form == wholeForm {
		return formObject(fields)
	}
	switch values := fields[s.form]; len(values) {
	case 0:
		return nil, malformed("form", fmt.Errorf("finds no field %q in the request", s.form))
	case 1:
		return []byte(values[0]), nil
	}
	return nil, malformed("form", fmt.Errorf("finds the field %q more than once", s.form))
}

// formObject converts the fields of a form to an object of texts, sorted by name.
func formObject(fields url.Values) ([]byte, error) {
	object := make(map[string]string, len(fields))
	for name, values := range fields {
		if len(values) > 1 { // readers might use different values
			return nil, malformed("", errors.New("has a field of the form more than once"))
		}
		object[name] = values[0]
	}
	body, err := json.Marshal(object, json.Deterministic(true))
	if err != nil {
		return nil, malformed("", errors.New("is not valid UTF-8"))
	}
	return body, nil
}
