package jetstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
)

// Percentages of journal.max_bytes. Delivered events are removed well before appends fail.
const (
	trimAt = 80 // start of removal
	trimTo = 75
)

// trimInterval is the interval between two removals while the stream stays nearly full.
const trimInterval = 2 * time.Second

// unusedCursorTTL is how long the engine keeps the events after a cursor that no process has
// open: the sink is in no configuration.
const unusedCursorTTL = time.Hour

// unused reports whether no process had the cursor open for unusedCursorTTL.
func (r cursorRecord) unused(now time.Time) bool { return now.Sub(r.Opened) > unusedCursorTTL }

// expireAll removes expired data periodically. One of the processes does the work.
func (j *Journal) expireAll() {
	tick := time.NewTicker(j.opts.Every)
	defer tick.Stop()
	near := time.NewTicker(trimInterval)
	defer near.Stop()
	for {
		select {
		case <-tick.C:
		case <-j.trimNow:
		case <-near.C:
			if !j.isNearlyFull() {
				continue
			}
		case <-j.life.Done():
			return
		}
		if err := j.Expire(j.life); err != nil && j.life.Err() == nil {
			j.log.Warn("removing old events failed, it will be tried again", zap.Error(err))
		}
	}
}

// Expire stores which cursors are open in this process. If this process holds the lease,
// Expire removes the events that are older than the retention and that every cursor has
// passed, and the quarantined requests whose last receipt is older than the retention. While
// the position of a cursor cannot be read, Expire removes no events.
func (j *Journal) Expire(ctx context.Context) error {
	j.expiring.Lock()
	defer j.expiring.Unlock()
	ctx, cancel := context.WithTimeout(ctx, max(j.opts.Every, 10*time.Second))
	defer cancel()
	for _, c := range j.openCursors() {
		if err := c.touch(ctx); err != nil && !errors.Is(err, journal.ErrOwnershipLost) {
			return err
		}
	}
	if err := j.retainOpen(ctx); err != nil {
		return fmt.Errorf("copying open events: %w", err)
	}
	leads, err := j.AcquireLease(ctx, "expire", 2*j.opts.Every)
	if err != nil || !leads {
		return err
	}
	if err := j.waitReady(ctx); err != nil {
		return err
	}
	if err := j.expireQuarantine(ctx); err != nil {
		return err
	}
	if err := j.poll(ctx); err != nil {
		return err
	}
	j.mu.Lock()
	oldest, last := j.state.oldest, j.state.last
	j.mu.Unlock()
	passed, err := j.passedByAll(ctx, last)
	if j.reportRemoval(err); err != nil || passed < oldest {
		return err
	}
	old, err := j.since(ctx, j.opts.Clock().Add(-j.opts.Retention), oldest, last)
	if err != nil {
		return err
	}
	if through := min(old-1, passed); through >= oldest {
		if _, err := j.remove(ctx, through); err != nil {
			return err
		}
	}
	return j.trim(ctx, passed)
}

// trim makes room in a nearly full stream: it removes the oldest events that every cursor
// has passed.
func (j *Journal) trim(ctx context.Context, passed journal.Seq) error {
	var removed uint64
	for {
		through := j.excess(passed)
		if through == 0 {
			break
		}
		n, err := j.remove(ctx, through)
		if err != nil {
			return err
		}
		if removed += n; n == 0 {
			break
		}
	}
	if removed > 0 {
		j.trimmed.Add(removed)
		j.log.Warn("the journal is nearly full: events that every sink has passed were removed before their retention",
			zap.Uint64("events", removed), zap.Duration("retention", j.opts.Retention), zap.Uint64("max_bytes", j.opts.MaxBytes))
	}
	return nil
}

// retainOpen copies the few open events among those that can be removed, for the cursors
// that this process owns.
func (j *Journal) retainOpen(ctx context.Context) error {
	owned := slices.DeleteFunc(j.openCursors(), func(c *cursor) bool { return !c.Owner().Local })
	if len(owned) == 0 {
		return nil
	}
	j.mu.Lock()
	oldest, last := j.state.oldest, j.state.last
	j.mu.Unlock()
	through := last
	if !j.isNearlyFull() {
		old, err := j.since(ctx, j.opts.Clock().Add(-j.opts.Retention), oldest, last)
		if err != nil {
			return err
		}
		through = old - 1
	}
	for _, c := range owned {
		if err := c.retain(ctx, through); err != nil && !errors.Is(err, journal.ErrOwnershipLost) {
			return err
		}
	}
	return nil
}

// passedByAll returns the lowest sequence that all cursors have passed, except those that no
// process has had open for unusedCursorTTL.
func (j *Journal) passedByAll(ctx context.Context, last journal.Seq) (journal.Seq, error) {
	records, err := j.cursorRecords(ctx)
	if err != nil {
		return 0, fmt.Errorf("reading the positions of all sinks: %w", err)
	}
	passed := last
	unused := map[string]bool{}
	for name, r := range records {
		if !r.unused(j.opts.Clock()) {
			passed = min(passed, r.removableThrough())
			continue
		}
		unused[name] = true
		if !j.unused[name] {
			j.log.Error("no relay has had the sink in its configuration for an hour; the journal discards the events that the sink has not delivered when their retention is over",
				zap.String("sink", name), zap.Time("opened", r.Opened), zap.Uint64("committed", uint64(r.Committed)))
		}
	}
	j.unused = unused
	return passed, nil
}

// reportRemoval logs that events cannot be removed, once until the reason changes.
func (j *Journal) reportRemoval(err error) {
	was := j.removalErr
	j.removalErr = err
	switch {
	case err != nil && (was == nil || was.Error() != err.Error()):
		j.log.Error("delivered events are not removed", zap.Error(err))
	case err == nil && was != nil:
		j.log.Info("delivered events are removed again")
	}
}

// nearlyFull reports whether a size is larger than trimAt percent of the limit.
func (j *Journal) nearlyFull(bytes uint64) bool {
	return j.opts.MaxBytes > 0 && bytes > j.opts.MaxBytes/100*trimAt
}

func (j *Journal) isNearlyFull() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.nearlyFull(j.state.bytes)
}

// excess returns the sequence through which to remove events to make room; 0 is none.
func (j *Journal) excess(passed journal.Seq) journal.Seq {
	j.mu.Lock()
	defer j.mu.Unlock()
	st := j.state
	if !j.nearlyFull(st.bytes) || st.oldest > st.last || passed < st.oldest {
		return 0
	}
	// Assume an equal size for all sequences. Keys take space too and stay; then the next
	// call returns more.
	share := float64(st.bytes-j.opts.MaxBytes/100*trimTo) / float64(st.bytes)
	return min(passed, st.oldest+journal.Seq(share*float64(st.last-st.oldest)))
}

// remove removes the events through a sequence with their dispositions, and returns their
// number.
func (j *Journal) remove(ctx context.Context, through journal.Seq) (uint64, error) {
	s, err := j.js.Stream(ctx, j.opts.Stream)
	if err != nil {
		return 0, err
	}
	before := j.Usage().Events
	// Dispositions are stored after their events.
	for _, subject := range []string{j.names.event(), j.names.part(j.names.event()), j.opts.Stream + ".lost.>"} {
		err = errors.Join(err, s.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeSequence(messageOf(through)+1)))
	}
	if err != nil {
		return 0, fmt.Errorf("removing events: %w", err)
	}
	if err := j.poll(ctx); err != nil {
		return 0, err
	}
	return before - min(before, j.Usage().Events), nil
}
