package jetstream

import (
	"iter"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/seqset"
)

// An event is found by two numbers: the sequence of its message, which the server gives, and
// the sequence of the event, which the journal gives to its users. The sequence of an event
// is the sequence of its message times seqsPerMessage, plus the index of the event in its
// message. A message has one event, of index 0; a message with a group of events needs no
// new sequences. A stream may store 2^47 messages before a sequence exceeds 2^53, the
// greatest integer that every reader of JSON keeps.
//
// In this package a message sequence is a uint64 and an event sequence a journal.Seq. The
// functions of this file convert between them, and nothing else does. Everything that the
// stream stores and that refers to an event has the sequence of the event, except the pages
// of done events.
const seqsPerMessage = 64

// seqOf returns the sequence of the event in a message.
func seqOf(message uint64) journal.Seq { return journal.Seq(message * seqsPerMessage) }

// messageOf returns the message of an event. For a sequence without an event, it returns the
// message with the events before the sequence.
func messageOf(s journal.Seq) uint64 { return uint64(s) / seqsPerMessage }

// messageFrom returns the first message whose event has a given sequence or a later one.
func messageFrom(s journal.Seq) uint64 {
	if s == 0 {
		return 0
	}
	return messageOf(s-1) + 1
}

// doneSet is the set of the done events of a cursor. It is a set of messages, and the stored
// pages are pages of messages, because a page of 8,192 event sequences would have the events
// of 128 messages: with 10,000 open events of 100,000, the set takes 25 pages and 20 KB
// instead of 1,563 pages and 45 KB (TestDoneSetIsCompact). Each page is a message of the
// stream.
type doneSet struct{ messages *seqset.Set }

// doneThrough returns the set of all events through a sequence.
func doneThrough(s journal.Seq) doneSet {
	return doneSet{seqset.At(journal.Seq(messageOf(s)))}
}

// doneOf returns the set of all events through a sequence, and of ranges.
func doneOf(through journal.Seq, ranges []journal.Range) doneSet {
	d := doneThrough(through)
	for _, r := range ranges {
		d.Add(r.From, r.To)
	}
	return d
}

// Floor returns the sequence of the last message through which all events are done.
func (d doneSet) Floor() journal.Seq { return seqOf(uint64(d.messages.Floor())) }

// Has reports whether the event of a sequence is done.
func (d doneSet) Has(s journal.Seq) bool { return d.messages.Has(journal.Seq(messageOf(s))) }

// Add adds the events from one sequence through another.
func (d doneSet) Add(from, to journal.Seq) {
	d.messages.Add(journal.Seq(messageFrom(from)), journal.Seq(messageOf(to)))
}

// Ranges yields the runs of done events after the floor, in order.
func (d doneSet) Ranges() iter.Seq[journal.Range] { return inSeqs(d.messages.Ranges()) }

// MissingRanges yields the runs of events from one sequence through another that are not
// done, in order.
func (d doneSet) MissingRanges(from, to journal.Seq) iter.Seq[journal.Range] {
	return inSeqs(d.messages.MissingRanges(journal.Seq(messageFrom(from)), journal.Seq(messageOf(to))))
}

// Clone returns a copy of the set without its changes.
func (d doneSet) Clone() doneSet { return doneSet{d.messages.Clone()} }

// inSeqs converts ranges of messages to ranges of event sequences.
func inSeqs(messages iter.Seq[journal.Range]) iter.Seq[journal.Range] {
	return func(yield func(journal.Range) bool) {
		for r := range messages {
			if !yield(journal.Range{From: seqOf(uint64(r.From)), To: seqOf(uint64(r.To))}) {
				return
			}
		}
	}
}
