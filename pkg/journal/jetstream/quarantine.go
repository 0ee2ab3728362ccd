package jetstream

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/postwire/postwire/internal/sleep"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// A quarantined request has two entries, written and removed by one atomic batch: the
// request itself, which may be large and never changes, and its receipts, whose subject
// contains source and identity. A repeat, in any process, finds the receipts and updates
// them if they are unchanged. The order of the receipts in the stream is the order of the
// last receipts.

// identity is the Identity of a request.
type identity [sha256.Size]byte

// receipts describes a quarantined request without its body.
type receipts struct {
	ID    string    `json:"id"`
	Bytes uint64    `json:"bytes"` // bytes that the request counts for
	Parts bool      `json:"parts,omitempty"`
	Count uint64    `json:"count"`
	Last  time.Time `json:"last"`
	Token uint64    `json:"token"` // token of the writer
}

// entryBytes is what the subjects and receipts of a request count for, besides the request:
// the servers hold all subjects in memory.
const entryBytes = 4 << 10

// message returns the message that stores receipts and replaces the receipts at a sequence;
// 0 is none.
func (r receipts) message(subject string, at uint64) (*nats.Msg, error) {
	m := nats.NewMsg(subject)
	var err error
	m.Data, err = json.Marshal(r)
	m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	expect(m, at)
	return m, err
}

// receiptsAt reads receipts, or nil, and the sequence of the last message of their subject.
func (j *Journal) receiptsAt(ctx context.Context, subject string) (r *receipts, at uint64, err error) {
	m, err := j.leaderGet(ctx, getRequest{LastFor: subject})
	if errors.Is(err, journal.ErrNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	if r, err = decodeReceipts(m); errors.Is(err, journal.ErrNotFound) {
		return nil, m.seq, nil
	}
	return r, m.seq, err
}

// decodeReceipts returns an error that wraps journal.ErrNotFound for removed receipts.
func decodeReceipts(m message) (r *receipts, err error) {
	if m.header.Get(removedHeader) != "" {
		return nil, journal.ErrNotFound
	}
	if err := json.Unmarshal(m.data, &r); err != nil || r == nil {
		return nil, fmt.Errorf("%w: %s at %d: %w", errBroken, m.subject, m.seq, cmp.Or(err, record.ErrTruncated))
	}
	return r, nil
}

// repeats combines concurrent repeats of one request: while one write is in flight, further
// repeats become one write with their number. Separate writes would conflict with each
// other.
type repeats struct {
	mu  sync.Mutex
	all map[identity]*repeating
}

// repeating is the state of a request with repeats.
type repeating struct {
	users int
	turn  chan struct{} // holds one token; its taker sends the round
	next  *round        // repeats that are not sent yet
}

// round is one write of several repeats.
type round struct {
	journal.QuarantinedRequest
	sent bool
	done chan struct{} // closed when id and err are set
	id   string
	err  error
}

// join adds a request to the round of its identity.
func (rs *repeats) join(i identity, r journal.QuarantinedRequest) (*repeating, *round) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.all == nil {
		rs.all = map[identity]*repeating{}
	}
	all := rs.all[i]
	if all == nil {
		all = &repeating{turn: make(chan struct{}, 1)}
		all.turn <- struct{}{}
		rs.all[i] = all
	}
	all.users++
	if all.next == nil {
		all.next = &round{QuarantinedRequest: r, done: make(chan struct{})}
		return all, all.next
	}
	all.next.Count += r.Count
	if r.LastReceived.After(all.next.LastReceived) {
		all.next.LastReceived = r.LastReceived
	}
	return all, all.next
}

// take reports whether the round is not sent yet. The caller then sends it.
func (rs *repeats) take(all *repeating, mine *round) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if mine.sent {
		return false
	}
	mine.sent, all.next = true, nil
	return true
}

func (rs *repeats) leave(i identity, all *repeating) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if all.users--; all.users == 0 {
		delete(rs.all, i)
	}
}

// quarantine stores a request in the cluster, under its ID or a new one, or counts it as a
// repeat. It retries until the hold is over.
func (j *Journal) quarantine(ctx context.Context, r journal.QuarantinedRequest) (string, error) {
	if r.ID == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return "", fmt.Errorf("quarantining: %w", err)
		}
		r.ID = id.String()
	}
	i := identity(r.Identity())
	all, mine := j.repeats.join(i, r)
	defer j.repeats.leave(i, all)
	select {
	case <-all.turn:
		if j.repeats.take(all, mine) {
			// Without ctx, because other callers wait for the result.
			hold, cancel := context.WithTimeout(j.life, j.opts.Hold)
			mine.id, mine.err = j.keep(hold, i, mine.QuarantinedRequest) //nolint:contextcheck // see above
			cancel()
			close(mine.done)
		}
		all.turn <- struct{}{}
	case <-mine.done:
	case <-ctx.Done():
		return "", fmt.Errorf("quarantining: %w", ctx.Err())
	}
	<-mine.done // another caller has sent the round
	if mine.err != nil {
		return "", fmt.Errorf("quarantining: %w", mine.err)
	}
	return mine.id, nil
}

// keep stores a request, or counts a repeat of a stored request.
func (j *Journal) keep(ctx context.Context, i identity, r journal.QuarantinedRequest) (id string, err error) {
	value, err := record.AppendRejected(nil, r)
	if err != nil {
		return "", err
	}
	subject, token := j.names.receipts(r.Source, i), j.tokens.Add(1)
	bytes := uint64(0)
	err = j.retry(ctx, func(ctx context.Context) error {
		kept, at, err := j.receiptsAt(ctx, subject)
		if err != nil {
			return err
		}
		id, bytes = r.ID, 0
		var messages []*nats.Msg
		switch {
		case kept == nil:
			messages = j.messagesFor(j.names.rejected(r.ID), value)
			bytes = uint64(len(value)) + entryBytes
			kept = &receipts{ID: r.ID, Bytes: bytes, Parts: len(messages) > 1, Count: r.Count, Last: r.LastReceived}
		case kept.Token == token:
			return nil // stored by an earlier attempt without an answer
		case kept.ID == r.ID && kept.Count >= r.Count:
			return nil // migrated a second time
		default:
			id = kept.ID
			kept.Count += r.Count
			if r.LastReceived.After(kept.Last) {
				kept.Last = r.LastReceived
			}
		}
		kept.Token = token
		m, err := kept.message(subject, at)
		if err != nil {
			return fmt.Errorf("%w: %w", errBroken, err)
		}
		_, err = j.store(ctx, append(messages, m))
		if errors.Is(err, errConflict) {
			return errors.New("the receipts have changed") // retry with the new receipts
		}
		return err
	})
	if err != nil {
		return "", err
	}
	j.shares.add(r.Source, bytes, j.opts.Quarantine)
	return id, nil
}

// kept returns the messages that store a migrated request.
func (j *Journal) kept(r journal.QuarantinedRequest) ([]*nats.Msg, error) {
	value, err := record.AppendRejected(nil, r)
	if err != nil {
		return nil, err
	}
	messages := j.messagesFor(j.names.rejected(r.ID), value)
	m, err := receipts{
		ID: r.ID, Bytes: uint64(len(value)) + entryBytes, Parts: len(messages) > 1, Count: r.Count, Last: r.LastReceived, Token: j.tokens.Add(1),
	}.message(j.names.receipts(r.Source, identity(r.Identity())), 0)
	if err != nil {
		return nil, err
	}
	m.Header.Del(jetstream.ExpectedLastSubjSeqHeader)
	return append(messages, m), nil
}

// counted adds the receipts to a request. The receipts of a request that is being removed
// may be missing.
func counted(r journal.QuarantinedRequest, kept *receipts) journal.QuarantinedRequest {
	if kept != nil && kept.ID == r.ID {
		r.Count, r.LastReceived = kept.Count, kept.Last
	}
	return r.WithDefaults(r.Received)
}

// decodeRejected decodes the entry of a quarantined request, and adds its receipts.
func (j *Journal) decodeRejected(ctx context.Context, e entry) (journal.QuarantinedRequest, error) {
	r, err := record.DecodeRejected(e.value)
	if err != nil {
		return r, err
	}
	err = j.retry(ctx, func(ctx context.Context) error {
		kept, _, err := j.receiptsAt(ctx, j.names.receipts(r.Source, identity(r.Identity())))
		r = counted(r, kept)
		return err
	})
	return r, err
}

// Quarantined implements journal.QuarantineStore.
func (j *Journal) Quarantined(ctx context.Context, after string) iter.Seq2[journal.QuarantinedRequest, error] {
	from := ""
	if after != "" {
		from = j.names.rejected(after)
	}
	return func(yield func(journal.QuarantinedRequest, error) bool) {
		for e, err := range scan(ctx, j, j.opts.Stream+".rejected.", from, func(e entry) (entry, error) { return e, nil }) {
			var r journal.QuarantinedRequest
			if err == nil {
				r, err = j.decodeRejected(ctx, e)
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// QuarantinedRequest implements journal.QuarantineStore.
func (j *Journal) QuarantinedRequest(ctx context.Context, id string) (r journal.QuarantinedRequest, err error) {
	e, err := j.mustEntry(ctx, j.names.rejected(id))
	if err == nil {
		r, err = j.decodeRejected(ctx, e)
	}
	if err != nil {
		return journal.QuarantinedRequest{}, fmt.Errorf("quarantined request %s: %w", id, err)
	}
	return r, nil
}

// Release implements journal.QuarantineStore.
func (j *Journal) Release(ctx context.Context, id string, events ...event.Event) ([]journal.Receipt, error) {
	if len(events) > 0 {
		if err := j.check(); err != nil {
			return nil, fmt.Errorf("releasing: %w", err)
		}
	}
	staged, err := stage(events)
	if err != nil {
		return nil, fmt.Errorf("releasing: %w", err)
	}
	parts := fitting(staged)
	var answers []journal.Receipt
	var rejected journal.QuarantinedRequest
	e, err := j.mustEntry(ctx, j.names.rejected(id))
	if err == nil {
		rejected, err = record.DecodeRejected(e.value)
	}
	for i := 0; err == nil && i < len(parts); i++ {
		r := &request{events: parts[i]}
		if i == len(parts)-1 { // the last batch removes the request and its receipts
			r.entry, r.with = &e, []string{j.names.receipts(rejected.Source, identity(rejected.Identity()))}
		}
		var some []journal.Receipt
		some, err = j.submitWithin(ctx, r)
		answers = append(answers, some...)
	}
	if err != nil {
		return nil, fmt.Errorf("quarantined request %s: %w", id, err)
	}
	return answers, nil
}

// shares is the size of the quarantine of each source, as this process knows it: the last
// count plus the additions since.
type shares struct {
	mu    sync.Mutex
	all   map[string]*share
	crowd chan struct{} // requests a recount of the marked sources
}

type share struct {
	counted bool
	recount bool
	bytes   uint64 // counted size plus additions
	added   uint64 // additions since the last count; other processes may have added as much
}

func newShares() shares { return shares{all: map[string]*share{}, crowd: make(chan struct{}, 1)} }

// add records an addition, and requests a recount if the source may exceed its limit.
func (s *shares) add(source string, bytes, limit uint64) {
	if bytes == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.all[source]
	if one == nil {
		one = &share{}
		s.all[source] = one
	}
	one.bytes += bytes
	one.added += bytes
	if one.counted && one.bytes <= limit && one.added <= limit/16 {
		return
	}
	s.ask(one)
}

// ask requests a recount of a source. The caller holds mu.
func (s *shares) ask(one *share) {
	one.recount = true
	select {
	case s.crowd <- struct{}{}:
	default: // already requested
	}
}

// take returns the sources to recount.
func (s *shares) take() (sources []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for source, one := range s.all {
		if one.recount {
			one.recount, one.added = false, 0
			sources = append(sources, source)
		}
	}
	return sources
}

// set records the counted size of a source. The count may contain concurrent additions.
func (s *shares) set(source string, bytes uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.all[source]
	one.counted, one.bytes = true, bytes+one.added
}

// keepShares discards requests beyond the limit of a source, in the background until Close.
func (j *Journal) keepShares() {
	for {
		select {
		case <-j.shares.crowd:
		case <-j.life.Done():
			return
		}
		for _, source := range j.shares.take() {
			if err := j.shrink(j.life, source); err != nil && j.life.Err() == nil {
				j.log.Warn("discarding quarantined requests failed, it will be tried again", zap.String("source", source), zap.Error(err))
				j.shares.requestRecount(source)
			}
		}
		if sleep.For(j.life, 250*time.Millisecond) != nil {
			return
		}
	}
}

// requestRecount requests a recount of a source.
func (s *shares) requestRecount(source string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ask(s.all[source])
}

// listed is a quarantined request by its receipts.
type listed struct {
	receipts
	subject string
	at      uint64
}

// receiptsUnder yields the receipts with a prefix from a sequence on, oldest write first.
func (j *Journal) receiptsUnder(ctx context.Context, prefix string) iter.Seq2[listed, error] {
	const page = 512
	return func(yield func(listed, error) bool) {
		for from := uint64(1); ; {
			var messages []message
			err := j.retry(ctx, func(ctx context.Context) (err error) {
				messages, err = j.page(ctx, prefix+">", from, page)
				return err
			})
			if err != nil {
				yield(listed{}, err)
				return
			}
			for _, m := range messages {
				from = m.seq + 1
				r, err := decodeReceipts(m)
				if errors.Is(err, journal.ErrNotFound) {
					continue
				}
				if err != nil {
					yield(listed{}, err)
					return
				}
				if !yield(listed{*r, m.subject, m.seq}, nil) {
					return
				}
			}
			if len(messages) == 0 {
				return
			}
		}
	}
}

// shrink counts the requests of a source, and discards the oldest until the source is
// within its limit or has one request. One process at a time does so, because concurrent
// batches would conflict.
func (j *Journal) shrink(ctx context.Context, source string) error {
	switch leads, err := j.AcquireLease(ctx, "quarantine", 2*time.Second); {
	case err != nil:
		return err
	case !leads:
		j.shares.requestRecount(source)
		return nil
	}
	prefix := j.names.receiptsOf(source)
	bytes, requests := uint64(0), 0
	for r, err := range j.receiptsUnder(ctx, prefix) {
		if err != nil {
			return err
		}
		bytes += r.Bytes
		requests++
	}
	if bytes > j.opts.Quarantine {
		freed, err := j.discard(ctx, prefix, journal.QuarantineMaxBytes, func(r listed) bool {
			if bytes <= j.opts.Quarantine || requests <= 1 {
				return false
			}
			bytes -= r.Bytes
			requests--
			return true
		})
		if err != nil {
			return err
		}
		if !freed { // other processes were faster, or the requests were received again
			defer j.shares.requestRecount(source)
		}
	}
	j.shares.set(source, bytes)
	return nil
}

// expireQuarantine discards the requests whose last receipt is older than the retention. A
// retention of 0 is no limit.
func (j *Journal) expireQuarantine(ctx context.Context) error {
	if j.opts.Retention <= 0 {
		return nil
	}
	cutoff := j.opts.Clock().Add(-j.opts.Retention)
	_, err := j.discard(ctx, j.opts.Stream+".receipts.", journal.QuarantineRetention, func(r listed) bool { return r.Last.Before(cutoff) })
	return err
}

// discard removes the oldest requests while old returns true, and reports whether all of
// them were unchanged.
func (j *Journal) discard(ctx context.Context, prefix, reason string, old func(listed) bool) (whole bool, err error) {
	const act = 200 // up to three messages each
	discarded := map[string]uint64{}
	defer func() {
		for source, n := range discarded {
			j.log.Warn("the journal discards quarantined requests", zap.String("source", source), zap.String("reason", reason), zap.Uint64("requests", n))
			j.opts.Discarded(journal.QuarantineDiscards{Source: source, Reason: reason, Requests: n})
		}
	}()
	whole = true
	var some []listed
	flush := func() error {
		n, err := j.removeListed(ctx, some)
		for source, more := range n {
			discarded[source] += more
		}
		total := uint64(0)
		for _, more := range n {
			total += more
		}
		whole = whole && total == uint64(len(some))
		some = nil
		return err
	}
	for r, err := range j.receiptsUnder(ctx, prefix) {
		if err != nil {
			return false, err
		}
		if !old(r) {
			break
		}
		if some = append(some, r); len(some) == act {
			if err := flush(); err != nil {
				return false, err
			}
		}
	}
	if len(some) > 0 {
		err = flush()
	}
	return whole, err
}

// removeListed removes requests, in one batch if all are unchanged, otherwise by halves,
// and returns the number removed per source.
func (j *Journal) removeListed(ctx context.Context, all []listed) (map[string]uint64, error) {
	var messages []*nats.Msg
	for _, r := range all {
		rejected := j.names.rejected(r.ID)
		messages = append(messages, entry{subject: r.subject, at: r.at}.removal(), removing(rejected))
		if r.Parts {
			messages = append(messages, removing(j.names.part(rejected)))
		}
	}
	n := map[string]uint64{}
	err := j.retry(ctx, func(ctx context.Context) error {
		_, err := j.store(ctx, messages)
		return err
	})
	switch {
	case err == nil:
		for _, r := range all {
			n[j.names.sourceOf(r.subject)]++
		}
		return n, nil
	case !errors.Is(err, errConflict):
		return n, fmt.Errorf("discarding quarantined requests: %w", err)
	case len(all) == 1:
		return n, nil // received again, or removed
	}
	for _, half := range [][]listed{all[:len(all)/2], all[len(all)/2:]} {
		some, err := j.removeListed(ctx, half)
		for source, more := range some {
			n[source] += more
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
