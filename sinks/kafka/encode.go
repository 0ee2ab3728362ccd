package kafka

import (
	"context"

	"github.com/segmentio/kafka-go"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// record is an event as it goes to the broker.
type record struct {
	topic   string
	key     []byte // nil where the event has no partition key
	value   []byte
	headers []kafka.Header
}

// encode makes a record of an event, as in the Kafka binding for CloudEvents:
// attributes as ce_ headers in UTF-8, the partition key as the record's key.
func encode(ctx context.Context, e event.Event, mode, topic string) (record, error) {
	m, err := sinks.Encode(ctx, e, mode)
	if err != nil {
		return record{}, err
	}
	r := record{topic: topic, value: m.Body, headers: make([]kafka.Header, 0, len(m.Attributes)+1)}
	if m.ContentType != "" {
		r.headers = append(r.headers, kafka.Header{Key: "content-type", Value: []byte(m.ContentType)})
	}
	for _, a := range m.Attributes {
		r.headers = append(r.headers, kafka.Header{Key: "ce_" + a.Name, Value: []byte(a.Value)})
	}
	if key, ok := e.Attribute(event.PartitionKey); ok {
		r.key = []byte(key)
	}
	return r, nil
}

// size is at most how many bytes the record takes on the wire, uncompressed:
// its parts, and a few bytes of lengths for each.
func (r record) size() int {
	n := len(r.key) + len(r.value) + 70
	for _, h := range r.headers {
		n += len(h.Key) + len(h.Value) + 6
	}
	return n
}
