package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/initproducerid"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// The values of Config.Idempotence.
const (
	idempotenceAuto     = "auto"
	idempotenceRequired = "required"
	idempotenceOff      = "off"
)

// maxDoubtBytes is the maximum size of all batches in doubt of a sink. At this size a broker
// that has a batch in doubt gets no new batches for its other partitions.
const maxDoubtBytes = 64 << 20

// producer is the idempotent producer of a sink (KIP-98): each batch has a producer ID, an
// epoch and the number of its first record in the partition, so that the broker stores a
// batch once that is sent several times.
//
// A batch whose outcome is unknown is in doubt: the broker may have stored the batch. The
// producer keeps the bytes of the batch and sends the same bytes until the broker tells the
// outcome. Meanwhile no other batch goes to the partition, because a batch of other records
// with these numbers would be taken for the batch in doubt, and discarded.
//
// A producer outlives its sink, which is closed and opened again with another configuration
// for the same cluster, until another relay delivers to the sink.
type producer struct {
	cluster string // ID of the cluster

	mu         sync.Mutex
	identity   identity              // of partitions without a numbering
	numberings map[target]*numbering // of all partitions that the sink has written to
	doubtful   map[string]*numbering // by MessageID, events of batches in doubt, and of these batches after they were stored
	doubtBytes int
	warned     bool // that the cluster permits no idempotent producer
	remembered int  // events in all numbering.stored
}

// identity is a producer ID and its epoch.
type identity struct {
	id    int64
	epoch int16
}

// none is the identity of a producer that is not idempotent.
var none = identity{-1, -1}

// numbering numbers the batches of a partition.
//
// | state | doubt | next |
// |---|---|---|
// | sure | nil | number of the next record |
// | in doubt | a batch that may be stored | number of its first record |
//
// The holder of turn owns identity, next and doubt; writes of doubt also hold producer.mu.
type numbering struct {
	to       target
	turn     chan struct{} // capacity 1; held while a batch is sent
	identity identity
	next     int32
	doubt    *batchInDoubt

	missingSince time.Time // since when the metadata lacks the topic of a batch in doubt

	stored map[string]bool // events of a batch in doubt that was stored; guarded by producer.mu
}

// batchInDoubt is a batch that the broker may have stored.
type batchInDoubt struct {
	batch  recordBatch
	events []string
}

func newProducer(cluster string) *producer {
	return &producer{cluster: cluster, identity: none, numberings: map[target]*numbering{}, doubtful: map[string]*numbering{}}
}

// numberingOf returns the numbering of a partition.
func (p *producer) numberingOf(to target) *numbering {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.numberings[to]
	if n == nil {
		n = &numbering{to: to, turn: make(chan struct{}, 1), identity: p.identity, stored: map[string]bool{}}
		p.numberings[to] = n
	}
	return n
}

// take waits promptly for the turn of a partition. Two deliveries seldom meet at one partition:
// after a change of the metadata, and to settle a batch in doubt.
func (n *numbering) take(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, promptly)
	defer cancel()
	select {
	case n.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: an earlier batch to topic %s, partition %d, waits for its answer", errNotSent, n.to.topic, n.to.partition)
	}
}

func (n *numbering) release() { <-n.turn }

// numberingInDoubt returns the numbering that has an event in doubt, or nil.
func (p *producer) numberingInDoubt(e event.Event) *numbering {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.doubtful[e.MessageID]
}

// sure reports whether no event is in doubt.
func (p *producer) sure() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.doubtful) == 0
}

// takeStored reports whether an event of a batch in doubt was stored, and forgets the event.
func (p *producer) takeStored(n *numbering, e event.Event) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := e.MessageID
	if !n.stored[k] {
		return false
	}
	delete(n.stored, k)
	p.remembered--
	delete(p.doubtful, k)
	return true
}

// leaderInDoubt reports whether the leader of a partition has a batch in doubt.
func (s *Sink) leaderInDoubt(to target) bool {
	ses := s.acquire()
	defer s.release(ses)
	addr := ses.leader(to)
	s.producer.mu.Lock()
	defer s.producer.mu.Unlock()
	for _, n := range s.producer.numberings {
		if n.doubt != nil && ses.leader(n.to) == addr {
			return true
		}
	}
	return false
}

// full reports whether the batches in doubt have their maximum size.
func (p *producer) full() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.doubtBytes >= maxDoubtBytes
}

// addDoubt records that the broker may have stored a batch. The caller has the turn.
func (p *producer) addDoubt(n *numbering, batch recordBatch, events []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n.doubt = &batchInDoubt{batch, events}
	p.doubtBytes += cap(batch)
	for _, e := range events {
		p.doubtful[e] = n
	}
}

// maxRemembered is the maximum number of stored events whose outcome the pump has not asked for
// yet. The pump asks for all of them soon, because it delivers failed events again.
const maxRemembered = 100_000

// endDoubt records the outcome of the batch in doubt. The caller has the turn.
func (p *producer) endDoubt(n *numbering, stored bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doubtBytes -= cap(n.doubt.batch)
	for _, e := range n.doubt.events {
		if stored && p.remembered < maxRemembered {
			p.remembered++
			n.stored[e] = true
		} else {
			delete(p.doubtful, e)
		}
	}
	n.doubt, n.missingSince = nil, time.Time{}
}

// advance counts the records of a stored batch. Numbers wrap around to 0.
func (n *numbering) advance(records int) {
	n.next = int32((int64(n.next) + int64(records)) % (math.MaxInt32 + 1))
}

// answer is what the answer of a broker to a batch means.
type answer int

const (
	unknown      answer = iota // the batch may be stored
	notStored                  // the broker has not appended the batch
	misnumbered                // the broker knows other numbers of the partition
	fenced                     // the broker does not know the producer ID, or a newer epoch
	duplicate                  // the broker has stored the numbers before
	notPermitted               // the cluster permits no idempotent producer
)

// judge returns what a failed request says about a batch. Only an answer that the broker
// gives before it appends a batch says that the batch is not stored: a leader that lost its
// partition while it waited for replicas answers like one that never had the partition.
func judge(err error) answer {
	var code kafka.Error
	if _, dialing := errors.AsType[*dialError](err); dialing || errors.Is(err, errNotSent) {
		return notStored
	}
	if !errors.As(err, &code) {
		return unknown
	}
	switch code {
	case kafka.InvalidMessage, kafka.MessageSizeTooLarge, kafka.RecordListTooLarge, kafka.InvalidRecord, kafka.InvalidTimestamp, kafka.InvalidTopic,
		kafka.TopicAuthorizationFailed, kafka.NotEnoughReplicas, kafka.PolicyViolation,
		kafka.UnsupportedCompressionType, kafka.InvalidRequiredAcks:
		return notStored
	case kafka.OutOfOrderSequenceNumber, kafka.UnknownProducerId:
		return misnumbered
	case kafka.InvalidProducerEpoch, kafka.InvalidProducerIDMapping, kafka.ProducerFenced:
		return fenced
	case kafka.DuplicateSequenceNumber:
		return duplicate
	case kafka.ClusterAuthorizationFailed, kafka.UnsupportedForMessageFormat:
		return notPermitted
	}
	return unknown
}

// errNotSent marks an error before a request was sent.
var errNotSent = errors.New("nothing was sent")

// renumber gives a partition a new epoch, or a new producer ID, and begins its numbers at 0
// (KIP-360). The caller has the turn.
func (s *Sink) renumber(ctx context.Context, n *numbering, why answer) error {
	if why == misnumbered && n.identity.epoch < math.MaxInt16 {
		n.identity.epoch++
		n.next = 0
		return nil
	}
	next, err := s.askForIdentity(ctx)
	if err != nil {
		return err
	}
	s.producer.mu.Lock()
	if s.producer.identity != none { // otherwise the cluster permits no idempotent producer
		s.producer.identity = next
	}
	s.producer.mu.Unlock()
	n.identity, n.next = next, 0
	return nil
}

// maxRenumbered is how often a batch gets other numbers in one delivery.
const maxRenumbered = 3

// sendNumbered sends a batch of records with the numbers of its partition, and gives the batch
// other numbers if the broker asks for them. The caller has the turn. After an error,
// inDoubt reports whether the batch may be stored; before says that of earlier attempts.
func (s *Sink) sendNumbered(ctx context.Context, n *numbering, batch recordBatch, records int, before bool) (inDoubt bool, err error) {
	for renumbered := 0; ; renumbered++ {
		err := s.send(ctx, n.to, batch.numbered(n.identity, n.next))
		if err == nil {
			n.advance(records)
			return false, nil
		}
		if n.identity == none {
			return false, err // the numbers of the batch do not matter
		}
		result := judge(err)
		switch {
		case result == duplicate && before:
			n.advance(records)
			return false, nil
		case result == duplicate: // of other records with these numbers
			result = misnumbered
		case result == notPermitted && s.config.Idempotence == idempotenceAuto && !before:
			s.withoutIdempotence(err)
			n.identity = none
			continue
		}
		if result != misnumbered && result != fenced {
			return before || result == unknown, err
		}
		if renumbered == maxRenumbered {
			return before, err
		}
		log := s.log.Debug
		if before {
			log = s.log.Warn // the events may be in the topic twice
		}
		log("the broker asks for other numbers of a partition", zap.String("topic", n.to.topic), zap.Int("partition", n.to.partition), zap.Error(err))
		if err := s.renumber(ctx, n, result); err != nil {
			return before, err
		}
	}
}

// settle sends the batch in doubt of a partition again. The caller has the turn. After nil,
// the partition has no batch in doubt: the batch is stored, or its numbers are not used again.
func (s *Sink) settle(ctx context.Context, n *numbering) error {
	if n.doubt == nil {
		return nil
	}
	_, err := s.sendNumbered(ctx, n, n.doubt.batch, len(n.doubt.events), true)
	switch {
	case err == nil:
		s.producer.endDoubt(n, true)
		return nil
	case guilty(err) != "" || errors.Is(err, kafka.InvalidTimestamp): // the topic's limits have changed
		if err := s.renumber(ctx, n, misnumbered); err != nil {
			return err
		}
		s.log.Warn("a batch whose outcome is unknown is refused now; its events are sent again, and may be in the topic twice",
			zap.String("topic", n.to.topic), zap.Int("partition", n.to.partition), zap.Int("events", len(n.doubt.events)), zap.Error(err))
		s.producer.endDoubt(n, false)
		return nil
	case (errors.Is(err, kafka.UnknownTopicOrPartition) || errors.Is(err, kafka.LeaderNotAvailable)) && s.deleted(ctx, n): // with its records
		if err := s.renumber(ctx, n, misnumbered); err != nil {
			return err
		}
		s.producer.endDoubt(n, false)
		return nil
	}
	return err
}

// deletedAfter is how long a topic is missing before the sink takes it for deleted: one broker
// may not know a topic yet.
const deletedAfter = 2 * time.Second

// deleted reports whether the cluster says for some time that the topic of a partition does not
// exist. The caller has the turn.
func (s *Sink) deleted(ctx context.Context, n *numbering) bool {
	missing := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		t, asked := s.session.topics[n.to.topic]
		return (asked || !s.route.Template.Static()) && len(t.all) == 0 && t.err == nil
	}
	if !missing() {
		n.missingSince = time.Time{}
		poke(s.stale)
		return false
	}
	if n.missingSince.IsZero() {
		n.missingSince = time.Now()
	}
	ctx, cancel := context.WithTimeout(ctx, promptly)
	defer cancel()
	return time.Since(n.missingSince) >= deletedAfter && s.refresh(ctx, s.urgent) == nil && missing()
}

// topicsInDoubt returns the topics of the batches in doubt.
func (p *producer) topicsInDoubt() (topics []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.doubtful {
		if !slices.Contains(topics, n.to.topic) {
			topics = append(topics, n.to.topic)
		}
	}
	return topics
}

// identify gives the producer an ID, as the setting idempotence says. No event is in a
// delivery.
func (s *Sink) identify(ctx context.Context) error {
	p := s.producer
	if s.config.Idempotence == idempotenceOff || s.config.Acks == acksOne && s.config.Idempotence == idempotenceAuto {
		p.adopt(none)
		return nil
	}
	if p.identity != none {
		return nil
	}
	id, err := s.askForIdentity(ctx)
	switch {
	case err == nil:
		p.adopt(id)
		return nil
	case !forbidden(err):
		return err
	case s.config.Idempotence == idempotenceRequired:
		return fmt.Errorf("%w; permit the operation IdempotentWrite on the cluster to the user of the relay, or set idempotence: auto", err)
	}
	s.withoutIdempotence(err)
	return nil
}

// adopt makes id the identity of new partitions, and of those that change between an
// idempotent producer and one without IDs.
func (p *producer) adopt(id identity) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.identity = id
	for _, n := range p.numberings {
		if n.doubt == nil && (id == none || n.identity == none) {
			n.identity, n.next = id, 0
		}
	}
}

// withoutIdempotence makes partitions without a numbering use no producer ID.
func (s *Sink) withoutIdempotence(err error) {
	s.producer.mu.Lock()
	defer s.producer.mu.Unlock()
	s.producer.identity = none
	if s.producer.warned {
		return
	}
	s.producer.warned = true
	s.log.Warn("the cluster permits no idempotent producer: after a lost answer, events may be in the topic twice", zap.Error(err))
}

// forbidden reports whether a cluster refuses producer IDs.
func forbidden(err error) bool {
	for _, code := range []error{kafka.ClusterAuthorizationFailed, kafka.TopicAuthorizationFailed, kafka.UnsupportedVersion, kafka.InvalidRequest, errNoProducerIDs} {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}

var errNoProducerIDs = errors.New("the broker does not know the request InitProducerId")

// askForIdentity asks a broker for a new producer ID. A broker that has just started, or that
// reserves further IDs, asks for another attempt.
func (s *Sink) askForIdentity(ctx context.Context) (identity, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		id, err := s.requestIdentity(ctx)
		if !errors.Is(err, kafka.GroupLoadInProgress) && !errors.Is(err, kafka.GroupCoordinatorNotAvailable) {
			return id, err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return none, err
		}
	}
}

func (s *Sink) requestIdentity(ctx context.Context) (identity, error) {
	ses := s.acquire()
	defer s.release(ses)
	m, err := ses.transport.RoundTrip(ctx, ses.client.Addr, &newProducerID{})
	if err == nil {
		if resp, ok := m.(*initproducerid.Response); !ok {
			err = fmt.Errorf("unexpected answer %T", m)
		} else if resp.ErrorCode != 0 {
			err = kafka.Error(resp.ErrorCode)
		} else {
			return identity{resp.ProducerID, resp.ProducerEpoch}, nil
		}
	}
	return none, fmt.Errorf("asking %s for a producer ID: %w", ses.client.Addr, err)
}

// newProducerID asks any broker for a producer ID. The client's own message looks for the
// coordinator of a transaction first, which makes the cluster create the internal topic of
// transactions.
type newProducerID struct{ version int16 }

// ApiKey implements protocol.Message.
func (*newProducerID) ApiKey() protocol.ApiKey { return protocol.InitProducerId } //nolint:revive // name of the interface

// Required implements protocol.RawExchanger.
func (m *newProducerID) Required(versions map[protocol.ApiKey]int16) bool {
	version, ok := versions[protocol.InitProducerId]
	if !ok {
		version = -1
	}
	m.version = version
	return true
}

// RawExchange implements protocol.RawExchanger.
func (m *newProducerID) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if m.version < 0 {
		return nil, errNoProducerIDs
	}
	return protocol.RoundTrip(rw, m.version, 0, clientID, &initproducerid.Request{TransactionTimeoutMs: -1, ProducerID: -1, ProducerEpoch: -1})
}

// producerIn returns the producer that a sink has left in a memory, if it belongs to the
// cluster, or a new one.
func producerIn(memory *sinks.Memory, cluster string) *producer {
	if memory == nil {
		return newProducer(cluster)
	}
	if p, ok := memory.Value.(*producer); ok && p.cluster == cluster && cluster != "" {
		return p
	}
	p := newProducer(cluster)
	memory.Value = p
	return p
}
