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

// entry is a value with a subject of its own, such as a dead letter, a quarantined request
// or a value of the KV. The last message of the subject is valid.
type entry struct {
	subject string
	at      uint64 // sequence of the message
	value   []byte
	parts   bool // further messages continue the value
}

// removedHeader marks the message that replaces a removed entry. The server deletes the
// message after a minute.
const removedHeader = "Postwire-Removed"

// messagesFor returns the messages that store an entry and replace an existing entry.
func (j *Journal) messagesFor(subject string, value []byte) []*nats.Msg {
	all := j.messages(subject, value)
	all[0].Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	return all
}

// expect makes the server reject a message unless the previous message of its subject has
// the sequence at. 0 expects no message.
func expect(m *nats.Msg, at uint64) {
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(at, 10))
}

// removal returns the message that removes an unchanged entry.
func (e entry) removal() *nats.Msg {
	m := nats.NewMsg(e.subject)
	m.Header.Set(removedHeader, "1")
	m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	m.Header.Set(jetstream.MsgTTLHeader, "60s")
	expect(m, e.at)
	return m
}

// removals returns the messages that remove an unchanged entry and its further messages.
func (j *Journal) removals(e entry) []*nats.Msg {
	all := []*nats.Msg{e.removal()}
	if e.parts {
		all = append(all, removing(j.names.part(e.subject)))
	}
	return all
}

// removing returns the message that removes the entry of a subject unconditionally.
func removing(subject string) *nats.Msg {
	m := entry{subject: subject}.removal()
	m.Header.Del(jetstream.ExpectedLastSubjSeqHeader)
	return m
}

// entry reads the entry of a subject.
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

// mustEntry reads an entry, and retries until the cluster answers.
func (j *Journal) mustEntry(ctx context.Context, subject string) (e entry, err error) {
	err = j.retry(ctx, func(ctx context.Context) error {
		e, err = j.entry(ctx, subject)
		return err
	})
	return e, err
}

// put stores entries atomically, and retries until the cluster answers.
func (j *Journal) put(ctx context.Context, messages []*nats.Msg) error {
	return j.retry(ctx, func(ctx context.Context) error {
		_, err := j.store(ctx, messages)
		return err
	})
}

// subjects lists the subjects with a prefix, sorted.
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

// scan yields the decoded entries with a prefix, after a subject, ordered by subject.
func scan[T any](ctx context.Context, j *Journal, prefix, after string, decode func(entry) (T, error)) iter.Seq2[T, error] {
	return scanIf(ctx, j, prefix, func(subject string) bool { return subject > after }, decode)
}

// scanIf is scan of the wanted subjects. The other entries are not read.
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
					continue // removed
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

// maxPageBytes limits the bytes of one page, except for a single larger message: a
// quarantined request contains a whole body.
const maxPageBytes = 1 << 20

// pages yields the last messages of the wanted subjects with a prefix, ordered by subject,
// in pages.
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
			// The answer is ordered by sequence, not by subject. A partial answer does not
			// tell the next subject.
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

// AcquireLease implements journal.Journal. A process with a wrong clock gets no lease. The last message of the subject names the
// holder of the lease; the server deletes the message after ttl.
func (j *Journal) AcquireLease(ctx context.Context, name string, ttl time.Duration) (bool, error) {
	if j.clockIsWrong() {
		return false, nil
	}
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
