package relay

import (
	"cmp"
	"container/heap"
	"hash/maphash"
	"slices"
	"strconv"
	"time"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/sinks"
)

// Limits of a schedule besides max_pending.
const (
	// maxPendingBytes limits the size of the events in hand.
	maxPendingBytes = 32 << 20
	// maxDeferredKeys limits the keys whose events are read again later. A key takes about
	// 60 bytes.
	maxDeferredKeys = 1_000_000
	// maxBlockedDestinations limits the blocked destinations; the events of a further failing destination wait
	// by themselves.
	maxBlockedDestinations = 1000
	// maxAttempted limits the deferred events whose attempts are remembered. An event takes
	// about 100 bytes.
	maxAttempted = 50_000
	// parkedFor is how long an event that failed while too many waited is not read again.
	parkedFor = 30 * time.Second
	// maxProbes limits the events in hand of a blocked destination.
	maxProbes = 4
)

// schedule decides which events of a sink are delivered next. Events of one partition key
// are delivered in order; keys take turns, and do not wait for each other. The schedule does
// no I/O. One goroutine uses a schedule.
//
// The state of a key:
//
//	| state | events in hand | next state |
//	|---|---|---|
//	| ready | queued | flying, when take takes them; deferred, if their destination is blocked |
//	| flying | queued, and in a delivery | ready, waiting, probe, committing or removed, by the results |
//	| waiting | the failed event | ready, when the wait is over |
//	| probe | the failed event | ready, when the destination is probed or works again |
//	| committing | queued | ready, when the dead letter of the previous event is stored |
//
// The later events of a waiting or probe key are deferred: the schedule forgets them and
// notes where they begin. When the key is free again, a catch-up reads the journal from
// there and admits the events of the key, until it reaches the head: the newest event that
// was read.
type schedule struct {
	limits     sinks.Limits
	batch      int // maximum number of events of a delivery
	maxPending int
	route      func(event.Event) sinks.Destination
	seed       [2]maphash.Seed

	head        journal.Seq // newest event that was read
	keys        map[keyHash]*key
	groups      map[sinks.Destination]*group
	ready       []*group // groups with ready keys; they take turns
	waiting     waitingKeys
	parked      journal.Seq // first event that failed and was deferred, because too many waited; 0 is none
	parkedUntil time.Time
	sent        journal.Seq               // newest deferred event of which an attempt was made
	attempted   map[journal.Seq]attempted // attempts of deferred events, up to maxAttempted

	blocked      int // waiting and probe keys, each with its failed event
	blockedBytes int // size of these events
	destinations map[sinks.Destination]*blockedDestination
	inHand       int // events queued or in a delivery
	bytes        int
	order        []*item // events in hand in the order of their admission, and some that are removed

	deferred      map[keyHash]deferral
	deferredCount uint64 // deferred events
	pass          catchUp
	next          catchUp // the catch-up after pass
}

// keyHash stands for a partition key. Two keys with one hash wait for each other.
type keyHash [2]uint64

// key is a partition key with events in hand, or an event without a key.
type key struct {
	hash           keyHash
	state          keyState
	queue          []*item  // in order; of a waiting or probe key, the failed event
	one            [1]*item // memory of a queue of one event
	flying         int      // events in a delivery
	bytes          int
	group          *group
	due            time.Time // end of the wait
	index          int       // in waiting
	pendingCommits int       // dead letters and discards that are not stored yet
}

type keyState int

const (
	keyReady keyState = iota
	keyFlying
	keyWaiting
	keyProbe
	keyCommitting
)

// item is an event in hand.
type item struct {
	journal.Record
	from journal.Seq // the sequences from here to the event have no event
	key  *key
	size int
	attempted
	err     error               // of the last attempt
	resent  bool                // an attempt may have been made before
	removed bool                // not in hand any more
	probing *blockedDestination // whose probe the event is; nil for none
}

// attempted are the attempts to deliver an event.
type attempted struct {
	attempts int
	refused  int       // attempts after which the receiver answered that it failed
	first    time.Time // time of the first attempt
	progress uint64    // Pump.successes at the first attempt
	inDoubt  bool      // the sink does not know yet whether the event is stored
}

// group has the ready keys that may share a delivery: those of a destination, or all keys.
type group struct {
	to     sinks.Destination
	ready  []*key
	flying int // deliveries
	listed bool
}

// blockedDestination is a destination whose events wait.
type blockedDestination struct {
	to     sinks.Destination
	since  time.Time
	err    error
	probes []*key // keys with the failed events, which take turns
	probe  *item  // in a delivery; nil without one
	due    time.Time
	waits  int         // waits so far
	from   journal.Seq // first event that was deferred because of the destination; 0 is none
}

// deferral is where the deferred events of a key begin.
type deferral struct {
	from   journal.Seq
	pass   uint32 // catch-up that has left events of the key deferred
	events uint32
}

// catchUp reads deferred events again.
type catchUp struct {
	number uint32
	from   journal.Seq // 0 is no catch-up
	at     journal.Seq // next sequence to read
	all    bool        // any key may be free
	keys   map[keyHash]bool
}

func newSchedule(maxPending int, route func(event.Event) sinks.Destination) *schedule {
	return &schedule{
		limits: sinks.Limits{InFlight: 1}, batch: 1, maxPending: maxPending, route: route, seed: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
		keys: map[keyHash]*key{}, groups: map[sinks.Destination]*group{}, destinations: map[sinks.Destination]*blockedDestination{}, deferred: map[keyHash]deferral{},
		attempted: map[journal.Seq]attempted{},
	}
}

// hash returns the hash of the partition key of a record. A record without a key has a hash
// of its own.
func (s *schedule) hash(r journal.Record) keyHash {
	name, keyed := r.Event.Attribute(event.PartitionKey)
	if !keyed || name == "" {
		name = "\x00" + strconv.FormatUint(uint64(r.Seq), 36)
	}
	return keyHash{maphash.String(s.seed[0], name), maphash.String(s.seed[1], name)}
}

// open returns the number of events that were read and are not done.
func (s *schedule) open() uint64 { return uint64(s.inHand) + s.deferredCount }

// room returns how many more events may be read. Without room, reason is the limit.
func (s *schedule) room() (n int, reason string) {
	switch {
	case s.inHand >= s.maxPending:
		return 0, "max_pending"
	case s.bytes >= maxPendingBytes:
		return 0, "max_pending_bytes"
	case len(s.deferred) >= maxDeferredKeys:
		return 0, "max_deferred_keys"
	}
	return s.maxPending - s.inHand, ""
}

// stocked reports whether the events of the ready keys fill a batch.
func (s *schedule) stocked() bool {
	enough := s.batch
	for _, g := range s.ready {
		for _, k := range g.ready {
			if enough -= len(k.queue); enough <= 0 {
				return true
			}
		}
	}
	return false
}

// keyLimit is the maximum number of events in hand of one key.
func (s *schedule) keyLimit() int { return max(1, s.maxPending/4) }

// setLimits applies the limits of the opened sink. No event may be in a delivery.
func (s *schedule) setLimits(limits sinks.Limits, batch int) {
	limits.InFlight = max(1, limits.InFlight)
	if limits.Batch > 0 {
		batch = min(batch, limits.Batch)
	}
	s.limits, s.batch = limits, batch
	s.ready, s.groups = nil, map[sinks.Destination]*group{}
	s.sortReady()
}

// sortReady puts the ready keys in the order of the journal, in the groups of their current
// destinations.
func (s *schedule) sortReady() {
	for _, g := range s.groups {
		g.ready = nil
	}
	var ready []*key
	for _, k := range s.keys {
		if k.state == keyReady {
			ready = append(ready, k)
		}
	}
	slices.SortFunc(ready, func(a, b *key) int { return cmp.Compare(a.queue[0].Seq, b.queue[0].Seq) })
	for _, k := range ready {
		s.makeReady(k)
	}
	for _, g := range s.groups {
		if !g.listed {
			s.drop(g)
		}
	}
}

// admit takes an event that was read for the first time, in the order of the journal. The
// sequences from the given one to the event have no event. If admit returns false, the event
// is deferred.
func (s *schedule) admit(r journal.Record, from journal.Seq) bool {
	s.head = r.Seq
	h := s.hash(r)
	if d, ok := s.deferred[h]; ok {
		d.events++
		s.deferred[h] = d
		s.deferredCount++
		return false
	}
	k := s.keys[h]
	if !s.admissible(k, r) {
		s.deferFrom(h, r.Seq, 1)
		return false
	}
	s.push(k, h, r, from)
	return true
}

// admissible reports whether an event may be in hand now.
func (s *schedule) admissible(k *key, r journal.Record) bool {
	if k != nil {
		if k.state == keyWaiting || k.state == keyProbe {
			return false
		}
		if n := len(k.queue) + k.flying; n >= s.keyLimit() || k.bytes >= maxPendingBytes/4 {
			return false
		}
	}
	if len(s.destinations) > 0 {
		if d := s.destinations[s.route(r.Event)]; d != nil {
			d.recordDeferred(r.Seq)
			return false
		}
	}
	return true
}

// recordDeferred records that an event was deferred because of the destination.
func (d *blockedDestination) recordDeferred(seq journal.Seq) {
	if d.from == 0 || seq < d.from {
		d.from = seq
	}
}

// push adds an event to its key.
func (s *schedule) push(k *key, h keyHash, r journal.Record, from journal.Seq) *item {
	if k == nil {
		k = &key{hash: h, state: keyFlying, index: -1}
		k.queue = k.one[:0]
		s.keys[h] = k
	}
	i := &item{Record: r, from: from, key: k, resent: r.Seq <= s.sent, size: len(r.Event.CloudEvent.DataEncoded) + 512}
	if before, ok := s.attempted[r.Seq]; ok {
		i.attempted = before
		delete(s.attempted, r.Seq)
	}
	k.queue = append(k.queue, i)
	k.bytes += i.size
	s.order = append(s.order, i)
	s.inHand++
	s.bytes += i.size
	if k.state == keyFlying && k.flying == 0 {
		s.makeReady(k)
	}
	return i
}

// makeReady lets the next event of a key be batch.
func (s *schedule) makeReady(k *key) {
	var to sinks.Destination
	if s.limits.PerDestination {
		to = s.route(k.queue[0].Event)
	}
	g := s.groups[to]
	if g == nil {
		g = &group{to: to}
		s.groups[to] = g
	}
	k.state, k.group = keyReady, g
	g.ready = append(g.ready, k)
	s.list(g)
}

// list adds a group with ready keys to the groups that take turns.
func (s *schedule) list(g *group) {
	if !g.listed && len(g.ready) > 0 && (!s.limits.PerDestination || g.flying == 0) {
		g.listed = true
		s.ready = append(s.ready, g)
	}
}

// take returns up to size events for a delivery, in the order of the journal, and the group
// of the delivery. Take returns nothing if no key is ready.
func (s *schedule) take(size int) ([]*item, *group) {
	for len(s.ready) > 0 {
		g := s.ready[0]
		s.ready = s.ready[1:]
		g.listed = false
		batch := s.takeFrom(g, min(size, s.batch))
		if len(batch) == 0 {
			s.drop(g)
			continue
		}
		g.flying++
		s.list(g)
		return batch, g
	}
	return nil, nil
}

// takeFrom takes events of the ready keys of a group. Each key gives an equal part first. The
// keys are shared among the deliveries that are possible at once: one that took all keys
// would leave nothing to do for the others.
func (s *schedule) takeFrom(g *group, size int) (batch []*item) {
	keys := len(g.ready)
	if free := s.limits.InFlight - g.flying; free > 1 && !s.limits.PerDestination {
		keys = (keys + free - 1) / free
	}
	share := max(1, size/max(1, keys))
	var from []*key
	for len(g.ready) > 0 && len(batch) < size && len(from) < max(1, keys) {
		k := g.ready[0]
		g.ready = g.ready[1:]
		if s.deferBlocked(k) {
			continue
		}
		k.state = keyFlying
		batch = s.fly(k, g, batch, min(share, size-len(batch)))
		from = append(from, k)
	}
	for _, k := range from {
		if len(batch) >= size {
			break
		}
		batch = s.fly(k, g, batch, size-len(batch))
	}
	slices.SortFunc(batch, func(a, b *item) int { return cmp.Compare(a.Seq, b.Seq) })
	return batch
}

// fly moves up to n events of a key to a delivery.
func (s *schedule) fly(k *key, g *group, batch []*item, n int) []*item {
	for n > 0 && len(k.queue) > 0 {
		i := k.queue[0]
		// The group of the key has the destination of its first event.
		if s.limits.PerDestination && k.flying > 0 || len(s.destinations) > 0 {
			to := s.route(i.Event)
			if s.destinations[to] != nil || s.limits.PerDestination && to != g.to && k.flying > 0 {
				break
			}
		}
		k.queue = k.queue[1:]
		k.flying++
		batch = append(batch, i)
		n--
	}
	return batch
}

// deferBlocked defers all events of a ready key whose destination is blocked.
func (s *schedule) deferBlocked(k *key) bool {
	if len(s.destinations) == 0 {
		return false
	}
	d := s.destinations[s.route(k.queue[0].Event)]
	if d == nil {
		return false
	}
	for _, i := range k.queue {
		d.recordDeferred(i.Seq)
	}
	s.deferQueue(k, 0)
	s.abandon(k)
	return true
}

// drop deletes a group without keys and deliveries.
func (s *schedule) drop(g *group) {
	if len(g.ready) == 0 && g.flying == 0 && s.groups[g.to] == g {
		delete(s.groups, g.to)
	}
}

// landed records the end of a delivery of a group, after the results of its events.
func (s *schedule) landed(g *group) {
	g.flying--
	s.list(g)
	s.drop(g)
}

// remove removes a done event of a delivery, or the failed event of a waiting or probe key.
func (s *schedule) remove(i *item) {
	i.removed = true
	s.inHand--
	s.bytes -= i.size
	i.key.bytes -= i.size
}

// done records that an event of a delivery needs no further delivery. With deadLettered, the
// later events of the key wait until stored is called.
func (s *schedule) done(i *item, deadLettered bool) {
	s.endProbe(i)
	s.remove(i)
	i.key.flying--
	if deadLettered {
		i.key.pendingCommits++
	}
	s.nextState(i.key)
}

// stored records that a dead letter or a discard of a key is stored.
func (s *schedule) stored(k *key) {
	k.pendingCommits--
	s.nextState(k)
}

// nextState finds the next state of a key without events in a delivery.
func (s *schedule) nextState(k *key) {
	if k.flying > 0 || k.state == keyWaiting || k.state == keyProbe || k.state == keyReady {
		return
	}
	switch {
	case k.pendingCommits > 0:
		k.state = keyCommitting
	case len(k.queue) > 0:
		s.makeReady(k)
		s.refill(k)
	default:
		s.removeKey(k)
	}
}

// refill lets a catch-up read the deferred events of a key that has few events in hand.
func (s *schedule) refill(k *key) {
	if d, ok := s.deferred[k.hash]; ok && len(k.queue) <= s.keyLimit()/2 {
		s.free(k.hash, d.from)
	}
}

// removeKey removes a key without events in hand. Its deferred events are to be read again.
func (s *schedule) removeKey(k *key) {
	delete(s.keys, k.hash)
	if d, ok := s.deferred[k.hash]; ok {
		s.free(k.hash, d.from)
	}
}

// back returns events of a delivery that says nothing about them to the front of their keys.
func (s *schedule) back(items []*item) {
	for _, i := range slices.Backward(items) { // in the order of the journal
		k := i.key
		k.flying--
		if d := s.endProbe(i); d != nil {
			for _, later := range k.queue {
				d.recordDeferred(later.Seq)
			}
			s.deferQueue(k, 0)
			k.queue, k.state = []*item{i}, keyProbe
			d.due = d.due.Add(time.Nanosecond) // behind the other destinations that are due
			d.probes = append(d.probes, k)
			s.block(i)
			continue
		}
		if k.state != keyFlying { // behind an event that failed
			s.deferItem(k, i)
			continue
		}
		k.queue = slices.Insert(k.queue, 0, i)
	}
	for _, i := range items {
		s.nextState(i.key)
	}
}

// deferItem defers an event that is not queued.
func (s *schedule) deferItem(k *key, i *item) {
	s.remove(i)
	s.recordSent(i)
	s.deferFrom(k.hash, i.Seq, 1)
}

// recordSent records the attempts of an event that is deferred: the broker may have the event.
func (s *schedule) recordSent(i *item) {
	if i.attempts > 0 {
		s.sent = max(s.sent, i.Seq)
		if i.inDoubt || len(s.attempted) < maxAttempted {
			s.attempted[i.Seq] = i.attempted
		}
	}
}

// deferFrom notes that n events of a key, from a sequence on, are to be read again.
func (s *schedule) deferFrom(h keyHash, from journal.Seq, n int) {
	s.deferredCount += uint64(n)
	d, ok := s.deferred[h]
	d.events += uint32(n)
	if !ok || from < d.from {
		d.from, d.pass = from, s.pass.number
	}
	s.deferred[h] = d
}

// deferQueue defers the queued events of a key from an index on.
func (s *schedule) deferQueue(k *key, from int) {
	if from >= len(k.queue) {
		return
	}
	for _, i := range k.queue[from:] {
		s.remove(i)
		s.recordSent(i)
	}
	s.deferFrom(k.hash, k.queue[from].Seq, len(k.queue)-from)
	k.queue = slices.Clone(k.queue[:from])
}

// wait lets a key wait until due because of its failed event, and defers the later events.
// The event is the first failed one of its key in a delivery.
func (s *schedule) wait(i *item, due time.Time) {
	k := i.key
	k.flying--
	k.queue = append([]*item{i}, k.queue...)
	s.deferQueue(k, 1)
	if s.blocked >= max(1, s.maxPending/2) || s.blocked > 0 && s.blockedBytes+i.size > maxPendingBytes/2 {
		// The event is read again when fewer wait.
		if s.parked == 0 {
			s.parkedUntil = due.Add(parkedFor)
		}
		if s.parked == 0 || i.Seq < s.parked {
			s.parked = i.Seq
		}
		s.deferQueue(k, 0)
		s.abandon(k)
		return
	}
	k.state, k.due = keyWaiting, due
	heap.Push(&s.waiting, k)
	s.block(i)
}

// due makes the keys ready whose wait is over.
func (s *schedule) due(now time.Time) {
	for len(s.waiting) > 0 && !s.waiting[0].due.After(now) {
		s.endWait(s.waiting[0])
	}
}

// nextDue reports when a wait ends.
func (s *schedule) nextDue(at func(time.Time)) {
	if len(s.waiting) > 0 {
		at(s.waiting[0].due)
	}
	for _, d := range s.destinations {
		if d.probe == nil {
			at(d.due)
		}
	}
	if s.parked > 0 {
		at(s.parkedUntil.Add(1))
	}
}

// takeProbe takes one event to probe the sink. Ready keys take turns, and come before the
// keys whose event failed by itself, so that failing events do not keep the circuit breaker
// open.
func (s *schedule) takeProbe(now time.Time) ([]*item, *group) {
	if items, g := s.take(1); len(items) > 0 {
		return items, g
	}
	if i, g := s.probe(now); i != nil {
		return []*item{i}, g
	}
	if len(s.waiting) > 0 && !s.waiting[0].due.After(now) {
		s.endWait(s.waiting[0])
	}
	return s.take(1)
}

// blockedItems returns the failed events in hand, in the order of the journal.
func (s *schedule) blockedItems() (items []*item) {
	for _, k := range s.waiting {
		items = append(items, k.queue[0])
	}
	for _, d := range s.destinations {
		for _, k := range d.probes {
			items = append(items, k.queue[0])
		}
	}
	slices.SortFunc(items, func(a, b *item) int { return cmp.Compare(a.Seq, b.Seq) })
	return items
}

// blockedEvent returns the failed event in hand with a sequence, or nil.
func (s *schedule) blockedEvent(seq journal.Seq) *item {
	for _, i := range s.blockedItems() {
		if i.Seq == seq {
			return i
		}
	}
	return nil
}

// oldest returns the acceptance time of the oldest event in hand, or the zero time.
func (s *schedule) oldest() time.Time {
	if len(s.order) > 2*s.inHand+1024 {
		s.order = slices.DeleteFunc(s.order, func(i *item) bool { return i.removed })
	}
	for len(s.order) > 0 && s.order[0].removed {
		s.order = s.order[1:]
	}
	if len(s.order) == 0 {
		return time.Time{}
	}
	return s.order[0].Accepted
}

// endWait makes a waiting key ready.
func (s *schedule) endWait(k *key) {
	s.leaveWaiting(k)
	s.unblock(k)
}

// leaveWaiting removes a key with its failed event from the waiting keys.
func (s *schedule) leaveWaiting(k *key) {
	heap.Remove(&s.waiting, k.index)
	s.leaveBlocked(k.queue[0])
}

// block counts a failed event in hand.
func (s *schedule) block(i *item) {
	s.blocked++
	s.blockedBytes += i.size
}

// leaveBlocked ends what block began. There may be room for parked events then.
func (s *schedule) leaveBlocked(i *item) {
	s.blocked--
	s.blockedBytes -= i.size
	if s.blocked <= s.maxPending*3/8 && s.blockedBytes <= maxPendingBytes*3/8 {
		s.unpark()
	}
}

// unpark lets the next catch-up read parked events.
func (s *schedule) unpark() {
	if s.parked > 0 {
		s.freeAll(s.parked)
		s.parked = 0
	}
}

// unparkDue unparks events after parkedFor, so that they take turns with the waiting ones.
func (s *schedule) unparkDue(now time.Time) {
	if s.parked > 0 && now.After(s.parkedUntil) {
		s.unpark()
	}
}

// unblock makes a key ready whose event waited, unless a dead letter of the key is not stored
// yet.
func (s *schedule) unblock(k *key) {
	if k.pendingCommits > 0 {
		k.state = keyCommitting
		return
	}
	s.makeReady(k)
}

// endWaits makes all waiting keys ready.
func (s *schedule) endWaits() {
	for len(s.waiting) > 0 {
		s.endWait(s.waiting[0])
	}
}

// blockDestination lets all events of a destination wait because an event failed there. The function
// wait returns the duration of the n-th wait.
func (s *schedule) blockDestination(i *item, now time.Time, wait func(n int) time.Duration, err error) {
	probed := s.endProbe(i)
	if probed != nil {
		probed.waits++
		probed.due = now.Add(wait(probed.waits))
	}
	to := s.route(i.Event) // may have changed since the last attempt
	d := s.destinations[to]
	switch {
	case d == nil && len(s.destinations) >= min(maxBlockedDestinations, max(1, s.maxPending/4)):
		s.wait(i, now.Add(wait(i.attempts)))
		return
	case d == nil:
		d = &blockedDestination{to: to, since: now, waits: 1, due: now.Add(wait(1))}
		s.destinations[to] = d
	}
	d.err = err
	k := i.key
	k.flying--
	k.queue = append([]*item{i}, k.queue...)
	for _, later := range k.queue[1:] {
		d.recordDeferred(later.Seq)
	}
	s.deferQueue(k, 1)
	if n := len(d.probes); n >= maxProbes || n > 0 && (s.blocked >= max(1, s.maxPending/4) || s.blockedBytes+i.size > maxPendingBytes/2) {
		d.recordDeferred(i.Seq)
		s.deferQueue(k, 0)
		s.abandon(k)
		return
	}
	k.state = keyProbe
	d.probes = append(d.probes, k)
	s.block(i)
}

// abandon removes a key all of whose events are deferred and not to be read again now.
func (s *schedule) abandon(k *key) {
	delete(s.keys, k.hash)
	k.state = keyWaiting // so that its other events in a delivery are deferred, too
}

// endProbe ends the probe of a blocked destination by an event of a delivery, and returns the
// destination, or nil if the event is no probe or the destination is not blocked any more.
func (s *schedule) endProbe(i *item) *blockedDestination {
	d := i.probing
	i.probing = nil
	if d == nil || s.destinations[d.to] != d {
		return nil
	}
	d.probe = nil
	return d
}

// probe returns the event by which a blocked destination is probed now.
func (s *schedule) probe(now time.Time) (*item, *group) {
	var next *blockedDestination
	for _, d := range s.destinations {
		if d.probe != nil || d.due.After(now) {
			continue
		}
		if len(d.probes) == 0 {
			s.releaseDestination(d)
			continue
		}
		if next == nil || d.due.Before(next.due) {
			next = d
		}
	}
	if d := next; d != nil {
		g := &group{flying: 1} // beside the group of the destination, which has no ready keys
		k := d.probes[0]
		d.probes = d.probes[1:]
		i := k.queue[0]
		d.probe, i.probing = i, d
		s.leaveBlocked(i)
		k.queue, k.state = nil, keyFlying
		k.flying++
		return i, g
	}
	return nil, nil
}

// releaseDestination lets the events of a blocked destination be delivered again.
func (s *schedule) releaseDestination(d *blockedDestination) {
	delete(s.destinations, d.to)
	for _, k := range d.probes {
		s.leaveBlocked(k.queue[0])
		s.unblock(k)
	}
	if d.from > 0 {
		s.freeAll(d.from)
	}
}

// works releases the destination of an event that was delivered or that failed by itself.
func (s *schedule) works(i *item) {
	if len(s.destinations) == 0 {
		return
	}
	if d := s.endProbe(i); d != nil {
		s.releaseDestination(d)
	}
	if d := s.destinations[s.route(i.Event)]; d != nil {
		s.releaseDestination(d)
	}
}

// free lets the next catch-up read the deferred events of a key.
func (s *schedule) free(h keyHash, from journal.Seq) {
	if p := &s.pass; p.from > 0 && p.at <= from && s.deferred[h].pass != p.number {
		if p.keys != nil {
			p.keys[h] = true
		}
		return
	}
	if s.next.keys == nil {
		s.next.keys = map[keyHash]bool{}
	}
	s.next.keys[h] = true
	s.next.wants(from)
}

// freeAll lets the next catch-up read all deferred events from a sequence on.
func (s *schedule) freeAll(from journal.Seq) {
	s.next.all = true
	s.next.wants(from)
}

func (c *catchUp) wants(from journal.Seq) {
	if c.from == 0 || from < c.from {
		c.from = from
	}
}

// catchUpAt returns the sequence from which deferred events are to be read, or 0.
func (s *schedule) catchUpAt() journal.Seq {
	if s.pass.from == 0 && s.next.from > 0 {
		s.begin()
	}
	if s.pass.from > 0 && s.pass.at > s.head {
		s.caughtUp(s.pass.at)
	}
	if s.pass.from == 0 || s.inHand >= s.maxPending-s.maxPending/4 || s.bytes >= maxPendingBytes-maxPendingBytes/4 {
		return 0
	}
	return s.pass.at
}

// begin begins the next catch-up, if its keys still have deferred events.
func (s *schedule) begin() {
	number := s.pass.number + 1
	s.pass, s.next = s.next, catchUp{}
	s.pass.number = number
	if len(s.deferred) == 0 {
		s.pass.from = 0
	}
	if s.pass.all {
		s.pass.at = s.pass.from
		return
	}
	s.pass.from = 0
	for h := range s.pass.keys {
		if d, ok := s.deferred[h]; ok {
			s.pass.wants(d.from)
		} else {
			delete(s.pass.keys, h)
		}
	}
	s.pass.at = s.pass.from
}

// postpone ends the catch-up before its end, and leaves its keys to the next one.
func (s *schedule) postpone() {
	if s.pass.from == 0 {
		return
	}
	s.next.all = s.next.all || s.pass.all
	if s.next.keys == nil {
		s.next.keys = map[keyHash]bool{}
	}
	for h := range s.pass.keys {
		s.next.keys[h] = true
	}
	s.next.wants(s.pass.from)
	s.pass.from = 0
}

// lowest returns the sequence of the oldest event in hand, or the sequence after the head
// without events in hand.
func (s *schedule) lowest() journal.Seq {
	lowest := s.head + 1
	for _, i := range s.order {
		if !i.removed {
			lowest = min(lowest, i.Seq)
		}
	}
	return lowest
}

// deferredBefore returns a function that counts the deferred events of keys whose first
// deferred event is before a sequence. The sequences of its calls increase.
func (s *schedule) deferredBefore() func(journal.Seq) uint64 {
	all := make([]deferral, 0, len(s.deferred))
	for _, d := range s.deferred {
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b deferral) int { return cmp.Compare(a.from, b.from) })
	count := uint64(0)
	return func(seq journal.Seq) uint64 {
		for len(all) > 0 && all[0].from < seq {
			count += uint64(all[0].events)
			all = all[1:]
		}
		return count
	}
}

// revisit takes an event that was read again by the catch-up, in the order of the journal,
// and returns the event if it is in hand again.
func (s *schedule) revisit(r journal.Record) *item {
	if s.pass.from == 0 {
		return nil
	}
	h := s.hash(r)
	d, ok := s.deferred[h]
	if !ok || r.Seq < d.from || d.from < s.pass.from || d.pass == s.pass.number {
		return nil // not deferred, or behind an event that stays deferred
	}
	if k := s.keys[h]; !s.admissible(k, r) {
		s.deferred[h] = deferral{from: r.Seq, pass: s.pass.number, events: d.events}
		if delete(s.pass.keys, h); !s.pass.all && len(s.pass.keys) == 0 {
			s.pass.from = 0
		}
		return nil
	}
	s.deferredCount -= min(s.deferredCount, 1)
	s.deferred[h] = deferral{from: r.Seq + 1, pass: d.pass, events: d.events - min(d.events, 1)}
	return s.push(s.keys[h], h, r, r.Seq)
}

// caughtUp records that the catch-up has read up to a sequence, exclusive. At the head it
// ends: the keys of which it has left no event deferred have no deferred events.
func (s *schedule) caughtUp(at journal.Seq) {
	if s.pass.from == 0 {
		return
	}
	if s.pass.at = at; at <= s.head {
		return
	}
	end := func(h keyHash) {
		if d, ok := s.deferred[h]; ok && d.pass != s.pass.number && d.from >= s.pass.from {
			delete(s.deferred, h)
		}
	}
	if s.pass.all {
		for h := range s.deferred {
			end(h)
		}
	} else {
		for h := range s.pass.keys {
			end(h)
		}
	}
	s.pass.from = 0
	if len(s.deferred) == 0 {
		s.deferredCount = 0 // deferred events that expired were not read again
		clear(s.attempted)
	}
}

// discard removes the queued and waiting events that a policy chooses, oldest first. The
// later events of their keys wait until stored is called.
func (s *schedule) discard(choose func(i *item) bool) (discarded []*item) {
	var all []*item
	for _, k := range s.keys {
		all = append(all, k.queue...)
	}
	slices.SortFunc(all, func(a, b *item) int { return cmp.Compare(a.Seq, b.Seq) })
	for _, i := range all {
		if choose(i) {
			discarded = append(discarded, i)
		}
	}
	for _, i := range discarded {
		s.withdraw(i)
	}
	return discarded
}

// withdraw removes a queued, waiting or probe event. The later events of its key wait until
// stored is called.
func (s *schedule) withdraw(i *item) {
	k := i.key
	switch k.state {
	case keyWaiting:
		s.leaveWaiting(k)
	case keyProbe:
		s.leaveBlocked(i)
		for _, d := range s.destinations {
			d.probes = slices.DeleteFunc(d.probes, func(p *key) bool { return p == k })
		}
	case keyReady:
		k.group.ready = slices.DeleteFunc(k.group.ready, func(r *key) bool { return r == k })
	case keyFlying, keyCommitting:
	}
	n := slices.Index(k.queue, i)
	k.queue = slices.Delete(slices.Clone(k.queue), n, n+1)
	s.remove(i)
	k.pendingCommits++
	if k.state != keyFlying {
		k.state = keyCommitting
	}
}

// waitingKeys is a heap of the waiting keys by the end of their waits.
type waitingKeys []*key

func (w waitingKeys) Len() int           { return len(w) }
func (w waitingKeys) Less(a, b int) bool { return w[a].due.Before(w[b].due) }
func (w waitingKeys) Swap(a, b int) {
	w[a], w[b] = w[b], w[a]
	w[a].index, w[b].index = a, b
}

func (w *waitingKeys) Push(k any) {
	k.(*key).index = len(*w)
	*w = append(*w, k.(*key))
}

func (w *waitingKeys) Pop() any {
	old := *w
	k := old[len(old)-1]
	*w = old[:len(old)-1]
	k.index = -1
	return k
}
