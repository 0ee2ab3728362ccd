package relay

import (
	"time"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/seqset"
)

// commitInterval is how long a commit may be deferred, so that many events share one
// synced write.
const commitInterval = 50 * time.Millisecond

// progress collects the done events that are not committed yet.
//
// | state | next | committing |
// |---|---|---|
// | everything is committed | empty | false |
// | due commitInterval after since | filled | false |
// | a commit runs | what is done meanwhile | true |
//
// One goroutine uses a progress.
type progress struct {
	cursor           journal.Cursor
	head             journal.Seq // newest event that was read
	next             uncommitted // for the next commit
	since            time.Time   // since when next is filled
	committing       bool
	committingEvents uint64         // events of the commit that runs
	recent           [2]*seqset.Set // done events of next, and of the commit that runs
}

// uncommitted is what one commit stores.
type uncommitted struct {
	done        []journal.Range
	events      uint64
	undelivered journal.Undelivered
	keys        []*key // keys whose later events wait for the commit
}

// add adds a range of done events.
func (p *progress) add(from, to journal.Seq) {
	if from > to {
		return
	}
	if p.next.done == nil {
		p.since = time.Now()
	}
	if p.recent[0] == nil {
		p.recent[0] = seqset.At(0)
	}
	p.recent[0].Add(from, to)
	if n := len(p.next.done); n > 0 && p.next.done[n-1].To+1 == from {
		p.next.done[n-1].To = to
		return
	}
	p.next.done = append(p.next.done, journal.Range{From: from, To: to})
}

// done adds a done event, and the sequences from the given one to the event, which have no
// event.
func (p *progress) done(from, seq journal.Seq) {
	p.add(from, seq)
	p.next.events++
}

// dead adds a dead letter.
func (p *progress) dead(i *item, letter journal.DeadLetter) {
	p.done(i.from, i.Seq)
	p.next.undelivered.Dead = append(p.next.undelivered.Dead, letter)
	p.next.keys = append(p.next.keys, i.key)
}

// discarded adds a discarded event.
func (p *progress) discarded(i *item, reason string, at time.Time) {
	all := p.next.undelivered.Discarded
	if n := len(all) - 1; n >= 0 && all[n].Reason == reason && all[n].To+1 >= i.from && all[n].To < i.Seq {
		all[n].To = i.Seq
	} else {
		p.next.undelivered.Discarded = append(all, journal.Disposition{From: i.Seq, To: i.Seq, Reason: reason, At: at})
	}
	p.done(i.from, i.Seq)
	p.next.keys = append(p.next.keys, i.key)
}

// has reports whether an event is done and not committed yet.
func (p *progress) has(s journal.Seq) bool {
	for _, set := range p.recent {
		if set != nil && set.Has(s) {
			return true
		}
	}
	return false
}

// empty reports whether everything is committed.
func (p *progress) empty() bool { return len(p.next.done) == 0 && !p.committing }

// urgent reports whether keys wait for the commit.
func (p *progress) urgent() bool { return len(p.next.keys) > 0 }

// take begins a commit.
func (p *progress) take() uncommitted {
	batch := p.next
	p.next, p.committing, p.committingEvents = uncommitted{}, true, batch.events
	p.recent[0], p.recent[1] = nil, p.recent[0]
	return batch
}

// stored ends a commit.
func (p *progress) stored() { p.recent[1], p.committingEvents = nil, 0 }

// lag returns the number of events that are not done, or less while a commit runs.
func (p *progress) lag() uint64 {
	lag := p.cursor.Lag()
	return lag - min(lag, p.next.events+p.committingEvents)
}
