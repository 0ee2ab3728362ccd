package jetstream

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/record"
	"github.com/postwire/postwire/pkg/journal/seqset"
)

const (
	// group is the priority group in which all processes pull: the server pins one of them.
	group = "pump"
	// pinnedTTL is how long the server waits for a pull of the pinned process before it
	// pins another process; keepEvery is the interval of pulls.
	pinnedTTL = 3 * time.Second
	keepEvery = time.Second
	// ackWait is how long the server waits for the commit of an event before it offers the
	// event again. The next owner begins there after a crash.
	ackWait = 5 * time.Second
	// pullAtOnce, pullBytes and maxPending limit the events in flight of one process.
	pullAtOnce = 512
	pullBytes  = 8 << 20
	maxPending = 2048

	beganKey = "postwire.began"
	nameKey  = "postwire.cursor"
)

// cursor implements journal.Cursor on a durable consumer, whose acknowledged floor is the
// committed sequence. The consumer is pinned: the server gives events to one of the pulling
// processes until that process is silent for pinnedTTL.
//
// The server keeps no order among events that it offers again, and offers new events to a
// new owner before the events of the previous owner. So the cursor uses an offered event
// only if it follows the last read event. After a gap, for example after a takeover, the
// cursor reads the events after the committed sequence from the stream.
//
// An acknowledgement contains the sequence of an event and its delivery number. The cursor
// counts the numbers of events read from the stream from the floor: each was delivered at
// least once since, in order, before the newest delivery, and the server requires
// increasing numbers only.
type cursor struct {
	j       *Journal
	name    string
	durable string
	start   journal.Start
	life    context.Context // until Close
	end     context.CancelFunc
	done    sync.WaitGroup

	mu        sync.Mutex
	pulling   bool
	changed   chan struct{} // closed and replaced when one of the following changes
	bound     bool          // the consumer exists
	broken    error         // why the event at the cursor cannot be read
	ownership *ownership    // nil while another process is the owner
	committed journal.Seq
	marks     *seqset.Set // done events after committed
	startSeq  journal.Seq
	lag       uint64
	owner     journal.Owner
	closed    bool
}

// ownership is the time from one pinning of this process to its end.
type ownership struct {
	pin       string
	ack       []string      // parts of the subject of an acknowledgement
	read      journal.Seq   // newest event read
	delivered uint64        // newest delivery
	queue     []delivery    // read events, not yet returned by Next
	bytes     int           // bytes of the queue
	out       []delivery    // returned by Next, not yet committed
	done      chan struct{} // closed at the end of the ownership
}

// delivery is an event in flight.
type delivery struct {
	seq    journal.Seq
	number uint64 // delivery number
	value  []byte // record
}

// Reader implements journal.Journal.
func (j *Journal) Reader(ctx context.Context, name string, start journal.Start) (journal.Cursor, error) {
	c := &cursor{j: j, name: name, durable: token(name), start: start, marks: seqset.At(0), changed: make(chan struct{})}
	j.mu.Lock()
	switch {
	case j.closed:
		j.mu.Unlock()
		return nil, fmt.Errorf("opening cursor %s: %w", name, journal.ErrClosed)
	case j.cursors[name] != nil:
		j.mu.Unlock()
		return nil, fmt.Errorf("opening cursor %s: it is open already", name)
	}
	j.cursors[name] = c
	ready := j.ready
	j.mu.Unlock()
	c.life, c.end = context.WithCancel(j.life)
	if !ready { // setUp binds the cursor before anything is stored
		return c, nil
	}
	err := j.retry(ctx, c.bind)
	if err == nil {
		err = c.recordOpen(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening cursor %s: %w", name, err), c.Close()) //nolint:contextcheck // it is closed even if ctx is done
	}
	return c, nil
}

// notify wakes all waiting goroutines. The caller holds mu.
func (c *cursor) notify() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// consumerConfig returns the configuration of the consumer. A new consumer begins after a
// sequence.
func (c *cursor) consumerConfig(began journal.Seq) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: c.durable, Description: "Place of the sink " + c.name,
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: uint64(began) + 1,
		AckPolicy: jetstream.AckAllPolicy, AckWait: ackWait, MaxDeliver: -1, MaxAckPending: maxPending, MaxWaiting: 512,
		FilterSubject: c.j.names.event(), ReplayPolicy: jetstream.ReplayInstantPolicy,
		PriorityPolicy: jetstream.PriorityPolicyPinned, PinnedTTL: pinnedTTL, PriorityGroups: []string{group},
		Metadata: map[string]string{beganKey: strconv.FormatUint(uint64(began), 10), nameKey: c.name},
	}
}

// bind finds or creates the consumer.
func (c *cursor) bind(ctx context.Context) error {
	s, err := c.j.js.Stream(ctx, c.j.opts.Stream)
	if err != nil {
		return err
	}
	consumer, err := s.Consumer(ctx, c.durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		if err = c.j.poll(ctx); err != nil {
			return err
		}
		c.j.mu.Lock()
		oldest, newest := c.j.state.oldest, c.j.state.last
		c.j.mu.Unlock()
		began := min(max(journal.Seq(c.start), oldest-1), newest)
		if c.start == journal.Latest {
			began = max(began, newest)
		}
		consumer, err = s.CreateConsumer(ctx, c.consumerConfig(began))
		if errors.Is(err, jetstream.ErrConsumerExists) { // another process has created the consumer
			consumer, err = s.Consumer(ctx, c.durable)
		}
	}
	if err != nil {
		return fmt.Errorf("consumer %s: %w", c.durable, err)
	}
	info := consumer.CachedInfo()
	began, err := strconv.ParseUint(info.Config.Metadata[beganKey], 10, 64)
	if err != nil || info.Config.FilterSubject != c.j.names.event() || info.Config.AckPolicy != jetstream.AckAllPolicy || info.Config.PriorityPolicy != jetstream.PriorityPolicyPinned {
		return &refusal{fmt.Sprintf("the consumer %s of the stream %s was not made by Postwire: remove it, or give the sink another name", c.durable, c.j.opts.Stream)}
	}
	c.mu.Lock()
	c.bound, c.startSeq = true, journal.Seq(began)
	c.committed = max(c.committed, c.startSeq)
	c.mu.Unlock()
	c.take(info)
	return nil
}

// take applies the state of the consumer.
func (c *cursor) take(info *jetstream.ConsumerInfo) {
	c.mu.Lock()
	defer c.mu.Unlock()
	floor := journal.Seq(info.AckFloor.Stream)
	moved := floor > c.committed
	c.committed = max(c.committed, floor)
	c.lag = info.NumPending + uint64(info.NumAckPending)
	c.owner.Since = time.Time{}
	pinned := ""
	if len(info.PriorityGroups) > 0 {
		pinned, c.owner.Since = info.PriorityGroups[0].PinnedClientID, info.PriorityGroups[0].PinnedTS
	}
	switch {
	case c.ownership != nil:
		c.owner.Name, c.owner.Local = c.j.opts.Name, true
	case pinned == "":
		c.owner = journal.Owner{}
	default:
		c.owner.Local = false
	}
	if moved {
		c.notify()
	}
}

// poll reads the state of the consumer. The next poll repeats a failed read.
func (c *cursor) poll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	c.mu.Lock()
	bound, local := c.bound, c.ownership != nil
	c.mu.Unlock()
	if !bound {
		return
	}
	info, err := c.info(ctx)
	if err != nil {
		c.j.log.Debug("looking at a consumer", zap.String("sink", c.name), zap.Error(err))
		return
	}
	c.take(info)
	if local || len(info.PriorityGroups) == 0 || info.PriorityGroups[0].PinnedClientID == "" {
		return
	}
	if e, err := c.j.entry(ctx, c.j.names.owner(c.name)); err == nil {
		var h ownerRecord
		if json.Unmarshal(e.value, &h) == nil && h.Pin == info.PriorityGroups[0].PinnedClientID {
			c.mu.Lock()
			if c.ownership == nil {
				c.owner.Name = h.Name
			}
			c.mu.Unlock()
		}
	}
}

func (c *cursor) info(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	consumer, err := c.j.js.Consumer(ctx, c.j.opts.Stream, c.durable)
	if err != nil {
		return nil, err
	}
	return consumer.CachedInfo(), nil
}

// ownerRecord is the stored record of the pinned process.
type ownerRecord struct {
	Name string `json:"name"`
	Pin  string `json:"pin"`
}

// saveOwner stores that this process is pinned.
func (c *cursor) saveOwner(ctx context.Context, pin string) {
	b, err := json.Marshal(ownerRecord{c.j.opts.Name, pin})
	if err == nil {
		_, err = c.j.store(ctx, c.j.messagesFor(c.j.names.owner(c.name), b))
	}
	if err != nil {
		c.j.log.Debug("saying who reads", zap.String("sink", c.name), zap.Error(err))
	}
}

// Next implements journal.Cursor.
func (c *cursor) Next(ctx context.Context, limit int) ([]journal.Record, error) {
	for {
		c.mu.Lock()
		if !c.pulling && !c.closed {
			c.pulling = true
			c.done.Go(c.pull)
		}
		changed, closed, broken := c.changed, c.closed || c.life.Err() != nil, c.broken
		var records []journal.Record
		if t := c.ownership; t != nil && len(t.queue) > 0 && !closed {
			if records, broken = t.take(limit); len(records) > 0 {
				c.notify()
			}
		}
		c.mu.Unlock()
		switch {
		case closed:
			return nil, journal.ErrClosed
		case len(records) > 0:
			return records, nil
		case broken != nil:
			return nil, broken
		}
		select {
		case <-changed:
		case <-c.life.Done():
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// take moves up to limit records from the queue to out. A record that cannot be decoded
// stays in the queue with all later records.
func (t *ownership) take(limit int) (records []journal.Record, err error) {
	var decoder record.Decoder
	for len(t.queue) > 0 && len(records) < max(limit, 1) {
		d := t.queue[0]
		r, err := decoder.Record(d.seq, d.value)
		if err != nil {
			if len(records) > 0 {
				break
			}
			return nil, fmt.Errorf("%w: reading: %w", errBroken, err)
		}
		records = append(records, r)
		t.bytes -= len(d.value)
		t.out = append(t.out, d)
		t.queue = t.queue[1:]
	}
	return records, nil
}

// pull pulls from the consumer until Close.
func (c *cursor) pull() {
	wait := newWait()
	for c.life.Err() == nil {
		err := c.session(c.life, func() { wait.Reset() })
		c.release()
		if c.life.Err() != nil {
			return
		}
		if errors.Is(err, errBroken) {
			c.mu.Lock()
			c.broken = err
			c.notify()
			c.mu.Unlock()
		}
		c.j.log.Debug("pulling again", zap.String("sink", c.name), zap.Error(err))
		select {
		case <-time.After(wait.NextBackOff()):
		case <-c.life.Done():
		}
	}
}

// release ends the ownership: the next owner delivers the events in flight.
func (c *cursor) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ownership != nil {
		close(c.ownership.done)
		c.ownership = nil
		c.owner = journal.Owner{}
		c.notify()
	}
}

// errUnpinned ends a session in which this process was pinned.
var errUnpinned = errors.New("another process is pinned")

// session pulls until the pin is lost or something fails.
func (c *cursor) session(ctx context.Context, well func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := c.j.waitReady(ctx); err != nil {
		return err
	}
	consumer, err := c.j.js.Consumer(ctx, c.j.opts.Stream, c.durable)
	if err != nil {
		return err
	}
	it, err := consumer.Messages(jetstream.PullPriorityGroup(group), jetstream.PullMaxMessagesWithBytesLimit(pullAtOnce, pullBytes),
		jetstream.PullExpiry(10*time.Second), jetstream.PullHeartbeat(2*time.Second))
	if err != nil {
		return err
	}
	defer it.Stop()
	var keeping sync.WaitGroup
	defer keeping.Wait()
	defer cancel(nil)
	for {
		m, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		pin := m.Headers().Get("Nats-Pin-Id")
		c.mu.Lock()
		t := c.ownership
		c.mu.Unlock()
		switch {
		case t == nil:
			if t, err = c.begin(ctx, pin, m.Reply()); err != nil {
				return err
			}
			keeping.Go(func() { c.keep(ctx, cancel, pin) })
			well()
		case t.pin != pin:
			return errUnpinned // pinned again: continue after the committed sequence
		}
		if err := c.ingest(ctx, t, m, meta); err != nil {
			return err
		}
		if err := c.room(ctx, t); err != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
	}
}

// begin begins an ownership with the events after the committed sequence that were
// delivered before to any process.
func (c *cursor) begin(ctx context.Context, pin, reply string) (*ownership, error) {
	ack, err := ackSubject(reply)
	if err != nil {
		return nil, err
	}
	t := &ownership{pin: pin, ack: ack, done: make(chan struct{})}
	if err := c.catchUp(ctx, t); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.ownership, c.broken = t, nil
	c.owner = journal.Owner{Name: c.j.opts.Name, Since: time.Now().UTC(), Local: true}
	c.notify()
	c.mu.Unlock()
	c.saveOwner(ctx, pin)
	c.j.log.Info("this process reads for the sink now", zap.String("sink", c.name))
	return t, nil
}

// catchUp reads events from the stream that were delivered and not read, up to the newest
// delivery.
func (c *cursor) catchUp(ctx context.Context, t *ownership) error {
	info, err := c.info(ctx)
	if err != nil {
		return err
	}
	floor, delivered := journal.Seq(info.AckFloor.Stream), journal.Seq(info.Delivered.Stream)
	number := info.AckFloor.Consumer
	records, err := c.j.eventsBetween(ctx, floor+1, delivered)
	if err != nil {
		return err
	}
	var queue []delivery
	for _, m := range records {
		number++
		if journal.Seq(m.seq) <= t.read || journal.Seq(m.seq) <= c.Committed() {
			continue
		}
		value, err := c.j.whole(ctx, m)
		if err != nil {
			return err
		}
		queue = append(queue, delivery{journal.Seq(m.seq), number, value})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t.push(queue...)
	t.read = max(t.read, delivered, floor)
	t.delivered = max(t.delivered, info.Delivered.Consumer)
	c.notify()
	return nil
}

func (t *ownership) push(ds ...delivery) {
	for _, d := range ds {
		t.bytes += len(d.value)
	}
	t.queue = append(t.queue, ds...)
}

// ingest takes an offered event that follows the last read event. Before an event after a
// gap, ingest reads the missing events from the stream.
func (c *cursor) ingest(ctx context.Context, t *ownership, m jetstream.Msg, meta *jetstream.MsgMetadata) error {
	seq, number := journal.Seq(meta.Sequence.Stream), meta.Sequence.Consumer
	follows := number == t.delivered+1 && meta.NumDelivered == 1
	t.delivered = max(t.delivered, number)
	if seq <= t.read {
		return nil // offered again, or already read
	}
	if !follows {
		if err := c.catchUp(ctx, t); err != nil {
			return err
		}
		if seq <= t.read {
			return nil
		}
	}
	value, err := c.j.whole(ctx, message{m.Subject(), meta.Sequence.Stream, m.Headers(), m.Data()})
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t.read = seq
	t.push(delivery{seq, number, value})
	c.notify()
	return nil
}

// room waits for room for another event in flight.
func (c *cursor) room(ctx context.Context, t *ownership) error {
	for {
		c.mu.Lock()
		full, changed := t.bytes > pullBytes, c.changed
		c.mu.Unlock()
		if !full {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// keep keeps the pin while the queue is full: it pulls a message of at most one byte, and
// no message is so small. The answer also reports the loss of the pin.
func (c *cursor) keep(ctx context.Context, lost context.CancelCauseFunc, pin string) {
	request, err := json.Marshal(map[string]any{"batch": 1, "max_bytes": 1, "expires": keepEvery / 4, "group": group, "id": pin})
	if err != nil {
		lost(err)
		return
	}
	subject := fmt.Sprintf("$JS.API.CONSUMER.MSG.NEXT.%s.%s", c.j.opts.Stream, c.durable)
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for answered := time.Now(); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		try, cancel := context.WithTimeout(ctx, keepEvery)
		m, err := c.j.conn.RequestWithContext(try, subject, request)
		cancel()
		switch {
		case err == nil && m.Header.Get("Status") == "423":
			lost(errUnpinned)
			return
		case err == nil:
			answered = time.Now()
		case time.Since(answered) > pinnedTTL:
			lost(errUnpinned) // or will be soon
			return
		}
	}
}

// ackSubject parses the subject of an acknowledgement:
//
//	$JS.ACK.<stream>.<consumer>.<delivered>.<seq>.<number>.<time>.<pending>
//	$JS.ACK.<domain>.<account>.<stream>.<consumer>.<delivered>.<seq>.<number>.<time>.<pending>[.<random>]
func ackSubject(reply string) ([]string, error) {
	parts := strings.Split(reply, ".")
	if len(parts) != 9 && len(parts) < 11 {
		return nil, fmt.Errorf("the cluster wants its acknowledgement at %q, which this version does not know", reply)
	}
	return parts, nil
}

// acknowledgement returns the subject that acknowledges a delivery and all earlier
// deliveries.
func (t *ownership) acknowledgement(d delivery) string {
	parts := slices.Clone(t.ack)
	at := 5
	if len(parts) > 9 {
		at = 7
	}
	parts[at-1], parts[at], parts[at+1] = "1", strconv.FormatUint(uint64(d.seq), 10), strconv.FormatUint(d.number, 10)
	return strings.Join(parts, ".")
}

// Commit implements journal.Cursor.
func (c *cursor) Commit(ctx context.Context, p journal.Progress) error {
	undelivered := p.Undelivered
	c.mu.Lock()
	set := seqset.At(c.committed)
	for r := range c.marks.Ranges() {
		set.Add(r.From, r.To)
	}
	for _, r := range p.Done {
		set.Add(r.From, r.To)
	}
	c.marks = set
	through := set.Floor()
	t, closed := c.ownership, c.closed || c.life.Err() != nil
	var done []delivery
	if t != nil {
		n, _ := slices.BinarySearchFunc(t.out, through+1, func(d delivery, s journal.Seq) int { return cmp.Compare(d.seq, s) })
		done = slices.Clone(t.out[:n])
	}
	committed := c.committed
	c.mu.Unlock()
	switch {
	case closed:
		return fmt.Errorf("committing: %w", journal.ErrClosed)
	case t == nil && through > committed:
		return fmt.Errorf("committing: %w", journal.ErrOwnershipLost)
	case len(done) == 0:
		return nil
	}
	messages, err := c.undeliveredMessages(undelivered, done)
	if err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-t.done:
			cancel(journal.ErrOwnershipLost)
		case <-stop:
		}
	})
	defer watching.Wait()
	defer close(stop)
	for some := range slices.Chunk(messages, maxGroupMessages) {
		if err := c.j.put(ctx, some); err != nil {
			return fmt.Errorf("committing: %w", cause(ctx, err))
		}
	}
	if err := c.acknowledge(ctx, t, done[len(done)-1]); err != nil {
		return fmt.Errorf("committing: %w", cause(ctx, err))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t.out = t.out[min(len(done), len(t.out)):]
	c.committed = max(c.committed, done[len(done)-1].seq)
	c.lag -= min(c.lag, uint64(len(done)))
	c.notify()
	return nil
}

// cause returns why ctx is done, if ctx caused err.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// undeliveredMessages returns the messages that store dead letters and dispositions.
func (c *cursor) undeliveredMessages(undelivered journal.Undelivered, done []delivery) (messages []*nats.Msg, err error) {
	for _, letter := range undelivered.Dead {
		n, ok := slices.BinarySearchFunc(done, letter.Seq, func(d delivery, s journal.Seq) int { return cmp.Compare(d.seq, s) })
		if !ok {
			continue // after the committed sequence
		}
		value, err := encodeDead(letter, done[n].value)
		if err != nil {
			return nil, err
		}
		messages = append(messages, c.j.messagesFor(c.j.names.dead(journal.DeliveryID{Sink: cmp.Or(undelivered.Sink, c.name), Seq: letter.Seq}), value)...)
	}
	for _, u := range undelivered.Discarded {
		m, err := c.j.lostMessage(c.name, u)
		if err != nil {
			return nil, err
		}
		messages = append(messages, m)
	}
	return messages, nil
}

// acknowledge moves the floor of the consumer, and waits until the new floor is stored.
func (c *cursor) acknowledge(ctx context.Context, t *ownership, d delivery) error {
	subject := t.acknowledgement(d)
	return c.j.retry(ctx, func(ctx context.Context) error {
		try, cancel := c.j.ask(ctx)
		_, err := c.j.conn.RequestWithContext(try, subject, []byte("+ACK"))
		cancel()
		if err == nil {
			return nil
		}
		// A new leader may not answer; then the floor shows whether it has moved.
		info, err := c.info(ctx)
		if err != nil {
			return err
		}
		if journal.Seq(info.AckFloor.Stream) >= d.seq {
			return nil
		}
		return errors.New("the acknowledgement was not answered")
	})
}

// Done implements journal.Cursor.
func (c *cursor) Done(s journal.Seq) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return s <= c.committed
}

// Committed implements journal.Cursor.
func (c *cursor) Committed() journal.Seq {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.committed
}

// StartSeq implements journal.Cursor.
func (c *cursor) StartSeq() journal.Seq {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.startSeq
}

// Lag implements journal.Cursor.
func (c *cursor) Lag() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lag
}

// OwnershipLost implements journal.Cursor.
func (c *cursor) OwnershipLost() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ownership == nil {
		over := make(chan struct{})
		close(over)
		return over
	}
	return c.ownership.done
}

// Owner implements journal.Cursor.
func (c *cursor) Owner() journal.Owner {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.owner
}

// Close implements io.Closer.
func (c *cursor) Close() error {
	c.mu.Lock()
	t := c.ownership
	again := c.closed
	c.closed = true
	c.notify()
	c.mu.Unlock()
	c.end()
	c.done.Wait()
	if again {
		return nil
	}
	if t != nil {
		c.handOver(t)
	}
	c.j.mu.Lock()
	defer c.j.mu.Unlock()
	if c.j.cursors[c.name] == c {
		delete(c.j.cursors, c.name)
	}
	return nil
}

// handOver releases the pin for another process: the server pins the process and offers the
// first event in flight. If handOver fails, the takeover is as slow as after a crash.
func (c *cursor) handOver(t *ownership) {
	ctx, cancel := context.WithTimeout(context.Background(), apiTimeout/2)
	defer cancel()
	s, err := c.j.js.Stream(ctx, c.j.opts.Stream)
	if err == nil {
		err = s.UnpinConsumer(ctx, c.durable, group)
	}
	if hand := slices.Concat(t.out, t.queue); err == nil && len(hand) > 0 {
		_, err = c.j.conn.RequestWithContext(ctx, t.acknowledgement(hand[0]), []byte("-NAK"))
	}
	if err != nil {
		c.j.log.Debug("handing a sink over", zap.String("sink", c.name), zap.Error(err))
	}
}

// Cursors implements journal.Journal.
func (j *Journal) Cursors(ctx context.Context) (all []journal.Position, err error) {
	err = j.retry(ctx, func(ctx context.Context) (err error) {
		all, err = positions(ctx, j.js, j.opts.Stream)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing cursors: %w", err)
	}
	return all, nil
}

// positions reads the committed sequences of the cursors of a stream, by name.
func positions(ctx context.Context, js jetstream.JetStream, name string) (all []journal.Position, err error) {
	stream, err := js.Stream(ctx, name)
	if err != nil {
		return nil, err
	}
	consumers := stream.ListConsumers(ctx)
	for info := range consumers.Info() {
		name, ok := info.Config.Metadata[nameKey]
		if !ok {
			continue // a consumer of an operator
		}
		began, err := strconv.ParseUint(info.Config.Metadata[beganKey], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%w: consumer %s: %w", errBroken, info.Name, err)
		}
		all = append(all, journal.Position{
			Name: name, StartSeq: journal.Seq(began), Committed: journal.Seq(max(began, info.AckFloor.Stream)), Lag: info.NumPending + uint64(info.NumAckPending),
			InUse: slices.ContainsFunc(info.PriorityGroups, func(g jetstream.PriorityGroupState) bool { return g.PinnedClientID != "" }),
		})
	}
	slices.SortFunc(all, func(a, b journal.Position) int { return strings.Compare(a.Name, b.Name) })
	return all, consumers.Err()
}

// DeleteCursor implements journal.Journal.
func (j *Journal) DeleteCursor(ctx context.Context, name string) error {
	j.mu.Lock()
	_, open := j.cursors[name]
	j.mu.Unlock()
	if open {
		return fmt.Errorf("forgetting cursor %s: it is open", name)
	}
	err := j.retry(ctx, func(ctx context.Context) error {
		err := j.js.DeleteConsumer(ctx, j.opts.Stream, token(name))
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			return nil
		}
		return err
	})
	for _, subject := range []string{j.names.value(openPrefix + name), j.names.owner(name)} {
		if err == nil {
			err = j.put(ctx, []*nats.Msg{removing(subject)})
		}
	}
	if err != nil {
		return fmt.Errorf("forgetting cursor %s: %w", name, err)
	}
	return nil
}
