package sinktest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/types"
	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// Events returns n events of some partition keys, and a few without a key. The
// events are equal at each call, and contain difficult values for encoders.
func Events(n, keys int) []event.Event {
	events := make([]event.Event, n)
	platforms := []string{"instagram", "tiktok", "you.tube", "x>*", "face book"}
	for i := range events {
		e := cloudevents.NewEvent()
		e.SetType("com.upload-post.upload_completed")
		e.SetSource("https://upload-post.com/profiles/m%C3%BCller")
		e.SetSubject(fmt.Sprintf("instagram/%d", i))
		e.SetID(fmt.Sprintf("upload_completed/instagram/%d/success", i))
		e.SetTime(time.Date(2026, 11, 3, 10, 30, 0, 123456000+i*1000, time.UTC))
		e.SetDataSchema("urn:postwire:schema:com.upload-post.upload_completed:1")
		e.SetExtension(event.Platform, platforms[i%len(platforms)])
		e.SetExtension(event.Outcome, "success")
		e.SetExtension(event.MediaType, "video")
		e.SetExtension(event.Profile, `Größe "100 %" 🎬`)
		e.SetExtension(event.CorrelationID, "a\tb,c;d=e%20f")
		e.SetExtension(event.RecordedTime, types.Timestamp{Time: time.Date(2026, 11, 3, 10, 30, 1, 0, time.UTC)})
		if i%11 != 10 {
			e.SetExtension(event.PartitionKey, fmt.Sprintf("profile %d", i%keys))
		}
		data := fmt.Sprintf("{\"n\": %d,\n  \"title\" : \"\\u00e4 & <b> ü 🎬 \\\\ \\/\", \"big\": 12345678901234567890, \"f\": 1.50, \"none\": null, \"list\": [ 1,2 ]}", i)
		if err := e.SetData("application/json", []byte(data)); err != nil {
			panic(err) // bytes are always accepted
		}
		events[i] = event.Event{CloudEvent: e, Keys: []event.Key{event.NewKey("test", e.ID())}, MessageID: fmt.Sprintf("journal/%d/dz3k", i+1)}
	}
	return events
}

// ReadEvent is an event in the view of a reader: all attributes in canonical
// form, including datacontenttype, and the data.
type ReadEvent struct {
	Attributes map[string]string
	Data       []byte
}

// FromSDK converts an event of the CloudEvents SDK.
func FromSDK(e *cloudevents.Event) ReadEvent {
	s := ReadEvent{Attributes: map[string]string{}, Data: e.Data()}
	x := event.Event{CloudEvent: *e}
	for _, name := range core() {
		if v, ok := x.Attribute(name); ok {
			s.Attributes[name] = v
		}
	}
	for name := range e.Extensions() {
		s.Attributes[name], _ = x.Attribute(name)
	}
	return s
}

func core() []string {
	return []string{"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema"}
}

// Strict reads a binary message according to the specification, from attributes
// by name that are already decoded by the protocol's rules.
func Strict(attributes map[string]string, data []byte) (ReadEvent, error) {
	if v := attributes["specversion"]; v != "1.0" {
		return ReadEvent{}, fmt.Errorf("specversion is %q", v)
	}
	for _, name := range []string{"id", "source", "type"} {
		if attributes[name] == "" {
			return ReadEvent{}, fmt.Errorf("%s is missing", name)
		}
	}
	legal := regexp.MustCompile(`^[a-z0-9]{1,20}$`)
	for name, value := range attributes {
		if !legal.MatchString(name) && !slices.Contains(core(), name) {
			return ReadEvent{}, fmt.Errorf("%q is no name of an attribute", name)
		}
		if value == "" {
			return ReadEvent{}, fmt.Errorf("%s is empty", name)
		}
	}
	if text, ok := attributes["time"]; ok {
		if _, err := time.Parse(time.RFC3339Nano, text); err != nil {
			return ReadEvent{}, err
		}
	}
	return ReadEvent{attributes, data}, nil
}

// Encoded extracts the attributes of a binary message from headers in lower
// case: ce- and the name, with percent-encoded values, as in the HTTP and NATS
// bindings.
func Encoded(headers map[string][]string) (map[string]string, error) {
	attributes := map[string]string{}
	for name, values := range headers {
		name, ok := strings.CutPrefix(name, "ce-")
		if !ok {
			continue
		}
		if len(values) != 1 {
			return nil, fmt.Errorf("ce-%s is there %d times", name, len(values))
		}
		for _, c := range []byte(values[0]) {
			if c <= ' ' || c >= 0x7f || c == '"' {
				return nil, fmt.Errorf("ce-%s is %q, which is not encoded", name, values[0])
			}
		}
		value, err := url.PathUnescape(values[0])
		if err != nil {
			return nil, err
		}
		attributes[name] = value
	}
	return attributes, nil
}

// StrictJSON reads the JSON format according to the specification.
func StrictJSON(body []byte) (ReadEvent, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(body, &members); err != nil {
		return ReadEvent{}, err
	}
	var data []byte
	attributes := map[string]string{}
	for name, raw := range members {
		switch name {
		case "data":
			data = raw
			continue
		case "data_base64":
			var text string
			if err := json.Unmarshal(raw, &text); err != nil {
				return ReadEvent{}, err
			}
			var err error
			if data, err = base64.StdEncoding.DecodeString(text); err != nil {
				return ReadEvent{}, err
			}
			continue
		}
		var value any
		if err := json.Unmarshal(raw, &value); err != nil {
			return ReadEvent{}, err
		}
		switch value.(type) {
		case string, bool, float64:
			attributes[name] = strings.Trim(fmt.Sprint(value), "\x00")
		default:
			return ReadEvent{}, fmt.Errorf("%s is a %T", name, value)
		}
	}
	return Strict(attributes, data)
}

// Diff returns the differences between an event and the event of a reader: data
// byte for byte, or as JSON values.
func Diff(e event.Event, s ReadEvent, asJSON bool) string {
	want := FromSDK(&e.CloudEvent)
	diff := cmp.Diff(want.Attributes, s.Attributes)
	if !asJSON {
		return diff + cmp.Diff(string(want.Data), string(s.Data))
	}
	sent, err := value(want.Data)
	read, err2 := value(s.Data)
	if err := errors.Join(err, err2); err != nil {
		return diff + err.Error()
	}
	if !reflect.DeepEqual(sent, read) {
		return diff + cmp.Diff(sent, read)
	}
	return diff
}

// value decodes a JSON value, with numbers as written.
func value(data []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more than one JSON value")
	}
	return v, nil
}

// Outcomes returns the outcome of each of n events after Deliver returned err:
// "" for delivered, the reason of a permanent failure, or "again".
func Outcomes(err error, n int) []string {
	each, ok := errors.AsType[sinks.BatchError](err)
	if !ok {
		each = slices.Repeat(sinks.BatchError{err}, n)
	}
	said := make([]string, n)
	for i, err := range each {
		if reason, refused := sinks.IsPermanent(err); refused {
			said[i] = string(reason)
		} else if err != nil {
			said[i] = "again"
		}
	}
	return said
}
