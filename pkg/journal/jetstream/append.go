package jetstream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
)

// Limits of one group. A group is one atomic batch; a server takes up to 1,000 messages.
const (
	maxGroupMessages = 900
	maxGroupBytes    = 4 << 20
)

// staged is an event to append, as an encoded record. Zero in the first eight bytes means
// that the acceptance time is the time of the write.
type staged struct {
	event     event.Event
	partition string // partition key; empty is none
	record    []byte
	token     uint64 // assigned at the first attempt
}

// stage encodes events.
func stage(events []event.Event) ([]*staged, error) {
	all := make([]*staged, len(events))
	for i, e := range events {
		var err error
		if all[i], err = stageOne(e); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func stageOne(e event.Event) (*staged, error) {
	id := e.CloudEvent.ID()
	if len(e.Keys) == 0 {
		return nil, fmt.Errorf("%s: the event has no identity key", id)
	}
	b, err := record.AppendEvent(record.AppendKeys(make([]byte, 8, 640+len(e.CloudEvent.DataEncoded)), e.Keys), e)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", id, err)
	}
	partition, _ := e.Attribute(event.PartitionKey)
	return &staged{event: e, partition: partition, record: b}, nil
}

// messages returns the maximum number of messages of an event.
func (s *staged) messages() int { return 1 + len(s.event.Keys) + len(s.record)>>19 }

// fitting splits events into parts that each fit one group.
func fitting(events []*staged) [][]*staged {
	var parts [][]*staged
	n, size, from := 0, 0, 0
	for i, e := range events {
		if i > from && (n+e.messages() > maxGroupMessages || size+len(e.record) > maxGroupBytes) {
			parts = append(parts, events[from:i])
			n, size, from = 0, 0, i
		}
		n += e.messages()
		size += len(e.record)
	}
	return append(parts, events[from:])
}

// request is a set of events that is stored atomically.
type request struct {
	events    []*staged
	entry     *entry            // entry to remove with the write; the entry must be unchanged
	with      []string          // subjects of further entries to remove
	receipts  []journal.Receipt // receipts of the events
	done      chan error        // receives the result, once
	abandoned atomic.Bool       // the caller no longer waits
}

// abandon records that no caller waits for the request. A nil request is allowed.
func (r *request) abandon() {
	if r != nil {
		r.abandoned.Store(true)
	}
}

var publisherSeed = maphash.MakeSeed()

// publisher returns the index of the publisher of the request. Requests with equal first
// keys have one publisher, so that the publisher finds the conflict before the cluster
// does.
func (r *request) publisher() int {
	if len(r.events) == 0 {
		return 0
	}
	return int(maphash.String(publisherSeed, string(r.events[0].event.Keys[0])) % publishers)
}

func (r *request) messages() (n, size int) {
	for _, e := range r.events {
		n += e.messages()
		size += len(e.record)
	}
	if r.entry != nil {
		n += 2 + len(r.with)
	}
	return n, size
}

// publisher stores groups of requests, one group after another. It keeps these invariants:
//
//  1. One atomic batch stores an event and the claims of its identity keys.
//  2. The cluster rejects a batch with a claim whose key already has a claim. So of
//     concurrent appends of one key, in any process, one succeeds. After a rejection the
//     publisher reads the claims, leaves out duplicates, and stores the rest.
//  3. An attempt without an answer may be stored. Before the next attempt the publisher
//     reads the claims: a claim with the token of the append proves that an earlier
//     attempt succeeded.
//  4. A request is answered only after the acknowledgement of the cluster, or after a
//     stored claim.
type publisher struct {
	j           *Journal
	requests    chan *request
	deferred    *request // did not fit the previous group
	sawConflict bool     // the previous group had a conflict: read the claims before the first attempt
}

func newPublisher(j *Journal) *publisher {
	return &publisher{j: j, requests: make(chan *request, 256)}
}

func (p *publisher) run(ctx context.Context) {
	for {
		r := p.deferred
		p.deferred = nil
		for r == nil {
			select {
			case r = <-p.requests:
			case <-ctx.Done():
				p.refuse()
				return
			}
		}
		p.store(ctx, p.gather(r))
	}
}

// refuse answers the waiting requests when the journal is closed.
func (p *publisher) refuse() {
	for {
		select {
		case r := <-p.requests:
			r.done <- journal.ErrClosed
		default:
			return
		}
	}
}

// gather makes a group of the first request and all waiting requests. Gather uses no timer:
// requests collect while the previous group is in flight.
func (p *publisher) gather(first *request) []*request {
	n, size := first.messages()
	group := []*request{first}
	for {
		select {
		case r := <-p.requests:
			more, bytes := r.messages()
			if n, size = n+more, size+bytes; n > maxGroupMessages || size > maxGroupBytes {
				p.deferred = r
				return group
			}
			group = append(group, r)
		default:
			return group
		}
	}
}

func newWait() *backoff.ExponentialBackOff {
	wait := backoff.NewExponentialBackOff() // with jitter
	wait.InitialInterval, wait.MaxInterval = 2*time.Millisecond, 250*time.Millisecond
	wait.Reset()
	return wait
}

// store stores a group and answers its requests. Store retries until the cluster answers.
func (p *publisher) store(ctx context.Context, group []*request) {
	claims := map[string]claim{} // by subject
	readFirst := p.sawConflict
	p.sawConflict = false
	wait := newWait()
	for {
		if group = waiting(group); len(group) == 0 {
			return
		}
		err := p.j.waitReady(ctx)
		if err == nil && readFirst {
			group, err = p.readClaims(ctx, group, claims)
		}
		if err == nil {
			readFirst = true // the attempt may be stored
			err = p.publish(ctx, group, claims)
		}
		switch {
		case err == nil:
			return
		case ctx.Err() != nil:
			answer(group, journal.ErrClosed)
			return
		case errors.Is(err, journal.ErrFull) || errors.Is(err, errBroken):
			answer(group, err)
			return
		case !errors.Is(err, errConflict):
			p.j.log.Debug("storing events in the cluster", zap.Error(err))
		}
		select {
		case <-time.After(wait.NextBackOff()):
		case <-ctx.Done():
		}
	}
}

func answer(group []*request, err error) {
	for _, r := range group {
		r.done <- err
	}
}

// waiting returns the requests that are not abandoned.
func waiting(group []*request) []*request {
	rest := group[:0]
	for _, r := range group {
		if !r.abandoned.Load() {
			rest = append(rest, r)
		}
	}
	return rest
}

var (
	// errConflict is wrapped when another process has written first.
	errConflict = errors.New("somebody else was first")
	// errBroken is wrapped when stored data cannot be decoded, or new data cannot be
	// encoded. A retry does not help.
	errBroken = errors.New("cannot be stored")
)

// readClaims reads the claims of all keys of a group. It answers the requests whose entry
// another request has removed.
func (p *publisher) readClaims(ctx context.Context, group []*request, claims map[string]claim) ([]*request, error) {
	var subjects []string
	rest := group[:0]
	for _, r := range group {
		if r.entry != nil {
			now, err := p.j.entry(ctx, r.entry.subject)
			if err != nil && !errors.Is(err, journal.ErrNotFound) {
				return append(rest, group[len(rest):]...), err
			}
			if err != nil || now.at != r.entry.at {
				// removed, perhaps by an earlier attempt without an answer
				if !p.alreadyStored(ctx, r, claims) {
					r.done <- fmt.Errorf("%s: %w", last(r.entry.subject), journal.ErrNotFound)
					continue
				}
				r.entry = nil
			}
		}
		rest = append(rest, r)
		for _, e := range r.events {
			for _, k := range e.event.Keys {
				subjects = append(subjects, p.j.names.key(k))
			}
		}
	}
	if len(subjects) == 0 {
		return rest, nil
	}
	return rest, p.readKeyClaims(ctx, subjects, claims)
}

func (p *publisher) readKeyClaims(ctx context.Context, subjects []string, claims map[string]claim) error {
	messages, err := p.j.lastOf(ctx, subjects)
	if err != nil {
		return err
	}
	for _, m := range messages {
		c, err := decodeClaim(m)
		if err != nil {
			return fmt.Errorf("%w: %s: %w", errBroken, m.subject, err)
		}
		claims[m.subject] = c
	}
	return nil
}

// alreadyStored reports whether an earlier attempt has stored the events of a request.
func (p *publisher) alreadyStored(ctx context.Context, r *request, claims map[string]claim) bool {
	if len(r.events) == 0 || r.events[0].token == 0 {
		return false
	}
	var subjects []string
	for _, k := range r.events[0].event.Keys {
		subjects = append(subjects, p.j.names.key(k))
	}
	if p.readKeyClaims(ctx, subjects, claims) != nil {
		return false
	}
	for _, s := range subjects {
		if claims[s].token == r.events[0].token {
			return true
		}
	}
	return false
}

// newClaim is a claim of the group, with the batch index of its event. Index 0 is a stored
// event.
type newClaim struct {
	claim
	batchIndex int
}

// plan is the atomic batch of a group.
type plan struct {
	messages []*nats.Msg
	made     map[string]newClaim // by subject
	indexes  [][]int             // batch indexes of the events of each request; 0 is a duplicate
	conflict bool
}

// plan decides which events of a group to store.
func (p *publisher) plan(group []*request, claims map[string]claim) plan {
	pl := plan{made: map[string]newClaim{}, indexes: make([][]int, len(group))}
	now := p.j.now()
	for i, r := range group {
		r.receipts = make([]journal.Receipt, len(r.events))
		pl.indexes[i] = make([]int, len(r.events))
		for n, e := range r.events {
			pl.indexes[i][n] = p.add(&pl, e, claims, now, &r.receipts[n])
		}
		if r.entry != nil {
			pl.messages = append(pl.messages, p.j.removals(*r.entry)...)
			for _, subject := range r.with {
				pl.messages = append(pl.messages, removing(subject))
			}
		}
	}
	return pl
}

// add adds an event and its claims to the batch, or fills in the receipt of a duplicate. It
// returns the batch index of the event, or of the first event for a duplicate; 0 if the
// first event is already stored.
func (p *publisher) add(pl *plan, e *staged, claims map[string]claim, now int64, receipt *journal.Receipt) (place int) {
	if e.token == 0 {
		e.token = p.j.tokens.Add(1)
	}
	accepted := int64(binary.BigEndian.Uint64(e.record))
	if accepted == 0 {
		accepted = now
	}
	var original newClaim
	var unseen []event.Key
	duplicate := false
	for _, k := range e.event.Keys {
		subject := p.j.names.key(k)
		m, ok := pl.made[subject]
		if !ok {
			m.claim, ok = claims[subject]
			ok = ok && m.within(p.j.opts.Window, accepted)
		}
		switch {
		case !ok && !slices.Contains(unseen, k):
			unseen = append(unseen, k)
		case !ok: // a key may occur twice in one event; two claims of one key would conflict
		case !duplicate:
			original, duplicate = m, true
		}
	}
	if !duplicate {
		value := append([]byte(nil), e.record...)
		binary.BigEndian.PutUint64(value, uint64(accepted))
		place = len(pl.messages) + 1
		pl.messages = append(pl.messages, p.j.messages(p.j.names.event(), value)...)
		original = newClaim{claim{first: accepted, token: e.token, id: e.event.CloudEvent.ID()}, place}
	}
	*receipt = journal.Receipt{Seq: original.seq, ID: original.id, Duplicate: duplicate && original.token != e.token}
	pl.conflict = pl.conflict || receipt.Duplicate
	// A duplicate may have a key that the first event does not have. The key gets a claim
	// with the time of the first event, so that a duplicate does not extend the window.
	for _, k := range unseen {
		subject, back := p.j.names.key(k), 0
		if original.batchIndex > 0 {
			back = len(pl.messages) + 1 - original.batchIndex
		}
		pl.made[subject] = original
		m := nats.NewMsg(subject)
		m.Data = original.encode(back)
		if duplicate {
			setKey(m, k)
		}
		m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(claims[subject].at, 10))
		if claims[subject].at > 0 { // expired claim
			m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
		}
		m.Header.Set(jetstream.MsgTTLHeader, seconds(p.j.opts.Window+slack))
		pl.messages = append(pl.messages, m)
	}
	return original.batchIndex
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d/time.Second)+1) + "s" }

// publish stores a group as one batch and answers its requests.
func (p *publisher) publish(ctx context.Context, group []*request, claims map[string]claim) error {
	pl := p.plan(group, claims)
	var first uint64 // sequence of the first message of the batch
	if len(pl.messages) > 0 {
		end, err := p.j.store(ctx, pl.messages)
		if err != nil {
			return err
		}
		first = end + 1 - uint64(len(pl.messages))
	}
	newest := journal.Seq(0)
	for i, r := range group {
		for n, place := range pl.indexes[i] {
			if place > 0 {
				r.receipts[n].Seq = seqOf(first + uint64(place) - 1)
				newest = max(newest, r.receipts[n].Seq)
			}
		}
	}
	p.j.stored(newest)
	p.sawConflict = pl.conflict
	answer(group, nil)
	return nil
}

// store writes one message, or several as one atomic batch, and returns the sequence of the
// last message. It makes one attempt. Unless the error wraps errConflict, ErrFull or errBroken, the
// messages may be stored or not.
func (j *Journal) store(ctx context.Context, messages []*nats.Msg) (uint64, error) {
	ctx, cancel := j.ask(ctx)
	defer cancel()
	if len(messages) == 1 {
		ack, err := j.js.PublishMsg(ctx, messages[0], jetstream.WithRetryAttempts(0))
		if err != nil {
			return 0, judged(err)
		}
		return ack.Sequence, nil
	}
	ack, err := jetstreamext.PublishMsgBatch(ctx, j.js, messages, jetstreamext.BatchFlowControl{})
	if err != nil {
		return 0, judged(err)
	}
	return ack.Sequence, nil
}

// Error codes of the server without a name in nats.go.
const (
	codeWrongLastSequence        jetstream.ErrorCode = 10164 // like JSErrCodeStreamWrongLastSequence, for messages in process
	codeStoreFailed              jetstream.ErrorCode = 10077 // the text of the error has the reason
	codeInsufficientStorage      jetstream.ErrorCode = 10047
	codeAccountResourcesExceeded jetstream.ErrorCode = 10002
	codeMessageExceedsMaximum    jetstream.ErrorCode = 10054
	codeHeaderExceedsMaximum     jetstream.ErrorCode = 10097
)

// judged classifies the errors of the cluster.
func judged(err error) error {
	var api *jetstream.APIError
	if errors.Is(err, nats.ErrMaxPayload) {
		return fmt.Errorf("%w: %w", errBroken, err)
	}
	if !errors.As(err, &api) {
		return err
	}
	switch api.ErrorCode {
	case jetstream.JSErrCodeStreamWrongLastSequence, codeWrongLastSequence:
		return fmt.Errorf("%w: %w", errConflict, err)
	case codeStoreFailed:
		if strings.Contains(api.Description, "maximum bytes exceeded") {
			return fmt.Errorf("%w: %w", journal.ErrFull, err)
		}
	case codeInsufficientStorage, codeAccountResourcesExceeded:
		return fmt.Errorf("%w: %w", journal.ErrFull, err)
	case codeMessageExceedsMaximum, codeHeaderExceedsMaximum:
		return fmt.Errorf("%w: %w", errBroken, err)
	}
	return err
}

// partsHeader is the number of following messages that continue a value.
const partsHeader = "Postwire-Parts"

// maxChunk returns the maximum number of bytes of a value in one message.
func (j *Journal) maxChunk() int { return max(int(j.conn.MaxPayload())-16<<10, 1<<10) } // headroom for headers

// messages encodes a value as one message, or as several messages if the value is larger
// than the server allows.
func (j *Journal) messages(subject string, value []byte) []*nats.Msg {
	most := j.maxChunk()
	head := nats.NewMsg(subject)
	if len(value) <= most {
		head.Data = value
		return []*nats.Msg{head}
	}
	all := []*nats.Msg{head}
	head.Data = value[:most]
	for rest := value[most:]; len(rest) > 0; rest = rest[min(most, len(rest)):] {
		m := nats.NewMsg(j.names.part(subject))
		m.Data = rest[:min(most, len(rest))]
		all = append(all, m)
	}
	head.Header.Set(partsHeader, strconv.Itoa(len(all)-1))
	return all
}

// whole returns the value that begins in a message.
func (j *Journal) whole(ctx context.Context, m message) ([]byte, error) {
	text := m.header.Get(partsHeader)
	if text == "" {
		return m.data, nil
	}
	parts, err := strconv.Atoi(text)
	if err != nil {
		return nil, fmt.Errorf("%w: message %d: %s: %w", errBroken, m.seq, partsHeader, err)
	}
	value := append([]byte(nil), m.data...)
	for n := range parts {
		part, err := j.leaderGet(ctx, getRequest{Seq: m.seq + uint64(n) + 1})
		if err != nil {
			return nil, fmt.Errorf("reading part %d of message %d: %w", n+1, m.seq, err)
		}
		value = append(value, part.data...)
	}
	return value, nil
}

func errVersion(what string, has, reads byte) error {
	return fmt.Errorf("%s has format %d, this version reads %d", what, has, reads)
}
