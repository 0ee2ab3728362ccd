// Package record encodes stored events and quarantined requests for the engines of the
// journal.
package record

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	ceevent "github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
)

// ErrTruncated is returned for encoded bytes that end too early.
var ErrTruncated = errors.New("record is truncated")

// An encoded event is a version byte, a flag, the length of the attributes, the attributes,
// and the data up to the end. The flag is 1 for binary data, which structured mode writes in
// base64.
//
//	1 | binary | length | id source type subject datacontenttype dataschema time | n (kind name value)… [name] | data
//
// The last name is the configured source, which is not an attribute. It is optional and
// part of the length.
//
// A string has its length before it, as a uvarint; n is a uvarint; the length of the
// attributes has 4 bytes. An absent attribute is an empty string, which CloudEvents does
// not allow as a value.
const version = 1

// AppendString appends the length of a string, as a uvarint, and the string.
func AppendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// EventID returns the CloudEvents id of an encoded event.
func EventID(encoded []byte) (string, error) {
	if len(encoded) < 6 {
		return "", ErrTruncated
	}
	r := &Reader{B: encoded[6:]}
	id := string(r.Bytes())
	return id, r.Err
}

// sourceOf returns the name of the source in the keys of an event.
func sourceOf(keys []event.Key) string {
	if len(keys) == 0 {
		return ""
	}
	return keys[0].Source()
}

// Sourced adds the name of the source in the keys to an encoded event, for a record
// without identity keys. Sourced does not change encoded.
func Sourced(encoded []byte, keys []event.Key) ([]byte, error) {
	name := sourceOf(keys)
	_, known, err := new(Decoder).event(encoded)
	if err != nil || name == "" || known != "" {
		return encoded, err
	}
	return withSource(encoded, name), nil
}

// withSource returns an encoded event with the name of its source.
func withSource(encoded []byte, name string) []byte {
	length := binary.BigEndian.Uint32(encoded[2:])
	named := AppendString(slices.Clone(encoded[:6+length]), name)
	binary.BigEndian.PutUint32(named[2:], uint32(len(named)-6))
	return append(named, encoded[6+length:]...)
}

// AppendEvent appends an encoded event without the name of its source, for a record that
// stores the identity keys: the keys contain the name. AppendEvent fails for extension types
// that CloudEvents does not have.
func AppendEvent(b []byte, e event.Event) ([]byte, error) {
	ce, ok := e.CloudEvent.Context.(*ceevent.EventContextV1)
	if !ok {
		return nil, errors.New("not a CloudEvents 1.0 event")
	}
	b = append(b, version, 0)
	if e.CloudEvent.DataBase64 {
		b[len(b)-1] = 1
	}
	start := len(b) + 4
	b = append(b, 0, 0, 0, 0)
	for _, s := range [...]string{ce.GetID(), ce.GetSource(), ce.GetType(), ce.GetSubject(), ce.GetDataContentType(), ce.GetDataSchema()} {
		b = AppendString(b, s)
	}
	if t := ce.GetTime(); t.IsZero() {
		b = AppendString(b, "")
	} else {
		b = appendTime(b, t)
	}
	b = binary.AppendUvarint(b, uint64(len(ce.Extensions)))
	for name, value := range ce.Extensions {
		var err error
		if b, err = appendExtension(b, name, value); err != nil {
			return nil, fmt.Errorf("extension %s: %w", name, err)
		}
	}
	binary.BigEndian.PutUint32(b[start-4:], uint32(len(b)-start))
	return append(b, e.CloudEvent.DataEncoded...), nil
}

// encodeExtension returns the value's CloudEvents type and canonical string.
func appendExtension(b []byte, name string, value any) ([]byte, error) {
	switch v := value.(type) { // as nearly all are
	case string:
		return AppendString(AppendString(append(b, 's'), name), v), nil
	case types.Timestamp:
		return appendTime(AppendString(append(b, 't'), name), v.Time), nil
	}
	v, err := types.Validate(value)
	if err != nil {
		return nil, err
	}
	var kind byte
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
		return nil, fmt.Errorf("%T is not a CloudEvents type", v)
	}
	text, err := types.Format(v)
	if err != nil {
		return nil, err
	}
	return AppendString(AppendString(append(b, kind), name), text), nil
}

// appendTime appends a time in RFC 3339 format, in UTC, as AppendString does.
func appendTime(b []byte, t time.Time) []byte {
	var text [len(time.RFC3339Nano)]byte
	short := t.UTC().AppendFormat(text[:0], time.RFC3339Nano)
	return append(binary.AppendUvarint(b, uint64(len(short))), short...)
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

// Reader reads encoded bytes. Err keeps the first error.
type Reader struct {
	B   []byte // what has not been read yet
	Err error

	text string // all that there was in b, for string
}

// Byte reads one byte.
func (r *Reader) Byte() byte {
	if len(r.B) == 0 {
		r.Err = ErrTruncated
		return 0
	}
	c := r.B[0]
	r.B = r.B[1:]
	return c
}

// Uvarint reads a number.
func (r *Reader) Uvarint() uint64 {
	n, size := binary.Uvarint(r.B)
	if size <= 0 {
		r.Err = ErrTruncated
		return 0
	}
	r.B = r.B[size:]
	return n
}

// Varint reads a number that may be negative.
func (r *Reader) Varint() int64 {
	n, size := binary.Varint(r.B)
	if size <= 0 {
		r.Err = ErrTruncated
		return 0
	}
	r.B = r.B[size:]
	return n
}

// Bytes reads a length and as many bytes. The result shares memory with B.
func (r *Reader) Bytes() []byte {
	n := r.Uvarint()
	if r.Err != nil || n > uint64(len(r.B)) {
		r.Err = ErrTruncated
		return nil
	}
	s := r.B[:n]
	r.B = r.B[n:]
	return s
}

// string is Bytes as a part of text: one allocation for many strings.
func (r *Reader) string() string {
	n := len(r.Bytes())
	end := len(r.text) - len(r.B)
	return r.text[end-n : end]
}

// Uint64 reads eight bytes, big-endian.
func (r *Reader) Uint64() uint64 {
	if len(r.B) < 8 {
		r.Err = ErrTruncated
		return 0
	}
	n := binary.BigEndian.Uint64(r.B)
	r.B = r.B[8:]
	return n
}

// Decoder decodes records. It caches parsed URIs, because parsing the few distinct URIs of a
// backlog costs more than the rest of a record. The zero value is ready. One goroutine at a
// time uses a Decoder.
type Decoder struct {
	DropKeys bool // records have no identity keys

	uris   map[string]*types.URIRef // the values are never changed
	name   string                   // source of the last identity key
	prefix []byte                   // what the keys of that source begin with
}

// maxURIs limits the cache of a Decoder.
const maxURIs = 1024

// uri parses a URI reference, and returns nil for an invalid one.
func (d *Decoder) uri(text string) *types.URIRef {
	ref, known := d.uris[text]
	if known {
		return ref
	}
	ref = types.ParseURIRef(text)
	if d.uris == nil || len(d.uris) == maxURIs {
		d.uris = make(map[string]*types.URIRef)
	}
	d.uris[strings.Clone(text)] = ref // text shares memory with an event
	return ref
}

// event decodes an event, and the name of the source if encoded. The event does not share
// memory with b.
func (d *Decoder) event(b []byte) (e event.Event, name string, err error) {
	if len(b) < 6 {
		return e, "", ErrTruncated
	}
	if b[0] != version {
		return e, "", fmt.Errorf("event has format %d, this version reads %d", b[0], version)
	}
	base64 := b[1] == 1
	length, b := binary.BigEndian.Uint32(b[2:]), b[6:]
	if uint64(length) > uint64(len(b)) {
		return e, "", ErrTruncated
	}
	r := &Reader{B: b[:length], text: string(b[:length])}
	data := b[length:]
	id, source, typ := r.string(), r.string(), r.string()
	subject, contentType, schema, stamp := r.string(), r.string(), r.string(), r.string()
	ce := &ceevent.EventContextV1{ID: id, Type: typ}
	if ref := d.uri(source); ref != nil {
		ce.Source = *ref
	} else if r.Err == nil {
		return e, "", fmt.Errorf("source %q is not a URI reference", source)
	}
	if subject != "" {
		ce.Subject = &subject
	}
	if contentType != "" {
		ce.DataContentType = &contentType
	}
	if schema != "" {
		if ref := d.uri(schema); ref != nil {
			ce.DataSchema = &types.URI{URL: ref.URL}
		}
	}
	if stamp != "" {
		t, err := types.ParseTimestamp(stamp)
		if err != nil {
			return e, "", fmt.Errorf("time: %w", err)
		}
		ce.Time = t
	}
	if n := r.Uvarint(); n > 0 && r.Err == nil {
		ce.Extensions = make(map[string]any, min(n, 64))
		for range n {
			kind, name, text := r.Byte(), r.string(), r.string()
			if r.Err != nil {
				break
			}
			value, err := decodeExtension(kind, text)
			if err != nil {
				return e, "", fmt.Errorf("extension %s: %w", name, err)
			}
			ce.Extensions[name] = value
		}
	}
	if r.Err == nil && len(r.B) > 0 {
		name = r.string()
	}
	if r.Err != nil {
		return e, "", r.Err
	}
	e = event.Event{CloudEvent: ceevent.Event{Context: ce, DataBase64: base64}}
	if len(data) > 0 {
		e.CloudEvent.DataEncoded = slices.Clone(data)
	}
	return e, name, nil
}

// A record is the acceptance time in nanoseconds since 1970, optional parts, and the encoded
// event. The part of an event for one sink is the byte addressed, the name of the sink
// as a string, and the sequence of the original event. The part of a copy of a dead letter is
// the byte copied, and the name of the sink that refused the original. The part of identity
// keys is the byte keyed, the number of keys, and the keys as strings.
const (
	addressed = 0xff // not a version of an encoded event
	keyed     = 0xfe
	copied    = 0xfd
)

// AppendKeys appends the identity keys of a record.
func AppendKeys(b []byte, keys []event.Key) []byte {
	b = binary.AppendUvarint(append(b, keyed), uint64(len(keys)))
	for _, k := range keys {
		b = AppendString(b, string(k))
	}
	return b
}

// AppendAddress begins a record for one sink. SetAccepted sets the first eight bytes later.
func AppendAddress(b []byte, sink string, of journal.Seq) []byte {
	b = append(append(b, make([]byte, 8)...), addressed)
	return binary.BigEndian.AppendUint64(AppendString(b, sink), uint64(of))
}

// AppendDeadLetterOf appends the sink that refused the original of a copy of a dead letter.
// AppendAddress comes before.
func AppendDeadLetterOf(b []byte, sink string) []byte {
	return AppendString(append(b, copied), sink)
}

// CopyDeadLetter returns the record of the copy that letter.CopyTo gets, from the record that
// the given sink refused. SetAccepted sets the first eight bytes later.
func CopyDeadLetter(sink string, letter journal.DeadLetter, value []byte) ([]byte, error) {
	r, err := Decode(letter.Seq, value)
	if err != nil {
		return nil, err
	}
	ce, ok := r.Event.CloudEvent.Context.(*ceevent.EventContextV1)
	if !ok {
		return nil, errors.New("not a CloudEvents 1.0 event")
	}
	if ce.Extensions == nil {
		ce.Extensions = map[string]any{}
	}
	ce.Extensions[event.DeadLetterID] = fmt.Sprintf("%d@%s", letter.Seq, sink)
	ce.Extensions[event.DeadLetterSink] = sink
	ce.Extensions[event.DeadLetterReason] = letter.Reason
	ce.Extensions[event.DeadLetterAttempts] = int32(min(letter.Attempts, math.MaxInt32))
	ce.Extensions[event.DeadLetterTime] = types.Timestamp{Time: letter.Last.UTC()}
	encoded, err := AppendEvent(nil, r.Event)
	if err != nil {
		return nil, err
	}
	if r.Event.SourceName != "" {
		encoded = withSource(encoded, r.Event.SourceName)
	}
	b := AppendAddress(nil, letter.CopyTo, cmp.Or(r.OriginSeq, letter.Seq))
	return append(AppendDeadLetterOf(b, sink), encoded...), nil
}

// Split decodes a record except for its event, and returns the encoded event.
func Split(s journal.Seq, value []byte) (r journal.Record, encoded []byte, err error) {
	r, encoded, _, err = split(s, value, true)
	return r, encoded, err
}

// split is Split. Without withKeys it returns the first identity key only, which shares memory with value.
func split(s journal.Seq, value []byte, withKeys bool) (r journal.Record, encoded, first []byte, err error) {
	accepted, err := Accepted(value)
	if err != nil {
		return r, nil, nil, fmt.Errorf("event %d: %w", s, err)
	}
	r = journal.Record{Seq: s, Accepted: accepted}
	head := &Reader{B: value[8:]}
	if len(head.B) > 0 && head.B[0] == addressed {
		head.Byte()
		r.TargetSink, r.OriginSeq = string(head.Bytes()), journal.Seq(head.Uint64())
	}
	if len(head.B) > 0 && head.B[0] == copied && head.Err == nil {
		head.Byte()
		r.DeadLetterOf = string(head.Bytes())
	}
	if len(head.B) > 0 && head.B[0] == keyed && head.Err == nil {
		head.Byte()
		n := head.Uvarint()
		for i := uint64(0); i < n && head.Err == nil; i++ {
			key := head.Bytes()
			if i == 0 {
				first = key
			}
			if withKeys {
				r.Event.Keys = append(r.Event.Keys, event.Key(key))
			}
		}
	}
	if head.Err != nil {
		return r, nil, nil, fmt.Errorf("event %d: %w", s, head.Err)
	}
	return r, head.B, first, nil
}

// Decode decodes the record with sequence s.
func Decode(s journal.Seq, value []byte) (journal.Record, error) {
	return new(Decoder).Record(s, value)
}

// Record decodes the record with sequence s.
func (d *Decoder) Record(s journal.Seq, value []byte) (journal.Record, error) {
	r, encoded, first, err := split(s, value, !d.DropKeys)
	if err != nil {
		return r, err
	}
	keys := r.Event.Keys
	var name string
	if r.Event, name, err = d.event(encoded); err != nil {
		return r, fmt.Errorf("event %d: %w", s, err)
	}
	if r.Event.Keys, r.Event.SourceName = keys, name; name == "" {
		r.Event.SourceName = d.sourceOf(first)
	}
	return r, nil
}

// sourceOf returns the name of the source in an identity key. Most keys of a backlog have
// the name of the key before.
func (d *Decoder) sourceOf(key []byte) string {
	if len(d.prefix) > 0 && bytes.HasPrefix(key, d.prefix) {
		return d.name
	}
	name := event.Key(key).Source()
	if name != "" {
		d.name, d.prefix = name, []byte(event.NewKey(name))
	}
	return name
}

// Accepted returns the acceptance time of a record.
func Accepted(value []byte) (time.Time, error) {
	if len(value) < 8 {
		return time.Time{}, ErrTruncated
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(value))).UTC(), nil
}

// SetAccepted sets the acceptance time of a record.
func SetAccepted(b []byte, t time.Time) { binary.BigEndian.PutUint64(b, uint64(t.UnixNano())) }

// AppendRejected encodes the constant fields of a quarantined request: the length of their
// JSON, the JSON, and the body.
func AppendRejected(b []byte, r journal.QuarantinedRequest) ([]byte, error) {
	head, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encoding a quarantined request: %w", err)
	}
	return append(AppendString(b, string(head)), r.Body...), nil
}

// DecodeRejected decodes the bytes of AppendRejected. The result shares no memory with
// the bytes.
func DecodeRejected(b []byte) (r journal.QuarantinedRequest, err error) {
	read := &Reader{B: b}
	head := read.Bytes()
	if read.Err != nil {
		return r, fmt.Errorf("decoding a quarantined request: %w", read.Err)
	}
	if err := json.Unmarshal(head, &r); err != nil {
		return r, fmt.Errorf("decoding a quarantined request: %w", err)
	}
	r.Body = append(r.Body, read.B...)
	return r, nil
}
