package local

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
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

// A quarantined request has three entries in the index, written and removed together: the
// request without its body, which never changes; its receipts by identity, which a repeat
// updates; and its position in the order of last receipts of its source. The body is a
// file, see bodies.go.

// identity is the Identity of a request.
type identity [sha256.Size]byte

// receipts describes a quarantined request without its body.
type receipts struct {
	ID     string    `json:"id"`
	Source string    `json:"source"`
	Number uint64    `json:"number"` // number of the last receipt, for the order key
	Bytes  uint64    `json:"bytes"`  // bytes that the request counts for
	Count  uint64    `json:"count"`
	Last   time.Time `json:"last"`
}

// entryBytes is what the entries of a request count for, besides head and body, so that the
// limit of a source also limits the number of requests. A file takes whole blocks.
const (
	entryBytes = 512
	blockBytes = 4096
)

// sizeOf returns the bytes that a request counts for.
func sizeOf(head, body int) uint64 {
	return uint64(head+entryBytes) + uint64((body+blockBytes-1)/blockBytes*blockBytes)
}

// sourceQuota is the size of the quarantine of a source.
type sourceQuota struct {
	bytes    uint64
	requests uint64
	front    uint64 // no receipt with a lower number is in the order; removed ones leave tombstones
}

// quarantined are the changes of a group to the quarantine.
type quarantined struct {
	receipts          map[identity]*receipts // state after the group; nil is removed
	staged            []identity             // in the group's batch and not in the index, in order
	added, addedBytes int64                  // change of the number of requests and of their bytes
	dropped           []string               // IDs of removed requests
	discarded         []journal.QuarantineDiscards
}

// maxDiscards limits the requests that one change discards, to bound the delay of appends.
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

// splitRejected splits the identity from a quarantined request.
func splitRejected(value []byte) (i identity, rest []byte, err error) {
	if len(value) < len(i) {
		return i, nil, record.ErrTruncated
	}
	return identity(value), value[len(i):], nil
}

// readQuotas sums up the quarantine of each source.
func (st *store) readQuotas() error {
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

// hold adds a request to the quota of its source.
func (st *store) hold(source string, bytes uint64) {
	h := st.quotas[source]
	if h == nil {
		h = &sourceQuota{}
		st.quotas[source] = h
	}
	h.bytes += bytes
	h.requests++
}

// quarantineSize returns the number and the size of the requests of all sources.
func (st *store) quarantineSize() (requests, bytes int64) {
	for _, h := range st.quotas {
		requests += int64(h.requests)
		bytes += int64(h.bytes)
	}
	return requests, bytes
}

// QuarantineCount returns the number of quarantined requests.
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
	r = r.WithDefaults(j.opts.Clock())
	head, err := encodeHead(i, r)
	if err != nil {
		return "", fmt.Errorf("quarantining: %w", err)
	}
	known := false
	err = j.read(ctx, func(st *store) error {
		_, err := st.get(identityKey(i))
		if known = err == nil; errors.Is(err, journal.ErrNotFound) {
			return nil
		}
		return err
	})
	for err == nil {
		if !known { // most repeats need no file
			if err = j.storeBody(ctx, r); err != nil {
				break
			}
		}
		missing := false
		err = j.grow(ctx, len(head), func(g *group) (err error) {
			if missing = false; known {
				if _, err := g.receiptsOf(i); errors.Is(err, journal.ErrNotFound) {
					missing = true // removed since the look-up
					return nil
				}
			}
			id, err = g.quarantine(i, r, head)
			return err
		})
		if !known {
			j.bodies.reserved.Add(-int64(len(r.Body)))
			// After another error the log may have the request.
			if err == nil && id != r.ID || errors.Is(err, journal.ErrFull) {
				j.bodies.remove([]string{r.ID})
			}
		}
		if err != nil || !missing {
			break
		}
		known = false
	}
	if err != nil {
		return "", fmt.Errorf("quarantining: %w", err)
	}
	return id, nil
}

// storeBody reserves the size of a body and stores the body. The caller ends the reservation
// unless there is an error.
func (j *Journal) storeBody(ctx context.Context, r journal.QuarantinedRequest) error {
	size := int64(len(r.Body))
	j.bodies.reserved.Add(size)
	err := j.read(ctx, func(st *store) error { return j.roomFor(st, 0) })
	if err == nil {
		if err = j.bodies.write(r.ID, r.Body); err != nil {
			err = fmt.Errorf("%w: %w", journal.ErrUnavailable, err)
			j.bodies.remove([]string{r.ID})
		}
	}
	if err != nil {
		j.bodies.reserved.Add(-size)
	}
	return err
}

// encodeHead encodes a request without its body.
func encodeHead(i identity, r journal.QuarantinedRequest) ([]byte, error) {
	r.Body = nil
	return record.AppendRejected(slices.Clone(i[:]), r)
}

// receiptsOf returns the receipts of an identity, or journal.ErrNotFound.
func (g *group) receiptsOf(i identity) (*receipts, error) {
	if r, ok := g.receipts[i]; ok {
		if r == nil {
			return nil, journal.ErrNotFound
		}
		return r, nil
	}
	value, err := g.get(identityKey(i))
	if err != nil {
		return nil, err
	}
	return decodeReceipts(value)
}

// quarantine stages a new request, or a repeat of a stored request.
func (g *group) quarantine(i identity, r journal.QuarantinedRequest, head []byte) (id string, err error) {
	kept, err := g.receiptsOf(i)
	switch {
	case errors.Is(err, journal.ErrNotFound):
		kept = &receipts{ID: r.ID, Source: r.Source, Bytes: sizeOf(len(head), len(r.Body)), Count: r.Count, Last: r.LastReceived}
		g.st.hold(r.Source, kept.Bytes)
		g.added++
		g.addedBytes += int64(kept.Bytes)
		// The request replaces a request of its ID, whose file is its file now.
		g.dropped = slices.DeleteFunc(g.dropped, func(id string) bool { return id == r.ID })
		err = g.set(quarantineKey(r.ID), head)
	case err == nil:
		again := *kept
		again.Count += r.Count
		if r.LastReceived.After(again.Last) {
			again.Last = r.LastReceived
		}
		err = g.delete(orderKey(kept.Source, kept.Number))
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

// putRejected stages a migrated request, and replaces the request of an interrupted
// migration.
func (g *group) putRejected(i identity, r journal.QuarantinedRequest, head []byte) error {
	before, err := g.receiptsOf(i)
	if err == nil {
		err = g.removeRejected(i, before)
	}
	if err != nil && !errors.Is(err, journal.ErrNotFound) {
		return err
	}
	_, err = g.quarantine(i, r, head)
	return err
}

// putReceipts stages the receipts of a request and its position in the order.
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
	return errors.Join(g.set(identityKey(i), value), g.set(orderKey(r.Source, r.Number), encodeOrder(i, r.Bytes)))
}

// discard removes the requests of a source with the oldest receipts while old returns true,
// and returns whether more may remain.
func (g *group) discard(source, reason string, old func(*receipts) bool) (more bool, err error) {
	n := 0
	defer func() {
		if n > 0 {
			g.discarded = append(g.discarded, journal.QuarantineDiscards{Source: source, Reason: reason, Requests: uint64(n)})
		}
	}()
	// try discards one request, and reports whether to continue.
	try := func(i identity, number uint64) (bool, error) {
		r, err := g.receiptsOf(i)
		switch {
		case errors.Is(err, journal.ErrNotFound) || err == nil && number != 0 && r.Number != number:
			return true, nil // the group has removed or updated the request
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
	it, err := g.iterate(orderKey(source, h.front), after(sinkPrefix(orderSpace, source)))
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

// mayDiscard skips a search that would find nothing.
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
	g.addedBytes -= int64(r.Bytes)
	g.dropped = append(g.dropped, r.ID)
	return errors.Join(
		g.delete(quarantineKey(r.ID)),
		g.delete(identityKey(i)),
		g.delete(orderKey(r.Source, r.Number)),
	)
}

// rejected returns the receipts of a request by ID. Its error may wrap journal.ErrNotFound.
func (g *group) rejected(id string) (i identity, r *receipts, err error) {
	value, err := g.get(quarantineKey(id))
	if err == nil {
		i, _, err = splitRejected(value)
	}
	if err == nil {
		r, err = g.receiptsOf(i)
	}
	if err == nil && r.ID != id { // an earlier request of the group removed it, and another one stored it again
		err = journal.ErrNotFound
	}
	return i, r, err
}

// Carried removes a request after count of its receipts were forwarded to another journal;
// later receipts remain.
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
	if err == nil { // otherwise the committer may still write missing
		err = missing
	}
	if err != nil {
		return fmt.Errorf("quarantined request %s: %w", id, err)
	}
	return nil
}

// expireQuarantine discards the requests whose last receipt is before cutoff, and requests
// beyond the limit of a source, which may be lower than before. A retention of 0 is no
// limit.
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

// rejected decodes a quarantined request with its receipts.
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
	if known.ID != r.ID { // removed and stored again
		return r, journal.ErrNotFound
	}
	r.Count, r.LastReceived = known.Count, known.Last
	r.Body, err = st.bodies.read(r.ID)
	if errors.Is(err, fs.ErrNotExist) {
		if _, removed := st.get(quarantineKey(r.ID)); errors.Is(removed, journal.ErrNotFound) {
			return r, removed
		}
		// A request without a body has no file.
		if empty := r; identity(empty.Identity()) == i {
			return r, nil
		}
	}
	if err != nil {
		return r, fmt.Errorf("reading the body: %w", err)
	}
	return r, nil
}

// Quarantined implements journal.QuarantineStore.
func (j *Journal) Quarantined(ctx context.Context, after string) iter.Seq2[journal.QuarantinedRequest, error] {
	prefix := []byte{quarantineSpace}
	start := prefix
	if after != "" {
		start = append(quarantineKey(after), 0)
	}
	return scan(ctx, j, prefix, start, func(st *store, key, value []byte) (journal.QuarantinedRequest, int, error) {
		r, err := st.rejected(key, value)
		return r, len(r.Body), err
	})
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
			return nil // an error of the request, not of the store
		}
		if err == nil {
			err = g.removeRejected(i, r)
		}
		if err != nil {
			return err
		}
		return g.appendAll(events, values, answers)
	})
	if err == nil { // otherwise the committer may still write missing
		err = missing
	}
	if err != nil {
		return nil, fmt.Errorf("quarantined request %s: %w", id, err)
	}
	return answers, nil
}

// discards counts discarded requests until they are logged, in one line per source and
// reason from time to time.
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

// log logs the counts, except shortly after the last line.
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
