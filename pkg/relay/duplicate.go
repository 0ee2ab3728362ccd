package relay

import (
	"math"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
)

// messageID names the delivery of a stored event to a sink, for brokers that drop
// repeated messages. The sink is part of the ID because several sinks may publish
// to one stream, and the event is due to each. Journal and sequence would do, were
// no journal ever copied or restored from a backup: then sequences are given again,
// and the time of acceptance tells the events apart. A replay is meant to repeat,
// so a replay has IDs of its own.
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

// unknownSeq is the place from which on events are unsent where that cannot be told.
const unknownSeq journal.Seq = math.MaxUint64

// duplicates are the events of one attempt that the broker says it had before.
type duplicates struct {
	ids      []string // message IDs
	counters duplicateCounters
}

type duplicateCounters struct{ lost, repeat prometheus.Counter }

// judgeDuplicates counts the events of an attempt that the broker says it had
// before. Of an event that was not sent before, that means that the broker has
// discarded it.
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
		o.env.Log.Error("the broker took an event for a repeat and discarded it, though it was sent for the first time; its consumers do not get it",
			zap.Uint64("seq", uint64(r.Seq)), zap.String("event_id", r.Event.CloudEvent.ID()), zap.String("message_id", id),
			zap.String("advice", "look for another program that publishes with the same message IDs, then send the event again with postwire replay"))
	}
}
