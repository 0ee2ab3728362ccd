package relay

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/telemetry"
	"github.com/postwire/postwire/sinks"
)

// sinkHandle opens a sink before the first attempt, after a failed attempt to open, and
// after a change of its spec.
//
// | state | opened | sink | next |
// |---|---|---|---|
// | closed | nil or the last spec | nil | attempt opens the sink |
// | open | the spec of the sink | set | attempt delivers |
// | outdated | not the current spec | set | attempt closes and opens the sink |
//
// One goroutine at a time uses a sinkHandle.
type sinkHandle struct {
	spec    *atomic.Pointer[sinkSpec]
	env     sinks.Env
	timeout time.Duration
	latency prometheus.Observer // from acceptance to acknowledgement; nil is not observed
	journal func() string       // returns the journal ID
	replay  string              // ID of the replay; empty for live traffic
	// unsent is the first sequence that neither another process nor an earlier handle
	// can have sent.
	unsent     journal.Seq
	duplicates duplicates
	history    *deliveryHistory // nil records no deliveries
	acked      []ackRange       // of one attempt; reused

	opened *sinkSpec  // that sink was opened by
	sink   sinks.Sink // nil until it could be opened
}

// sinkSpec opens a sink and redacts its events.
type sinkSpec struct {
	open   sinks.Opener
	redact *redactor
}

func specOf(s sinks.Configured) *sinkSpec { return &sinkSpec{s.Open, newRedactor(s.Settings.Redact)} }

// attempt delivers the records once, and opens the sink before if necessary. The results
// are per record, or one error for all records. The timeout of the sink bounds attempt.
func (o *sinkHandle) attempt(ctx context.Context, records []pendingRecord) (sinks.BatchError, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	if current := o.spec.Load(); current != o.opened {
		o.close()
		o.opened = current
	}
	if o.sink == nil {
		env := o.env
		env.Duplicate = func(e event.Event) { o.duplicates.ids = append(o.duplicates.ids, e.MessageID) }
		sink, err := o.opened.open(ctx, env)
		if err != nil {
			return nil, fmt.Errorf("opening: %w", err)
		}
		o.sink = sink
	}
	batch, results := o.redactAll(records)
	if len(batch) == 0 {
		return results, nil
	}
	o.duplicates.ids = o.duplicates.ids[:0]
	err := o.sink.Deliver(ctx, batch)
	o.judgeDuplicates(records)
	each, ok := errors.AsType[sinks.BatchError](err)
	if ok = ok && len(each) == len(batch); err != nil && !ok {
		return nil, err
	}
	if len(batch) == len(records) {
		return each, nil
	}
	// Merge the results of the sink with the records that redaction refused.
	for i, n := 0, 0; i < len(results); i++ {
		if results[i] == nil {
			if each != nil {
				results[i] = each[n]
			}
			n++
		}
	}
	return results, nil
}

// destination returns the topic, subject or URL of an event; empty while the sink is closed.
func (o *sinkHandle) destination(e event.Event) sinks.Destination {
	if o.sink == nil {
		return sinks.Destination{}
	}
	return o.sink.Destination(e)
}

// redactAll returns the redacted events, and an error for each record that cannot be
// redacted.
func (o *sinkHandle) redactAll(records []pendingRecord) (batch []event.Event, errs sinks.BatchError) {
	batch, errs = make([]event.Event, 0, len(records)), make(sinks.BatchError, len(records))
	for i, r := range records {
		e, err := o.opened.redact.apply(r.Event)
		if err != nil {
			errs[i] = sinks.Permanent(sinks.ReasonInvalid, err)
			continue
		}
		e.MessageID = o.messageID(r.Record)
		batch = append(batch, e)
	}
	return batch, errs
}

func (o *sinkHandle) close() {
	if o.sink == nil {
		return
	}
	if err := o.sink.Close(); err != nil {
		o.env.Log.Warn("closing the sink", zap.Error(err))
	}
	o.sink = nil
}

// pendingRecord is a record that a pump or a replay delivers.
type pendingRecord struct {
	journal.Record
	batchIndex int       // index in the batch
	matchIndex int       // index among the records of the batch that the filter matches
	attempts   int       // attempts so far
	first      time.Time // time of the first attempt
}

// attemptResult is the result of one attempt.
type attemptResult struct {
	retry     []pendingRecord // failed records, in order
	delivered int             // acknowledged records
	dead      []journal.DeadLetter
	wait      time.Duration // delay that the broker asked for
	failure   error         // first error of retry
}

// judge sorts the records of an attempt by their results. An error for all records is
// always retried: the error says nothing about a single event. An event that fails and is
// older than maxAge becomes a dead letter; a maxAge of 0 is no limit.
func (o *sinkHandle) judge(records []pendingRecord, each sinks.BatchError, all error, maxAge time.Duration) (v attemptResult) {
	now := o.env.Now()
	if o.history != nil {
		o.acked = o.acked[:0]
		defer func() { o.history.add(o.acked) }()
	}
	going := false // the previous record was acknowledged
	for i, r := range records {
		err := all
		var reason sinks.Reason
		var refused bool
		if each != nil {
			err = each[i]
			reason, refused = sinks.IsPermanent(err)
		}
		if err == nil {
			v.delivered++
			if o.latency != nil {
				o.latency.Observe(max(0, now.Sub(r.Accepted).Seconds()))
			}
			if last := len(o.acked) - 1; going && o.acked[last].attempts == r.attempts {
				o.acked[last].to = r.Seq
			} else if o.history != nil {
				o.acked, going = append(o.acked, ackRange{r.Seq, r.Seq, now, r.attempts}), true
			}
			continue
		}
		going = false
		if !refused && maxAge > 0 && now.Sub(r.Accepted) >= maxAge {
			reason, refused = sinks.ReasonExpired, true
		}
		if !refused {
			v.retry = append(v.retry, r)
			v.wait = max(v.wait, sinks.Wait(err))
			if v.failure == nil {
				v.failure = err
			}
			continue
		}
		v.dead = append(v.dead, journal.DeadLetter{
			Seq: r.Seq, Reason: string(reason), Err: err.Error(), Attempts: r.attempts, First: r.first, Last: now,
		})
		log := o.env.Log
		if id := telemetry.TraceID(r.Event); id != "" {
			log = log.With(zap.String("trace_id", id))
		}
		log.Error("event dead-lettered", zap.Uint64("seq", uint64(r.Seq)), zap.String("event_id", r.Event.CloudEvent.ID()),
			zap.String("reason", string(reason)), zap.Int("attempts", r.attempts), zap.Error(err))
	}
	return v
}
