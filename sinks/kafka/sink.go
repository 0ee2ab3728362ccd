// Package kafka delivers events to Apache Kafka and compatible brokers.
//
// Records follow the Kafka binding of CloudEvents. The record key is the
// event's partition key, hashed like in the Java client, so that the events of
// a profile share a partition and keep their order. Records have no sequence
// numbers: after a lost response, an event may be in the topic twice, with
// equal CloudEvents source and id, and consumers drop the repeat.
//
// An event becomes a dead letter if the event exceeds max_message_bytes or the
// topic's own limit, and, if topic contains attributes, if the topic does not
// exist (and create is false), has an invalid name, or is not writable. All
// other failures are retried.
package kafka

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

const (
	// metadataTTL is the maximum age of cached cluster metadata. After a
	// failure, the metadata is refreshed at once.
	metadataTTL = 5 * time.Second
	dialTimeout = 5 * time.Second
	// requestTimeout is the maximum time for a response of the brokers; the
	// request itself contains half of this time.
	requestTimeout = 10 * time.Second
	// maxRequests is how many partitions are written to at once.
	maxRequests = 16
)

//go:embed example.yaml
var example string

// Kind is the sink of type kafka.
func Kind() sinks.Kind {
	return sinks.Define("kafka", "Apache Kafka, and brokers with the Kafka protocol.", example, defaults, open)
}

// Sink implements sinks.Sink.
//
// Sink does not use kafka-go's Writer, whose queue, timer and retries hide the
// outcome of a record. A batch is grouped by partition, and the records of a
// partition are sent in one request, without a timer: the next request has the
// events that arrived during the previous request.
//
// Order: a key has a single partition, a partition has at most one request in
// flight, and a request is stored whole or not at all. If a request fails, all
// records of the request count as failed, and later records of the partition
// are not sent. A key changes its partition only when an operator adds
// partitions.
//
// The client caches cluster metadata, and connections that may be dead. There
// is no way to check the cache, so after any failure the metadata and the
// connections are dropped before the next attempt.
type Sink struct {
	config    Config
	env       sinks.Env
	log       *zap.Logger
	route     sinks.Route
	conns     *conns
	transport *kafka.Transport
	client    *kafka.Client
	balancer  kafka.Murmur2Balancer

	life context.Context // ends with Close
	end  context.CancelFunc

	mu         sync.Mutex // held by Deliver; Close waits for the lock
	roundRobin int        // round-robin index of the partition for events without a key
	stale      bool       // the last attempt failed
	fresh      bool       // the client's picture is from this attempt

	// accepted is set after the brokers stored a record. Only then a forbidden
	// topic is an error of the event; before, the credentials may be wrong.
	accepted atomic.Bool
}

func open(ctx context.Context, c Config, env sinks.Env) (sinks.Sink, error) {
	s := &Sink{config: c, env: env, log: env.Log, route: c.Route(), balancer: kafka.Murmur2Balancer{Consistent: true}}
	if s.log == nil {
		s.log = zap.NewNop()
	}
	if env.Dial == nil {
		env.Dial = (&net.Dialer{}).DialContext
	}
	s.conns = &conns{dial: env.Dial, open: map[*tracked]struct{}{}}
	s.life, s.end = context.WithCancel(context.Background()) // longer than ctx, until Close
	var err error
	if s.transport, err = s.newTransport(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.client = &kafka.Client{Addr: kafka.TCP(c.Brokers...), Timeout: requestTimeout, Transport: s.transport}
	if err := s.check(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Sink) newTransport() (*kafka.Transport, error) {
	t := &kafka.Transport{
		ClientID: "postwire", Dial: s.conns.Dial, DialTimeout: dialTimeout, MetadataTTL: metadataTTL, Context: s.life,
	}
	if s.route.Template.Static() {
		t.MetadataTopics = []string{s.route.Template.String()} // instead of all topics
	}
	var err error
	if t.TLS, err = s.config.TLS.Config(); err != nil {
		return nil, err
	}
	if t.SASL, err = s.config.SASL.mechanism(); err != nil {
		return nil, fmt.Errorf("sasl: %w", err)
	}
	return t, nil
}

// check ensures that the brokers answer, and that a constant topic exists.
func (s *Sink) check(ctx context.Context) error {
	s.fresh = true
	var err error
	if s.route.Template.Static() {
		_, err = s.destination(ctx, s.route.Template.String())
	} else {
		_, err = s.partitions(ctx)
	}
	return err
}

// reset drops the client's connections and metadata. No request may be in
// flight.
func (s *Sink) reset() {
	s.conns.closeAll()
	if s.transport != nil {
		s.transport.CloseIdleConnections()
	}
	s.stale, s.fresh = false, true
}

// Close implements sinks.Sink.
func (s *Sink) Close() error {
	s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reset()
	return nil
}

// target is a partition of a topic.
type target struct {
	topic     string
	partition int
}

// Deliver implements sinks.Sink.
func (s *Sink) Deliver(ctx context.Context, batch []event.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life.Err() != nil {
		return net.ErrClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)() //nolint:contextcheck // both end it
	s.fresh = false
	if s.stale {
		s.reset()
	}

	d := &delivery{sink: s, batch: batch, records: make([]record, len(batch)), errs: make([]error, len(batch))}
	queues := d.sort(ctx)
	slots := make(chan struct{}, maxRequests)
	var requests sync.WaitGroup
	for _, q := range queues {
		slots <- struct{}{} // all requests end with ctx, or at the timeout
		requests.Go(func() {
			defer func() { <-slots }()
			// Encoding for a partition overlaps with requests for other
			// partitions.
			d.writeAll(ctx, q.to, d.encode(q))
		})
	}
	requests.Wait()
	for _, err := range d.errs {
		if _, refused := sinks.IsPermanent(err); err != nil && !refused {
			s.stale = true
		}
	}
	return sinks.Outcome(d.errs)
}

// Destination implements sinks.Sink.
func (s *Sink) Destination(e event.Event) sinks.Destination { return s.route.Destination(e) }

// delivery is a call of Deliver.
type delivery struct {
	sink    *Sink
	batch   []event.Event
	records []record // first only keys, then encoded; a single goroutine writes each index, here and in errs
	errs    []error  // outcome of each event
}

// queue has the records of a partition, as indexes in order.
type queue struct {
	to      target
	indexes []int
}

// sort sorts the events by partition.
func (d *delivery) sort(ctx context.Context) []*queue {
	type place struct {
		partitions
		err error
	}
	s := d.sink
	places := map[string]place{}
	var queues []*queue
	byTarget := map[target]*queue{}
	s.roundRobin++
	for i, e := range d.batch {
		topic := s.route.Destination(e).Name
		p, known := places[topic]
		if !known {
			p.partitions, p.err = s.destination(ctx, topic)
			places[topic] = p
		}
		if d.errs[i] = p.err; p.err != nil {
			continue
		}
		d.records[i].key = key(e)
		to := target{topic, s.partition(d.records[i].key, p.partitions)}
		q := byTarget[to]
		if q == nil {
			q = &queue{to: to}
			byTarget[to] = q
			queues = append(queues, q)
		}
		q.indexes = append(q.indexes, i)
	}
	return queues
}

// encode encodes the events of a partition, and returns the sendable events.
func (d *delivery) encode(q *queue) []int {
	sendable := make([]int, 0, len(q.indexes))
	for _, i := range q.indexes {
		r, err := encode(d.sink.env, d.batch[i], d.records[i].key, d.sink.config.ContentMode)
		if err != nil {
			d.errs[i] = sinks.Permanent(sinks.ReasonInvalid, err)
			continue
		}
		if n, most := r.size(), int(d.sink.config.MaxMessageBytes); n > most {
			d.errs[i] = sinks.Permanent(sinks.ReasonTooLarge, fmt.Errorf("the record has about %d bytes, max_message_bytes is %d", n, most))
			continue
		}
		d.records[i] = r
		sendable = append(sendable, i)
	}
	return sendable
}

// partition selects a partition like the Java client: by the hash of the key;
// batches without a key use the partitions round-robin.
func (s *Sink) partition(key []byte, p partitions) int {
	if key != nil {
		return s.balancer.Balance(kafka.Message{Key: key}, p.all...)
	}
	if len(p.led) > 0 {
		return p.led[s.roundRobin%len(p.led)]
	}
	return p.all[s.roundRobin%len(p.all)]
}

// writeAll writes the records of a partition, in several requests if the size
// requires several, one after another. A failure holds back all later records.
func (d *delivery) writeAll(ctx context.Context, to target, indexes []int) {
	for len(indexes) > 0 {
		n, size := 0, 0
		for n < len(indexes) && (n == 0 || size+d.records[indexes[n]].size() <= int(d.sink.config.MaxMessageBytes)) {
			size += d.records[indexes[n]].size()
			n++
		}
		if err := d.write(ctx, to, indexes[:n]); err != nil {
			d.hold(indexes[n:], err)
			return
		}
		indexes = indexes[n:]
	}
}

// write writes records in a single request. The error is the reason to hold
// back later records. A batch that the broker refuses because of a record is
// halved until the record is found.
func (d *delivery) write(ctx context.Context, to target, indexes []int) error {
	err := d.sink.produce(ctx, to, d.records, indexes)
	if err == nil {
		return nil
	}
	if half := len(indexes) / 2; guilty(err) != "" && half > 0 {
		if err := d.write(ctx, to, indexes[:half]); err != nil {
			d.hold(indexes[half:], err)
			return err
		}
		return d.write(ctx, to, indexes[half:])
	}
	err = d.sink.classify(to.topic, err)
	for _, i := range indexes {
		d.errs[i] = err
	}
	if _, refused := sinks.IsPermanent(err); refused {
		return nil
	}
	return err
}

func (d *delivery) hold(indexes []int, err error) {
	for _, i := range indexes {
		d.errs[i] = fmt.Errorf("held back behind an event of its partition: %w", err)
	}
}

func (s *Sink) produce(ctx context.Context, to target, records []record, indexes []int) error {
	batch := make([]kafka.Record, len(indexes))
	for k, i := range indexes {
		batch[k] = kafka.Record{
			Key: kafka.NewBytes(records[i].key), Value: kafka.NewBytes(records[i].value), Headers: records[i].headers,
		}
	}
	resp, err := s.client.Produce(ctx, &kafka.ProduceRequest{
		Topic: to.topic, Partition: to.partition, RequiredAcks: s.config.acks(),
		Records: kafka.NewRecordReader(batch...), Compression: s.config.compression(),
	})
	if err == nil {
		err = resp.Error
	}
	if err != nil {
		return fmt.Errorf("writing to topic %s, partition %d: %w", to.topic, to.partition, err)
	}
	s.accepted.Store(true)
	return nil
}

// guilty returns the reason if a batch was refused because of a record.
func guilty(err error) sinks.Reason {
	switch {
	case errors.Is(err, kafka.MessageSizeTooLarge), errors.Is(err, kafka.RecordListTooLarge):
		return sinks.ReasonTooLarge
	case errors.Is(err, kafka.InvalidRecord):
		return sinks.ReasonInvalid
	}
	return ""
}

// classify marks an error as permanent if the broker refused the event's
// content. All other errors are transient: brokers come back, leaders are
// elected, topics are created again, and a lost response is unknown. With a
// constant topic, an error of the topic is not the event's fault.
func (s *Sink) classify(topic string, err error) error {
	if reason := guilty(err); reason != "" {
		return sinks.Permanent(reason, err)
	}
	switch {
	case errors.Is(err, kafka.InvalidTopic) && !s.route.Template.Static():
		return sinks.Permanent(sinks.ReasonInvalid, err)
	case errors.Is(err, kafka.TopicAuthorizationFailed) && !s.route.Template.Static() && s.accepted.Load():
		return sinks.Permanent(sinks.ReasonUnauthorized, err)
	case errors.Is(err, kafka.InvalidTimestamp): // the relay's, not the event's
		return fmt.Errorf("%w: compare the clocks of this machine and the broker, and message.timestamp.after.max.ms of topic %s", err, topic)
	case errors.Is(err, kafka.UnknownTopicOrPartition) && !s.config.Create:
		return fmt.Errorf("%w: %w", s.missing(topic), err)
	}
	return err
}

// Limits implements sinks.Sink.
func (*Sink) Limits() sinks.Limits { return sinks.Limits{} }
