package relay

import (
	"math"
	"strconv"
	"strings"
	"sync"

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

// duplicates are the message IDs that the broker reported as duplicates, and that no attempt
// has judged yet. The methods may be called concurrently.
type duplicates struct {
	counters duplicateCounters

	mu  sync.Mutex
	ids map[string]bool
}

type duplicateCounters struct{ lost, repeat prometheus.Counter }

func (d *duplicates) add(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ids == nil {
		d.ids = map[string]bool{}
	}
	d.ids[id] = true
}

// empty reports whether no message ID was reported.
func (d *duplicates) empty() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.ids) == 0
}

// take reports whether the broker reported a message ID, and forgets the message ID.
func (d *duplicates) take(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	reported := d.ids[id]
	delete(d.ids, id)
	return reported
}

// judgeDuplicates counts the events of an attempt that the broker reported as duplicates. If
// the event was sent for the first time, the broker has discarded the event.
func (o *sinkHandle) judgeDuplicates(items []*item) {
	if o.duplicates.empty() {
		return
	}
	for _, i := range items {
		id := o.messageID(i.Record)
		if !o.duplicates.take(id) {
			continue
		}
		if i.attempts > 1 || i.resent || i.Seq < o.unsent {
			o.duplicates.counters.repeat.Inc()
			continue
		}
		o.duplicates.counters.lost.Inc()
		o.env.Log.Error("broker discarded an event as a duplicate although it was sent for the first time; consumers do not get the event",
			zap.Uint64("seq", uint64(i.Seq)), zap.String("event_id", i.Event.CloudEvent.ID()), zap.String("message_id", id),
			zap.String("advice", "look for another program that publishes with the same message IDs, then send the event again with postwire replay"))
	}
}
