package relay

import (
	"context"

	"github.com/postwire/postwire/pkg/journal"
)

// live implements traffic for live events.
type live struct {
	name    string
	filter  *sinkFilter
	metrics *sinkMetrics
	history *deliveryHistory
	moved   func() // called after a commit
}

// selects implements traffic. The filter has matched the original of a redelivered dead
// letter, and does not apply to the copy of another sink's dead letter.
func (l *live) selects(r journal.Record) bool {
	if r.TargetSink == "" {
		return l.filter.selects(r.Event)
	}
	return r.TargetSink == l.name
}

// end implements traffic.
func (l *live) end() journal.Seq { return 0 }

// began implements traffic.
func (l *live) began(context.Context) (bool, error) { return true, nil }

// lost implements traffic.
func (l *live) lost() {}

// attempted implements traffic.
func (l *live) attempted(result attemptResult) {
	if len(result.delivered) == 0 {
		return
	}
	l.metrics.delivered.Add(float64(len(result.delivered)))
	var acked []ackRange
	for _, i := range result.delivered {
		l.metrics.latency.Observe(max(0, result.at.Sub(i.Accepted).Seconds()))
		if n := len(acked) - 1; n >= 0 && acked[n].attempts == i.attempts && acked[n].to+1 >= i.from && acked[n].to < i.Seq {
			acked[n].to = i.Seq
		} else {
			acked = append(acked, ackRange{i.Seq, i.Seq, result.at, i.attempts})
		}
	}
	l.history.add(acked)
}

// undelivered implements traffic.
func (l *live) undelivered(u journal.Undelivered) journal.Undelivered { return u }

// committed implements traffic.
func (l *live) committed(_ context.Context, u journal.Undelivered) error {
	l.metrics.countDeadLetters(u.Dead)
	l.moved()
	return nil
}
