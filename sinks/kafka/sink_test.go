package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cekafka "github.com/cloudevents/sdk-go/protocol/kafka_sarama/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/selfsigned"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/kafka/kafkatest"
	"github.com/postwire/postwire/sinks/sinktest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The metrics library behind the SDK's receiver starts it when it is imported.
		goleak.IgnoreAnyFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

// broker is a Kafka to test on.
type broker struct{ *kafkatest.Broker }

func startBroker(t *testing.T) *broker {
	t.Helper()
	return &broker{kafkatest.Start(t)}
}

// startFake is for what only a broker in this process can be made to do.
func startFake(t *testing.T, opts ...kfake.Opt) *broker {
	t.Helper()
	return &broker{kafkatest.StartFake(t, opts...)}
}

// topic is a name that no other test has.
func topic() string { return fmt.Sprintf("test-%x", rand.Uint64()) }

// createTopic makes a topic beside the sink under test.
func (b *broker) createTopic(t *testing.T, name string, partitions int) {
	t.Helper()
	s := b.open(t, fmt.Sprintf("topic: %s, create: true, partitions: %d", name, partitions))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func (b *broker) opener(t *testing.T, block string) (sinks.Sink, error) {
	t.Helper()
	return b.openerIn(t, sinktest.NewNetwork(), block)
}

func (b *broker) openerIn(t *testing.T, n *sinktest.Network, block string) (sinks.Sink, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	p := sinktest.Configure(t, Kind(), fmt.Sprintf("{brokers: [%q], %s}", b.Addr, block))
	s, err := p.Open(ctx, sinks.Env{Name: "test", Log: zap.NewNop(), Dial: n.Dial, Now: time.Now})
	if err == nil {
		t.Cleanup(func() { _ = s.Close() })
	}
	return s, err
}

func (b *broker) open(t *testing.T, block string) sinks.Sink {
	t.Helper()
	s, err := b.opener(t, block)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// numbered is an event of an id and a key, or without one.
func numbered(id, key string) event.Event {
	e := sinktest.Events(1, 1)[0]
	e.CloudEvent.SetID(id)
	e.MessageID = "journal/" + id
	e.CloudEvent.SetExtension(event.Platform, "instagram")
	e.CloudEvent.SetExtension(event.PartitionKey, nil)
	if key != "" {
		e.CloudEvent.SetExtension(event.PartitionKey, key)
	}
	return e
}

// readStrict reads by the letter of the Kafka binding.
func readStrict(m kafka.Message) (sinktest.ReadEvent, error) {
	headers := map[string]string{}
	for _, h := range m.Headers {
		if _, twice := headers[h.Key]; twice {
			return sinktest.ReadEvent{}, fmt.Errorf("header %s is there twice", h.Key)
		}
		headers[h.Key] = string(h.Value)
	}
	if contentType := headers["content-type"]; strings.HasPrefix(contentType, "application/cloudevents") {
		if contentType != "application/cloudevents+json" {
			return sinktest.ReadEvent{}, fmt.Errorf("the format is %q", contentType)
		}
		return sinktest.StrictJSON(m.Value)
	}
	attributes := map[string]string{"datacontenttype": headers["content-type"]}
	for name, value := range headers {
		if name, ok := strings.CutPrefix(name, "ce_"); ok {
			attributes[name] = value
		}
	}
	if key := attributes[event.PartitionKey]; key != string(m.Key) {
		return sinktest.ReadEvent{}, fmt.Errorf("the record's key is %q, the partition key %q", m.Key, key)
	}
	return sinktest.Strict(attributes, m.Value)
}

// readSDK reads with the SDK's receiver.
func readSDK(m kafka.Message) (sinktest.ReadEvent, error) {
	headers, contentType := map[string][]byte{}, ""
	for _, h := range m.Headers {
		headers[h.Key] = h.Value
		if h.Key == "content-type" {
			contentType = string(h.Value)
		}
	}
	e, err := binding.ToEvent(context.Background(), cekafka.NewMessage(m.Value, contentType, headers))
	if err != nil {
		return sinktest.ReadEvent{}, err
	}
	return sinktest.FromSDK(e), nil
}

// messages gives the records of a topic to both readers.
func (b *broker) messages(t *testing.T, topic string) (all []sinktest.Message) {
	t.Helper()
	for _, m := range b.Messages(t, topic) {
		strict, err := readStrict(m)
		if err != nil {
			t.Fatalf("by the specification: %v", err)
		}
		sdk, err := readSDK(m)
		if err != nil {
			t.Fatalf("the SDK's receiver: %v", err)
		}
		all = append(all, sinktest.Message{Wire: wire(m), At: m.Topic, Read: map[string]sinktest.ReadEvent{"specification": strict, "SDK": sdk}})
	}
	return all
}

func wire(m kafka.Message) string {
	var text strings.Builder
	fmt.Fprintf(&text, "key: %s\n", m.Key)
	for _, h := range slices.SortedFunc(slices.Values(m.Headers), func(a, b kafka.Header) int { return strings.Compare(a.Key, b.Key) }) {
		fmt.Fprintf(&text, "%s: %s\n", h.Key, h.Value)
	}
	fmt.Fprintf(&text, "\n%s\n", m.Value)
	return text.String()
}

// ids are the IDs of the events in a topic.
func (b *broker) ids(t *testing.T, topic string) (ids []string) {
	t.Helper()
	for _, m := range b.messages(t, topic) {
		ids = append(ids, m.Read["specification"].Attributes["id"])
	}
	return ids
}

func TestConformance(t *testing.T) {
	sinktest.Run(t, sinktest.Harness{
		Modes: []string{sinks.Binary, sinks.Structured}, TooLarge: 1 << 20,
		Start: func(t *testing.T) sinktest.Broker {
			b, name := startBroker(t), topic()
			b.createTopic(t, name, 3)
			under := sinktest.Broker{
				Kind: Kind(), World: sinktest.NewNetwork(),
				Config: fmt.Sprintf("brokers: [%q]\ntopic: %s\ncompression: zstd", b.Addr, name),
				Read:   func(t *testing.T) []sinktest.Message { return b.messages(t, name) },
			}
			if b.Fake != nil { // a real one is not ours to stop
				under.Away, under.Back = func(t *testing.T) { b.Stop(t) }, func(t *testing.T) { b.Restart(t) }
			}
			return under
		},
	})
}

func TestTopicIsChecked(t *testing.T) {
	b, name := startBroker(t), topic()
	_, err := b.opener(t, "topic: "+name)
	if want := fmt.Sprintf("topic %s does not exist on %s; create it, or set create: true", name, b.Addr); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("without a topic: %v, want %q", err, want)
	}
	if _, refused := sinks.IsPermanent(err); refused {
		t.Error("a topic that is missing is refused for good; it may come yet")
	}
	// The broker's own auto-creation was not set off by asking.
	if _, err := b.opener(t, "topic: "+name); err == nil {
		t.Error("asking for the topic created it")
	}
	s := b.open(t, fmt.Sprintf("topic: %s, create: true, partitions: 5", name))
	if err := s.Deliver(t.Context(), []event.Event{numbered("1", "k")}); err != nil {
		t.Errorf("the first write to a new topic: %v", err)
	}
}

// TestTemplatedTopics: a topic of one event that does not exist is no other
// event's trouble.
func TestTemplatedTopics(t *testing.T) {
	b, name := startBroker(t), topic()
	b.createTopic(t, name+".instagram", 1)
	s := b.open(t, fmt.Sprintf(`topic: "%s.{platform}"`, name))
	odd := numbered("odd", "k")
	odd.CloudEvent.SetExtension(event.Platform, "tik/tok")
	err := s.Deliver(t.Context(), []event.Event{numbered("1", "k"), odd, numbered("2", "k")})
	each, ok := errors.AsType[sinks.BatchError](err)
	if !ok || each[0] != nil || each[2] != nil {
		t.Fatalf("Deliver = %v", err)
	}
	if reason, refused := sinks.IsPermanent(each[1]); !refused || reason != sinks.ReasonNoDestination || !strings.Contains(each[1].Error(), name+".tik_tok") {
		t.Errorf("a topic that does not exist: %v", each[1])
	}
	s = b.open(t, fmt.Sprintf(`topic: "%s.{platform}", create: true`, name))
	if err := s.Deliver(t.Context(), []event.Event{odd}); err != nil {
		t.Errorf("with create: %v", err)
	}
	if n := len(b.Messages(t, name+".tik_tok")); n != 1 {
		t.Errorf("the new topic holds %d records, want 1", n)
	}
}

// TestPartitions: a key keeps its partition, the one that the Java client
// would choose; events without a key are spread.
func TestPartitions(t *testing.T) {
	b, name := startBroker(t), topic()
	s := b.open(t, fmt.Sprintf("topic: %s, create: true, partitions: 4", name))
	for i := range 8 {
		var events []event.Event
		for k := range 5 {
			events = append(events, numbered(fmt.Sprint("a", i, k), "brightside_bakery"), numbered(fmt.Sprint("b", i, k), ""))
		}
		if err := s.Deliver(t.Context(), events); err != nil {
			t.Fatal(err)
		}
	}
	keyed, spread := map[int]int{}, map[int]int{}
	for _, m := range b.Messages(t, name) {
		if m.Key != nil {
			keyed[m.Partition]++
		} else {
			spread[m.Partition]++
		}
	}
	// murmur2("brightside_bakery") & 0x7fffffff, modulo 4.
	want := kafka.Murmur2Balancer{Consistent: true}.Balance(kafka.Message{Key: []byte("brightside_bakery")}, 0, 1, 2, 3)
	if len(keyed) != 1 || keyed[want] != 40 {
		t.Errorf("keyed events are in partitions %v, want all 40 in %d", keyed, want)
	}
	if len(spread) != 4 {
		t.Errorf("events without a key are in partitions %v", spread)
	}
}

// TestBatchTooLargeIsHalved: the broker refuses what the sink's own limit let
// pass; only the guilty record is set aside.
func TestBatchTooLargeIsHalved(t *testing.T) {
	b, name := startBroker(t), topic()
	s := b.open(t, fmt.Sprintf("topic: %s, create: true, partitions: 1, max_message_bytes: 4MiB", name))
	events := []event.Event{numbered("1", "k"), numbered("2", "k"), numbered("big", "k"), numbered("3", "k")}
	events[2].CloudEvent.DataEncoded = []byte(`"` + strings.Repeat("x", 2<<20) + `"`)
	err := s.Deliver(t.Context(), events)
	each, _ := errors.AsType[sinks.BatchError](err)
	if len(each) != 4 || each[0] != nil || each[1] != nil || each[3] != nil {
		t.Fatalf("Deliver = %v", err)
	}
	if reason, _ := sinks.IsPermanent(each[2]); reason != sinks.ReasonTooLarge {
		t.Errorf("the record too large: %v", each[2])
	}
	if diff := cmp.Diff([]string{"1", "2", "3"}, b.ids(t, name)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// deaf is a network that swallows the answer to the next write of records: the
// records arrive.
type deaf struct {
	mu   sync.Mutex
	next bool
	lost int

	every  int // every such write loses its answer, too; 0 is none
	writes int
}

func (d *deaf) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	return &deafConn{Conn: c, d: d}, err
}

type deafConn struct {
	net.Conn
	d    *deaf
	deaf atomic.Bool
}

func (c *deafConn) Write(p []byte) (int, error) {
	c.d.mu.Lock()
	// A request begins with its size and the key of its API: 0 is Produce.
	if len(p) > 6 && p[4] == 0 && p[5] == 0 {
		c.d.writes++
		if c.d.next || c.d.every > 0 && c.d.writes%c.d.every == 0 {
			c.d.next = false
			c.deaf.Store(true)
		}
	}
	c.d.mu.Unlock()
	return c.Conn.Write(p)
}

func (c *deafConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.deaf.Load() && n > 0 {
		c.d.mu.Lock()
		defer c.d.mu.Unlock()
		c.d.lost++
		_ = c.Close()
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// TestLostAnswer: the broker has written, and its answer was lost. The event is
// sent again with its numbers, and is there once.
func TestLostAnswer(t *testing.T) {
	b, name := startBroker(t), topic()
	b.createTopic(t, name, 1)
	d := &deaf{}
	p := sinktest.Configure(t, Kind(), fmt.Sprintf("{brokers: [%q], topic: %s}", b.Addr, name))
	s, err := p.Open(t.Context(), sinks.Env{Name: "test", Log: zap.NewNop(), Dial: d.dial, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d.mu.Lock()
	d.next = true
	d.mu.Unlock()
	events := []event.Event{numbered("1", "k")}
	err = s.Deliver(t.Context(), events)
	each, _ := errors.AsType[sinks.BatchError](err)
	if len(each) != 1 || each[0] == nil {
		t.Fatalf("Deliver without an answer = %v", err)
	}
	if !sinks.IsInDoubt(each[0]) {
		t.Errorf("after a lost answer: %v", err)
	}
	if err := s.Deliver(t.Context(), events); err != nil {
		t.Fatalf("the repeat: %v", err)
	}
	if d.lost != 1 {
		t.Fatalf("%d answers were lost, want 1", d.lost)
	}
	if diff := cmp.Diff([]string{"1"}, b.ids(t, name)); diff != "" {
		t.Errorf("the record (-want +got):\n%s", diff)
	}
}

// TestCancelledContextMayWrite: cancelling recalls nothing. The sink sends the
// record again with its numbers.
func TestCancelledContextMayWrite(t *testing.T) {
	b, name := startFake(t), topic()
	b.createTopic(t, name, 1)
	s := b.open(t, "topic: "+name)
	ctx, cancel := context.WithCancel(t.Context())
	b.Fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cancel()               // the request is with the broker
		return nil, nil, false //nolint:nilnil // kfake goes on as usual
	})
	if err := s.Deliver(ctx, []event.Event{numbered("1", "k")}); err == nil {
		t.Log("the answer was faster than the cancellation")
	}
	if err := s.Deliver(t.Context(), []event.Event{numbered("1", "k"), numbered("2", "k")}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"1", "2"}, b.ids(t, name)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// TestBrokerErrors holds each error of a broker against what becomes of the
// event.
func TestBrokerErrors(t *testing.T) {
	for _, tt := range []struct {
		err       *kerr.Error
		templated bool
		reason    sinks.Reason // "" is transient
	}{
		{err: kerr.NotLeaderForPartition},
		{err: kerr.LeaderNotAvailable},
		{err: kerr.RequestTimedOut},
		{err: kerr.NotEnoughReplicas},
		{err: kerr.NotEnoughReplicasAfterAppend},
		{err: kerr.UnknownTopicOrPartition},
		{err: kerr.UnknownTopicOrPartition, templated: true},
		{err: kerr.CorruptMessage},
		{err: kerr.UnknownServerError},
		{err: kerr.KafkaStorageError},
		{err: kerr.TopicAuthorizationFailed},
		{err: kerr.TopicAuthorizationFailed, templated: true, reason: sinks.ReasonUnauthorized},
		{err: kerr.ClusterAuthorizationFailed},
		{err: kerr.MessageTooLarge, reason: sinks.ReasonTooLarge},
		{err: kerr.RecordListTooLarge, reason: sinks.ReasonTooLarge},
		{err: kerr.InvalidRecord, reason: sinks.ReasonInvalid},
		{err: kerr.InvalidTopicException},
		{err: kerr.InvalidTopicException, templated: true, reason: sinks.ReasonInvalid},
	} {
		t.Run(fmt.Sprint(tt.err.Message, tt.templated), func(t *testing.T) {
			b, name := startFake(t), topic()
			b.createTopic(t, name+"-instagram", 1)
			block := "topic: " + name + "-instagram"
			if tt.templated {
				block = fmt.Sprintf(`topic: "%s-{platform}"`, name)
			}
			s := b.open(t, block+", idempotence: required")
			// Until the brokers have taken a record, what they forbid may be the credentials.
			if err := s.Deliver(t.Context(), []event.Event{numbered("0", "k")}); err != nil {
				t.Fatal(err)
			}
			b.Fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: tt.err})
			events := []event.Event{numbered("1", "k")}
			err := s.Deliver(t.Context(), events)
			each, _ := errors.AsType[sinks.BatchError](err)
			if len(each) != 1 || each[0] == nil {
				t.Fatalf("Deliver = %v", err)
			}
			if reason, _ := sinks.IsPermanent(each[0]); reason != tt.reason {
				t.Errorf("%v: reason %q, want %q", each[0], reason, tt.reason)
			}
			if err := s.Deliver(t.Context(), events); err != nil {
				t.Errorf("after the fault: %v", err)
			}
		})
	}
}

// TestLeaderMoves: a change of leaders is found within the metadata's time.
func TestLeaderMoves(t *testing.T) {
	b, name := startFake(t, kfake.NumBrokers(3)), topic()
	b.createTopic(t, name, 3)
	s := b.open(t, "topic: "+name)
	var events []event.Event
	for i := range 12 {
		events = append(events, numbered(fmt.Sprint(i), fmt.Sprint("k", i%4)))
	}
	for range 3 {
		b.Fake.ShufflePartitionLeaders()
		sinktest.Until(t, "the new leaders are found", func() bool { return s.Deliver(t.Context(), events) == nil })
	}
}

func TestTopicIsDeletedAndComesBack(t *testing.T) {
	b, name := startFake(t), topic()
	b.createTopic(t, name, 1)
	s := b.open(t, "topic: "+name)
	if err := b.Fake.DeleteTopic(name); err != nil {
		t.Fatal(err)
	}
	err := s.Deliver(t.Context(), []event.Event{numbered("1", "k")})
	each, _ := errors.AsType[sinks.BatchError](err)
	if len(each) != 1 || each[0] == nil {
		t.Fatalf("Deliver = %v", err)
	}
	if _, refused := sinks.IsPermanent(each[0]); refused || !strings.Contains(each[0].Error(), "does not exist") {
		t.Errorf("without the topic: %v", each[0])
	}
	if err := b.Fake.CreateTopic(name, 1, nil); err != nil {
		t.Fatal(err)
	}
	sinktest.Until(t, "the new topic is found", func() bool {
		return s.Deliver(t.Context(), []event.Event{numbered("1", "k")}) == nil
	})
}

func TestLogin(t *testing.T) {
	for mechanism, method := range map[string]string{"plain": "PLAIN", "scram-sha-256": "SCRAM-SHA-256", "scram-sha-512": "SCRAM-SHA-512"} {
		b := startFake(t, kfake.EnableSASL(), kfake.Superuser(method, "relay", "s3cret"))
		block := fmt.Sprintf("topic: %s, create: true, sasl: {mechanism: %s, username: relay, password: ", topic(), mechanism)
		s, err := b.opener(t, block+"s3cret}")
		if err != nil {
			t.Errorf("%s: %v", mechanism, err)
			continue
		}
		if err := s.Deliver(t.Context(), []event.Event{numbered("1", "k")}); err != nil {
			t.Errorf("%s: %v", mechanism, err)
		}
		if _, err := b.opener(t, block+"wr0ng}"); err == nil || strings.Contains(err.Error(), "wr0ng") {
			t.Errorf("%s with a wrong password: %v", mechanism, err)
		}
	}
}

func TestTLS(t *testing.T) {
	cert, key := selfsigned.Certificate(t, t.TempDir(), "server")
	clientCert, clientKey := selfsigned.Certificate(t, t.TempDir(), "client")
	b := startFake(t, kfake.TLS(selfsigned.Mutual(t, cert, key, clientCert)))
	const block = "topic: %s, create: true, tls: {enabled: true"
	s, err := b.opener(t, fmt.Sprintf(block+", ca_file: %q, cert_file: %q, key_file: %q}", topic(), cert, clientCert, clientKey))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Deliver(t.Context(), []event.Event{numbered("1", "k")}); err != nil {
		t.Error(err)
	}
	if _, err := b.opener(t, fmt.Sprintf(block+", ca_file: %q}", topic(), cert)); err == nil {
		t.Error("a client without a certificate was served")
	}
	if _, err := b.opener(t, fmt.Sprintf(block+", cert_file: %q, key_file: %q}", topic(), clientCert, clientKey)); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate of an unknown authority: %v", err)
	}
}

// TestRealLogin runs where POSTWIRE_TEST_KAFKA_SASL_SSL names a real broker's
// listener, as host:port, with the authority's file, user and password beside.
func TestRealLogin(t *testing.T) {
	addr := os.Getenv("POSTWIRE_TEST_KAFKA_SASL_SSL")
	if addr == "" {
		t.Skip("POSTWIRE_TEST_KAFKA_SASL_SSL is not set")
	}
	b := &broker{&kafkatest.Broker{Addr: addr}}
	block := fmt.Sprintf("topic: %s, create: true, tls: {enabled: true, ca_file: %q}, sasl: {mechanism: %%s, username: %q, password: %%q}",
		topic(), os.Getenv("POSTWIRE_TEST_KAFKA_CA"), os.Getenv("POSTWIRE_TEST_KAFKA_USER"))
	for _, mechanism := range []string{"scram-sha-256", "scram-sha-512"} {
		s := b.open(t, fmt.Sprintf(block, mechanism, os.Getenv("POSTWIRE_TEST_KAFKA_PASSWORD")))
		if err := s.Deliver(t.Context(), sinktest.Events(20, 3)); err != nil {
			t.Errorf("%s: %v", mechanism, err)
		}
		if _, err := b.opener(t, fmt.Sprintf(block, mechanism, "wr0ng")); err == nil || strings.Contains(err.Error(), "wr0ng") {
			t.Errorf("%s with a wrong password: %v", mechanism, err)
		}
	}
}

func TestConfigMistakes(t *testing.T) {
	for block, want := range map[string]string{
		"topic: t":                                       "brokers",
		"brokers: [a], topic: t":                         "is not host:port",
		"brokers: [a:1]":                                 "topic",
		"brokers: [a:1], topic: a b":                     "a character that a topic may not have",
		`brokers: [a:1], topic: "a.{No}"`:                "{No} names no attribute",
		"brokers: [a:1], topic: ..":                      "not a name for a topic",
		"brokers: [a:1], topic: t, acks: none":           "did you mean \"one\"",
		"brokers: [a:1], topic: t, partitions: 0":        "1 or more",
		"brokers: [a:1], topic: t, sasl: {username: u}":  "is none beside a username",
		"brokers: [a:1], topic: t, max_message_bytes: 5": "too small",
		"brokers: [a:1], topic: t, compressed: gzip":     "compression",
	} {
		if _, err := sinktest.TryConfigure(Kind(), "{"+block+"}"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n%v, want %q", block, err, want)
		}
	}
}

// What the client library refuses, and quotes, is refused at validation.
func TestCredentialsAreCheckedAtValidation(t *testing.T) {
	for name, c := range map[string]struct{ mechanism, user, password, want string }{
		"line break at the end": {"scram-sha-256", "relay", `hunter2\n`, "sasl.password: ends with a line break (LF)"},
		"line break inside":     {"scram-sha-512", "relay", `hunter2\nhunter3`, "sasl.password: holds a line break"},
		"emoji":                 {"scram-sha-256", "relay", "hunter2😀", "sasl.password: holds an emoji"},
		"private use":           {"scram-sha-256", "relay", `hunter2\uE000`, "sasl.password: holds an emoji, or another character"},
		"two directions":        {"scram-sha-512", "relay", `hunter2\u05d0`, "sasl.password: mixes scripts"},
		"a soft hyphen":         {"scram-sha-512", "relay", `x\u00adx`, ""},
		"only soft hyphens":     {"scram-sha-512", "\u00ad", "hunter2", "sasl.username: holds only characters"},
		"emoji in the name":     {"scram-sha-512", "relay😀", "hunter2", "sasl.username: holds an emoji"},
		"emoji over plain":      {"plain", "relay", "hunter2😀", ""},
		"zero byte":             {"plain", "relay", `hunter\x002`, "sasl.password: holds a zero byte"},
		"umlaut":                {"scram-sha-512", "relay", "hunter2ü", ""},
		"ligature":              {"scram-sha-512", "relay", "hunter2ﬁ", ""},
	} {
		t.Run(name, func(t *testing.T) {
			block := fmt.Sprintf("{brokers: [a:1], topic: t, sasl: {mechanism: %s, username: \"%s\", password: \"%s\"}}", c.mechanism, c.user, c.password)
			p, err := sinktest.TryConfigure(Kind(), block)
			switch {
			case c.want == "" && err != nil:
				t.Fatal(err)
			case c.want == "": // then the library takes it, too
				if _, err := p.Own.(Config).SASL.mechanism(); err != nil {
					t.Error("the library refuses what validation took")
				}
			case err == nil || !strings.Contains(err.Error(), c.want):
				t.Errorf("%v, want %q", err, c.want)
			case strings.Contains(err.Error(), "hunter"):
				t.Errorf("the password is shown: %v", err)
			}
		})
	}
}

// FuzzSASL: the library takes each login that validation takes.
func FuzzSASL(f *testing.F) {
	f.Add("relay", "hunter2")
	f.Add("relay", "hunter2\n")
	f.Add("😀", "\u05d0a")
	f.Fuzz(func(t *testing.T, user, password string) {
		for _, mechanism := range []string{"plain", "scram-sha-256", "scram-sha-512"} {
			s := SASL{Mechanism: mechanism, Username: user, Password: config.Secret(password)}
			err := s.validate()
			if err == nil {
				if _, err := s.mechanism(); err != nil {
					t.Errorf("%s refuses %q and %q: %v", mechanism, user, password, err)
				}
			}
		}
	})
}

func FuzzSafeTopic(f *testing.F) {
	for _, s := range []string{"instagram", "a b", "é", "", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if safe := safeTopic(value); safe != safeTopic(safe) {
			t.Errorf("%q became %q", value, safe)
		}
	})
}
