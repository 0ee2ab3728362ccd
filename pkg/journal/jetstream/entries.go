package jetstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/postwire/postwire/pkg/journal"
)

// entry is a value under a subject of its own, of which the last one counts: a
// dead letter, a quarantined request, a note.
type entry struct {
	subject string
	at      uint64 // place of its message
	value   []byte
	parts   bool // it goes on in other messages
}

// removedHeader marks the message that takes an entry's place when it is removed.
// It goes by itself a minute later.
const removedHeader = "Postwire-Removed"

// messagesFor are those that put an entry, in the place of any before it.
func (j *Journal) messagesFor(subject string, value []byte) []*nats.Msg {
	all := j.messages(subject, value)
	all[0].Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	return all
}

// expect makes a message be refused unless the one before it under its subject
// stands at a place; 0 is that there is none.
func expect(m *nats.Msg, at uint64) {
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(at, 10))
}

// removal is the message that removes the entry, if it still is what it was.
func (e entry) removal() *nats.Msg {
	m := nats.NewMsg(e.subject)
	m.Header.Set(removedHeader, "1")
	m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	m.Header.Set(jetstream.MsgTTLHeader, "60s")
	expect(m, e.at)
	return m
}

// removals are the messages that remove the entry whole, if it still is what it was.
func (j *Journal) removals(e entry) []*nats.Msg {
	all := []*nats.Msg{e.removal()}
	if e.parts {
		all = append(all, removing(j.names.part(e.subject)))
	}
	return all
}

// removing is the message that removes the entry under a subject, whatever it is.
func removing(subject string) *nats.Msg {
	m := entry{subject: subject}.removal()
	m.Header.Del(jetstream.ExpectedLastSubjSeqHeader)
	return m
}

// entry reads the entry under a subject.
func (j *Journal) entry(ctx context.Context, subject string) (entry, error) {
	m, err := j.leaderGet(ctx, getRequest{LastFor: subject})
	if err != nil {
		return entry{}, err
	}
	return j.entryOf(ctx, m)
}

func (j *Journal) entryOf(ctx context.Context, m message) (e entry, err error) {
	if m.header.Get(removedHeader) != "" {
		return entry{}, journal.ErrNotFound
	}
	e = entry{subject: m.subject, at: m.seq, parts: m.header.Get(partsHeader) != ""}
	e.value, err = j.whole(ctx, m)
	return e, err
}

// mustEntry reads an entry, and while the cluster does not answer waits for that
// to pass.
func (j *Journal) mustEntry(ctx context.Context, subject string) (e entry, err error) {
	err = j.retry(ctx, func(ctx context.Context) error {
		e, err = j.entry(ctx, subject)
		return err
	})
	return e, err
}

// put stores entries as one act. While the cluster does not answer it waits for
// that to pass.
func (j *Journal) put(ctx context.Context, messages []*nats.Msg) error {
	return j.retry(ctx, func(ctx context.Context) error {
		_, err := j.store(ctx, messages)
		return err
	})
}

// subjects lists the subjects under a prefix, sorted.
func (j *Journal) subjects(ctx context.Context, filter string) (subjects []string, err error) {
	err = j.retry(ctx, func(ctx context.Context) error {
		s, err := j.js.Stream(ctx, j.opts.Stream)
		if err != nil {
			return err
		}
		info, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
		if err != nil {
			return err
		}
		subjects = subjects[:0]
		for subject := range info.State.Subjects {
			subjects = append(subjects, subject)
		}
		return nil
	})
	slices.Sort(subjects)
	return subjects, err
}

// scan yields what decode makes of each entry under a prefix behind a subject, by
// subject.
func scan[T any](ctx context.Context, j *Journal, prefix, after string, decode func(entry) (T, error)) iter.Seq2[T, error] {
	return scanIf(ctx, j, prefix, func(subject string) bool { return subject > after }, decode)
}

// scanIf is scan of those subjects under a prefix that are wanted. The others are
// not read.
func scanIf[T any](ctx context.Context, j *Journal, prefix string, wanted func(subject string) bool, decode func(entry) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		for messages, err := range j.pages(ctx, prefix, wanted) {
			if err != nil {
				yield(zero, err)
				return
			}
			for _, m := range messages {
				e, err := j.entryOf(ctx, m)
				if errors.Is(err, journal.ErrNotFound) && ctx.Err() == nil {
					continue // it was removed
				}
				var item T
				if err = cmp.Or(ctx.Err(), err); err == nil {
					item, err = decode(e)
				}
				if err != nil {
					yield(zero, fmt.Errorf("reading %s: %w", m.subject, err))
					return
				}
				if !yield(item, nil) {
					return
				}
			}
		}
	}
}

// maxPageBytes bounds the messages that pages holds at once, but for one that is
// larger: a quarantined request holds a whole body.
const maxPageBytes = 1 << 20

// pages yields the last messages of those subjects under a prefix that are wanted,
// by subject and some at a time.
func (j *Journal) pages(ctx context.Context, prefix string, wanted func(subject string) bool) iter.Seq2[[]message, error] {
	const maxPage = 64
	return func(yield func([]message, error) bool) {
		subjects, err := j.subjects(ctx, prefix+">")
		if err != nil {
			yield(nil, err)
			return
		}
		subjects = slices.DeleteFunc(subjects, func(subject string) bool { return !wanted(subject) })
		for n := maxPage; len(subjects) > 0; {
			some := subjects[:min(n, len(subjects))]
			var messages []message
			var all bool
			err := j.retry(ctx, func(ctx context.Context) (err error) {
				messages, all, err = j.lastWithin(ctx, some, maxPageBytes)
				return err
			})
			if err = cmp.Or(ctx.Err(), err); err != nil {
				yield(nil, err)
				return
			}
			// They are answered by place, not by subject: without all of them it is
			// not known which is next.
			if !all && len(some) > 1 {
				n = max(1, min(len(messages), len(some)-1))
				continue
			}
			size := 0
			for _, m := range messages {
				size += len(m.data)
			}
			if size < maxPageBytes/4 {
				n = min(2*n, maxPage)
			}
			subjects = subjects[len(some):]
			slices.SortFunc(messages, func(a, b message) int { return strings.Compare(a.subject, b.subject) })
			if !yield(messages, nil) {
				return
			}
		}
	}
}

// PutValue implements journal.KV.
func (j *Journal) PutValue(ctx context.Context, key string, value []byte) error {
	if err := j.put(ctx, j.messagesFor(j.names.value(key), value)); err != nil {
		return fmt.Errorf("storing %s: %w", key, err)
	}
	return nil
}

// DeleteValue implements journal.KV.
func (j *Journal) DeleteValue(ctx context.Context, key string) error {
	if err := j.put(ctx, []*nats.Msg{removing(j.names.value(key))}); err != nil {
		return fmt.Errorf("deleting %s: %w", key, err)
	}
	return nil
}

// Values implements journal.KV.
func (j *Journal) Values(ctx context.Context, prefix string) iter.Seq2[journal.KVEntry, error] {
	return func(yield func(journal.KVEntry, error) bool) {
		var all []journal.KVEntry
		begins := func(subject string) bool { return strings.HasPrefix(last(subject), prefix) }
		for n, err := range scanIf(ctx, j, j.opts.Stream+".note.", begins, func(e entry) (journal.KVEntry, error) {
			return journal.KVEntry{Key: last(e.subject), Value: e.value}, nil
		}) {
			if err != nil {
				yield(n, err)
				return
			}
			all = append(all, n)
		}
		slices.SortFunc(all, func(a, b journal.KVEntry) int { return strings.Compare(a.Key, b.Key) })
		for _, n := range all {
			if !yield(n, nil) {
				return
			}
		}
	}
}

// AcquireLease implements journal.Journal. The last message of the subject names the
// holder of the lease; the server deletes the message after ttl.
func (j *Journal) AcquireLease(ctx context.Context, name string, ttl time.Duration) (bool, error) {
	subject := j.names.lead(name)
	now, err := j.entry(ctx, subject)
	switch {
	case err != nil && !errors.Is(err, journal.ErrNotFound):
		return false, fmt.Errorf("reading the lease %s: %w", name, err)
	case err == nil && string(now.value) != j.opts.Name:
		return false, nil
	}
	m := nats.NewMsg(subject)
	m.Data = []byte(j.opts.Name)
	m.Header.Set(jetstream.MsgTTLHeader, seconds(ttl))
	m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	expect(m, now.at)
	switch _, err := j.store(ctx, []*nats.Msg{m}); {
	case errors.Is(err, errConflict):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("acquiring the lease %s: %w", name, err)
	}
	return true, nil
}
