package kafka

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/sinktest"
)

// loseAnswer makes the answer to the next write of records get lost.
func (d *deaf) loseAnswer() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next = true
}

// openDeaf opens a sink whose answers can get lost.
func (b *broker) openDeaf(t *testing.T, d *deaf, memory *sinks.Memory, block string) sinks.Sink {
	t.Helper()
	s, err := sinktest.Configure(t, Kind(), fmt.Sprintf("{brokers: [%q], %s}", b.Addr, block)).
		Open(t.Context(), sinks.Env{Name: "test", Log: zap.NewNop(), Dial: d.dial, Now: time.Now, Memory: memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func all(id ...string) (events []event.Event) {
	for _, id := range id {
		events = append(events, numbered(id, "k"))
	}
	return events
}

// outcomes describes the outcome of each event.
func outcomes(t *testing.T, err error, n int) string {
	t.Helper()
	each, ok := errors.AsType[sinks.BatchError](err)
	if err != nil && !ok {
		t.Fatalf("Deliver = %v", err)
	}
	var text []string
	for i := range n {
		switch {
		case err == nil || each[i] == nil:
			text = append(text, "stored")
		case sinks.IsInDoubt(each[i]):
			text = append(text, "in doubt")
		default:
			text = append(text, "again")
		}
	}
	return strings.Join(text, ", ")
}

// TestBatchInDoubt: the batch goes again unchanged, whatever events the next delivery has,
// and before the other events of the partition.
func TestBatchInDoubt(t *testing.T) {
	b, name, d := startBroker(t), topic(), &deaf{}
	b.createTopic(t, name, 1)
	s := b.openDeaf(t, d, nil, "topic: "+name)
	d.loseAnswer()
	if got := outcomes(t, s.Deliver(t.Context(), all("1", "2", "3")), 3); got != "in doubt, in doubt, in doubt" {
		t.Errorf("after a lost answer: %s", got)
	}
	d.loseAnswer()
	if got := outcomes(t, s.Deliver(t.Context(), all("2", "4")), 2); got != "in doubt, again" {
		t.Errorf("after another lost answer: %s", got)
	}
	if got := outcomes(t, s.Deliver(t.Context(), all("4")), 1); got != "stored" {
		t.Errorf("another event: %s", got)
	}
	if got := outcomes(t, s.Deliver(t.Context(), all("3", "2", "5", "1")), 4); got != "stored, stored, stored, stored" {
		t.Errorf("the events in doubt: %s", got)
	}
	if d.lost != 2 {
		t.Fatalf("%d answers were lost, want 2", d.lost)
	}
	if diff := cmp.Diff([]string{"1", "2", "3", "4", "5"}, b.ids(t, name)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	p := s.(*Sink).producer
	if len(p.doubtful) > 0 || p.doubtBytes > 0 {
		t.Errorf("%d events and %d bytes are left in doubt", len(p.doubtful), p.doubtBytes)
	}
}

// TestBatchInDoubtOutlivesTheSink: a sink that is opened again with another configuration
// sends the batch in doubt with its numbers.
func TestBatchInDoubtOutlivesTheSink(t *testing.T) {
	for _, change := range []string{"idempotence: off", "content_mode: structured", "topic: other"} {
		t.Run(change, func(t *testing.T) {
			b, name, other, d, memory := startBroker(t), topic(), topic(), &deaf{}, &sinks.Memory{}
			b.createTopic(t, name, 1)
			b.createTopic(t, other, 1)
			s := b.openDeaf(t, d, memory, "topic: "+name)
			if err := s.Deliver(t.Context(), all("0")); err != nil {
				t.Fatal(err)
			}
			d.loseAnswer()
			if got := outcomes(t, s.Deliver(t.Context(), all("1")), 1); got != "in doubt" {
				t.Fatalf("after a lost answer: %s", got)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			block, want, wantOther := "topic: "+name+", "+change, []string{"0", "1", "2"}, []string(nil)
			if change == "topic: other" {
				block, want, wantOther = "topic: "+other, []string{"0", "1"}, []string{"2"}
			}
			s = b.openDeaf(t, d, memory, block)
			if got := outcomes(t, s.Deliver(t.Context(), all("1", "2")), 2); got != "stored, stored" {
				t.Errorf("the next delivery: %s", got)
			}
			if diff := cmp.Diff(want, b.ids(t, name)); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(wantOther, b.ids(t, other)); diff != "" {
				t.Errorf("records of the other topic (-want +got):\n%s", diff)
			}
		})
	}
}

// TestAnotherClusterHasItsOwnNumbers: a batch in doubt is not sent to another cluster.
func TestAnotherClusterHasItsOwnNumbers(t *testing.T) {
	name, d, memory := topic(), &deaf{}, &sinks.Memory{}
	a, b := startFake(t, kfake.ClusterID("a")), startFake(t, kfake.ClusterID("b"))
	a.createTopic(t, name, 1)
	b.createTopic(t, name, 1)
	s := a.openDeaf(t, d, memory, "topic: "+name)
	d.loseAnswer()
	if got := outcomes(t, s.Deliver(t.Context(), all("1", "2")), 2); got != "in doubt, in doubt" {
		t.Fatalf("after a lost answer: %s", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = b.openDeaf(t, d, memory, "topic: "+name)
	if err := s.Deliver(t.Context(), all("1")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"1"}, b.ids(t, name)); diff != "" {
		t.Errorf("records of the other cluster (-want +got):\n%s", diff)
	}
}

// TestNumbersTheBrokerRefuses: the sink begins with a new epoch or producer ID, and stores
// each event once.
func TestNumbersTheBrokerRefuses(t *testing.T) {
	for _, refusal := range []*kerr.Error{kerr.OutOfOrderSequenceNumber, kerr.UnknownProducerID, kerr.InvalidProducerEpoch, kerr.InvalidProducerIDMapping, kerr.DuplicateSequenceNumber} {
		t.Run(refusal.Message, func(t *testing.T) {
			b, name := startFake(t), topic()
			b.createTopic(t, name, 1)
			s := b.open(t, "topic: "+name)
			if err := s.Deliver(t.Context(), all("0")); err != nil {
				t.Fatal(err)
			}
			b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: refusal, Count: 1})
			for _, id := range []string{"1", "2"} {
				if err := s.Deliver(t.Context(), all(id)); err != nil {
					t.Errorf("event %s: %v", id, err)
				}
			}
			if diff := cmp.Diff([]string{"0", "1", "2"}, b.ids(t, name)); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
			b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: refusal, Count: -1})
			if got := outcomes(t, s.Deliver(t.Context(), all("3")), 1); got != "again" {
				t.Errorf("with a broker that refuses all numbers: %s", got)
			}
		})
	}
}

// TestInDoubtOrNot: only an answer that a broker gives before it appends a batch leaves no
// doubt.
func TestInDoubtOrNot(t *testing.T) {
	for err, want := range map[*kerr.Error]string{
		kerr.NotEnoughReplicas: "again", kerr.MessageTooLarge: "again", kerr.TopicAuthorizationFailed: "again", kerr.CorruptMessage: "again",
		kerr.NotEnoughReplicasAfterAppend: "in doubt", kerr.RequestTimedOut: "in doubt", kerr.NotLeaderForPartition: "in doubt",
		kerr.UnknownServerError: "in doubt", kerr.KafkaStorageError: "in doubt", kerr.UnknownTopicOrPartition: "in doubt",
	} {
		t.Run(err.Message, func(t *testing.T) {
			b, name := startFake(t), topic()
			b.createTopic(t, name, 1)
			s := b.open(t, "topic: "+name)
			b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: err, Count: 1})
			if got := outcomes(t, s.Deliver(t.Context(), all("1")), 1); got != want {
				t.Errorf("the event is %s, want %s", got, want)
			}
			if err := s.Deliver(t.Context(), all("1")); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff([]string{"1"}, b.ids(t, name)); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
		})
	}
}

// TestTopicIsDeletedInDoubt: the records are gone with the topic, and the event goes to the
// topic that is made again.
func TestTopicIsDeletedInDoubt(t *testing.T) {
	b, name, d := startFake(t), topic(), &deaf{}
	b.createTopic(t, name, 1)
	s := b.openDeaf(t, d, nil, "topic: "+name+", create: true, partitions: 1")
	if err := s.Deliver(t.Context(), all("0")); err != nil {
		t.Fatal(err)
	}
	d.loseAnswer()
	if got := outcomes(t, s.Deliver(t.Context(), all("1")), 1); got != "in doubt" {
		t.Fatalf("after a lost answer: %s", got)
	}
	b.DeleteTopic(t, name)
	sinktest.Until(t, "the event is stored in the new topic", func() bool { return s.Deliver(t.Context(), all("1", "2")) == nil })
	if diff := cmp.Diff([]string{"1", "2"}, b.ids(t, name)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// TestClusterForbidsIdempotence: auto goes on with one warning, required does not open, off
// does not ask.
func TestClusterForbidsIdempotence(t *testing.T) {
	for _, refusal := range []*kerr.Error{kerr.ClusterAuthorizationFailed, kerr.UnsupportedVersion} {
		b, name := startFake(t), topic()
		b.createTopic(t, name, 2)
		b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, Err: refusal, Count: -1})
		open := func(block string) (*observer.ObservedLogs, error) {
			core, logs := observer.New(zap.WarnLevel)
			s, err := sinktest.Configure(t, Kind(), fmt.Sprintf("{brokers: [%q], topic: %s, %s}", b.Addr, name, block)).
				Open(t.Context(), sinks.Env{Name: "test", Log: zap.New(core), Now: time.Now})
			if err == nil {
				t.Cleanup(func() { _ = s.Close() })
				for n := range 10 {
					if err := s.Deliver(t.Context(), []event.Event{numbered(fmt.Sprint(n), fmt.Sprint(n))}); err != nil {
						t.Errorf("%s: %v", block, err)
					}
				}
			}
			return logs, err
		}
		if logs, err := open("idempotence: auto"); err != nil || logs.FilterMessageSnippet("no idempotent producer").Len() != 1 {
			t.Errorf("auto: %v, log %v", err, logs.All())
		}
		if logs, err := open("idempotence: off"); err != nil || logs.Len() > 0 {
			t.Errorf("off: %v, log %v", err, logs.All())
		}
		if logs, err := open("acks: one"); err != nil || logs.Len() > 0 {
			t.Errorf("acks: one: %v, log %v", err, logs.All())
		}
		if _, err := open("idempotence: required"); err == nil || !strings.Contains(err.Error(), "IdempotentWrite") {
			t.Errorf("required: %v", err)
		}
	}
}

// TestBrokerHasNoProducerIDYet: the sink asks again.
func TestBrokerHasNoProducerIDYet(t *testing.T) {
	b, name := startFake(t), topic()
	b.createTopic(t, name, 1)
	b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, Err: kerr.CoordinatorLoadInProgress, Count: 2})
	s := b.open(t, "topic: "+name)
	if s.(*Sink).producer.identity == none {
		t.Error("the sink has no producer ID")
	}
}

// TestWritesOfAnIdempotentProducerAreForbidden: a cluster that hands out producer IDs may
// refuse their batches.
func TestWritesOfAnIdempotentProducerAreForbidden(t *testing.T) {
	b, name := startFake(t), topic()
	b.createTopic(t, name, 1)
	s := b.open(t, "topic: "+name)
	b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.ClusterAuthorizationFailed, Count: 1})
	if err := s.Deliver(t.Context(), all("1", "2")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"1", "2"}, b.ids(t, name)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// TestManyLostAnswers: whatever answers get lost, and however the events are grouped again,
// each event is stored once and the keys keep their order.
func TestManyLostAnswers(t *testing.T) {
	b, name, d := startBroker(t), topic(), &deaf{}
	const partitions, events = 3, 60
	b.createTopic(t, name, partitions)
	s := b.openDeaf(t, d, nil, "topic: "+name)
	core, logs := observer.New(zap.DebugLevel)
	s.(*Sink).log = zap.New(core)
	d.mu.Lock()
	d.every = 7
	d.mu.Unlock()
	var writers sync.WaitGroup
	for p := range partitions {
		writers.Go(func() {
			var pending []event.Event
			for n := 0; len(pending) < events; n++ {
				key := fmt.Sprint(p, "/", n)
				e := numbered(fmt.Sprintf("%d/%03d", p, len(pending)), key)
				if s.Destination(e).Partition == p {
					pending = append(pending, e)
				}
			}
			for len(pending) > 0 {
				batch := pending[:min(len(pending), 1+rand.IntN(10))]
				err := s.Deliver(t.Context(), batch)
				each, ok := errors.AsType[sinks.BatchError](err)
				if err != nil && !ok {
					continue
				}
				stored := 0
				for stored < len(batch) && (err == nil || each[stored] == nil) {
					stored++
				}
				pending = pending[stored:]
			}
		})
	}
	writers.Wait()
	if d.lost == 0 {
		t.Fatal("no answer was lost")
	}
	t.Logf("%d answers were lost", d.lost)
	if logs.Len() > 0 {
		t.Errorf("the broker asked for other numbers: %v", logs.All())
	}
	next := map[string]int{}
	for _, id := range b.ids(t, name) {
		p, number, _ := strings.Cut(id, "/")
		if number != fmt.Sprintf("%03d", next[p]) {
			t.Errorf("record %s, want number %d of its partition", id, next[p])
		}
		next[p]++
	}
	for p := range partitions {
		if next[fmt.Sprint(p)] != events {
			t.Errorf("partition %d has %d records, want %d", p, next[fmt.Sprint(p)], events)
		}
	}
}

// TestNumbersWrap: 2,147,483,647 is followed by 0 (KIP-98).
func TestNumbersWrap(t *testing.T) {
	for _, tt := range []struct{ next, records, want int32 }{
		{0, 5, 5}, {math.MaxInt32, 1, 0}, {math.MaxInt32 - 1, 1, math.MaxInt32}, {math.MaxInt32 - 1, 5, 3},
	} {
		n := numbering{next: tt.next}
		if n.advance(int(tt.records)); n.next != tt.want {
			t.Errorf("%d and %d records: %d, want %d", tt.next, tt.records, n.next, tt.want)
		}
	}
}

// TestBatchesInDoubtAreBounded: at the limit, a broker with a batch in doubt gets no new batch.
func TestBatchesInDoubtAreBounded(t *testing.T) {
	b, name := startFake(t), topic()
	b.createTopic(t, name, 2)
	s := b.open(t, "topic: "+name)
	p := s.(*Sink).producer
	other := p.numberingOf(target{name, 1 - s.Destination(all("1")[0]).Partition})
	p.addDoubt(other, make([]byte, maxDoubtBytes), []string{"x"})
	if got := outcomes(t, s.Deliver(t.Context(), all("1")), 1); got != "again" {
		t.Errorf("beside too many batches in doubt: %s", got)
	}
	other.to.topic = "of another broker"
	if got := outcomes(t, s.Deliver(t.Context(), all("1")), 1); got != "stored" {
		t.Errorf("to a broker without a batch in doubt: %s", got)
	}
	p.endDoubt(other, false)
	if p.doubtBytes != 0 {
		t.Errorf("%d bytes are left in doubt", p.doubtBytes)
	}
}

// TestEventInDoubtHasMoved: an event without a key whose batch is in doubt in a partition that
// lost its leader does not hold up the partition to which such events go now.
func TestEventInDoubtHasMoved(t *testing.T) {
	c := startCluster(t)
	e := numbered("1", "")
	from := int32(c.Destination(e).Partition)
	c.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: c.topic, Partitions: []int32{from}, Err: kerr.RequestTimedOut, Count: 1})
	if got := outcomes(t, c.Deliver(t.Context(), []event.Event{e}), 1); got != "in doubt" {
		t.Fatalf("after a timeout: %s", got)
	}
	gone := c.Fake.Fault(
		kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: c.topic, Partitions: []int32{from}, Err: kerr.LeaderNotAvailable, Count: -1},
		kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: c.topic, Partitions: []int32{from}, Err: kerr.NotLeaderForPartition, Count: -1},
	)
	sinktest.Until(t, "the event moves", func() bool {
		err := c.Deliver(t.Context(), []event.Event{e})
		each, ok := errors.AsType[sinks.BatchError](err)
		if !ok || !sinks.IsInDoubt(each[0]) {
			t.Fatalf("Deliver = %v", err)
		}
		return int32(c.Destination(e).Partition) != from && !sinks.IsAtDestination(each[0])
	})
	gone.Remove()
	sinktest.Until(t, "the event is stored", func() bool { return c.Deliver(t.Context(), []event.Event{e}) == nil })
	b := &broker{c.Broker}
	if diff := cmp.Diff([]string{"1"}, b.ids(t, c.topic)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// TestRefusedInDoubt: if the broker refuses the batch in doubt, the events behind it are not
// refused.
func TestRefusedInDoubt(t *testing.T) {
	b, name := startFake(t), topic()
	b.createTopic(t, name+"-instagram", 1)
	s := b.open(t, fmt.Sprintf(`topic: "%s-{platform}"`, name))
	if err := s.Deliver(t.Context(), all("0")); err != nil {
		t.Fatal(err)
	}
	b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut, Count: 1})
	if got := outcomes(t, s.Deliver(t.Context(), all("1")), 1); got != "in doubt" {
		t.Fatalf("after a timeout: %s", got)
	}
	forbidden := b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.TopicAuthorizationFailed, Count: -1})
	for _, ids := range [][]string{{"1", "2"}, {"2"}} {
		err := s.Deliver(t.Context(), all(ids...))
		each, _ := errors.AsType[sinks.BatchError](err)
		if len(each) != len(ids) {
			t.Fatalf("Deliver = %v", err)
		}
		for n, err := range each {
			if _, refused := sinks.IsPermanent(err); refused || err == nil {
				t.Errorf("event %s: %v", ids[n], err)
			}
		}
	}
	forbidden.Remove()
	if err := s.Deliver(t.Context(), all("1", "2")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"0", "1", "2"}, b.ids(t, name+"-instagram")); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// TestNumbersOfABatchInDoubtAreNotUsedAgain: a batch stays in doubt until its partition has
// other numbers, because the broker would take other records with these numbers for stored.
func TestNumbersOfABatchInDoubtAreNotUsedAgain(t *testing.T) {
	b, name := startFake(t), topic()
	b.createTopic(t, name, 1)
	s := b.open(t, "topic: "+name)
	n := s.(*Sink).producer.numberingOf(target{name, 0})
	n.identity.epoch = math.MaxInt16
	b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut, Count: 1})
	if got := outcomes(t, s.Deliver(t.Context(), all("1")), 1); got != "in doubt" {
		t.Fatalf("after a timeout: %s", got)
	}
	faults := b.Fake.Fault(
		kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.MessageTooLarge, Count: -1},
		kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, Err: kerr.UnknownServerError, Count: -1},
	)
	if got := outcomes(t, s.Deliver(t.Context(), all("1", "2")), 2); got != "in doubt, again" || n.doubt == nil {
		t.Errorf("without other numbers: %s", got)
	}
	faults.Remove()
	if err := s.Deliver(t.Context(), all("1", "2")); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"1", "2"}, b.ids(t, name)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}
