package jetstream

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"

	"github.com/nats-io/nats.go"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// The value of a dead letter is the length of the letter's JSON, the JSON, and the record
// of the event.
func encodeDead(letter journal.DeadLetter, rec []byte) ([]byte, error) {
	text, err := json.Marshal(letter)
	if err != nil {
		return nil, err
	}
	return append(record.AppendString(nil, string(text)), rec...), nil
}

func splitDead(value []byte) (letter journal.DeadLetter, rec []byte, err error) {
	r := &record.Reader{B: value}
	text := r.Bytes()
	if r.Err != nil {
		return letter, nil, r.Err
	}
	return letter, r.B, json.Unmarshal(text, &letter)
}

// deadOf decodes a dead letter except for its record.
func (j *Journal) deadOf(e entry) (id journal.DeliveryID, letter journal.DeadLetter, rec []byte, err error) {
	if id, err = j.names.deadID(e.subject); err == nil {
		letter, rec, err = splitDead(e.value)
	}
	return id, letter, rec, err
}

func (j *Journal) decodeDead(e entry) (d journal.Dead, err error) {
	id, letter, rec, err := j.deadOf(e)
	if err != nil {
		return d, err
	}
	d.Sink, d.Letter = id.Sink, letter
	d.Record, err = record.Decode(id.Seq, rec)
	return d, err
}

// DeadLetters implements journal.DeadLetterStore.
func (j *Journal) DeadLetters(ctx context.Context, after journal.DeliveryID) iter.Seq2[journal.Dead, error] {
	from := ""
	if after != (journal.DeliveryID{}) {
		from = j.names.dead(after)
	}
	return scan(ctx, j, j.opts.Stream+".dead.", from, j.decodeDead)
}

// DeadLetter implements journal.DeadLetterStore.
func (j *Journal) DeadLetter(ctx context.Context, id journal.DeliveryID) (d journal.Dead, err error) {
	e, err := j.mustEntry(ctx, j.names.dead(id))
	if err == nil {
		d, err = j.decodeDead(e)
	}
	if err != nil {
		return d, fmt.Errorf("dead letter %d of sink %s: %w", id.Seq, id.Sink, err)
	}
	return d, nil
}

// lostMessage returns the message that stores a disposition.
func (j *Journal) lostMessage(sink string, u journal.Disposition) (*nats.Msg, error) {
	b, err := json.Marshal(u)
	if err != nil {
		return nil, err
	}
	m := nats.NewMsg(j.names.lost(sink))
	m.Data = b
	return m, nil
}

// resolveDeadLetter removes a dead letter and stores messages in one atomic write. An
// attempt without an answer is repeated; if the dead letter is gone then, done reports
// whether the earlier attempt succeeded.
func (j *Journal) resolveDeadLetter(ctx context.Context, id journal.DeliveryID, with func(rec []byte) ([]*nats.Msg, error), done func(context.Context) (bool, error)) (end uint64, err error) {
	unknown := false
	err = j.retry(ctx, func(ctx context.Context) error {
		e, err := j.entry(ctx, j.names.dead(id))
		if errors.Is(err, journal.ErrNotFound) && unknown {
			ok, err := done(ctx)
			if err == nil && !ok {
				err = journal.ErrNotFound
			}
			return err
		}
		if err != nil {
			return err
		}
		_, rec, err := splitDead(e.value)
		if err != nil {
			return fmt.Errorf("%w: %w", errBroken, err)
		}
		messages, err := with(rec)
		if err != nil {
			return fmt.Errorf("%w: %w", errBroken, err)
		}
		removed := j.removals(e)
		end, err = j.store(ctx, append(messages, removed...))
		end -= min(end, uint64(len(removed)-1)) // a removal of several messages counts as one
		if errors.Is(err, errConflict) {
			return errors.New("the dead letter has changed") // retry with the new entry
		}
		unknown = err != nil && !errors.Is(err, journal.ErrFull)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("dead letter %d of sink %s: %w", id.Seq, id.Sink, err)
	}
	return end, nil
}

// Redeliver implements journal.DeadLetterStore.
func (j *Journal) Redeliver(ctx context.Context, id journal.DeliveryID) (s journal.Seq, err error) {
	if err := j.check(); err != nil {
		return 0, fmt.Errorf("retrying: %w", err)
	}
	at := j.opts.Clock().UTC()
	var parts int
	with := func(rec []byte) ([]*nats.Msg, error) {
		r, encoded, err := record.Split(id.Seq, rec)
		if err != nil {
			return nil, err
		}
		if r.OriginSeq == 0 {
			r.OriginSeq = id.Seq
		}
		value := append(record.AppendKeys(record.AppendAddress(nil, id.Sink, r.OriginSeq), r.Event.Keys), encoded...)
		binary.BigEndian.PutUint64(value, uint64(j.now()))
		messages := j.messages(j.names.event(), value)
		parts = len(messages)
		// The sequence is unknown before the write. The event is stored right before the
		// disposition, which has its own sequence as RedeliveredAs.
		lost, err := j.lostMessage(id.Sink, journal.Disposition{From: id.Seq, To: id.Seq, Reason: journal.Redelivered, At: at})
		if err != nil {
			return nil, err
		}
		return append(messages, lost), nil
	}
	end, err := j.resolveDeadLetter(ctx, id, with, func(ctx context.Context) (bool, error) {
		u, err := j.lostRange(ctx, id)
		s = u.RedeliveredAs
		return err == nil && u.Reason == journal.Redelivered && u.At.Equal(at), ignoreMissing(err)
	})
	if err != nil || s != 0 {
		return s, err
	}
	s = seqOf(end - 1 - uint64(parts)) // before the disposition and the removal
	j.stored(s)
	return s, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, journal.ErrNotFound) {
		return nil
	}
	return err
}

// Drop implements journal.DeadLetterStore.
func (j *Journal) Drop(ctx context.Context, id journal.DeliveryID) error {
	at := j.opts.Clock().UTC()
	_, err := j.resolveDeadLetter(ctx, id, func([]byte) ([]*nats.Msg, error) {
		lost, err := j.lostMessage(id.Sink, journal.Disposition{From: id.Seq, To: id.Seq, Reason: journal.DroppedByOperator, At: at})
		return []*nats.Msg{lost}, err
	}, func(ctx context.Context) (bool, error) {
		u, err := j.lostRange(ctx, id)
		return err == nil && u.Reason == journal.DroppedByOperator && u.At.Equal(at), ignoreMissing(err)
	})
	return err
}

// Disposition implements journal.DeadLetterStore.
func (j *Journal) Disposition(ctx context.Context, id journal.DeliveryID) (u journal.Disposition, err error) {
	if id.Seq < j.Oldest() {
		err = journal.ErrNotFound // removed with the events
	} else {
		err = j.retry(ctx, func(ctx context.Context) error {
			u, err = j.lostRange(ctx, id)
			return err
		})
	}
	if err != nil {
		return journal.Disposition{}, fmt.Errorf("what sink %s was not given: %w", id.Sink, err)
	}
	return u, nil
}

// lostRange finds the newest disposition of the event. A disposition is stored after its
// events.
func (j *Journal) lostRange(ctx context.Context, id journal.DeliveryID) (found journal.Disposition, err error) {
	const page = 512
	for from := messageOf(id.Seq); ; {
		messages, err := j.page(ctx, j.names.lost(id.Sink), from, page)
		if err != nil {
			return found, err
		}
		for _, m := range messages {
			var u journal.Disposition
			if err := json.Unmarshal(m.data, &u); err != nil {
				return found, fmt.Errorf("%w: %s at %d: %w", errBroken, m.subject, m.seq, err)
			}
			if u.From <= id.Seq && id.Seq <= u.To {
				if found = u; u.Reason == journal.Redelivered && u.RedeliveredAs == 0 { // migrated dispositions have a sequence
					if found.RedeliveredAs, err = j.eventBefore(ctx, m.seq); err != nil {
						return found, err
					}
				}
			}
			from = m.seq + 1
		}
		if len(messages) < page {
			break
		}
	}
	if found.Reason == "" {
		return found, journal.ErrNotFound
	}
	return found, nil
}

// eventBefore returns the sequence of the redelivered event that was stored right before a
// disposition.
func (j *Journal) eventBefore(ctx context.Context, at uint64) (journal.Seq, error) {
	for at--; at > 0; at-- {
		m, err := j.leaderGet(ctx, getRequest{Seq: at})
		if err != nil {
			return 0, ignoreMissing(err) // the event has expired
		}
		if m.subject == j.names.event() {
			return seqOf(at), nil
		}
	}
	return 0, nil
}
