package relay

import (
	"math"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
)

// messageID identifies the delivery of a stored event to a sink, for brokers that drop
// repeated messages. The ID contains the sink because several sinks may publish to one
// stream; the acceptance time because a journal restored from a backup assigns sequences
// again; and the replay because brokers must not drop the repeats of a replay.
func (o *sinkHandle) messageID(r journal.Record) string {
	var b strings.Builder
	b.WriteString(o.journal())
	b.WriteByte('/')
	b.WriteString(strconv.FormatUint(uint64(r.Seq), 10))
	b.WriteByte('/')
	b.WriteString(strconv.FormatInt(r.Accepted.UnixNano(), 36))
	b.WriteByte('/')
	b.WriteString(o.env.Name)
	if o.replay != "" {
		b.WriteByte('/')
		b.WriteString(o.replay)
	}
	return b.String()
}

// unknownSeq is the value of sinkHandle.unsent if another process may have sent any event.
const unknownSeq journal.Seq = math.MaxUint64

// duplicates are the events of one attempt that the broker reported as duplicates.
type duplicates struct {
	ids      []string // message IDs
	counters duplicateCounters
}

type duplicateCounters struct{ lost, repeat prometheus.Counter }

// judgeDuplicates counts the events of an attempt that the broker reported as duplicates. If
// the event was sent for the first time, the broker has discarded the event.
func (o *sinkHandle) judgeDuplicates(records []pendingRecord) {
	if len(o.duplicates.ids) == 0 {
		return
	}
	byID := make(map[string]pendingRecord, len(records))
	for _, r := range records {
		byID[o.messageID(r.Record)] = r
	}
	for _, id := range o.duplicates.ids {
		r, known := byID[id]
		if !known || r.attempts > 1 || r.Seq < o.unsent {
			o.duplicates.counters.repeat.Inc()
			continue
		}
		o.duplicates.counters.lost.Inc()
		o.env.Log.Error("broker discarded an event as a duplicate although it was sent for the first time; consumers do not get the event",
			zap.Uint64("seq", uint64(r.Seq)), zap.String("event_id", r.Event.CloudEvent.ID()), zap.String("message_id", id),
			zap.String("advice", "look for another program that publishes with the same message IDs, then send the event again with postwire replay"))
	}
}
