// Package kafka delivers events to Apache Kafka. A record's key is the event's
// partition key, hashed as the Java client does, so that the events of one
// profile share a partition and keep their order. Records carry no sequence
// numbers: after a lost answer an event may be in the topic twice, with the
// same CloudEvents id, by which consumers drop the repeat.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

const (
	// metadataTTL is at most how long a change of leaders goes unnoticed.
	metadataTTL = 2 * time.Second
	// produceTimeout is how long the brokers may take to acknowledge.
	produceTimeout = 10 * time.Second
	// maxBatchBytes bounds a request; brokers take 1 MiB unless told otherwise.
	maxBatchBytes = 900_000
	// maxRequests is how many partitions are written to at once.
	maxRequests = 16
)

// Kind is the sink of type kafka.
func Kind() sinks.Kind {
	return sinks.Define("kafka", "Apache Kafka, and what speaks its protocol.", defaults, open)
}

// Sink implements sinks.Sink.
//
// It does without kafka-go's Writer, whose queue, timer and retries hide what
// became of a record. A batch is sorted by partition, and each partition's
// records go in one request, without a timer: what has gathered while the last
// batch was on its way goes next. Of one partition there is one request on its
// way, and when it fails, all of its records failed: so order holds for each
// key.
type Sink struct {
	config    Config
	log       *zap.Logger
	topic     event.Template
	transport *kafka.Transport
	client    *kafka.Client
	spread    int // next partition for events without a key
	closed    context.Context
	close     context.CancelFunc
}

func open(ctx context.Context, c Config, env sinks.Env) (sinks.Sink, error) {
	topic, err := event.ParseTemplate(c.Topic)
	if err != nil {
		return nil, err
	}
	s := &Sink{config: c, log: env.Log, topic: topic}
	if s.transport, err = newTransport(c, env); err != nil {
		return nil, err
	}
	s.client = &kafka.Client{Addr: kafka.TCP(c.Brokers...), Timeout: produceTimeout, Transport: s.transport}
	s.closed, s.close = context.WithCancel(context.Background())
	if err := s.check(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func newTransport(c Config, env sinks.Env) (*kafka.Transport, error) {
	t := &kafka.Transport{ClientID: "postwire/" + env.Name, Dial: env.Dial, DialTimeout: 5 * time.Second, MetadataTTL: metadataTTL}
	var err error
	if c.TLS.Enabled {
		if t.TLS, err = c.TLS.Config(); err != nil {
			return nil, err
		}
	}
	if t.SASL, err = c.SASL.mechanism(); err != nil {
		return nil, fmt.Errorf("sasl: %w", err)
	}
	return t, nil
}

// check makes sure that the brokers answer, and that the topic is there where
// all events go to one.
func (s *Sink) check(ctx context.Context) error {
	name := ""
	if s.topic.Static() {
		name = s.topic.String()
	}
	partitions, err := s.partitions(ctx, name)
	if err != nil {
		return err
	}
	if name == "" || len(partitions) > 0 {
		return nil
	}
	if !s.config.Create {
		return s.missing(name)
	}
	return s.create(ctx, name)
}

func (s *Sink) missing(topic string) error {
	return fmt.Errorf("topic %s does not exist on %s: create it, or set create: true", topic, strings.Join(s.config.Brokers, ","))
}

// partitions returns the partitions of a topic that have a leader, as the
// cluster's metadata had it a moment ago; none where the topic does not exist.
func (s *Sink) partitions(ctx context.Context, topic string) ([]int, error) {
	req := &kafka.MetadataRequest{Topics: []string{}}
	if topic != "" {
		req.Topics = append(req.Topics, topic)
	}
	m, err := s.client.Metadata(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("asking %s for metadata: %w", strings.Join(s.config.Brokers, ","), err)
	}
	for _, t := range m.Topics {
		if t.Name != topic {
			continue
		}
		if t.Error != nil && !errors.Is(t.Error, kafka.UnknownTopicOrPartition) {
			return nil, fmt.Errorf("topic %s: %w", topic, t.Error)
		}
		// A key must not move while a partition is without a leader: all
		// partitions count.
		ids := make([]int, len(t.Partitions))
		for i, p := range t.Partitions {
			ids[i] = p.ID
		}
		slices.Sort(ids)
		return ids, nil
	}
	return nil, nil
}

// create makes a topic, and waits until it has leaders to write to: a write
// right after the creation is refused by a real broker.
func (s *Sink) create(ctx context.Context, topic string) error {
	resp, err := s.client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
		Topic: topic, NumPartitions: s.config.Partitions, ReplicationFactor: s.config.ReplicationFactor,
	}}})
	if err == nil {
		err = resp.Errors[topic]
	}
	if err != nil && !errors.Is(err, kafka.TopicAlreadyExists) {
		return fmt.Errorf("creating topic %s: %w", topic, err)
	}
	if err == nil {
		s.log.Info("topic created", zap.String("topic", topic))
	}
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		partitions, err := s.partitions(ctx, topic)
		if err == nil && len(partitions) > 0 {
			return nil
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the new topic %s: %w", topic, errors.Join(err, ctx.Err()))
		}
	}
}

// exists asks the cluster, past all caches, whether a topic is there.
func (s *Sink) exists(ctx context.Context, topic string) (bool, error) {
	fresh := &kafka.Transport{ClientID: s.transport.ClientID, Dial: s.transport.Dial, DialTimeout: s.transport.DialTimeout, TLS: s.transport.TLS, SASL: s.transport.SASL}
	defer fresh.CloseIdleConnections()
	again := *s
	again.client = &kafka.Client{Addr: s.client.Addr, Timeout: s.client.Timeout, Transport: fresh}
	partitions, err := again.partitions(ctx, topic)
	return len(partitions) > 0, err
}

// target is one partition of a topic.
type target struct {
	topic     string
	partition int
}

// Deliver implements sinks.Sink.
func (s *Sink) Deliver(ctx context.Context, batch []event.Event) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.closed, cancel)()

	errs := make([]error, len(batch))
	records := make([]record, len(batch))
	topics := map[string]topicState{}
	var order []target
	byTarget := map[target][]int{} // indexes of records, in order
	for i, e := range batch {
		topic := s.topic.Expand(e, safeTopic)
		state, known := topics[topic]
		if !known {
			state = s.lookUp(ctx, topic)
			topics[topic] = state
		}
		if errs[i] = state.err; errs[i] != nil {
			continue
		}
		if records[i], errs[i] = encode(ctx, e, s.config.ContentMode, topic); errs[i] != nil {
			errs[i] = sinks.Permanent(sinks.ReasonInvalid, errs[i])
			continue
		}
		if n := records[i].size(); n > int(s.config.MaxMessageBytes) {
			errs[i] = sinks.Permanent(sinks.ReasonTooLarge, fmt.Errorf("the record has %d bytes, max_message_bytes is %d", n, int64(s.config.MaxMessageBytes)))
			continue
		}
		to := target{topic, s.partition(records[i].key, state.partitions)}
		if byTarget[to] == nil {
			order = append(order, to)
		}
		byTarget[to] = append(byTarget[to], i)
	}

	slots := make(chan struct{}, maxRequests)
	var requests sync.WaitGroup
	for _, to := range order {
		slots <- struct{}{}
		requests.Go(func() {
			defer func() { <-slots }()
			s.writeAll(ctx, to, byTarget[to], records, errs)
		})
	}
	requests.Wait()
	return sinks.Outcome(errs)
}

// topicState is where the records of a topic can go.
type topicState struct {
	partitions []int
	err        error
}

// lookUp finds the partitions of a topic, and creates it where that is asked
// for. A topic that is missing may come back, so that events wait for it; only
// where each event has a topic of its own, and this one is known not to exist,
// the event is refused, so that it does not hold up the others.
func (s *Sink) lookUp(ctx context.Context, topic string) topicState {
	if topic == "." || topic == ".." || len(topic) > maxTopic {
		return topicState{err: sinks.Permanent(sinks.ReasonInvalid, fmt.Errorf("%q is not a name for a topic", topic))}
	}
	partitions, err := s.partitions(ctx, topic)
	if err == nil && len(partitions) == 0 && s.config.Create {
		if err = s.create(ctx, topic); err == nil {
			partitions, err = s.partitions(ctx, topic)
		}
	}
	if err != nil {
		return topicState{err: s.classify(topic, err)}
	}
	if len(partitions) > 0 {
		return topicState{partitions: partitions}
	}
	if !s.topic.Static() && !s.config.Create {
		if there, err := s.exists(ctx, topic); err == nil && !there {
			return topicState{err: sinks.Permanent(sinks.ReasonNoDestination, s.missing(topic))}
		}
	}
	return topicState{err: s.missing(topic)}
}

// partition chooses as the Java client does: by the key's hash, and where
// there is no key by turns.
func (s *Sink) partition(key []byte, partitions []int) int {
	if key == nil {
		s.spread++
		return partitions[s.spread%len(partitions)]
	}
	return kafka.Murmur2Balancer{Consistent: true}.Balance(kafka.Message{Key: key}, partitions...)
}

// writeAll writes the records of one partition, in as many requests as their
// size asks for, one after another. A failure holds back all that is behind it.
func (s *Sink) writeAll(ctx context.Context, to target, indexes []int, records []record, errs []error) {
	for len(indexes) > 0 {
		n, size := 0, 0
		for n < len(indexes) && (n == 0 || size+records[indexes[n]].size() <= maxBatchBytes) {
			size += records[indexes[n]].size()
			n++
		}
		chunk := indexes[:n]
		indexes = indexes[n:]
		if !s.write(ctx, to, chunk, records, errs) {
			for _, i := range indexes {
				errs[i] = fmt.Errorf("held back behind an event of its partition: %w", errs[chunk[len(chunk)-1]])
			}
			return
		}
	}
}

// write writes records in one request, and reports whether those behind them
// may follow. A batch that the broker refuses for a record in it is halved
// until the record is found.
func (s *Sink) write(ctx context.Context, to target, indexes []int, records []record, errs []error) bool {
	err := s.produce(ctx, to, indexes, records)
	if guilty(err) != "" && len(indexes) > 1 {
		half := len(indexes) / 2
		if s.write(ctx, to, indexes[:half], records, errs) {
			return s.write(ctx, to, indexes[half:], records, errs)
		}
		for _, i := range indexes[half:] {
			errs[i] = fmt.Errorf("held back behind an event of its partition: %w", errs[indexes[half-1]])
		}
		return false
	}
	if err == nil {
		return true
	}
	err = s.classify(to.topic, err)
	_, refused := sinks.IsPermanent(err)
	for _, i := range indexes {
		errs[i] = err
	}
	return refused
}

func (s *Sink) produce(ctx context.Context, to target, indexes []int, records []record) error {
	batch := make([]kafka.Record, len(indexes))
	for k, i := range indexes {
		r := records[i]
		batch[k] = kafka.Record{Value: kafka.NewBytes(r.value), Headers: r.headers}
		if r.key != nil {
			batch[k].Key = kafka.NewBytes(r.key)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, produceTimeout)
	defer cancel()
	resp, err := s.client.Produce(ctx, &kafka.ProduceRequest{
		Topic: to.topic, Partition: to.partition, RequiredAcks: s.config.acks(),
		Records: kafka.NewRecordReader(batch...), Compression: s.config.compression(),
	})
	if err == nil {
		err = resp.Error
	}
	if err != nil {
		return fmt.Errorf("writing to %s, partition %d: %w", to.topic, to.partition, err)
	}
	return nil
}

// guilty returns why a batch was refused, if it was for a record in it.
func guilty(err error) sinks.Reason {
	switch {
	case errors.Is(err, kafka.MessageSizeTooLarge), errors.Is(err, kafka.RecordListTooLarge):
		return sinks.ReasonTooLarge
	case errors.Is(err, kafka.InvalidRecord), errors.Is(err, kafka.InvalidTimestamp):
		return sinks.ReasonInvalid
	}
	return ""
}

// classify says whether an event was refused for what it is. All else passes:
// brokers come back, leaders are elected, topics are made again, and of a lost
// answer nobody knows what it was.
func (s *Sink) classify(topic string, err error) error {
	if reason := guilty(err); reason != "" {
		return sinks.Permanent(reason, err)
	}
	switch {
	case errors.Is(err, kafka.InvalidTopic):
		return sinks.Permanent(sinks.ReasonInvalid, err)
	case errors.Is(err, kafka.TopicAuthorizationFailed) && !s.topic.Static():
		return sinks.Permanent(sinks.ReasonUnauthorized, err)
	case errors.Is(err, kafka.UnknownTopicOrPartition) && !s.config.Create:
		return fmt.Errorf("%w (%w)", err, s.missing(topic))
	}
	return err
}

// Close implements sinks.Sink.
func (s *Sink) Close() error {
	s.close()
	s.transport.CloseIdleConnections()
	return nil
}
