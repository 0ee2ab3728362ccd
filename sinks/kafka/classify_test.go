package kafka

import (
	"testing"

	"github.com/segmentio/kafka-go"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/sinktest"
)

// Each error code of a broker, and what becomes of the event: a dead letter only
// for what the event is. docs/dead-letters.md has the same table.
func TestClassification(t *testing.T) {
	static := map[kafka.Error]string{
		kafka.MessageSizeTooLarge: "too_large", kafka.RecordListTooLarge: "too_large", kafka.InvalidRecord: "invalid",
	}
	templated := map[kafka.Error]string{kafka.InvalidTopic: "invalid", kafka.TopicAuthorizationFailed: "unauthorized"}
	for code := kafka.Error(-1); code <= 150; code++ {
		if code == 0 {
			continue
		}
		for text, own := range map[string]map[kafka.Error]string{"all": nil, "of-{platform}": templated} {
			topic, err := event.ParseTemplate(text)
			if err != nil {
				t.Fatal(err)
			}
			s := &Sink{route: sinks.Route{Template: topic, Safe: safeTopic}}
			if got := sinktest.Outcomes(s.classify("t", kafka.TopicAuthorizationFailed), 1)[0]; got != "again" {
				t.Errorf("a forbidden topic before a record was taken: %q", got)
			}
			s.accepted.Store(true)
			want := "again"
			for _, table := range []map[kafka.Error]string{static, own} {
				if reason, ok := table[code]; ok {
					want = reason
				}
			}
			err = s.classify("t", code)
			if transient := want == "again"; sinks.IsAtDestination(err) != transient {
				t.Errorf("%d (%s) with topic %s: of the partition is %v", int(code), code.Title(), text, !transient)
			}
			if got := sinktest.Outcomes(err, 1)[0]; got != want {
				t.Errorf("%d (%s) with topic %s: %q, want %q", int(code), code.Title(), text, got, want)
			}
		}
	}
}
