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

// Limits of one group, which is one atomic batch. A server takes 1,000 messages.
const (
	maxGroupMessages = 900
	maxGroupBytes    = 4 << 20
)

// staged is an event on its way: its record, whose first eight bytes are the time
// of its acceptance, or zero for now.
type staged struct {
	event     event.Event
	partition string // its partition key; empty is none
	record    []byte
	token     uint64 // given at the first attempt
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

// messages is at most how many an event takes.
func (s *staged) messages() int { return 1 + len(s.event.Keys) + len(s.record)>>19 }

// fitting divides events into runs that each fit one group.
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

// request is what is stored as one act, or not at all.
type request struct {
	events    []*staged
	entry     *entry            // an entry that goes with it, and must still be there
	with      []string          // subjects of entries that go with that one, whatever they are
	receipts  []journal.Receipt // of the events
	done      chan error        // gets the outcome, once
	abandoned atomic.Bool       // the caller has not waited for it
}

// abandon says that nobody waits for the request any more. There may be none.
func (r *request) abandon() {
	if r != nil {
		r.abandoned.Store(true)
	}
}

var publisherSeed = maphash.MakeSeed()

// publisher is which one a request goes to. Twins have the same one, so that they meet
// before the cluster has to tell them apart.
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

// publisher stores groups of requests, one group after another.
//
// What makes the promise hold:
//
//  1. An event and the claims of its keys are one atomic batch: neither is ever
//     without the other.
//  2. A claim is refused where the key has one: of twins, in whichever processes,
//     one is stored, and the batch of any other is refused whole. Its publisher
//     then looks the keys up, leaves out what is known, and publishes the rest.
//  3. An attempt that was not answered may have been stored. It is made again
//     with the same keys, after looking them up: a claim that bears the token of
//     this very append says that it was.
//  4. Only the cluster's acknowledgement, or a claim that the cluster has stored,
//     answers a request.
type publisher struct {
	j           *Journal
	requests    chan *request
	deferred    *request // did not fit the group before
	sawConflict bool     // the last group had some, so that looking first is cheaper
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

// refuse answers what still waits when the journal is closed.
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

// gather makes a group of the first request and of all that wait behind it.
// There is no timer: while one group is on its way, the next one collects.
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

// store stores a group, however long the cluster is away, and answers it.
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
			readFirst = true // whatever comes of it: the next attempt must know
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

// waiting returns the requests whose callers still wait.
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
	// errConflict is wrapped where somebody else has written first.
	errConflict = errors.New("somebody else was first")
	// errBroken is wrapped where what is stored cannot be read, or what is to be
	// stored cannot be written: trying again does not help.
	errBroken = errors.New("cannot be stored")
)

// readClaims asks for the claims of all keys of the group, and answers those
// requests whose entry somebody else has taken.
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
				// Gone, perhaps by an attempt of ours that was not answered.
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

// alreadyStored reports whether an earlier attempt has stored the request's events.
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

// newClaim is a claim that the group makes, and the place in the batch of the event
// that it stands for; 0 is an event that is stored already.
type newClaim struct {
	claim
	batchIndex int
}

// plan is a group as an atomic batch.
type plan struct {
	messages []*nats.Msg
	made     map[string]newClaim // by subject
	indexes  [][]int             // in the batch, of each request's events; 0 is a duplicate
	conflict bool
}

// plan decides what of the group is stored.
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

// add puts an event into the batch with the claims of its keys, or fills in its
// receipt where it is a duplicate. It returns its place in the batch; that of a
// duplicate is the place of the first one, or 0 where that is stored already.
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
		case !ok: // given twice: two claims of one key would refuse each other
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
	// A duplicate may bring a key that its original did not have. It is
	// remembered as seen with the original: a duplicate extends nothing.
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
		if claims[subject].at > 0 { // it has had its time
			m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
		}
		m.Header.Set(jetstream.MsgTTLHeader, seconds(p.j.opts.Window+slack))
		pl.messages = append(pl.messages, m)
	}
	return original.batchIndex
}

func seconds(d time.Duration) string { return strconv.Itoa(int(d/time.Second)+1) + "s" }

// publish stores the group as one batch and answers it.
func (p *publisher) publish(ctx context.Context, group []*request, claims map[string]claim) error {
	pl := p.plan(group, claims)
	var first uint64 // place of the batch's first message
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
				r.receipts[n].Seq = journal.Seq(first + uint64(place) - 1)
				newest = max(newest, r.receipts[n].Seq)
			}
		}
	}
	p.j.stored(newest)
	p.sawConflict = pl.conflict
	answer(group, nil)
	return nil
}

// store writes messages as one atomic batch and returns the place of the last
// one. It makes one attempt; unless its error wraps errConflict, ErrFull or
// errBroken, they may have been stored or not.
func (j *Journal) store(ctx context.Context, messages []*nats.Msg) (uint64, error) {
	ctx, cancel := j.ask(ctx)
	defer cancel()
	ack, err := jetstreamext.PublishMsgBatch(ctx, j.js, messages, jetstreamext.BatchFlowControl{})
	if err != nil {
		return 0, judged(err)
	}
	return ack.Sequence, nil
}

// Error codes of the server that nats.go has no name for.
const (
	codeWrongLastSequence        jetstream.ErrorCode = 10164 // as JSErrCodeStreamWrongLastSequence, of what is in process
	codeStoreFailed              jetstream.ErrorCode = 10077 // for a reason that it says in words
	codeInsufficientStorage      jetstream.ErrorCode = 10047
	codeAccountResourcesExceeded jetstream.ErrorCode = 10002
	codeMessageExceedsMaximum    jetstream.ErrorCode = 10054
	codeHeaderExceedsMaximum     jetstream.ErrorCode = 10097
)

// judged sorts the errors of the cluster.
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

// partsHeader says in how many further messages, right behind it, a value goes on.
const partsHeader = "Postwire-Parts"

// maxChunk is how many bytes of a value one message takes.
func (j *Journal) maxChunk() int { return max(int(j.conn.MaxPayload())-16<<10, 1<<10) } // less the headers

// messages are what a value is stored in: one message, or where the server does
// not take one so large, several.
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
