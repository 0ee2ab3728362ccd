package jetstream

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/postwire/postwire/internal/sleep"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/pkg/journal/transfer"
)

// Subjects of a migration into this stream:
//
//	transfer.state        progress
//	transfer.row.<n>      sequences of a page in both journals
//	transfer.hole         reserved sequence
func (n names) carried() string         { return n.stream + ".transfer.state" }
func (n names) carriedRows() string     { return n.stream + ".transfer.row.>" }
func (n names) carriedRow(i int) string { return fmt.Sprintf("%s.transfer.row.%010d", n.stream, i) }
func (n names) hole() string            { return n.stream + ".transfer.hole" }

// unfinishedKey marks an incompletely migrated stream.
const unfinishedKey = "postwire.unfinished"

// checkFinished refuses an incompletely migrated stream.
func (j *Journal) checkFinished(have jetstream.StreamConfig) error {
	if have.Metadata[unfinishedKey] == "" || j.opts.filling {
		return nil
	}
	return &refusal{fmt.Sprintf("the stream %s holds a part of another journal, which 'postwire journal migrate' has not carried to the end: run that again, or name another stream with journal.jetstream.stream", have.Name)}
}

// ErrInUse is wrapped by the error of OpenSource and OpenTarget for a stream that a relay
// uses.
var ErrInUse = errors.New("a relay uses the stream")

const (
	// stepTimeout bounds the wait of one step for the cluster, and attempt the wait for one
	// answer, because a cluster without a leader does not answer.
	stepTimeout = time.Minute
	attempt     = 5 * time.Second
	// migratePage is the number of messages per read.
	migratePage = 512
)

// attach connects to the cluster without starting goroutines.
func attach(ctx context.Context, opts Options) (*Journal, error) {
	if opts.Window <= 0 {
		return nil, fmt.Errorf("the dedupe window is %v, it must be longer than 0", opts.Window)
	}
	opts = opts.withDefaults()
	opts.Every, opts.Spill = math.MaxInt64, nil
	opts.replicaTimeout = math.MaxInt64 // no proof of the quorum: only the migration writes
	j := &Journal{
		opts: opts, log: opts.Log, names: names{opts.Stream}, ready: true,
		changed: make(chan struct{}), pollNow: make(chan struct{}, 1), cursors: map[string]*cursor{}, state: state{oldest: 1},
	}
	j.life, j.end = context.WithCancel(context.WithoutCancel(ctx))
	j.newEpoch()
	err := j.connect()
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, stepTimeout)
		defer cancel()
		err = j.connected(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return j, nil
}

// retryUntil retries do until it succeeds or a deadline passes.
func (j *Journal) retryUntil(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	wait := newWait()
	for {
		try, done := context.WithTimeout(ctx, attempt)
		err := do(try)
		done()
		_, permanent := errors.AsType[*refusal](err)
		if err == nil || permanent || errors.Is(err, errConflict) || errors.Is(err, journal.ErrFull) || errors.Is(err, errBroken) {
			return err
		}
		j.log.Debug("asking the cluster again", zap.Error(err))
		if sleep.For(ctx, wait.NextBackOff()) != nil {
			return fmt.Errorf("the cluster does not do it: %w", err)
		}
	}
}

// where describes the journal for users.
func (j *Journal) where() string {
	return fmt.Sprintf("the stream %s at %s", j.opts.Stream, j.address())
}

// idle refuses a stream that a relay uses: an owner of a cursor renews its lease.
func (j *Journal) idle(ctx context.Context) error {
	before, err := j.cursorRecords(ctx)
	if err != nil {
		return err
	}
	owned := slices.ContainsFunc(slices.Collect(maps.Values(before)), func(r cursorRecord) bool { return r.Owner != "" })
	if !owned {
		return nil
	}
	if err := sleep.For(ctx, j.opts.lease); err != nil {
		return err
	}
	after, err := j.cursorRecords(ctx)
	for name, r := range after {
		if r.Token != before[name].Token {
			return fmt.Errorf("%w: %w", ErrInUse, &refusal{fmt.Sprintf("the relay %s delivers to the sink %s: stop all relays that use the stream", r.Owner, name)})
		}
	}
	return err
}

// Migration returns the state of the migration that filled the stream, nil if there was none,
// and whether the stream is complete: it exists, and is not the target of an unfinished
// migration. Migration asks once and changes nothing.
func Migration(ctx context.Context, opts Options) (state []byte, complete bool, err error) {
	j, err := attach(ctx, opts)
	if err != nil {
		return nil, false, fmt.Errorf("journal: %w", err)
	}
	defer func() { err = errors.Join(err, j.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	s, err := j.js.Stream(ctx, opts.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("journal: %s: %w", j.where(), err)
	}
	e, err := j.entry(ctx, j.names.carried())
	if err = ignoreMissing(err); err != nil {
		return nil, false, fmt.Errorf("journal: %s: %w", j.where(), err)
	}
	return e.value, s.CachedInfo().Config.Metadata[unfinishedKey] == "", nil
}

// source implements transfer.Source.
type source struct {
	*Journal
	end     uint64 // sequence of the last message when the stream was opened
	unknown uint64 // keys without known text

	retained []retainedCopy // events that are not in the log any more
}

// OpenSource opens the journal in a stream for a migration and does not change it. It
// refuses a stream that a relay uses, and a configuration with events in its spill. Its
// error wraps ErrInUse, or journal.ErrNotFound without a stream.
func OpenSource(ctx context.Context, opts Options) (transfer.Source, error) {
	j, err := attach(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	s := &source{Journal: j}
	if err = s.begin(ctx); err == nil {
		err = nothingSpilled(ctx, opts)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("journal: %s: %w", j.where(), err), j.Close())
	}
	return s, nil
}

func (s *source) begin(ctx context.Context) error {
	if err := checkVersion(s.conn.ConnectedServerVersion()); err != nil {
		return err
	}
	return s.retryUntil(ctx, func(ctx context.Context) error {
		stream, err := s.js.Stream(ctx, s.opts.Stream)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("%w: %w", journal.ErrNotFound, &refusal{err.Error()})
		}
		if err != nil {
			return explained(err)
		}
		info := stream.CachedInfo()
		if err := checkFormat(info.Config); err != nil {
			return err
		}
		if err := s.checkFinished(info.Config); err != nil {
			return err
		}
		if err := s.idle(ctx); err != nil {
			return err
		}
		s.end = info.State.LastSeq
		if err := s.poll(ctx); err != nil {
			return err
		}
		records, err := s.cursorRecords(ctx)
		s.retained = retainedBefore(records, 1, s.state.oldest)
		return err
	})
}

// nothingSpilled refuses a configuration with events in its spill.
func nothingSpilled(ctx context.Context, opts Options) error {
	if opts.Spill == nil {
		return nil
	}
	n, err := Spilled(ctx, opts.Spill.Dir, opts.Window)
	if err == nil && n > 0 {
		err = fmt.Errorf("the spill %s holds %d events and requests that the cluster has not taken yet: start the relay, wait until postwire_journal_spilled is 0, and stop it", opts.Spill.Dir, n)
	}
	return err
}

// Spilled returns the number of events and requests in a spill that the cluster has not
// stored. It does not change the spill, and refuses a spill that a relay uses.
func Spilled(ctx context.Context, dir string, window time.Duration) (n int, err error) {
	if _, err := os.Stat(filepath.Join(dir, "FORMAT")); errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	src, err := local.OpenSource(local.Options{Dir: dir, Window: window})
	if err != nil {
		return 0, fmt.Errorf("spill: %w", err)
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	var passed journal.Seq
	for c, err := range src.Cursors(ctx) {
		if err != nil {
			return 0, fmt.Errorf("spill: %w", err)
		}
		passed = max(passed, c.Committed)
	}
	for _, err := range src.Events(ctx, passed+1) {
		if err != nil {
			return 0, fmt.Errorf("spill: %w", err)
		}
		n++
	}
	for _, err := range src.Quarantined(ctx) {
		if err != nil {
			return 0, fmt.Errorf("spill: %w", err)
		}
		n++
	}
	return n, nil
}

// Location implements transfer.Source.
func (s *source) Location() string { return s.where() }

// Range implements transfer.Source.
func (s *source) Range() (oldest, last journal.Seq, events uint64) {
	if len(s.retained) == 0 {
		return s.state.oldest, s.state.last, s.state.events
	}
	return min(s.state.oldest, s.retained[0].seq), s.state.last, s.state.events + uint64(len(s.retained))
}

// scan yields the messages of a subject in a range of sequences.
func (s *source) scan(ctx context.Context, subject string, from, through uint64) iter.Seq2[message, error] {
	return func(yield func(message, error) bool) {
		for from <= through {
			messages, err := s.readPage(ctx, subject, from)
			if err != nil {
				yield(message{}, err)
				return
			}
			if len(messages) == 0 {
				return
			}
			for _, m := range messages {
				if from = m.seq + 1; m.seq > through || !yield(m, nil) {
					return
				}
			}
		}
	}
}

// readPage reads messages of a subject from a sequence on. The result is empty only if the
// leader has none.
func (s *source) readPage(ctx context.Context, subject string, from uint64) (messages []message, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	err = s.retry(ctx, func(ctx context.Context) error {
		messages, err = s.page(ctx, subject, from, migratePage)
		if err != nil || len(messages) > 0 {
			return err
		}
		_, err := s.leaderGet(ctx, getRequest{Seq: from, NextFor: subject})
		if err == nil {
			return errLag
		}
		return ignoreMissing(err)
	})
	return messages, err
}

// Events implements transfer.Source.
func (s *source) Events(ctx context.Context, from journal.Seq) iter.Seq2[transfer.Event, error] {
	return func(yield func(transfer.Event, error) bool) {
		for _, r := range s.retained {
			if r.seq < from {
				continue
			}
			value, err := s.retainedValue(ctx, r.cursor, r.at, r.seq)
			if err == nil && value == nil {
				continue
			}
			var e transfer.Event
			if err == nil {
				e, err = transfer.Split(r.seq, value)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
		for m, err := range s.scan(ctx, s.names.event(), max(1, messageFrom(from)), messageOf(s.state.last)) {
			var e transfer.Event
			if err == nil {
				e, err = s.event(ctx, m)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func (s *source) event(ctx context.Context, m message) (transfer.Event, error) {
	value, err := s.whole(ctx, m)
	if err != nil {
		return transfer.Event{}, err
	}
	return transfer.Split(seqOf(m.seq), value)
}

// Keys implements transfer.Source. The subject of a claim is the hash of its key; the claim
// or its event has the key.
func (s *source) Keys(ctx context.Context) iter.Seq2[transfer.Key, error] {
	now := s.opts.Clock().UnixNano()
	return func(yield func(transfer.Key, error) bool) {
		s.unknown = 0
		var claims []message
		flush := func() bool {
			keys, err := s.keysOf(ctx, claims, now)
			if err != nil {
				yield(transfer.Key{}, err)
				return false
			}
			claims = claims[:0]
			for _, k := range keys {
				if !yield(k, nil) {
					return false
				}
			}
			return true
		}
		for m, err := range s.scan(ctx, s.opts.Stream+".key.>", 1, s.end) {
			if err != nil {
				yield(transfer.Key{}, err)
				return
			}
			if claims = append(claims, m); len(claims) == migratePage && !flush() {
				return
			}
		}
		flush()
	}
}

// keysOf returns the keys of the valid claims.
func (s *source) keysOf(ctx context.Context, claims []message, now int64) ([]transfer.Key, error) {
	var keys []transfer.Key
	wanted := map[journal.Seq][]int{} // claims whose event has the key
	for _, m := range claims {
		c, err := decodeClaim(m)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.subject, err)
		}
		if !c.within(s.opts.Window, now) {
			continue
		}
		k := transfer.Key{First: time.Unix(0, c.first).UTC(), Seq: c.seq, ID: c.id}
		if text := m.header.Get(keyHeader); text != "" {
			b, err := base64.RawStdEncoding.DecodeString(text)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", m.subject, err)
			}
			k.Key = event.Key(b)
		} else {
			k.Key = event.Key(m.subject) // replaced by findKeys
			wanted[c.seq] = append(wanted[c.seq], len(keys))
		}
		keys = append(keys, k)
	}
	if err := s.findKeys(ctx, keys, wanted); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(keys, func(k transfer.Key) bool { return k.Key == "" }), nil
}

// findKeys replaces subjects of claims by the keys in their events. Missing keys become
// empty.
func (s *source) findKeys(ctx context.Context, keys []transfer.Key, wanted map[journal.Seq][]int) error {
	places := make([]journal.Seq, 0, len(wanted))
	for at := range wanted {
		places = append(places, at)
	}
	slices.Sort(places)
	var page []message
	for _, at := range places {
		for len(page) > 0 && seqOf(page[0].seq) < at {
			page = page[1:]
		}
		if len(page) == 0 && at <= s.state.last {
			var err error
			if page, err = s.readPage(ctx, s.names.event(), messageFrom(at)); err != nil {
				return err
			}
		}
		text := map[string]event.Key{}
		if len(page) > 0 && seqOf(page[0].seq) == at {
			e, err := s.event(ctx, page[0])
			if err != nil {
				return err
			}
			for _, k := range e.Keys {
				text[s.names.key(k)] = k
			}
		}
		for _, n := range wanted[at] {
			k, ok := text[string(keys[n].Key)]
			if keys[n].Key = k; !ok {
				s.unknown++
			}
		}
	}
	return nil
}

// DeadLetters implements transfer.Source.
func (s *source) DeadLetters(ctx context.Context) iter.Seq2[transfer.Dead, error] {
	return scan(ctx, s.Journal, s.opts.Stream+".dead.", "", func(e entry) (d transfer.Dead, err error) {
		id, letter, rec, err := s.deadOf(e)
		if err != nil {
			return d, err
		}
		d.Sink, d.Letter = id.Sink, letter
		d.Event, err = transfer.Split(id.Seq, rec)
		return d, err
	})
}

// Dispositions implements transfer.Source.
func (s *source) Dispositions(ctx context.Context) iter.Seq2[transfer.Disposition, error] {
	return func(yield func(transfer.Disposition, error) bool) {
		for m, err := range s.scan(ctx, s.opts.Stream+".lost.>", 1, s.end) {
			g := transfer.Disposition{Sink: last(m.subject)}
			if err == nil {
				err = json.Unmarshal(m.data, &g.Disposition)
			}
			if err == nil && g.Reason == journal.Redelivered && g.RedeliveredAs == 0 {
				g.RedeliveredAs, err = s.eventBefore(ctx, m.seq)
			}
			if !yield(g, err) || err != nil {
				return
			}
		}
	}
}

// Quarantined implements transfer.Source.
func (s *source) Quarantined(ctx context.Context) iter.Seq2[journal.QuarantinedRequest, error] {
	return s.Journal.Quarantined(ctx, "")
}

// Values implements transfer.Source.
func (s *source) Values(ctx context.Context) iter.Seq2[journal.KVEntry, error] {
	return s.Journal.Values(ctx, "")
}

// Cursors implements transfer.Source.
func (s *source) Cursors(ctx context.Context) iter.Seq2[transfer.Cursor, error] {
	return func(yield func(transfer.Cursor, error) bool) {
		ctx, cancel := context.WithTimeout(ctx, stepTimeout)
		defer cancel()
		all, err := s.Journal.Cursors(ctx)
		if err != nil {
			yield(transfer.Cursor{}, err)
			return
		}
		for _, p := range all {
			if !yield(transfer.Cursor{Name: p.Name, StartSeq: p.StartSeq, Committed: p.Committed, Done: p.Done}, nil) {
				return
			}
		}
	}
}

// Unchanged implements transfer.Source.
func (s *source) Unchanged(ctx context.Context) error {
	return s.retryUntil(ctx, func(ctx context.Context) error {
		stream, err := s.js.Stream(ctx, s.opts.Stream)
		if err != nil {
			return err
		}
		if stream.CachedInfo().State.LastSeq != s.end {
			return &refusal{"something was written to the stream meanwhile: stop all relays that use it, and run it again"}
		}
		return s.idle(ctx)
	})
}

// Missing implements transfer.Source.
func (s *source) Missing() []string {
	if s.unknown == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%d identity keys of which only the hash is left: their events were removed before the window was over", s.unknown)}
}

// target implements transfer.Target.
type target struct {
	*Journal
	end  uint64 // sequence of the last message
	rows int
}

// OpenTarget opens or creates the stream as the target of a migration. It refuses a stream
// that a relay uses.
func OpenTarget(ctx context.Context, opts Options) (transfer.Target, error) {
	opts.filling = true
	j, err := attach(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	j.tokens.Store(randomToken())
	err = j.retryUntil(ctx, func(ctx context.Context) error {
		if err := j.configureStream(ctx); err != nil {
			return err
		}
		return j.idle(ctx)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("journal: %s: %w", j.where(), err), j.Close())
	}
	return &target{Journal: j}, nil
}

// Location implements transfer.Target.
func (t *target) Location() string { return t.where() }

// State implements transfer.Target.
func (t *target) State(ctx context.Context) (state []byte, err error) {
	unfinished := false
	read := func(ctx context.Context) error {
		s, err := t.js.Stream(ctx, t.opts.Stream)
		if err != nil {
			return err
		}
		unfinished = s.CachedInfo().Config.Metadata[unfinishedKey] != ""
		e, err := t.entry(ctx, t.names.carried())
		state = e.value
		return ignoreMissing(err)
	}
	if err := t.retryUntil(ctx, read); err != nil || state != nil && !unfinished {
		return state, err
	}
	if !unfinished {
		if err := t.refuseOwn(ctx); err != nil {
			return nil, err
		}
		if err := t.setUnfinished(ctx, true); err != nil {
			return nil, err
		}
	}
	if err := t.fence(ctx); err != nil {
		return nil, fmt.Errorf("ending the attempts of earlier migrations: %w", err)
	}
	if err = t.retryUntil(ctx, read); err == nil && state == nil {
		err = t.refuseOwn(ctx)
	}
	return state, err
}

// refuseOwn refuses a stream with data of a relay.
func (t *target) refuseOwn(ctx context.Context) error {
	return t.retryUntil(ctx, func(ctx context.Context) error {
		own, err := t.hasOwn(ctx)
		if err == nil && own {
			err = &refusal{"it holds events, or other things, that were not carried into it: name another stream with journal.jetstream.stream, or remove this one"}
		}
		return err
	})
}

// fence stores a message. The server has received batches of a migration that was killed, and
// may not have stored them yet: it rejects them from here on, because they do not follow
// the last message.
func (t *target) fence(ctx context.Context) error {
	return t.retryUntil(ctx, func(ctx context.Context) error {
		s, err := t.js.Stream(ctx, t.opts.Stream)
		if err != nil {
			return err
		}
		m := nats.NewMsg(t.names.hole())
		m.Header.Set(jetstream.ExpectedLastSeqHeader, strconv.FormatUint(s.CachedInfo().State.LastSeq, 10))
		end, err := t.store(ctx, []*nats.Msg{m})
		if errors.Is(err, errConflict) {
			return errors.New("an attempt of an earlier migration is still on its way")
		}
		if err == nil {
			t.end = end
		}
		return err
	})
}

// hasOwn reports whether the stream has data of a journal. A relay without events stores
// only cursors and leases.
func (t *target) hasOwn(ctx context.Context) (bool, error) {
	for _, kind := range []string{"event", "key.>", "dead.>", "lost.>", "receipts.>", "rejected.>", "retained.>", "part.>"} {
		switch _, err := t.leaderGet(ctx, getRequest{Seq: 1, NextFor: t.names.prefix() + kind}); {
		case err == nil:
			return true, nil
		case !errors.Is(err, journal.ErrNotFound):
			return false, err
		}
	}
	for _, err := range t.Values(ctx, "") {
		return err == nil, err
	}
	return false, nil
}

// setUnfinished sets or removes the mark of an unfinished stream.
func (t *target) setUnfinished(ctx context.Context, unfinished bool) error {
	return t.retryUntil(ctx, func(ctx context.Context) error {
		s, err := t.js.Stream(ctx, t.opts.Stream)
		if err != nil {
			return err
		}
		c := s.CachedInfo().Config
		if (c.Metadata[unfinishedKey] != "") == unfinished {
			return nil
		}
		c.Metadata = ownMetadata(c.Metadata)
		delete(c.Metadata, unfinishedKey)
		if unfinished {
			c.Metadata[unfinishedKey] = "1"
		}
		_, err = t.js.UpdateStream(ctx, c)
		return err
	})
}

// Rows implements transfer.Target.
func (t *target) Rows(ctx context.Context) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		t.rows = 0
		prefix := strings.TrimSuffix(t.names.carriedRows(), ">")
		for row, err := range scan(ctx, t.Journal, prefix, "", func(e entry) ([]byte, error) { return e.value, nil }) {
			if t.rows++; !yield(row, err) {
				return
			}
		}
	}
}

// Append implements transfer.Target. The cluster rejects the batch unless it follows the
// last known message: so its sequences are known in advance, and of repeated attempts one
// is stored.
func (t *target) Append(ctx context.Context, items []transfer.Item, makeRow func([]journal.Seq) (row, state []byte)) error {
	var messages []*nats.Msg
	seqs := make([]journal.Seq, len(items))
	for n, i := range items {
		seqs[n] = seqOf(t.end + uint64(len(messages)) + 1)
		if i.Event == nil {
			messages = append(messages, nats.NewMsg(t.names.hole()))
		} else {
			messages = append(messages, t.messages(t.names.event(), i.Event.Record())...)
		}
	}
	row, state := makeRow(seqs)
	if row != nil {
		messages = append(messages, t.messagesFor(t.names.carriedRow(t.rows), row)...)
	}
	messages = append(messages, t.messagesFor(t.names.carried(), state)...)
	messages[0].Header.Set(jetstream.ExpectedLastSeqHeader, strconv.FormatUint(t.end, 10))
	err := t.retryUntil(ctx, func(ctx context.Context) error {
		end, err := t.store(ctx, messages)
		if err == nil {
			t.end = end
			return nil
		}
		// This or an earlier attempt may be stored.
		at, behind, unread := t.find(ctx, state)
		switch {
		case unread != nil:
			return unread // the outcome is unknown
		case at > 0:
			t.end = at
			return nil
		case errors.Is(err, errConflict) && !behind:
			return errors.New("an attempt is still on its way")
		}
		return err
	})
	if errors.Is(err, errConflict) {
		return fmt.Errorf("something else writes to the stream: stop all relays that use it, and run it again: %w", err)
	}
	if err == nil && row != nil {
		t.rows++
	}
	return err
}

// find returns the sequence of a stored state, or 0, and whether messages were stored after
// the last known message.
func (t *target) find(ctx context.Context, state []byte) (at uint64, behind bool, err error) {
	s, err := t.js.Stream(ctx, t.opts.Stream)
	if err != nil {
		return 0, false, err
	}
	behind = s.CachedInfo().State.LastSeq > t.end // before the state, because the state may be after it
	e, err := t.entry(ctx, t.names.carried())
	if err == nil && string(e.value) == string(state) {
		return e.at, behind, nil
	}
	return 0, behind, ignoreMissing(err)
}

// Fit implements transfer.Target.
func (t *target) Fit(items []transfer.Item) int {
	n, size := 2, 0 // row and state
	for at, i := range items {
		n++
		if i.Event != nil {
			n += len(i.Event.Encoded) / t.maxChunk() // rounding adds at most one more
			size += len(i.Event.Encoded)
		}
		if at > 0 && (n+at+1 > maxGroupMessages || size > maxGroupBytes) {
			return at
		}
	}
	return len(items)
}

// purge removes all messages of some subjects.
func (t *target) purge(ctx context.Context, subjects ...string) error {
	for _, subject := range subjects {
		err := t.retryUntil(ctx, func(ctx context.Context) error {
			s, err := t.js.Stream(ctx, t.opts.Stream)
			if err != nil {
				return err
			}
			return s.Purge(ctx, jetstream.WithPurgeSubject(subject))
		})
		if err != nil {
			return fmt.Errorf("removing %s: %w", subject, err)
		}
	}
	return nil
}

// Clear implements transfer.Target.
func (t *target) Clear(ctx context.Context) error {
	var subjects []string
	for _, kind := range []string{"key", "dead", "lost", "receipts", "rejected", "note", "cursor", "done", "retained", "lead"} {
		subjects = append(subjects, t.opts.Stream+"."+kind+".>", t.opts.Stream+".part."+kind+".>")
	}
	return t.purge(ctx, subjects...)
}

// Put implements transfer.Target.
func (t *target) Put(ctx context.Context, things transfer.Metadata) error {
	acts, err := t.batches(things)
	if err != nil {
		return err
	}
	var batch []*nats.Msg
	size := 0
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := t.retryUntil(ctx, func(ctx context.Context) error {
			end, err := t.store(ctx, batch)
			t.end = max(t.end, end)
			return err
		})
		batch, size = nil, 0
		return err
	}
	for _, act := range acts {
		more := 0
		for _, m := range act {
			more += len(m.Data)
		}
		if len(batch)+len(act) > maxGroupMessages || size+more > maxGroupBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		batch, size = append(batch, act...), size+more
	}
	if err := flush(); err != nil {
		return err
	}
	// An attempt without an answer may be stored.
	return t.retryUntil(ctx, func(ctx context.Context) error {
		s, err := t.js.Stream(ctx, t.opts.Stream)
		if err == nil {
			t.end = s.CachedInfo().State.LastSeq
		}
		return err
	})
}

// batches returns the messages of metadata; messages of one entry stay together.
func (t *target) batches(things transfer.Metadata) (acts [][]*nats.Msg, err error) {
	newest := map[event.Key]int{}
	for n, k := range things.Keys {
		newest[k.Key] = n
	}
	now := t.opts.Clock()
	for n, k := range things.Keys {
		left := k.First.Add(t.opts.Window).Sub(now)
		if newest[k.Key] != n || left <= 0 {
			continue
		}
		m := nats.NewMsg(t.names.key(k.Key))
		m.Data = claim{first: k.First.UnixNano(), token: t.tokens.Add(1), seq: k.Seq, id: k.ID}.encode(0)
		m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
		m.Header.Set(jetstream.MsgTTLHeader, seconds(left+slack))
		setKey(m, k.Key)
		acts = append(acts, []*nats.Msg{m})
	}
	for _, d := range things.Dead {
		value, err := encodeDead(d.Letter, d.Event.Record())
		if err != nil {
			return nil, err
		}
		acts = append(acts, t.messagesFor(t.names.dead(journal.DeliveryID{Sink: d.Sink, Seq: d.Letter.Seq}), value))
	}
	for _, g := range things.Dispositions {
		m, err := t.lostMessage(g.Sink, g.Disposition)
		if err != nil {
			return nil, err
		}
		acts = append(acts, []*nats.Msg{m})
	}
	for _, q := range things.Quarantined {
		act, err := t.kept(q.WithDefaults(now))
		if err != nil {
			return nil, err
		}
		acts = append(acts, act)
	}
	for _, n := range things.Values {
		acts = append(acts, t.messagesFor(t.names.value(n.Key), n.Value))
	}
	for _, c := range things.Cursors {
		act, err := t.cursorMessages(c, now)
		if err != nil {
			return nil, fmt.Errorf("cursor %s: %w", c.Name, err)
		}
		acts = append(acts, act...)
	}
	return acts, nil
}

// cursorMessages returns the messages of a position: pages, and then the record.
func (t *target) cursorMessages(c transfer.Cursor, now time.Time) (acts [][]*nats.Msg, err error) {
	done := doneOf(c.Committed, c.Done)
	pages := cursorRecord{}.pages()
	stores, _ := pages.update(t.Journal, c.Name, done)
	for _, m := range stores {
		acts = append(acts, []*nats.Msg{m})
	}
	r := cursorRecord{
		Token: randomToken(), Opened: now.UTC(), Committed: done.Floor(), StartSeq: seqOf(messageOf(c.StartSeq)), Read: done.Floor(),
		Done: pages.inline, Pages: pageRuns(pages.stored),
	}
	m, err := t.recordMessage(c.Name, r, 0)
	if err != nil {
		return nil, err
	}
	m.Header.Del(jetstream.ExpectedLastSubjSeqHeader) // an attempt without an answer may be stored
	return append(acts, []*nats.Msg{m}), nil
}

// Finish implements transfer.Target.
func (t *target) Finish(ctx context.Context) error {
	if err := t.purge(ctx, t.names.carriedRows(), t.names.hole()); err != nil {
		return err
	}
	return t.setUnfinished(ctx, false)
}
