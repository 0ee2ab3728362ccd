package cloudevents

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"

	ceevent "github.com/cloudevents/sdk-go/v2/event"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/postwire/postwire/pkg/source/jsonbody"
)

var (
	errObject  = errors.New("is not a JSON object")
	errNumber  = errors.New("is not an integer of 32 bits")
	errValue   = errors.New("is neither a string, an integer nor a boolean")
	errBase64  = errors.New("is not a string in base64")
	errBoth    = errors.New("is there beside data")
	errUnknown = errors.New("has a member that is no attribute: their names are lower-case letters and digits, at most 64")
)

// envelope is an event in JSON format, or another JSON value.
type envelope struct {
	kind    jsontext.Kind
	members []member
	twice   bool // a member is repeated, and readers would differ
}

// member is a member of an envelope.
type member struct {
	name  string
	value jsontext.Value
}

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (e *envelope) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	if e.kind = d.PeekKind(); e.kind != '{' {
		return d.SkipValue()
	}
	if _, err := d.ReadToken(); err != nil {
		return err
	}
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return err
		}
		m := member{name: name.String()}
		if slices.ContainsFunc(e.members, func(before member) bool { return before.name == m.name }) {
			e.twice = true
		}
		value, err := d.ReadValue()
		if err != nil {
			return err
		}
		// An event has at most the core members and maxExtensions extensions. Null members
		// are absent.
		if len(e.members) > maxExtensions+10 || value.Kind() == 'n' && m.name != "data" {
			continue
		}
		m.value = slices.Clone(value) // the decoder reuses its buffer
		e.members = append(e.members, m)
	}
	_, err := d.ReadToken()
	return err
}

// batch is a list of up to max events. Further events are not kept: a body of 1 MB has room
// for 20,000 events, which take a hundred times as much memory.
type batch struct {
	max    int
	events []envelope
	more   bool
}

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (b *batch) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	if d.PeekKind() != '[' {
		return d.SkipValue()
	}
	if _, err := d.ReadToken(); err != nil {
		return err
	}
	for d.PeekKind() != ']' {
		if b.more = len(b.events) == b.max; b.more {
			if err := d.SkipValue(); err != nil {
				return err
			}
			continue
		}
		b.events = append(b.events, envelope{})
		if err := b.events[len(b.events)-1].UnmarshalJSONFrom(d); err != nil {
			return err
		}
	}
	_, err := d.ReadToken()
	return err
}

var (
	_ json.UnmarshalerFrom = (*envelope)(nil)
	_ json.UnmarshalerFrom = (*batch)(nil)
)

// readStructured parses a body with one event.
func readStructured(body []byte) ([]ceevent.Event, error) {
	var e envelope
	if err := jsonbody.Object(body, &e); err != nil {
		return nil, err
	}
	ce, err := e.read("")
	return []ceevent.Event{ce}, err
}

// readBatch parses a body with a list of events. The list may be empty.
func readBatch(body []byte, maxEvents int) ([]ceevent.Event, error) {
	list := batch{max: maxEvents}
	if err := jsonbody.List(body, &list); err != nil {
		return nil, err
	}
	if list.more {
		return nil, malformed("", fmt.Errorf("has more than %d events (max_batch)", maxEvents))
	}
	events := make([]ceevent.Event, len(list.events))
	for i, e := range list.events {
		place := fmt.Sprintf("/%d", i)
		if e.kind != '{' {
			return nil, malformed(place, errObject)
		}
		var err error
		if events[i], err = e.read(place); err != nil {
			return nil, err
		}
	}
	return events, nil
}

// read parses the event at a JSON pointer in the body.
func (e *envelope) read(place string) (ceevent.Event, error) {
	var a attributes
	if e.twice {
		return ceevent.Event{}, malformed(place, errTwice)
	}
	var data, encoded jsontext.Value
	for _, m := range e.members {
		switch m.name {
		case "data":
			data = m.value
			continue
		case "data_base64":
			encoded = m.value
			continue
		}
		if !validName(m.name) {
			return ceevent.Event{}, malformed(place, errUnknown)
		}
		if err := a.setJSON(m.name, m.value); err != nil {
			return ceevent.Event{}, malformed(place+"/"+m.name, err)
		}
	}
	if name := a.missing(); name != "" {
		return ceevent.Event{}, malformed(place+"/"+name, errMissing)
	}
	ce := ceevent.Event{Context: &a.EventContextV1}
	switch present := encoded != nil && encoded.Kind() != 'n'; {
	case present && data != nil:
		return ceevent.Event{}, malformed(place+"/data_base64", errBoth)
	case present:
		raw, err := fromBase64(encoded)
		if err != nil {
			return ceevent.Event{}, malformed(place+"/data_base64", err)
		}
		if len(raw) > 0 { // an event without data has no empty data, as in the journal
			ce.DataEncoded, ce.DataBase64 = raw, true
		}
	case data != nil:
		if a.DataContentType == nil {
			// Implied in structured mode, and lost in other modes unless set.
			a.DataContentType = new(ceevent.ApplicationJSON)
		}
		if kindOf(*a.DataContentType) == jsonData {
			ce.DataEncoded = data
			break
		}
		text, err := fromString(*a.DataContentType, data)
		if err != nil {
			return ceevent.Event{}, malformed(place+"/data", err)
		}
		ce.DataEncoded = text
	}
	return ce, nil
}

// setJSON sets an attribute from its member. A null member is absent.
func (a *attributes) setJSON(name string, value jsontext.Value) error {
	switch value.Kind() {
	case 'n':
		return nil
	case 't', 'f':
		return a.set(name, value.Kind() == 't')
	case '0':
		if slices.Contains(core, name) {
			return errString
		}
		n, err := strconv.ParseInt(string(value), 10, 32)
		if err != nil || strconv.FormatInt(n, 10) != string(value) {
			return errNumber
		}
		return a.set(name, int32(n))
	case '"':
		text, err := jsontext.AppendUnquote(nil, value)
		if err != nil {
			return errUnusable
		}
		return a.set(name, string(text))
	}
	return errValue
}

func fromBase64(value jsontext.Value) ([]byte, error) {
	if value.Kind() != '"' {
		return nil, errBase64
	}
	text, err := jsontext.AppendUnquote(nil, value)
	if err != nil {
		return nil, errBase64
	}
	data, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil {
		return nil, errBase64
	}
	return data, nil
}
