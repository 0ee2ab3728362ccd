package pebble

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// A quarantined request is three entries, which one batch writes and one removes:
// the request itself, which may be large and does not change; its receipts under
// its identity, by which a repeat finds it and which alone a repeat writes anew;
// and its place in the order in which the requests of its source were last
// received, by which the oldest are found.

// identity is that of a request.
type identity [sha256.Size]byte

// receipts is what is known of a quarantined request without reading it.
type receipts struct {
	ID     string    `json:"id"`
	Source string    `json:"source"`
	Number uint64    `json:"number"` // of the last receipt, by which its order key is found
	Bytes  uint64    `json:"bytes"`  // that it counts for
	Count  uint64    `json:"count"`
	Last   time.Time `json:"last"`
}

// entryBytes is what the keys and receipts of a request count for, beside the
// request: the share of a source bounds how many requests it may have, too.
const entryBytes = 512

// sourceQuota is what a source has in the quarantine.
type sourceQuota struct {
	bytes    uint64
	requests uint64
	front    uint64 // no receipt with a lower number is in the order; those that were leave tombstones
}

// quarantined is what a group does to the quarantine.
type quarantined struct {
	receipts  map[identity]*receipts // as the group leaves them; nil is removed
	staged    []identity             // that are in the group's batch and not in the store, in order
	added     int64                  // requests more than before
	freed     freeing
	discarded []journal.QuarantineDiscards
}

// maxDiscards bounds how many requests one change discards, and so how long the
// appends beside it wait. Each new request may discard more than it can be worth.
const maxDiscards = 4096

func encodeOrder(i identity, bytes uint64) []byte {
	return binary.AppendUvarint(slices.Clone(i[:]), bytes)
}

func decodeOrder(value []byte) (i identity, bytes uint64, err error) {
	if len(value) < len(i) {
		return i, 0, record.ErrTruncated
	}
	r := &record.Reader{B: value[len(i):]}
	copy(i[:], value)
	bytes = r.Uvarint()
	return i, bytes, r.Err
}

func decodeReceipts(value []byte) (r *receipts, err error) {
	if err := json.Unmarshal(value, &r); err != nil || r == nil {
		return nil, fmt.Errorf("receipts of a quarantined request: %w", cmp.Or(err, record.ErrTruncated))
	}
	return r, nil
}

// splitRejected returns the identity of a quarantined request, and the rest.
func splitRejected(value []byte) (i identity, rest []byte, err error) {
	if len(value) < len(i) {
		return i, nil, record.ErrTruncated
	}
	return identity(value), value[len(i):], nil
}

// readHoldings adds up what each source has in the quarantine. It reads the order
// alone, in which no request stands.
func (st *store) readHoldings() error {
	st.quotas = map[string]*sourceQuota{}
	it, err := st.db.NewIter(&pebble.IterOptions{LowerBound: []byte{orderSpace}, UpperBound: []byte{orderSpace + 1}})
	if err != nil {
		return err
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		var at journal.DeliveryID
		var bytes uint64
		if at, err = sinkOf(it.Key()); err != nil {
			break
		}
		if _, bytes, err = decodeOrder(it.Value()); err == nil {
			st.hold(at.Sink, bytes)
			st.received = max(st.received, uint64(at.Seq))
		}
	}
	if err := errors.Join(err, it.Error(), it.Close()); err != nil {
		return fmt.Errorf("reading the order of the quarantine: %w", err)
	}
	return nil
}

// hold adds a request to what a source has.
func (st *store) hold(source string, bytes uint64) {
	h := st.quotas[source]
	if h == nil {
		h = &sourceQuota{}
		st.quotas[source] = h
	}
	h.bytes += bytes
	h.requests++
}

// requests is how many there are of all sources.
func (st *store) requests() (n int64) {
	for _, h := range st.quotas {
		n += int64(h.requests)
	}
	return n
}

// QuarantineCount is how many requests are in quarantine.
func (j *Journal) QuarantineCount() uint64 { return uint64(max(j.quarantineCount.Load(), 0)) }

// Quarantine implements journal.Appender.
func (j *Journal) Quarantine(ctx context.Context, r journal.QuarantinedRequest) (id string, err error) {
	if err := j.Check(); err != nil {
		return "", fmt.Errorf("quarantining: %w", err)
	}
	if r.ID == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return "", fmt.Errorf("quarantining: %w", err)
		}
		r.ID = id.String()
	}
	i := identity(r.Identity())
	value, err := record.AppendRejected(slices.Clone(i[:]), r)
	if err != nil {
		return "", fmt.Errorf("quarantining: %w", err)
	}
	r = r.WithDefaults(j.opts.Clock())
	err = j.grow(ctx, len(value), func(g *group) (err error) {
		id, err = g.quarantine(i, r, value)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("quarantining: %w", err)
	}
	return id, nil
}

// receiptsOf returns what is known of the request of that identity, or
// journal.ErrNotFound.
func (g *group) receiptsOf(i identity) (*receipts, error) {
	if r, ok := g.receipts[i]; ok {
		if r == nil {
			return nil, journal.ErrNotFound
		}
		return r, nil
	}
	value, err := g.st.get(identityKey(i))
	if err != nil {
		return nil, err
	}
	return decodeReceipts(value)
}

// quarantine stages a request, or one receipt more of the one that is kept.
func (g *group) quarantine(i identity, r journal.QuarantinedRequest, value []byte) (id string, err error) {
	kept, err := g.receiptsOf(i)
	switch {
	case errors.Is(err, journal.ErrNotFound):
		kept = &receipts{ID: r.ID, Source: r.Source, Bytes: uint64(len(value)) + entryBytes, Count: r.Count, Last: r.LastReceived}
		g.st.hold(r.Source, kept.Bytes)
		g.added++
		err = g.batch.Set(quarantineKey(r.ID), value, nil)
	case err == nil:
		again := *kept
		again.Count += r.Count
		if r.LastReceived.After(again.Last) {
			again.Last = r.LastReceived
		}
		err = g.batch.Delete(orderKey(kept.Source, kept.Number), nil)
		kept = &again
	}
	if err != nil {
		return "", err
	}
	g.st.received++
	kept.Number = g.st.received
	if err := g.putReceipts(i, kept); err != nil {
		return "", err
	}
	h := g.st.quotas[r.Source]
	_, err = g.discard(r.Source, journal.QuarantineMaxBytes, func(old *receipts) bool { return h.bytes > g.st.share && old.Number != kept.Number })
	return kept.ID, err
}

// putRejected stages a request as it was in another journal, in the place of what a
// transfer that was cut short has put.
func (g *group) putRejected(i identity, r journal.QuarantinedRequest, value []byte) error {
	before, err := g.receiptsOf(i)
	if err == nil {
		err = g.removeRejected(i, before)
	}
	if err != nil && !errors.Is(err, journal.ErrNotFound) {
		return err
	}
	_, err = g.quarantine(i, r, value)
	return err
}

// putReceipts stages the receipts of a request and its place in the order.
func (g *group) putReceipts(i identity, r *receipts) error {
	value, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if g.receipts == nil {
		g.receipts = map[identity]*receipts{}
	}
	g.receipts[i] = r
	g.staged = append(g.staged, i)
	return errors.Join(g.batch.Set(identityKey(i), value, nil), g.batch.Set(orderKey(r.Source, r.Number), encodeOrder(i, r.Bytes), nil))
}

// discard removes the requests of a source that were not received for the longest
// time, as long as old reports true, and returns whether it may have left some.
func (g *group) discard(source, reason string, old func(*receipts) bool) (more bool, err error) {
	n := 0
	defer func() {
		if n > 0 {
			g.discarded = append(g.discarded, journal.QuarantineDiscards{Source: source, Reason: reason, Requests: uint64(n)})
		}
	}()
	// try discards one, and reports whether to go on.
	try := func(i identity, number uint64) (bool, error) {
		r, err := g.receiptsOf(i)
		switch {
		case errors.Is(err, journal.ErrNotFound) || err == nil && number != 0 && r.Number != number:
			return true, nil // the group has removed it, or received it again
		case err != nil:
			return false, err
		case n == maxDiscards || !old(r):
			more = n == maxDiscards
			return false, nil
		}
		n++
		return true, g.removeRejected(i, r)
	}
	h := g.st.quotas[source]
	if h == nil || !g.mayDiscard(h, reason) {
		return false, nil
	}
	it, err := g.st.db.NewIter(&pebble.IterOptions{LowerBound: orderKey(source, h.front), UpperBound: after(sinkPrefix(orderSpace, source))})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		number := uint64(seqOf(it.Key()))
		i, _, err := decodeOrder(it.Value())
		if err != nil {
			return false, err
		}
		if next, err := try(i, number); err != nil || !next {
			h.front = number
			return more, err
		}
		h.front = number + 1
	}
	if err := it.Error(); err != nil {
		return false, err
	}
	for _, i := range g.staged {
		if r := g.receipts[i]; r == nil || r.Source != source {
			continue
		}
		if next, err := try(i, 0); err != nil || !next {
			return more, err
		}
	}
	return more, nil
}

// mayDiscard spares the look where it is known to find nothing.
func (g *group) mayDiscard(h *sourceQuota, reason string) bool {
	return h.requests > 0 && (reason != journal.QuarantineMaxBytes || h.bytes > g.st.share)
}

// removeRejected stages the removal of a request.
func (g *group) removeRejected(i identity, r *receipts) error {
	if g.receipts == nil {
		g.receipts = map[identity]*receipts{}
	}
	g.receipts[i] = nil
	h := g.st.quotas[r.Source]
	h.bytes -= r.Bytes
	if h.requests--; h.requests == 0 {
		delete(g.st.quotas, r.Source)
	}
	g.added--
	g.freed.add(r)
	return errors.Join(
		g.batch.Delete(quarantineKey(r.ID), nil),
		g.batch.Delete(identityKey(i), nil),
		g.batch.Delete(orderKey(r.Source, r.Number), nil),
	)
}

// rejected returns what is known of the request of that ID, or an error that wraps
// journal.ErrNotFound.
func (g *group) rejected(id string) (i identity, r *receipts, err error) {
	value, err := g.st.get(quarantineKey(id))
	if err == nil {
		i, _, err = splitRejected(value)
	}
	if err == nil {
		r, err = g.receiptsOf(i)
	}
	if err == nil && r.ID != id { // an earlier request of the group took it, and another brought it again
		err = journal.ErrNotFound
	}
	return i, r, err
}

// Carried removes a request of which as many receipts as count have been carried to
// another journal, or, where there have been more meanwhile, leaves those.
func (j *Journal) Carried(ctx context.Context, id string, count uint64) error {
	var missing error
	err := j.do(ctx, 64, func(g *group) error {
		i, r, err := g.rejected(id)
		missing = err
		switch {
		case errors.Is(err, journal.ErrNotFound):
			return nil
		case err != nil:
			return err
		case r.Count <= count:
			return g.removeRejected(i, r)
		}
		rest := *r
		rest.Count -= count
		return g.putReceipts(i, &rest)
	})
	if err = errors.Join(err, missing); err != nil {
		return fmt.Errorf("quarantined request %s: %w", id, err)
	}
	return nil
}

// expireQuarantine discards the requests that were last received before cutoff,
// and what is beyond the share of a source, which may have been made smaller. A
// retention of 0 says nothing about them.
func (j *Journal) expireQuarantine(ctx context.Context, cutoff time.Time) error {
	for more := true; more; {
		more = false
		err := j.do(ctx, 64, func(g *group) error {
			for _, source := range slices.Sorted(maps.Keys(g.st.quotas)) {
				h := g.st.quotas[source]
				large, err := g.discard(source, journal.QuarantineMaxBytes, func(*receipts) bool { return h.bytes > g.st.share && h.requests > 1 })
				if err != nil {
					return err
				}
				old := false
				if j.opts.Retention > 0 {
					old, err = g.discard(source, journal.QuarantineRetention, func(r *receipts) bool { return r.Last.Before(cutoff) })
				}
				if more = more || large || old; err != nil || more {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// rejected decodes a quarantined request, with its receipts.
func (st *store) rejected(_, value []byte) (r journal.QuarantinedRequest, err error) {
	i, rest, err := splitRejected(value)
	if err != nil {
		return r, err
	}
	if r, err = record.DecodeRejected(rest); err != nil {
		return r, err
	}
	value, err = st.get(identityKey(i))
	if err != nil {
		return r, err
	}
	known, err := decodeReceipts(value)
	if err != nil {
		return r, err
	}
	if known.ID != r.ID { // it was removed, and the same was received again
		return r, journal.ErrNotFound
	}
	r.Count, r.LastReceived = known.Count, known.Last
	return r, nil
}

// Quarantined implements journal.QuarantineStore.
func (j *Journal) Quarantined(ctx context.Context, after string) iter.Seq2[journal.QuarantinedRequest, error] {
	prefix := []byte{quarantineSpace}
	start := prefix
	if after != "" {
		start = append(quarantineKey(after), 0)
	}
	return scan(ctx, j, prefix, start, (*store).rejected)
}

// QuarantinedRequest implements journal.QuarantineStore.
func (j *Journal) QuarantinedRequest(ctx context.Context, id string) (r journal.QuarantinedRequest, err error) {
	err = j.read(ctx, func(st *store) error {
		value, err := st.get(quarantineKey(id))
		if err != nil {
			return err
		}
		r, err = st.rejected(nil, value)
		return err
	})
	if err != nil {
		return journal.QuarantinedRequest{}, fmt.Errorf("quarantined request %s: %w", id, err)
	}
	return r, nil
}

// Release implements journal.QuarantineStore.
func (j *Journal) Release(ctx context.Context, id string, events ...event.Event) ([]journal.Receipt, error) {
	hand := j.do
	if len(events) > 0 {
		if err := j.Check(); err != nil {
			return nil, fmt.Errorf("releasing: %w", err)
		}
		hand = j.grow
	}
	values, size, err := j.encodeAll(events)
	if err != nil {
		return nil, fmt.Errorf("releasing: %w", err)
	}
	answers := make([]journal.Receipt, len(events))
	var missing error
	err = hand(ctx, size, func(g *group) error {
		i, r, err := g.rejected(id)
		missing = err
		if errors.Is(err, journal.ErrNotFound) {
			return nil // of one request, not of the store
		}
		if err == nil {
			err = g.removeRejected(i, r)
		}
		if err != nil {
			return err
		}
		return g.appendAll(events, values, answers)
	})
	if err = errors.Join(err, missing); err != nil {
		return nil, fmt.Errorf("quarantined request %s: %w", id, err)
	}
	return answers, nil
}

// freeing is what removed requests took.
type freeing struct {
	bytes, requests uint64
	low, high       string // their IDs lie between
}

func (f *freeing) add(r *receipts) { f.join(freeing{r.Bytes, 1, r.ID, r.ID}) }

func (f *freeing) join(other freeing) {
	if other.requests == 0 {
		return
	}
	if f.requests == 0 {
		f.low = other.low
	}
	f.low, f.high = min(f.low, other.low), max(f.high, other.high)
	f.bytes += other.bytes
	f.requests += other.requests
}

// freed is what was removed since the engine was told to give its room back.
type freed struct {
	mu sync.Mutex
	freeing
}

func (f *freed) add(more freeing) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.join(more)
}

// take returns what was removed, where it is worth the work, or room is short.
func (f *freed) take(short bool) (freeing, bool) {
	const worth = 1 << 20
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.requests == 0 || f.bytes < worth && !short {
		return freeing{}, false
	}
	taken := f.freeing
	f.freeing = freeing{}
	return taken, true
}

// reclaim gives back the disk space of quarantined requests that were removed:
// their files must be written anew without them. It stands beside the committer,
// which goes on meanwhile, and rests between two rounds, so that a flood that
// pushes old requests out does not have the same files written over and over.
func (j *Journal) reclaim() {
	const (
		rest  = time.Second
		whole = 1 << 12 // removed requests from which on the index is worth it
	)
	tick := time.NewTicker(rest / 4)
	defer tick.Stop()
	var done time.Time
	for {
		select {
		case <-tick.C:
		case <-j.stop:
			return
		}
		if time.Since(done) < rest {
			continue
		}
		r := j.room.Load()
		f, ok := j.freed.take(r.full != "" || r.near != "")
		if !ok {
			continue
		}
		err := j.read(j.life, func(st *store) error {
			low, high := quarantineKey(f.low), append(quarantineKey(f.high), 0)
			before, err := st.db.EstimateDiskUsage(low, high)
			if err != nil {
				return err
			}
			if left := before - min(before, f.bytes); r.Free > 0 && left > r.Free/2 {
				j.freed.add(f) // what is left does not fit the disk twice; it is tried again when there is room
				return nil
			}
			err = st.db.Compact(j.life, low, high, false)
			if err == nil && f.requests >= whole {
				err = errors.Join(
					st.db.Compact(j.life, []byte{identitySpace}, []byte{identitySpace + 1}, false),
					st.db.Compact(j.life, []byte{orderSpace}, []byte{orderSpace + 1}, false),
				)
			}
			return err
		})
		if err != nil && j.life.Err() == nil {
			j.freed.add(f)
			j.log.Warn("giving back the disk space of removed requests failed, it will be tried again", zap.Error(err))
		}
		done = time.Now()
	}
}

// discards are counted here until they are logged, one line a source and reason
// now and then, however many there are.
type discards struct {
	mu     sync.Mutex
	counts map[journal.QuarantineDiscards]uint64 // by source and reason
	logged time.Time
}

func (d *discards) add(all []journal.QuarantineDiscards) {
	if len(all) == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.counts == nil {
		d.counts = map[journal.QuarantineDiscards]uint64{}
	}
	for _, one := range all {
		d.counts[journal.QuarantineDiscards{Source: one.Source, Reason: one.Reason}] += one.Requests
	}
}

// log tells what was discarded, unless that was done a moment ago and there is
// more time.
func (d *discards) log(log *zap.Logger, last bool) {
	const every = 10 * time.Second
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.counts) == 0 || !last && time.Since(d.logged) < every {
		return
	}
	for what, n := range d.counts {
		log.Warn("the journal discards quarantined requests", zap.String("source", what.Source), zap.String("reason", what.Reason), zap.Uint64("requests", n))
	}
	clear(d.counts)
	d.logged = time.Now()
}
