package sinks

import (
	"context"
	"errors"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/event"
)

// Scrubbed returns an Opener for sinks whose errors contain no secret. All
// later uses of an error of a client library (log line, dead letter, delivery
// history, span, API response) get the scrubbed text. Permanent and transient
// errors stay permanent and transient.
func Scrubbed(open Opener, s *config.Scrubber) Opener {
	return func(ctx context.Context, env Env) (Sink, error) {
		sink, err := open(ctx, env)
		if err != nil {
			return nil, s.Error(err)
		}
		return &scrubbed{sink, s}, nil
	}
}

type scrubbed struct {
	sink  Sink
	scrub *config.Scrubber
}

func (s *scrubbed) Deliver(ctx context.Context, batch []event.Event) error {
	err := s.sink.Deliver(ctx, batch)
	each, ok := errors.AsType[BatchError](err)
	if !ok {
		return s.scrub.Error(err)
	}
	clean := make(BatchError, len(each))
	for i, err := range each {
		clean[i] = s.scrub.Error(err)
	}
	return clean
}

func (s *scrubbed) Destination(e event.Event) Destination { return s.sink.Destination(e) }

func (s *scrubbed) Close() error { return s.scrub.Error(s.sink.Close()) }

func (s *scrubbed) Limits() Limits { return s.sink.Limits() }
