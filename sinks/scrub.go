package sinks

import (
	"context"
	"errors"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/event"
)

// Scrubbed returns an Opener whose sinks return no error with a secret in its
// text. Whatever is done with an error of a client library afterwards (a log
// line, a dead letter, the delivery history, a span, an answer of the API) is
// done with the scrubbed text. The verdict about an event stays what it was.
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
