package kafka

import (
	"slices"

	"github.com/segmentio/kafka-go"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// record is an encoded event.
type record struct {
	key     []byte // nil for an event without a partition key
	value   []byte
	headers []kafka.Header
}

// encode makes a record from an event, according to the Kafka binding for
// CloudEvents: attributes as ce_ headers in UTF-8, the partition key as the
// record key.
func encode(env sinks.Env, e event.Event, mode string) (record, error) {
	m, err := env.Encode(e, mode)
	if err != nil {
		return record{}, err
	}
	r := record{key: key(e), value: m.Body, headers: make([]kafka.Header, 0, len(m.Attributes)+1)}
	if m.ContentType != "" {
		r.headers = append(r.headers, kafka.Header{Key: "content-type", Value: []byte(m.ContentType)})
	}
	length := 0
	for _, a := range m.Attributes {
		length += len(a.Value)
	}
	values := make([]byte, 0, length) // a single allocation
	for name, value := range m.Headers("ce_") {
		values = append(values, value...)
		r.headers = append(r.headers, kafka.Header{Key: name, Value: slices.Clip(values[len(values)-len(value):])})
	}
	return r, nil
}

// key returns the record key of an event, nil for an event without a partition
// key.
func key(e event.Event) []byte {
	if key, ok := e.Attribute(event.PartitionKey); ok {
		return []byte(key)
	}
	return nil
}

// size returns an upper bound of the wire size in bytes of a batch with only
// this record, uncompressed: the frame of the batch and the record, and the
// parts of the record with their length prefixes.
func (r record) size() int {
	n := 90 + len(r.key) + len(r.value)
	for _, h := range r.headers {
		n += 8 + len(h.Key) + len(h.Value)
	}
	return n
}
