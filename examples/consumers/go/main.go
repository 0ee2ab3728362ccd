// Command consumer reads events from Postwire, and prints every event once.
//
//	consumer kafka BROKER TOPIC GROUP
//	consumer nats URL STREAM DURABLE SUBJECT
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/IBM/sarama"
	"github.com/cloudevents/sdk-go/protocol/kafka_sarama/v2"
	"github.com/cloudevents/sdk-go/protocol/nats_jetstream/v2"
	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "stopped")
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 4 && args[0] == "kafka":
		return fromKafka(ctx, args[1], args[2], args[3])
	case len(args) == 5 && args[0] == "nats":
		return fromNATS(ctx, args[1], args[2], args[3], args[4])
	}
	return errors.New("usage: consumer kafka BROKER TOPIC GROUP, or consumer nats URL STREAM DURABLE SUBJECT")
}

// handler prints events and drops duplicates. Delivery is at-least-once: after a
// crash or a replay, an event arrives again with the same source and ID. This
// program keeps recent pairs of source and ID in memory. To drop every duplicate,
// store the pair in the same transaction as the result of the work.
type handler struct {
	seen  map[[2]string]bool
	order [][2]string
}

func (h *handler) handle(e *cloudevents.Event) error {
	key := [2]string{e.Source(), e.ID()}
	if h.seen[key] {
		return nil
	}
	var data struct{ Title string }
	if err := e.DataAs(&data); err != nil {
		return err
	}
	// The work:
	if err := json.NewEncoder(os.Stdout).Encode(map[string]string{"source": key[0], "id": key[1], "type": e.Type(), "title": data.Title}); err != nil {
		return err
	}
	h.seen[key], h.order = true, append(h.order, key)
	if len(h.order) > 10_000 {
		delete(h.seen, h.order[0])
		h.order = h.order[1:]
	}
	return nil
}

func fromKafka(ctx context.Context, broker, topic, group string) error {
	config := sarama.NewConfig()
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	consumer, err := sarama.NewConsumerGroup([]string{broker}, group, config)
	if err != nil {
		return err
	}
	claims := &claims{handler: handler{seen: map[[2]string]bool{}}}
	for ctx.Err() == nil { // Consume returns after a rebalance of the group
		if err := consumer.Consume(ctx, []string{topic}, claims); err != nil {
			return errors.Join(err, consumer.Close())
		}
	}
	return consumer.Close() // commits marked offsets
}

// claims implements sarama.ConsumerGroupHandler for a topic with one partition:
// sarama calls ConsumeClaim concurrently for several partitions, and handler is not
// safe for concurrent use.
type claims struct{ handler handler }

func (*claims) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (*claims) Cleanup(sarama.ConsumerGroupSession) error { return nil }

func (c *claims) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for message := range claim.Messages() {
		e, err := binding.ToEvent(session.Context(), kafka_sarama.NewMessageFromConsumerMessage(message))
		if err != nil {
			return err
		}
		if err := c.handler.handle(e); err != nil {
			return err
		}
		session.MarkMessage(message, "") // after the work: an unmarked message is delivered again
	}
	return nil
}

func fromNATS(ctx context.Context, servers, stream, durable, subject string) error {
	connection, err := nats.Connect(servers)
	if err != nil {
		return err
	}
	defer connection.Close()
	js, err := jetstream.New(connection)
	if err != nil {
		return err
	}
	consumer, err := js.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{Durable: durable, FilterSubject: subject, AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		return err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, messages.Stop)
	h := handler{seen: map[[2]string]bool{}}
	for {
		m, err := messages.Next()
		if errors.Is(err, jetstream.ErrMsgIteratorClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		e, err := natsEvent(ctx, m)
		if err != nil {
			return err
		}
		if err := h.handle(e); err != nil {
			return err
		}
		if err := m.Ack(); err != nil { // after the work: an unacknowledged message is delivered again
			return err
		}
	}
}

// natsEvent percent-decodes the values of attributes, because the SDK does not.
func natsEvent(ctx context.Context, m jetstream.Msg) (*cloudevents.Event, error) {
	header := nats.Header{}
	for name, values := range m.Headers() {
		value := values[0]
		if strings.HasPrefix(name, "ce-") {
			var err error
			if value, err = url.PathUnescape(value); err != nil {
				return nil, fmt.Errorf("header %s: %w", name, err)
			}
		}
		header[name] = []string{value}
	}
	return binding.ToEvent(ctx, nats_jetstream.NewMessage(&nats.Msg{Header: header, Data: m.Data()}))
}
