// Package kafka delivers events to Apache Kafka and compatible brokers.
//
// Records follow the Kafka binding of CloudEvents. The record key is the
// event's partition key, hashed like in the Java client, so that the events of
// a profile share a partition and keep their order. The producer is idempotent:
// after a lost response, a batch is sent again with equal numbers, and the
// broker stores the batch once. After a crash of the relay an event may be in
// the topic twice, with equal CloudEvents source and id, and consumers drop the
// repeat.
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
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

const (
	dialTimeout = 5 * time.Second
	// requestTimeout is the maximum time for a response of the brokers; the
	// request itself contains half of this time.
	requestTimeout = 10 * time.Second
	// promptly limits the wait for new metadata after a failure. The wait is
	// short, because a waiting Deliver is one of the sink's InFlight.
	promptly = 250 * time.Millisecond
	// inFlight is how many partitions are written to at once.
	inFlight = 16
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
// outcome of a record. A destination is a partition, so that Deliver usually
// sends one request with the records of one partition.
//
// Order: a key has a single partition, a partition has at most one request in
// flight, and a request is stored whole or not at all. If a request fails, all
// records of the request count as failed, and later records of the partition
// are not sent. A key changes its partition only when an operator adds
// partitions.
//
// Copies: a batch whose outcome is unknown is sent again unchanged before
// anything else is written to the partition. Until then, the errors of its
// events are InDoubt.
//
// Failures: a partition that cannot be written fails alone (AtDestination) and
// makes refresher load new metadata. If the metadata changed or a connection
// broke, later requests use a new session; requests in flight for other
// partitions go on in the old session. Only if no broker answers, the failure is
// of the whole sink.
type Sink struct {
	config   Config
	env      sinks.Env
	log      *zap.Logger
	route    sinks.Route
	balancer kafka.Murmur2Balancer
	producer *producer
	dialer   *dialer

	life  context.Context // ends with Close
	end   context.CancelFunc
	loads sync.WaitGroup // goroutines that load metadata

	stale, urgent chan struct{} // capacity 1; wake the refresher

	mu             sync.Mutex
	session        *session // of the next request
	leaders        map[string]*leader
	started, ended int           // number of the last load of metadata that started, and that ended
	loaded         chan struct{} // closed at the end of a load
	unreachable    error         // no broker answered the last load

	// accepted is set after the brokers stored a record. Only then a forbidden
	// topic is an error of the event; before, the credentials may be wrong.
	accepted atomic.Bool
}

func open(ctx context.Context, c Config, env sinks.Env) (sinks.Sink, error) {
	s := &Sink{
		config: c, env: env, log: env.Log, route: c.Route(), balancer: kafka.Murmur2Balancer{Consistent: true},
		stale: make(chan struct{}, 1), urgent: make(chan struct{}, 1), loaded: make(chan struct{}),
		leaders: map[string]*leader{}, producer: newProducer(""),
	}
	if s.log == nil {
		s.log = zap.NewNop()
	}
	if s.env.Dial == nil {
		s.env.Dial = (&net.Dialer{}).DialContext
	}
	var err error
	s.life, s.end = context.WithCancel(context.Background()) // longer than ctx, until Close
	if s.dialer, err = s.newDialer(); err != nil {
		s.end()
		return nil, err
	}
	if s.session, err = s.connect(ctx, c.Brokers); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.producer = producerIn(env.Memory, s.session.cluster)
	s.loads.Go(s.refresher)
	if err = s.identify(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if s.route.Template.Static() { // must exist
		if _, err = s.lookUp(ctx, s.route.Template.String()); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// Close implements sinks.Sink.
func (s *Sink) Close() error {
	s.end() // closes all connections
	s.loads.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session != nil {
		s.session.retired = true
		s.closeUnused(s.session)
	}
	return nil
}

// Limits implements sinks.Sink.
func (*Sink) Limits() sinks.Limits { return sinks.Limits{InFlight: inFlight, PerDestination: true} }

// Destination implements sinks.Sink and returns the topic and the partition in
// the current metadata, or partition -1 for an unknown topic. An event without a
// partition key changes the partition when a leader goes away or comes back.
func (s *Sink) Destination(e event.Event) sinks.Destination {
	d := s.route.Destination(e)
	d.Partition = s.partition(e, s.topic(d.Name))
	return d
}

// partition selects a partition: by the hash of the key, like the Java client;
// for an event without a key, by the hash of the ID over the partitions with a
// leader.
func (s *Sink) partition(e event.Event, p partitions) int {
	from, hashed := p.all, key(e)
	if hashed == nil {
		hashed = []byte(e.CloudEvent.ID())
		if len(p.led) > 0 {
			from = p.led
		}
	}
	if len(from) == 0 {
		return -1
	}
	return s.balancer.Balance(kafka.Message{Key: hashed}, from...)
}

// target is a partition of a topic.
type target struct {
	topic     string
	partition int
}

// Deliver implements sinks.Sink.
func (s *Sink) Deliver(ctx context.Context, batch []event.Event) error {
	if s.life.Err() != nil {
		return net.ErrClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)() //nolint:contextcheck // both end it
	d := &delivery{sink: s, batch: batch, records: make([]record, len(batch)), errs: make([]error, len(batch))}
	for _, q := range d.sort(ctx, d.settle(ctx)) {
		d.writeAll(ctx, q.to, d.encode(q))
	}
	if err := d.lost(ctx); err != nil {
		return err
	}
	return sinks.Outcome(d.errs)
}

// delivery is a call of Deliver.
type delivery struct {
	sink    *Sink
	batch   []event.Event
	records []record
	errs    []error // outcome of each event

	unsettled map[*numbering]error // outcome of the attempts to settle batches in doubt
}

// lost returns an error if no event could be sent because no broker answers.
func (d *delivery) lost(ctx context.Context) error {
	for _, err := range d.errs {
		if !disconnected(err) {
			return nil
		}
	}
	if len(d.errs) == 0 || ctx.Err() != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, promptly)
	defer cancel()
	_ = d.sink.refresh(ctx, d.sink.stale) // the last load counts, even if the next load is still to come
	d.sink.mu.Lock()
	defer d.sink.mu.Unlock()
	if d.sink.unreachable == nil {
		return nil
	}
	err := fmt.Errorf("no broker answers: %w", d.sink.unreachable)
	if slices.ContainsFunc(d.errs, sinks.IsInDoubt) {
		return sinks.InDoubt(err)
	}
	return err
}

// disconnected reports whether err is an error of a connection, and no response
// of a broker.
func disconnected(err error) bool {
	_, answered := errors.AsType[kafka.Error](err)
	_, refused := sinks.IsPermanent(err)
	return err != nil && !answered && !refused
}

// queue has the records of a partition, as indexes in order.
type queue struct {
	to      target
	indexes []int
}

// settle settles the batches in doubt that have events of the delivery, and
// returns the other events. The later events of a key whose event stays in doubt
// are held back.
func (d *delivery) settle(ctx context.Context) (others []int) {
	p := d.sink.producer
	others = make([]int, 0, len(d.batch))
	if p.sure() { // the usual case, without a lock for each event
		for i := range d.batch {
			others = append(others, i)
		}
		return others
	}
	var failed map[string]error // by partition key
	for i, e := range d.batch {
		n := p.numberingInDoubt(e)
		switch {
		case n == nil:
			others = append(others, i)
			continue
		case p.takeStored(n, e):
			continue
		}
		err, tried := d.unsettled[n]
		if !tried {
			if d.unsettled == nil {
				d.unsettled = map[*numbering]error{}
				failed = map[string]error{}
			}
			if err = n.take(ctx); err == nil {
				err = d.sink.settle(ctx, n)
				n.release()
			}
			d.unsettled[n] = err
		}
		switch {
		case err != nil:
			// The events that wait are not refused, whatever the broker says of the batch.
			failed[string(key(e))] = sinks.AtDestination(err)
			if to := d.sink.Destination(e); (target{to.Name, to.Partition}) == n.to {
				err = sinks.AtDestination(err)
			} // otherwise the present destination of the event works
			d.errs[i] = sinks.InDoubt(err)
		case !p.takeStored(n, e): // not stored
			others = append(others, i)
		}
	}
	return slices.DeleteFunc(others, func(i int) bool {
		k := key(d.batch[i])
		err := failed[string(k)]
		if k == nil || err == nil {
			return false
		}
		d.hold([]int{i}, err)
		return true
	})
}

// sort sorts events by partition. With PerDestination there is usually one
// partition; there are several if the metadata changed before the call.
func (d *delivery) sort(ctx context.Context, events []int) []*queue {
	type found struct {
		partitions
		err error
	}
	topics := map[string]found{}
	var queues []*queue
	byTarget := map[target]*queue{}
	for _, i := range events {
		e := d.batch[i]
		topic := d.sink.route.Destination(e).Name
		p, known := topics[topic]
		if !known {
			p.partitions, p.err = d.sink.lookUp(ctx, topic)
			topics[topic] = p
		}
		if d.errs[i] = p.err; p.err != nil {
			continue
		}
		to := target{topic, d.sink.partition(e, p.partitions)}
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
		r, err := encode(d.sink.env, d.batch[i], d.sink.config.ContentMode)
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

// writeAll writes the records of a partition, in several requests if the size
// requires several, one after another. A failure holds back all later records.
func (d *delivery) writeAll(ctx context.Context, to target, indexes []int) {
	numbering := d.sink.producer.numberingOf(to)
	err := d.unsettled[numbering]
	if err == nil {
		err = numbering.take(ctx)
	}
	if err == nil {
		defer numbering.release()
		err = d.sink.settle(ctx, numbering)
	}
	if err != nil {
		d.hold(indexes, sinks.AtDestination(err))
		return
	}
	for len(indexes) > 0 {
		n, size := 0, 0
		for n < len(indexes) && (n == 0 || size+d.records[indexes[n]].size() <= int(d.sink.config.MaxMessageBytes)) {
			size += d.records[indexes[n]].size()
			n++
		}
		if err := d.write(ctx, numbering, indexes[:n]); err != nil {
			d.hold(indexes[n:], err)
			return
		}
		indexes = indexes[n:]
	}
}

// write writes records in a single request. The error is the reason to hold
// back later records. A batch that the broker refuses because of a record is
// halved until the record is found.
func (d *delivery) write(ctx context.Context, n *numbering, indexes []int) error {
	err := d.sink.produce(ctx, n, d, indexes)
	if err == nil {
		return nil
	}
	if half := len(indexes) / 2; guilty(err) != "" && half > 0 {
		if err := d.write(ctx, n, indexes[:half]); err != nil {
			d.hold(indexes[half:], err)
			return err
		}
		return d.write(ctx, n, indexes[half:])
	}
	err = d.sink.classify(n.to.topic, err)
	outcome := err
	if n.doubt != nil {
		outcome = sinks.InDoubt(err)
	}
	for _, i := range indexes {
		d.errs[i] = outcome
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

// produce sends events as one batch. If the outcome is unknown, the batch is in
// doubt afterwards. The caller has the turn of the partition.
func (s *Sink) produce(ctx context.Context, n *numbering, d *delivery, indexes []int) error {
	if n.identity != none && s.producer.full() && s.leaderInDoubt(n.to) {
		return fmt.Errorf("writing to topic %s, partition %d: %w: too many batches to this broker wait for an answer", n.to.topic, n.to.partition, errNotSent)
	}
	batch, err := encodeBatch(d.records, indexes, s.config.compression(), time.Now())
	if err != nil {
		return err
	}
	inDoubt, err := s.sendNumbered(ctx, n, batch, len(indexes), false)
	if inDoubt {
		events := make([]string, len(indexes))
		for k, i := range indexes {
			events[k] = d.batch[i].MessageID
		}
		s.producer.addDoubt(n, batch, events)
	}
	return err
}

// send sends an encoded batch to the leader of a partition.
func (s *Sink) send(ctx context.Context, to target, batch io.Reader) error {
	ses := s.led(ctx, to)
	defer s.release(ses)
	failed := func(err error) error {
		return fmt.Errorf("writing to topic %s, partition %d: %w", to.topic, to.partition, err)
	}
	addr := ses.leader(to)
	if addr == "" {
		return failed(errors.Join(errNotSent, kafka.LeaderNotAvailable))
	}
	if err := s.begin(addr); err != nil {
		poke(s.stale) // another broker may lead by now
		return failed(err)
	}
	resp, err := ses.client.RawProduce(ctx, &kafka.RawProduceRequest{
		Topic: to.topic, Partition: to.partition, RequiredAcks: s.config.acks(),
		RawRecords: protocol.RawRecordSet{Reader: batch},
	})
	s.finish(addr, err == nil)
	if err == nil {
		err = resp.Error
	}
	if err != nil {
		if guilty(err) == "" {
			s.note(ses, err)
		}
		return failed(err)
	}
	s.accepted.Store(true)
	return nil
}

// led acquires the current session. If the partition has no leader in the
// metadata, led first waits promptly for new metadata.
func (s *Sink) led(ctx context.Context, to target) *session {
	ses := s.acquire()
	if ses.leader(to) != "" {
		return ses
	}
	s.release(ses)
	ctx, cancel := context.WithTimeout(ctx, promptly)
	defer cancel()
	_ = s.refresh(ctx, s.stale) // without new metadata, the partition stays without a leader
	return s.acquire()
}

// note makes the refresher load new metadata after a failed request.
func (s *Sink) note(ses *session, err error) {
	_, answered := errors.AsType[kafka.Error](err)
	_, dialing := errors.AsType[*dialError](err)
	if !answered && !dialing && !errors.Is(err, context.Canceled) {
		ses.broken.Store(true)
	}
	poke(s.stale)
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
// content. All other errors are of the partition: brokers come back, leaders are
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
		err = fmt.Errorf("%w: compare the clocks of this machine and the broker, and message.timestamp.after.max.ms of topic %s", err, topic)
	case errors.Is(err, kafka.UnknownTopicOrPartition) && !s.config.Create:
		err = fmt.Errorf("%w: %w", s.missing(topic), err)
	}
	return sinks.AtDestination(err)
}
