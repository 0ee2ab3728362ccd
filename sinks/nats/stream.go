package nats

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/postwire/postwire/sinks"
)

// errMayNotLook is that our user has no right to look the stream up. It may
// well have the right to publish, which is all that is needed.
var errMayNotLook = errors.New("this user may not look it up")

// taken returns the subjects that the stream takes. A stream that is missing
// is created where that is asked for.
func (s *Sink) taken(ctx context.Context, ses *session) ([]string, error) {
	name := s.config.Stream
	denied, release := ses.denied.watch("$JS.API.STREAM.INFO." + name)
	defer release()
	asking, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-denied:
			cancel(errMayNotLook)
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

// checkStream makes sure that the stream is there and takes our subjects.
func (s *Sink) checkStream(ctx context.Context, ses *session) error {
	subjects, err := s.taken(ctx, ses)
	if errors.Is(err, errMayNotLook) {
		s.log.Warn("the stream is not checked", zap.Error(err))
		return nil
	}
	if err != nil {
		return err
	}
	if !takes(subjects, pattern(s.config.Subject)) {
		return fmt.Errorf("stream %s takes %v and so no subject like %s; change subject, or the stream's subjects", s.config.Stream, subjects, s.config.Subject)
	}
	return nil
}

func takes(subjects []string, subject string) bool {
	return slices.ContainsFunc(subjects, func(p string) bool { return overlap(p, subject) })
}

// refused finds out why our stream did not take a subject; err is what was
// answered. A stream that is gone may come back, or is created again where
// that is allowed. A subject that a stream which is there does not take is
// refused for good; unless all events go to that one subject, for then it is
// the sink that is configured wrong, and no event is to blame.
func (d *delivery) refused(subject string, err error) error {
	subjects, lookup := d.taken()
	switch {
	case lookup != nil:
		return fmt.Errorf("%w: %w", err, lookup)
	case takes(subjects, subject):
		return err // its leader is away, or it came back just now
	}
	err = fmt.Errorf("%w: stream %s does not take this subject, only %v", err, d.sink.config.Stream, subjects)
	if d.sink.route.Template.Static() {
		return err
	}
	return sinks.Permanent(sinks.ReasonNoDestination, err)
}
