package nats

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/postwire/postwire/sinks"
)

// errNoInfo means that the user has no permission to read the stream's
// configuration. Permission to publish is enough.
var errNoInfo = errors.New("the NATS user has no permission to read the stream")

// subjects returns the subjects of the stream. A missing stream is created if
// configured.
func (s *Sink) subjects(ctx context.Context, ses *session) ([]string, error) {
	name := s.config.Stream
	denied, release := ses.denied.watch("$JS.API.STREAM.INFO." + name)
	defer release()
	asking, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-denied:
			cancel(errNoInfo)
		case <-ses.ended:
			cancel(errEnded)
		case <-asking.Done():
		}
	}()
	stream, err := ses.js.Stream(asking, name)
	switch {
	case err == nil:
		return stream.CachedInfo().Config.Subjects, nil
	case asking.Err() != nil:
		return nil, fmt.Errorf("looking up stream %s: %w", name, context.Cause(asking))
	case !errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, fmt.Errorf("looking up stream %s: %w", name, err)
	case !s.config.Create:
		return nil, fmt.Errorf("stream %s does not exist; create it, or set create: true", name)
	}
	want := pattern(s.config.Subject)
	stream, err = ses.js.CreateStream(asking, jetstream.StreamConfig{
		Name: name, Subjects: []string{want}, Storage: jetstream.FileStorage,
		Description: "created by Postwire",
	})
	if err != nil {
		return nil, fmt.Errorf("creating stream %s for %s: %w", name, want, err)
	}
	s.log.Info("stream created", zap.String("stream", name), zap.String("subjects", want))
	return stream.CachedInfo().Config.Subjects, nil
}

// checkStream ensures that the stream exists and has the sink's subjects.
func (s *Sink) checkStream(ctx context.Context, ses *session) error {
	subjects, err := s.subjects(ctx, ses)
	if errors.Is(err, errNoInfo) {
		s.log.Warn("stream not checked", zap.Error(err))
		return nil
	}
	if err != nil {
		return err
	}
	if !covers(subjects, pattern(s.config.Subject)) {
		return fmt.Errorf("stream %s takes %v and so no subject like %s; change subject, or the stream's subjects", s.config.Stream, subjects, s.config.Subject)
	}
	return nil
}

func covers(subjects []string, subject string) bool {
	return slices.ContainsFunc(subjects, func(p string) bool { return overlap(p, subject) })
}

// refused finds out why the stream did not accept a subject; err is the answer.
// A missing stream may come back, or is created again if allowed. A subject
// that an existing stream does not have is a permanent failure, unless the sink
// has a constant subject: then the configuration of the sink is wrong, not the
// event.
func (d *delivery) refused(subject string, err error) error {
	subjects, lookup := d.subjects()
	switch {
	case lookup != nil:
		return sinks.RetryAfter(streamWait, fmt.Errorf("%w: %w", err, lookup))
	case covers(subjects, subject):
		return sinks.RetryAfter(streamWait, err) // the leader is unavailable, or just came back
	}
	err = fmt.Errorf("%w: stream %s does not take this subject, only %v", err, d.sink.config.Stream, subjects)
	if d.sink.route.Template.Static() {
		return sinks.AtDestination(err)
	}
	return sinks.Permanent(sinks.ReasonNoDestination, err)
}

// full adds which limit of the stream an answer is about, and what an operator can do. The
// server names the limit only by a text; another text is returned without advice. A stream
// that discards old messages has room for new ones, so these answers are of a stream with
// discard: new.
func (d *delivery) full(err error, answer string) error {
	stream := d.sink.config.Stream
	switch {
	case strings.Contains(answer, "maximum messages per subject"):
		return fmt.Errorf("%w: the subject has max_msgs_per_subject messages, and stream %s has discard_new_per_subject; consume or purge messages of the subject, raise the limit, or let the stream discard old messages", err, stream)
	case strings.Contains(answer, "maximum messages"):
		return fmt.Errorf("%w: stream %s has max_msgs messages and discards new ones; consume or purge messages, raise the limit, or let the stream discard old messages", err, stream)
	case strings.Contains(answer, "maximum bytes"):
		return fmt.Errorf("%w: stream %s has max_bytes bytes and discards new messages; consume or purge messages, raise the limit, or let the stream discard old messages", err, stream)
	}
	return err
}
