package kafka

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
	"go.uber.org/zap"

	"github.com/postwire/postwire/sinks"
)

// lookUp finds the partitions of a topic, and creates the topic if configured.
func (s *Sink) lookUp(ctx context.Context, topic string) (partitions, error) {
	if topic == "." || topic == ".." || len(topic) > maxTopic {
		return partitions{}, sinks.Permanent(sinks.ReasonInvalid, fmt.Errorf("%q is not a name for a topic", topic))
	}
	p := s.topic(topic)
	if len(p.all) == 0 { // the metadata may be older than the topic
		if err := s.refresh(ctx, s.urgent); err != nil {
			return p, s.classify(topic, err)
		}
		p = s.topic(topic)
	}
	switch {
	case p.err != nil:
		return p, s.classify(topic, p.err)
	case len(p.all) > 0:
		return p, nil
	case s.config.Create:
		if err := s.create(ctx, topic); err != nil {
			return p, s.classify(topic, err)
		}
		return s.topic(topic), nil
	case s.route.Template.Static():
		return p, sinks.AtDestination(s.missing(topic)) // with a constant topic: wait for the topic
	}
	return p, sinks.Permanent(sinks.ReasonNoDestination, s.missing(topic))
}

func (s *Sink) missing(topic string) error {
	return fmt.Errorf("topic %s does not exist on %s; create it, or set create: true", topic, strings.Join(s.config.Brokers, ","))
}

// create creates a topic and waits until every partition has a leader that
// knows the partition: a real broker refuses a write right after the creation.
func (s *Sink) create(ctx context.Context, topic string) error {
	ses := s.acquire()
	defer s.release(ses)
	resp, err := ses.client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
		Topic: topic, NumPartitions: s.config.Partitions, ReplicationFactor: s.config.ReplicationFactor,
	}}})
	if err == nil {
		err = resp.Errors[topic]
	}
	switch {
	case err == nil:
		s.log.Info("topic created", zap.String("topic", topic))
	case !errors.Is(err, kafka.TopicAlreadyExists):
		return fmt.Errorf("creating topic %s: %w", topic, err)
	}
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := s.refresh(ctx, s.urgent)
		if p := s.topic(topic); err == nil && len(p.all) > 0 && len(p.led) == len(p.all) {
			if err = s.leading(ctx, topic, p.all); err == nil {
				return nil
			}
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for leaders of the new topic %s: %w", topic, errors.Join(err, ctx.Err()))
		}
	}
}

// leading asks the leaders of a topic's partitions whether they lead, because
// the cluster announces a leader slightly before the leader is ready.
func (s *Sink) leading(ctx context.Context, topic string, partitions []int) error {
	ask := make([]kafka.OffsetRequest, len(partitions))
	for i, p := range partitions {
		ask[i] = kafka.LastOffsetOf(p)
	}
	ses := s.acquire()
	defer s.release(ses)
	resp, err := ses.client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: ask}})
	if err != nil {
		return err
	}
	for _, p := range resp.Topics[topic] {
		if p.Error != nil {
			return fmt.Errorf("partition %d: %w", p.Partition, p.Error)
		}
	}
	return nil
}
