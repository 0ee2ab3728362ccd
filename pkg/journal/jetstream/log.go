package jetstream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// Last implements journal.Log. Events of other processes appear up to pollInterval later.
func (j *Journal) Last() journal.Seq {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.state.last
}

// Oldest implements journal.Log.
func (j *Journal) Oldest() journal.Seq {
	j.mu.Lock()
	oldest := j.state.oldest
	j.mu.Unlock()
	for _, r := range j.retainedBetween(0, oldest) {
		return r.seq
	}
	return oldest
}

// Wait implements journal.Log.
func (j *Journal) Wait(ctx context.Context, s journal.Seq) error {
	return j.await(ctx, func() bool { return j.state.last >= s })
}

// Read implements journal.Log.
func (j *Journal) Read(ctx context.Context, from journal.Seq, limit int) (records []journal.Record, err error) {
	limit = max(limit, 1)
	last := j.Last()
	if from > last {
		return nil, nil
	}
	var messages []message
	err = j.retry(ctx, func(ctx context.Context) error {
		messages, err = j.page(ctx, j.names.event(), messageFrom(from), limit)
		// A server may lag behind the acknowledged messages.
		if err == nil && len(messages) == 0 && from <= j.Last() {
			if _, err := j.leaderGet(ctx, getRequest{Seq: messageFrom(from), NextFor: j.names.event()}); err == nil {
				return errLag
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading from %d: %w", from, err)
	}
	events := make([]delivery, 0, len(messages))
	for _, m := range messages {
		value, err := j.whole(ctx, m)
		if err != nil {
			return nil, fmt.Errorf("reading from %d: %w", from, err)
		}
		events = append(events, delivery{seqOf(m.seq), value})
	}
	// Events that were removed before the log was read are retained already.
	if events, err = j.withRetained(ctx, events, from, last, limit); err != nil {
		return nil, fmt.Errorf("reading from %d: %w", from, err)
	}
	var decoder record.Decoder
	for _, d := range events {
		r, err := decoder.Record(d.seq, d.value)
		if err != nil {
			return nil, fmt.Errorf("reading from %d: %w", from, err)
		}
		records = append(records, r)
	}
	return records, nil
}

// Count implements journal.Log.
func (j *Journal) Count(ctx context.Context, from, through journal.Seq) (n uint64, err error) {
	if from = max(from, 1); from > through {
		return 0, nil
	}
	j.mu.Lock()
	oldest := j.state.oldest
	j.mu.Unlock()
	err = j.retry(ctx, func(ctx context.Context) error {
		after, err := j.eventsAfter(ctx, from-1)
		if err != nil {
			return err
		}
		beyond, err := j.eventsAfter(ctx, through)
		n = after - min(after, beyond)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("counting events from %d: %w", from, err)
	}
	for _, r := range j.retainedBetween(from, through) {
		if r.seq < oldest {
			n++
		}
	}
	return n, nil
}

// errLag is returned while a server lags behind the leader.
var errLag = errors.New("the server lags behind the stream's leader")

// Since implements journal.Log.
func (j *Journal) Since(ctx context.Context, t time.Time) (s journal.Seq, err error) {
	j.mu.Lock()
	oldest, last := j.state.oldest, j.state.last
	j.mu.Unlock()
	err = j.retry(ctx, func(ctx context.Context) error {
		s, err = j.since(ctx, t, oldest, last)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("looking for events since %v: %w", t, err)
	}
	return s, nil
}

// since returns the sequence of the first event in a range that was accepted at t or later,
// or the sequence after the range.
func (j *Journal) since(ctx context.Context, t time.Time, oldest, last journal.Seq) (journal.Seq, error) {
	low, high := messageFrom(oldest), messageOf(last)+1 // messages; events before low are older than t; the first event from high on is not
	for low < high {
		mid := low + (high-low)/2
		m, err := j.leaderGet(ctx, getRequest{Seq: mid, NextFor: j.names.event()})
		if errors.Is(err, journal.ErrNotFound) || err == nil && m.seq >= high {
			high = mid // no event from mid on is before high
			continue
		}
		if err != nil {
			return 0, err
		}
		accepted, err := record.Accepted(m.data)
		if err != nil {
			return 0, fmt.Errorf("%w: event %d: %w", errBroken, seqOf(m.seq), err)
		}
		if accepted.Before(t) {
			low = m.seq + 1
		} else {
			high = mid
		}
	}
	// The first event of the result is at high or later.
	m, err := j.leaderGet(ctx, getRequest{Seq: max(high, 1), NextFor: j.names.event()})
	switch {
	case errors.Is(err, journal.ErrNotFound):
		return last + 1, nil
	case err != nil:
		return 0, err
	}
	return min(seqOf(m.seq), last+1), nil
}
