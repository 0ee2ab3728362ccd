package kafka

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cekafka "github.com/cloudevents/sdk-go/protocol/kafka_sarama/v2"
	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/sinktest"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// The metrics library behind the SDK's receiver starts it when it is imported.
		goleak.IgnoreAnyFunction("github.com/rcrowley/go-metrics.(*meterArbiter).tick"))
}

// broker is a real Kafka where POSTWIRE_TEST_KAFKA names one, and otherwise
// one in this process.
type broker struct {
	addr string
	fake *kfake.Cluster // nil where it is real
	opts []kfake.Opt
}

func startBroker(t *testing.T, opts ...kfake.Opt) *broker {
	t.Helper()
	if addr := os.Getenv("POSTWIRE_TEST_KAFKA"); addr != "" && len(opts) == 0 {
		return &broker{addr: addr}
	}
	return startFake(t, opts...)
}

// startFake is for what only a broker in this process can be made to do. It
// comes back at its address, with its records, after a stop.
func startFake(t *testing.T, opts ...kfake.Opt) *broker {
	t.Helper()
	b := &broker{opts: append([]kfake.Opt{
		kfake.NumBrokers(1), kfake.DataDir(t.TempDir()), kfake.BrokerConfigs(map[string]string{"message.max.bytes": "1048588"}),
	}, opts...)}
	b.start(t)
	t.Cleanup(func() { b.stop(t) })
	return b
}

func (b *broker) start(t *testing.T) {
	t.Helper()
	opts := b.opts
	if b.addr != "" {
		_, port, err := net.SplitHostPort(b.addr)
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(port)
		if err != nil {
			t.Fatal(err)
		}
		opts = append(slices.Clone(opts), kfake.Ports(n))
	}
	c, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatal(err)
	}
	b.fake, b.addr = c, c.ListenAddrs()[0]
}

func (b *broker) stop(*testing.T) { b.fake.Close() }

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
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	s, err := sinktest.Opener(t, Kind(), fmt.Sprintf("brokers: [%q], %s", b.addr, block))(ctx, sinktest.Env())
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

// messages reads what is in a topic, partition by partition.
func (b *broker) messages(t *testing.T, topic string) (all []kafka.Message) {
	t.Helper()
	conn, err := kafka.Dial("tcp", b.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	partitions, err := conn.ReadPartitions(topic)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range partitions {
		leader, err := kafka.DialLeader(t.Context(), "tcp", b.addr, topic, p.ID)
		if err != nil {
			t.Fatal(err)
		}
		last, err := leader.ReadLastOffset()
		if err != nil {
			t.Fatal(err)
		}
		if err := leader.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for next := int64(0); next < last; {
			batch := leader.ReadBatch(1, 10<<20)
			for {
				m, err := batch.ReadMessage()
				if err != nil {
					if !errors.Is(err, io.EOF) {
						t.Fatalf("reading %s/%d at %d of %d: %v", topic, p.ID, next, last, err)
					}
					break
				}
				all, next = append(all, m), m.Offset+1
			}
			if err := batch.Close(); err != nil {
				t.Fatal(err)
			}
		}
		_ = leader.Close()
	}
	return all
}

// read takes a record apart as the binding says, by the letter.
func read(t *testing.T, m kafka.Message) cloudevents.Event {
	t.Helper()
	h := map[string]string{}
	for _, header := range m.Headers {
		if _, twice := h[header.Key]; twice {
			t.Errorf("header %s is there twice", header.Key)
		}
		h[header.Key] = string(header.Value)
	}
	if strings.HasPrefix(h["content-type"], "application/cloudevents+json") {
		var e cloudevents.Event
		if err := e.UnmarshalJSON(m.Value); err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := cloudevents.NewEvent(h["ce_specversion"])
	e.SetDataContentType(h["content-type"])
	for name, value := range h {
		attribute, ok := strings.CutPrefix(name, "ce_")
		if !ok {
			continue
		}
		switch attribute {
		case "id":
			e.SetID(value)
		case "source":
			e.SetSource(value)
		case "type":
			e.SetType(value)
		case "subject":
			e.SetSubject(value)
		case "dataschema":
			e.SetDataSchema(value)
		case "time":
			at, err := time.Parse(time.RFC3339Nano, value)
			if err != nil {
				t.Fatal(err)
			}
			e.SetTime(at)
		case "specversion":
		default:
			e.SetExtension(attribute, value)
		}
	}
	if key, ok := (event.Event{CloudEvent: e}).Attribute(event.PartitionKey); ok && key != string(m.Key) {
		t.Errorf("the record's key is %q, the partition key %q", m.Key, key)
	}
	e.DataEncoded = m.Value
	return e
}

func TestConformance(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) sinktest.Harness {
		b, name := startBroker(t), topic()
		h := sinktest.Harness{
			Kind: Kind(),
			Config: func(mode string) string {
				return fmt.Sprintf("brokers: [%q], topic: %s, create: true, partitions: 3, content_mode: %s, compression: zstd", b.addr, name, mode)
			},
			Read: func(t *testing.T, n int) []cloudevents.Event {
				var events []cloudevents.Event
				for _, m := range b.messages(t, name) {
					events = append(events, read(t, m))
				}
				return events
			},
			Oversize: 1 << 20, Network: true,
		}
		if b.fake != nil { // a real one is not ours to stop
			h.Stop, h.Start = b.stop, b.start
		}
		return h
	})
}

// TestWireFormat holds records against golden files, sends them to a broker,
// and reads them back with the SDK's own receiver.
func TestWireFormat(t *testing.T) {
	b, name := startBroker(t), topic()
	e := sinktest.Event("a/1", "café")
	for _, mode := range []string{sinks.Binary, sinks.Structured} {
		t.Run(mode, func(t *testing.T) {
			r, err := encode(t.Context(), e, mode, "upload-post.events")
			if err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			fmt.Fprintf(&text, "key: %s\n", r.key)
			for _, h := range r.headers {
				fmt.Fprintf(&text, "%s: %s\n", h.Key, h.Value)
			}
			fmt.Fprintf(&text, "\n%s\n", r.value)
			golden(t, "testdata/"+mode+".golden.txt", text.String())

			s := b.open(t, fmt.Sprintf("topic: %s-%s, create: true, content_mode: %s", name, mode, mode))
			if err := s.Deliver(t.Context(), []event.Event{e}); err != nil {
				t.Fatal(err)
			}
			for _, m := range b.messages(t, name+"-"+mode) {
				headers, contentType := map[string][]byte{}, ""
				for _, h := range m.Headers {
					headers[h.Key] = h.Value
					if h.Key == "content-type" {
						contentType = string(h.Value)
					}
				}
				got, err := binding.ToEvent(t.Context(), cekafka.NewMessage(m.Value, contentType, headers))
				if err != nil {
					t.Fatalf("the SDK's receiver: %v", err)
				}
				if diff := cmp.Diff(e.CloudEvent.String(), got.String()); diff != "" {
					t.Errorf("the SDK's receiver (-want +got):\n%s", diff)
				}
			}
		})
	}
}

func golden(t *testing.T, file, text string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("%s (-want +got; -update rewrites):\n%s", file, diff)
	}
}

func TestTopicIsChecked(t *testing.T) {
	b, name := startBroker(t), topic()
	_, err := b.opener(t, "topic: "+name)
	if want := fmt.Sprintf("topic %s does not exist on %s: create it, or set create: true", name, b.addr); err == nil || !strings.Contains(err.Error(), want) {
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
	if err := s.Deliver(t.Context(), []event.Event{sinktest.Event("1", "k")}); err != nil {
		t.Errorf("the first write to a new topic: %v", err)
	}
}

// TestTemplatedTopics: a topic of one event that does not exist is no other
// event's trouble.
func TestTemplatedTopics(t *testing.T) {
	b, name := startBroker(t), topic()
	b.createTopic(t, name+".instagram", 1)
	s := b.open(t, fmt.Sprintf(`topic: "%s.{platform}"`, name))
	odd := sinktest.Event("odd", "k")
	odd.CloudEvent.SetExtension(event.Platform, "tik/tok")
	err := s.Deliver(t.Context(), []event.Event{sinktest.Event("1", "k"), odd, sinktest.Event("2", "k")})
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
	if n := len(b.messages(t, name+".tik_tok")); n != 1 {
		t.Errorf("the new topic holds %d records, want 1", n)
	}
}

// TestPartitions: a key keeps its partition, the one that the Java client
// would choose; events without a key are spread.
func TestPartitions(t *testing.T) {
	b, name := startBroker(t), topic()
	s := b.open(t, fmt.Sprintf("topic: %s, create: true, partitions: 4", name))
	var events []event.Event
	for i := range 40 {
		events = append(events, sinktest.Event(fmt.Sprint("a", i), "brightside_bakery"), sinktest.Event(fmt.Sprint("b", i), ""))
	}
	if err := s.Deliver(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	keyed, spread := map[int]int{}, map[int]int{}
	for _, m := range b.messages(t, name) {
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
	if len(spread) != 4 || spread[0] != 10 {
		t.Errorf("events without a key are in partitions %v", spread)
	}
}

// TestBatchTooLargeIsHalved: the broker refuses what the sink's own limit let
// pass; only the guilty record is set aside.
func TestBatchTooLargeIsHalved(t *testing.T) {
	b, name := startBroker(t), topic()
	s := b.open(t, fmt.Sprintf("topic: %s, create: true, partitions: 1, max_message_bytes: 4MiB", name))
	events := []event.Event{sinktest.Event("1", "k"), sinktest.Event("2", "k"), sinktest.Event("big", "k"), sinktest.Event("3", "k")}
	events[2].CloudEvent.DataEncoded = []byte(`"` + strings.Repeat("x", 2<<20) + `"`)
	err := s.Deliver(t.Context(), events)
	each, _ := errors.AsType[sinks.BatchError](err)
	if len(each) != 4 || each[0] != nil || each[1] != nil || each[3] != nil {
		t.Fatalf("Deliver = %v", err)
	}
	if reason, _ := sinks.IsPermanent(each[2]); reason != sinks.ReasonTooLarge {
		t.Errorf("the record too large: %v", each[2])
	}
	var ids []string
	for _, m := range b.messages(t, name) {
		ids = append(ids, read(t, m).ID())
	}
	if diff := cmp.Diff([]string{"1", "2", "3"}, ids); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

// deaf is a network that swallows the answer to the next write of records: the
// records arrive.
type deaf struct {
	mu   sync.Mutex
	next bool
	lost int
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
	if c.d.next && len(p) > 6 && p[4] == 0 && p[5] == 0 {
		c.d.next = false
		c.deaf.Store(true)
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
		_ = c.Conn.Close()
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// TestLostAnswer: the broker has written, and its answer was lost. Nobody can
// know; the event is sent again, and is there twice with one id.
func TestLostAnswer(t *testing.T) {
	b, name := startBroker(t), topic()
	b.createTopic(t, name, 1)
	d := &deaf{}
	env := sinktest.Env()
	env.Dial = d.dial
	s, err := sinktest.Opener(t, Kind(), fmt.Sprintf("brokers: [%q], topic: %s", b.addr, name))(t.Context(), env)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d.mu.Lock()
	d.next = true
	d.mu.Unlock()
	events := []event.Event{sinktest.Event("1", "k")}
	err = s.Deliver(t.Context(), events)
	each, _ := errors.AsType[sinks.BatchError](err)
	if len(each) != 1 || each[0] == nil {
		t.Fatalf("Deliver without an answer = %v", err)
	}
	if _, refused := sinks.IsPermanent(each[0]); refused {
		t.Errorf("a lost answer is refused for good: %v", err)
	}
	if err := s.Deliver(t.Context(), events); err != nil {
		t.Fatalf("the repeat: %v", err)
	}
	if d.lost != 1 {
		t.Fatalf("%d answers were lost, want 1", d.lost)
	}
	all := b.messages(t, name)
	if len(all) != 2 {
		t.Fatalf("the topic holds %d records, want the first and its repeat", len(all))
	}
	if a, b := read(t, all[0]), read(t, all[1]); a.ID() != b.ID() || a.Source() != b.Source() {
		t.Errorf("the repeat is %s, the first %s", b.ID(), a.ID())
	}
}

// TestCancelledContextMayWrite: cancelling recalls nothing. The sink says that
// it does not know, and the repeat has the same id.
func TestCancelledContextMayWrite(t *testing.T) {
	b, name := startFake(t), topic()
	b.createTopic(t, name, 1)
	s := b.open(t, "topic: "+name)
	ctx, cancel := context.WithCancel(t.Context())
	b.fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cancel() // the request is with the broker
		return nil, nil, false
	})
	if err := s.Deliver(ctx, []event.Event{sinktest.Event("1", "k")}); err == nil {
		t.Log("the answer was faster than the cancellation")
	}
	if err := s.Deliver(t.Context(), []event.Event{sinktest.Event("1", "k"), sinktest.Event("2", "k")}); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, m := range b.messages(t, name) {
		seen[read(t, m).ID()]++
	}
	if seen["1"] < 1 || seen["2"] != 1 {
		t.Errorf("records: %v", seen)
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
		{err: kerr.InvalidTopicException, reason: sinks.ReasonInvalid},
	} {
		t.Run(fmt.Sprint(tt.err.Message, tt.templated), func(t *testing.T) {
			b, name := startFake(t), topic()
			b.createTopic(t, name+"-instagram", 1)
			block := "topic: " + name + "-instagram"
			if tt.templated {
				block = fmt.Sprintf(`topic: "%s-{platform}"`, name)
			}
			s := b.open(t, block)
			b.fake.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: tt.err})
			events := []event.Event{sinktest.Event("1", "k")}
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
		events = append(events, sinktest.Event(fmt.Sprint(i), fmt.Sprint("k", i%4)))
	}
	for range 3 {
		b.fake.ShufflePartitionLeaders()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			err := s.Deliver(t.Context(), events)
			if err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	}
}

func TestTopicIsDeletedAndComesBack(t *testing.T) {
	b, name := startFake(t), topic()
	b.createTopic(t, name, 1)
	s := b.open(t, "topic: "+name)
	if err := b.fake.DeleteTopic(name); err != nil {
		t.Fatal(err)
	}
	err := s.Deliver(t.Context(), []event.Event{sinktest.Event("1", "k")})
	each, _ := errors.AsType[sinks.BatchError](err)
	if len(each) != 1 || each[0] == nil {
		t.Fatalf("Deliver = %v", err)
	}
	if _, refused := sinks.IsPermanent(each[0]); refused || !strings.Contains(each[0].Error(), "does not exist") {
		t.Errorf("without the topic: %v", each[0])
	}
	if err := b.fake.CreateTopic(name, 1, nil); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err = s.Deliver(t.Context(), []event.Event{sinktest.Event("1", "k")}); err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
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
		if err := s.Deliver(t.Context(), []event.Event{sinktest.Event("1", "k")}); err != nil {
			t.Errorf("%s: %v", mechanism, err)
		}
		if _, err := b.opener(t, block+"wr0ng}"); err == nil || strings.Contains(err.Error(), "wr0ng") {
			t.Errorf("%s with a wrong password: %v", mechanism, err)
		}
	}
}

func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(crand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	b := startFake(t, kfake.TLS(&tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})) //nolint:gosec // The client sets the minimum.
	s, err := b.opener(t, fmt.Sprintf("topic: %s, create: true, tls: {enabled: true, ca_file: %q}", topic(), ca))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Deliver(t.Context(), []event.Event{sinktest.Event("1", "k")}); err != nil {
		t.Error(err)
	}
	if _, err := b.opener(t, fmt.Sprintf("topic: %s, create: true, tls: {enabled: true}", topic())); err == nil {
		t.Error("a certificate of an unknown authority was trusted")
	}
}

func TestConfigMistakes(t *testing.T) {
	for block, want := range map[string]string{
		"topic: t":                                       "brokers",
		"brokers: [a], topic: t":                         "is not host:port",
		"brokers: a:1, topic: t":                         "list",
		"brokers: [a:1]":                                 "topic",
		"brokers: [a:1], topic: a b":                     "a character that a topic may not have",
		`brokers: [a:1], topic: "a.{nothing}"`:           "{nothing} names no attribute",
		"brokers: [a:1], topic: ..":                      "not a name for a topic",
		"brokers: [a:1], topic: t, acks: none":           "did you mean \"one\"",
		"brokers: [a:1], topic: t, partitions: 0":        "1 or more",
		"brokers: [a:1], topic: t, sasl: {username: u}":  "is none beside a username",
		"brokers: [a:1], topic: t, max_message_bytes: 5": "too small",
		"brokers: [a:1], topic: t, compresion: gzip":     "compression",
	} {
		if err := sinktest.Mistake(t, Kind(), block); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s:\n%v, want %q", block, err, want)
		}
	}
}

func TestExample(t *testing.T) { sinktest.Example(t, Kind(), "example.yaml") }

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
