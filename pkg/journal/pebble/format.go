package pebble

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	ceevent "github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
)

// The key space. Numbers are big-endian, so that keys sort as they count.
//
//	c <name>                  cursor: seq, and the seq where it began
//	d <len><sink> <seq>       dead letter: length-prefixed JSON, then the event as in e
//	e <seq>                   event: accepted, then the encoded event
//	g <len><sink> <seq>       given up, from seq on: JSON
//	k <generation> <key>      identity key: first seen, seq, CloudEvents id
//	l <seq>                   lost, from seq on, and found so by a repair: the last seq
//	m first                   the oldest seq kept, once any has been removed
//	m last                    the newest seq, kept when its event has been removed
//	m repaired                the newest seq when a repair lost positions of sinks
//	n <name>                  note
//	q <id>                    quarantined request: JSON
const (
	cursorSpace     = 'c'
	deadSpace       = 'd'
	eventSpace      = 'e'
	givenUpSpace    = 'g'
	keySpace        = 'k'
	lostSpace       = 'l'
	metaSpace       = 'm'
	noteSpace       = 'n'
	quarantineSpace = 'q'
)

var errTruncated = errors.New("record is truncated")

func eventKey(s journal.Seq) []byte {
	return binary.BigEndian.AppendUint64([]byte{eventSpace}, uint64(s))
}

func seqOf(key []byte) journal.Seq {
	return journal.Seq(binary.BigEndian.Uint64(key[len(key)-8:]))
}

func cursorKey(name string) []byte { return append([]byte{cursorSpace}, name...) }

// sinkPrefix is the start of all keys of a sink in a space.
func sinkPrefix(space byte, sink string) []byte {
	return append(binary.AppendUvarint([]byte{space}, uint64(len(sink))), sink...)
}

func sinkKey(space byte, id journal.DeadID) []byte {
	return binary.BigEndian.AppendUint64(sinkPrefix(space, id.Sink), uint64(id.Seq))
}

// sinkOf reads what sinkKey wrote.
func sinkOf(key []byte) (journal.DeadID, error) {
	r := &reader{b: key}
	r.byte()
	sink := r.bytes()
	s := r.uint64()
	return journal.DeadID{Sink: string(sink), Seq: journal.Seq(s)}, r.err
}

func quarantineKey(id string) []byte { return append([]byte{quarantineSpace}, id...) }

func noteKey(name string) []byte { return append([]byte{noteSpace}, name...) }

func metaFirstKey() []byte { return append([]byte{metaSpace}, "first"...) }

func metaLastKey() []byte { return append([]byte{metaSpace}, "last"...) }

func metaRepairedKey() []byte { return append([]byte{metaSpace}, "repaired"...) }

func lostKey(s journal.Seq) []byte {
	return binary.BigEndian.AppendUint64([]byte{lostSpace}, uint64(s))
}

// after returns the smallest key behind all that begin with prefix.
func after(prefix []byte) []byte {
	end := slices.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// An encoded event is a version byte, a flag, the attributes behind their
// length, and the data to the end. The flag says whether the data is bytes
// rather than text: structured mode writes bytes in base64.
//
//	1 | binary | length | id source type subject datacontenttype dataschema time | n (kind name value)… | data
//
// Strings are length-prefixed by uvarints, and so is their number; the length of
// the attributes is 4 bytes. An absent attribute is an empty string, which
// CloudEvents does not allow as a value.
const eventVersion = 1

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func encodeEvent(b []byte, e event.Event) ([]byte, error) {
	ce, ok := e.CloudEvent.Context.(*ceevent.EventContextV1)
	if !ok {
		return nil, errors.New("not a CloudEvents 1.0 event")
	}
	b = append(b, eventVersion, 0)
	if e.CloudEvent.DataBase64 {
		b[len(b)-1] = 1
	}
	start := len(b) + 4
	b = append(b, 0, 0, 0, 0)
	var stamp string
	if t := ce.GetTime(); !t.IsZero() {
		stamp = t.UTC().Format(time.RFC3339Nano)
	}
	for _, s := range []string{
		ce.GetID(), ce.GetSource(), ce.GetType(), ce.GetSubject(), ce.GetDataContentType(), ce.GetDataSchema(), stamp,
	} {
		b = appendString(b, s)
	}
	b = binary.AppendUvarint(b, uint64(len(ce.Extensions)))
	for name, value := range ce.Extensions {
		kind, text, err := encodeExtension(value)
		if err != nil {
			return nil, fmt.Errorf("extension %s: %w", name, err)
		}
		b = appendString(appendString(append(b, kind), name), text)
	}
	binary.BigEndian.PutUint32(b[start-4:], uint32(len(b)-start))
	return append(b, e.CloudEvent.DataEncoded...), nil
}

// encodeExtension returns the value's CloudEvents type and canonical string.
func encodeExtension(value any) (kind byte, text string, err error) {
	v, err := types.Validate(value)
	if err != nil {
		return 0, "", err
	}
	switch v.(type) {
	case string:
		kind = 's'
	case bool:
		kind = 'b'
	case int32:
		kind = 'i'
	case []byte:
		kind = 'x'
	case types.URI:
		kind = 'u'
	case types.URIRef:
		kind = 'r'
	case types.Timestamp:
		kind = 't'
	default:
		return 0, "", fmt.Errorf("%T is not a CloudEvents type", v)
	}
	text, err = types.Format(v)
	return kind, text, err
}

func decodeExtension(kind byte, text string) (any, error) {
	switch kind {
	case 's':
		return text, nil
	case 'b':
		return types.ParseBool(text)
	case 'i':
		return types.ParseInteger(text)
	case 'x':
		return types.ParseBinary(text)
	case 'u':
		return orNil(types.ParseURI(text), text)
	case 'r':
		return orNil(types.ParseURIRef(text), text)
	case 't':
		t, err := types.ParseTimestamp(text) // nil for an empty text
		if err != nil || t == nil {
			return nil, fmt.Errorf("%q is not a time", text)
		}
		return *t, nil
	}
	return nil, fmt.Errorf("unknown type %q", kind)
}

func orNil[T any](v *T, text string) (any, error) {
	if v == nil {
		return nil, fmt.Errorf("%q is not a URI", text)
	}
	return *v, nil
}

// reader takes an encoded record apart; the first error stays.
type reader struct {
	b   []byte
	err error

	text string // all that there was in b, for string
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.err = errTruncated
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) uvarint() uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 {
		r.err = errTruncated
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *reader) bytes() []byte {
	n := r.uvarint()
	if r.err != nil || n > uint64(len(r.b)) {
		r.err = errTruncated
		return nil
	}
	s := r.b[:n]
	r.b = r.b[n:]
	return s
}

// string is bytes out of text: many strings, one allocation.
func (r *reader) string() string {
	n := len(r.bytes())
	end := len(r.text) - len(r.b)
	return r.text[end-n : end]
}

func (r *reader) uint64() uint64 {
	if len(r.b) < 8 {
		r.err = errTruncated
		return 0
	}
	n := binary.BigEndian.Uint64(r.b)
	r.b = r.b[8:]
	return n
}

// decodeEvent reads what encodeEvent wrote. The event does not share memory
// with b.
func decodeEvent(b []byte) (event.Event, error) {
	if len(b) < 6 {
		return event.Event{}, errTruncated
	}
	if b[0] != eventVersion {
		return event.Event{}, fmt.Errorf("event has format %d, this version reads %d", b[0], eventVersion)
	}
	base64 := b[1] == 1
	length, b := binary.BigEndian.Uint32(b[2:]), b[6:]
	if uint64(length) > uint64(len(b)) {
		return event.Event{}, errTruncated
	}
	r := &reader{b: b[:length], text: string(b[:length])}
	data := b[length:]
	id, source, typ := r.string(), r.string(), r.string()
	subject, contentType, schema, stamp := r.string(), r.string(), r.string(), r.string()
	ce := &ceevent.EventContextV1{ID: id, Type: typ}
	if ref := types.ParseURIRef(source); ref != nil {
		ce.Source = *ref
	} else if r.err == nil {
		return event.Event{}, fmt.Errorf("source %q is not a URI reference", source)
	}
	if subject != "" {
		ce.Subject = &subject
	}
	if contentType != "" {
		ce.DataContentType = &contentType
	}
	if schema != "" {
		ce.DataSchema = types.ParseURI(schema)
	}
	if stamp != "" {
		t, err := types.ParseTimestamp(stamp)
		if err != nil {
			return event.Event{}, fmt.Errorf("time: %w", err)
		}
		ce.Time = t
	}
	if n := r.uvarint(); n > 0 && r.err == nil {
		ce.Extensions = make(map[string]any, min(n, 64))
		for range n {
			kind, name, text := r.byte(), r.string(), r.string()
			if r.err != nil {
				break
			}
			value, err := decodeExtension(kind, text)
			if err != nil {
				return event.Event{}, fmt.Errorf("extension %s: %w", name, err)
			}
			ce.Extensions[name] = value
		}
	}
	if r.err != nil {
		return event.Event{}, r.err
	}
	e := event.Event{CloudEvent: ceevent.Event{Context: ce, DataBase64: base64}}
	if len(data) > 0 {
		e.CloudEvent.DataEncoded = slices.Clone(data)
	}
	return e, nil
}

// A record is the time of acceptance, in nanoseconds since 1970, and then the
// encoded event; between the two a record that is for one sink has the byte
// addressed, the sink's length and name, and where the event was first.
const addressed = 0xff // never the version of an event

// appendAddress begins a record that is for one sink; the first eight bytes
// are free for the time of acceptance.
func appendAddress(b []byte, sink string, of journal.Seq) []byte {
	b = append(append(b, make([]byte, 8)...), addressed)
	return binary.BigEndian.AppendUint64(appendString(b, sink), uint64(of))
}

// split takes a record apart and leaves the event encoded.
func split(s journal.Seq, value []byte) (r journal.Record, encoded []byte, err error) {
	accepted, err := acceptedOf(value)
	if err != nil {
		return r, nil, fmt.Errorf("event %d: %w", s, err)
	}
	r = journal.Record{Seq: s, Accepted: accepted}
	encoded = value[8:]
	if len(encoded) > 0 && encoded[0] == addressed {
		head := &reader{b: encoded[1:]}
		r.Only, r.Of = string(head.bytes()), journal.Seq(head.uint64())
		if head.err != nil {
			return r, nil, fmt.Errorf("event %d: %w", s, head.err)
		}
		encoded = head.b
	}
	return r, encoded, nil
}

// decodeRecord reads the value of an event key.
func decodeRecord(s journal.Seq, value []byte) (journal.Record, error) {
	r, encoded, err := split(s, value)
	if err != nil {
		return r, err
	}
	if r.Event, err = decodeEvent(encoded); err != nil {
		return r, fmt.Errorf("event %d: %w", s, err)
	}
	return r, nil
}

func acceptedOf(value []byte) (time.Time, error) {
	if len(value) < 8 {
		return time.Time{}, errTruncated
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(value))).UTC(), nil
}
