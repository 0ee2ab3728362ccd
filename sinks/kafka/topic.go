package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
	"go.uber.org/zap"

	"github.com/postwire/postwire/sinks"
)

// partitions are the partitions of a topic.
type partitions struct {
	all []int // all partitions, including partitions without a leader, so that a key does not move
	led []int // partitions with a leader
}

// destination finds the partitions of a topic, and creates the topic if
// configured.
func (s *Sink) destination(ctx context.Context, topic string) (partitions, error) {
	if topic == "." || topic == ".." || len(topic) > maxTopic {
		return partitions{}, sinks.Permanent(sinks.ReasonInvalid, fmt.Errorf("%q is not a name for a topic", topic))
	}
	p, err := s.partitions(ctx, topic)
	if err == nil && len(p.all) == 0 && !s.fresh {
		s.reset() // the client's metadata is older than the topic
		p, err = s.partitions(ctx, topic)
	}
	switch {
	case err != nil:
		return p, s.classify(topic, err)
	case len(p.all) > 0:
		return p, nil
	case s.config.Create:
		if p, err = s.create(ctx, topic); err != nil {
			return p, s.classify(topic, err)
		}
		return p, nil
	case s.route.Template.Static():
		return p, s.missing(topic) // with a constant topic: wait for the topic
	}
	return p, sinks.Permanent(sinks.ReasonNoDestination, s.missing(topic))
}

func (s *Sink) missing(topic string) error {
	return fmt.Errorf("topic %s does not exist on %s; create it, or set create: true", topic, s.brokers())
}

func (s *Sink) brokers() string { return strings.Join(s.config.Brokers, ",") }

// partitions returns the partitions of a topic in the client's metadata, none
// for a missing topic. Without a topic, only the metadata is loaded.
func (s *Sink) partitions(ctx context.Context, topics ...string) (partitions, error) {
	m, err := s.client.Metadata(ctx, &kafka.MetadataRequest{Topics: append([]string{}, topics...)})
	if err != nil {
		return partitions{}, fmt.Errorf("asking %s for metadata: %w", s.brokers(), err)
	}
	var p partitions
	for _, t := range m.Topics {
		if t.Error != nil && !errors.Is(t.Error, kafka.UnknownTopicOrPartition) {
			return p, fmt.Errorf("looking up topic %s: %w", t.Name, t.Error)
		}
		for _, each := range t.Partitions {
			p.all = append(p.all, each.ID)
			if each.Leader.Host != "" {
				p.led = append(p.led, each.ID)
			}
		}
	}
	slices.Sort(p.all)
	slices.Sort(p.led)
	return p, nil
}

// create creates a topic and waits until every partition has a leader that
// knows the partition: a real broker refuses a write right after the creation.
func (s *Sink) create(ctx context.Context, topic string) (partitions, error) {
	resp, err := s.client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
		Topic: topic, NumPartitions: s.config.Partitions, ReplicationFactor: s.config.ReplicationFactor,
	}}})
	if err == nil {
		err = resp.Errors[topic]
	}
	switch {
	case err == nil:
		s.log.Info("topic created", zap.String("topic", topic))
	case !errors.Is(err, kafka.TopicAlreadyExists):
		return partitions{}, fmt.Errorf("creating topic %s: %w", topic, err)
	}
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		p, err := s.partitions(ctx, topic)
		if err == nil && len(p.all) > 0 && len(p.led) == len(p.all) {
			if err = s.leading(ctx, topic, p.all); err == nil {
				return p, nil
			}
		}
		select {
		case <-again.C:
			s.reset()
		case <-ctx.Done():
			return p, fmt.Errorf("waiting for leaders of the new topic %s: %w", topic, errors.Join(err, ctx.Err()))
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
	resp, err := s.client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: ask}})
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
