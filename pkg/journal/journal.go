// Package journal is the third step (ingress, source, journal, relay, sinks):
// the durable, deduplicating log between the two halves of the relay. What it
// has acknowledged survives a crash; what it has seen inside the window is not
// stored twice. Engines are packages below this one.
package journal

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"math"
	"net/http"
	"time"

	"github.com/postwire/postwire/pkg/event"
)

var (
	// ErrFull is wrapped by Append when there is no room; it may pass.
	ErrFull = errors.New("journal is full")
	// ErrUnavailable is wrapped by Append while storage fails; it may pass.
	ErrUnavailable = errors.New("journal is unavailable")
	// ErrClosed is wrapped by every method after Close.
	ErrClosed = errors.New("journal is closed")
	// ErrOwnershipLost is wrapped by Cursor.Commit where another process reads in this
	// one's place by now: what Next returned last is its business.
	ErrOwnershipLost = errors.New("another process reads for this sink now")
	// ErrNotFound is wrapped where there is no entry of that name.
	ErrNotFound = errors.New("not in the journal")
)

// Seq is a place in the journal. It only grows; zero is before the first event.
// Between two events there may be places that no event has.
type Seq uint64

// Appender is the journal as the ingress sees it. It may be used by several
// goroutines.
type Appender interface {
	// Append stores the events whose keys were not seen inside the dedupe
	// window, together with their keys, as one atomic act. The window is
	// read and written in that same act, so of two concurrent twins exactly
	// one is stored. On a nil error every event is on stable storage, a
	// duplicate's first one too, and the receipts stand in the order of
	// events. On any error the caller may append again: what had been
	// stored after all is then a duplicate.
	Append(ctx context.Context, events ...event.Event) ([]Receipt, error)

	// Quarantine keeps a request that was genuine but made no sense, as
	// durably as Append keeps an event, and returns the id to ask for it by.
	// A request of the same Identity is kept once: a repeat adds to its Count,
	// moves its LastReceived, and is answered with its id. Otherwise the id is
	// the request's own, or a new one where it has none. Where an answer was
	// lost, or a process died between two steps, a repeat may be counted twice.
	//
	// The requests of one source take a limited number of bytes; beyond it the
	// engine discards those that were not received for the longest time, but
	// never the one that it was just given. Retention, where there is one,
	// discards those that were last received before it.
	Quarantine(ctx context.Context, r QuarantinedRequest) (id string, err error)
}

// Journal is the durable log between the two halves of the relay. It may be
// used by several goroutines; each Cursor by one.
type Journal interface {
	Appender
	Log
	DeadLetterStore
	KV

	// Reader opens the cursor of that name. A cursor seen for the first
	// time stands at start; a known one stands where Commit left it. The
	// events that an open cursor has not passed are kept, however old.
	Reader(ctx context.Context, name string, start Start) (Cursor, error)

	// Cursors returns the durable position of every cursor, open or not, by name.
	Cursors(ctx context.Context) ([]Position, error)

	// DeleteCursor removes the cursor of that name, which must not be open.
	DeleteCursor(ctx context.Context, name string) error

	// AcquireLease reports whether this process, of all that share the journal, is the
	// one to do the work of that name for as long as until: the first to ask
	// is, and stays it as long as it asks again before the time is over.
	AcquireLease(ctx context.Context, name string, until time.Duration) (bool, error)

	// Check returns nil if an append would be tried, and otherwise why not:
	// an error that wraps ErrFull, ErrUnavailable or ErrClosed.
	Check() error

	// Usage tells how much room the journal takes and has.
	Usage() Usage

	// Close ends every other call with ErrClosed. It returns when all that
	// was acknowledged is on stable storage.
	io.Closer
}

// Log is what is stored, to be looked at without a cursor.
type Log interface {
	// ID identifies this journal among all others: with a Seq and a time of
	// acceptance it names one stored event in the world. A journal that is
	// migrated, or repaired with a loss, gets another ID. It is empty until the
	// engine has reached its storage, which it has when Next of a Cursor has
	// returned a record.
	ID() string

	// Last is the place of the newest event on stable storage.
	Last() Seq

	// Oldest is the place of the oldest event that is stored, or the one
	// after Last where there is none.
	Oldest() Seq

	// Read returns at most limit records from a place on, in Seq order and
	// with none left out: from the oldest one, where that place has expired, and
	// none where it is behind the last.
	Read(ctx context.Context, from Seq, limit int) ([]Record, error)

	// Since returns the place of the first event that was accepted at t or
	// later, or the one after Last.
	Since(ctx context.Context, t time.Time) (Seq, error)

	// Wait returns when the event at s is on stable storage.
	Wait(ctx context.Context, s Seq) error
}

// DeadLetterStore is what was set aside: dead letters, which a sink could not take, and
// quarantined requests, which no source could understand. Dead letters stay until
// an operator retries or drops them, and quarantined requests until then, or until
// Quarantine's limits discard them.
type DeadLetterStore interface {
	// DeadLetters yields those behind a place, by sink and then by Seq; the
	// zero place is before the first.
	DeadLetters(ctx context.Context, after DeliveryID) iter.Seq2[Dead, error]

	// DeadLetter returns one, or an error that wraps ErrNotFound.
	DeadLetter(ctx context.Context, id DeliveryID) (Dead, error)

	// Redeliver appends the event of a dead letter again, for its sink only, and
	// removes the dead letter, as one act. It returns the new place.
	Redeliver(ctx context.Context, id DeliveryID) (Seq, error)

	// Drop removes a dead letter, and keeps in mind that it was.
	Drop(ctx context.Context, id DeliveryID) error

	// Disposition returns why the sink was never given the event at s though its
	// cursor has passed it, or an error that wraps ErrNotFound.
	Disposition(ctx context.Context, id DeliveryID) (Disposition, error)

	// Quarantined yields what Quarantine kept behind an id, oldest first.
	Quarantined(ctx context.Context, after string) iter.Seq2[QuarantinedRequest, error]

	// QuarantinedRequest returns one, or an error that wraps ErrNotFound.
	QuarantinedRequest(ctx context.Context, id string) (QuarantinedRequest, error)

	// Release appends the events that a quarantined request was found to
	// hold, as Append does, and removes the request, as one act. Without
	// events it only removes it. A repeat that is stored after that act is kept
	// anew.
	Release(ctx context.Context, id string, events ...event.Event) ([]Receipt, error)
}

// KV are small values that outlive the process: what operators decided.
type KV interface {
	// PutValue keeps a value under a name; nil removes it.
	PutValue(ctx context.Context, name string, value []byte) error

	// Values yields the names that begin with prefix, in order, and their
	// values.
	Values(ctx context.Context, prefix string) iter.Seq2[KVEntry, error]
}

// KVEntry is one note.
type KVEntry struct {
	Key   string
	Value []byte
}

// Usage is in bytes where nothing else is said.
type Usage struct {
	Events   uint64 // that are stored, delivered or not
	Keys     uint64 // identity keys that are remembered; 0 where it cannot be told
	Bytes    uint64 // that the journal takes
	MaxBytes uint64 // at which new events are refused; 0 is no limit
	Free     uint64 // on the disk; 0 where it cannot be told
	MinFree  uint64 // of free space below which new events are refused; 0 is no limit
	Trimmed  uint64 // events removed before their retention, since the journal was opened

	Spilled      uint64    // events and requests that are kept here until the cluster takes them
	SpilledSince time.Time // when the oldest of them was accepted; zero where there is none
}

// Cursor is one reader's durable place in the journal: the outbox of a sink.
type Cursor interface {
	// Next returns the records after those it returned last, at least one
	// and at most limit, in Seq order and with none left out. It waits for
	// one, and while storage fails it waits for that to pass. Of the
	// processes that share a journal one is given records, and when it ends
	// another, from the durable place on.
	Next(ctx context.Context, limit int) ([]Record, error)

	// Commit makes the durable place move through a place, and keeps what
	// among the events that it passes was not delivered. All is one act
	// where the engine can; where it cannot, the place moves last: a crash
	// repeats, it never skips. Next goes on behind it. While storage fails
	// it waits for that to pass. Its error wraps ErrMoved where the records
	// have gone to another process; then Next waits until they come back.
	Commit(ctx context.Context, through Seq, undelivered Undelivered) error

	// Committed is the durable place.
	Committed() Seq

	// StartSeq is the place at which the cursor stood when it was first seen.
	StartSeq() Seq

	// Lag is how many events stand behind the durable place, as of a
	// moment ago.
	Lag() uint64

	// OwnershipLost returns a channel that is closed when another process is given
	// what Next returned last; nil where there can be none.
	OwnershipLost() <-chan struct{}

	// Owner is who is given the records, as of a moment ago.
	Owner() Owner

	io.Closer
}

// Owner is the process that reads for a sink.
type Owner struct {
	Name  string    // of the process; empty is none
	Since time.Time // zero where it cannot be told
	Local bool      // it is this one
}

// Undelivered is what a cursor passes without its sink having taken it.
type Undelivered struct {
	Sink      string // whose dead letters Dead are; empty is the sink of the cursor's name
	Dead      []DeadLetter
	Discarded []Disposition
}

// Position is a cursor as it is stored.
type Position struct {
	Name      string
	Committed Seq
	StartSeq  Seq    // where the cursor stood when it was first opened
	Lag       uint64 // stored events after Committed
	InUse     bool   // a process reads by the cursor now
}

// Start says where a cursor that is seen for the first time stands: behind the
// event at that place.
type Start Seq

// Places to start.
const (
	Earliest Start = 0              // before the oldest event still stored
	Latest   Start = math.MaxUint64 // after the newest event
)

// Receipt tells what became of one event.
type Receipt struct {
	Seq       Seq    // where it is stored; where the first one is, if Duplicate; 0 while that is not known yet
	ID        string // CloudEvents id; that of the first one, if Duplicate
	Duplicate bool
}

// Record is an event as it is stored. Its Keys are read back only by an engine
// that was told to keep them.
type Record struct {
	Seq      Seq
	Accepted time.Time // not before that of the record before it, but for clocks that disagree and for events that a process had kept while the cluster was away
	Event    event.Event

	// A retried dead letter is stored again for one sink.
	TargetSink string // the sink it is for; empty is every sink
	OriginSeq  Seq    // where the event was first; 0 is here
}

// QuarantinedRequest is a request that was genuine but made no sense. Its JSON is what does
// not change while it is kept, less the body.
type QuarantinedRequest struct {
	ID       string      `json:"id"` // given by Quarantine
	Source   string      `json:"source"`
	Received time.Time   `json:"received"` // the first time
	Method   string      `json:"method,omitempty"`
	Path     string      `json:"path,omitempty"`
	RawQuery string      `json:"raw_query,omitempty"`
	Header   http.Header `json:"header"` // less the secrets
	Reason   string      `json:"reason"` // says what was wrong, and quotes nothing of the body
	Body     []byte      `json:"-"`

	Count        uint64    `json:"-"` // how often it was received; to Quarantine, 0 is once
	LastReceived time.Time `json:"-"` // to Quarantine, zero is Received
}

// Identity is what two requests share that are kept as one: the source and the
// body. Whoever repeats a request that was signed can change what no signature
// covers, so that header, path and query do not count; only where there is no
// body they, less the header, are all that it says.
func (r QuarantinedRequest) Identity() [sha256.Size]byte {
	h := sha256.New()
	parts := []string{r.Source}
	if len(r.Body) == 0 {
		parts = append(parts, r.Method, r.Path, r.RawQuery)
	}
	var length [8]byte
	for _, p := range parts {
		h.Write(binary.BigEndian.AppendUint64(length[:0], uint64(len(p))))
		h.Write([]byte(p))
	}
	h.Write(r.Body)
	return [sha256.Size]byte(h.Sum(nil))
}

// WithDefaults returns the request with its count and times as Quarantine takes them:
// received once, at now, where it does not say otherwise.
func (r QuarantinedRequest) WithDefaults(now time.Time) QuarantinedRequest {
	r.Count = max(r.Count, 1)
	if r.LastReceived.IsZero() {
		r.LastReceived = r.Received
	}
	if r.LastReceived.IsZero() {
		r.LastReceived = now
	}
	return r
}

// Reasons for which quarantined requests are discarded.
const (
	QuarantineMaxBytes  = "max_bytes" // their source's share was used up
	QuarantineRetention = "retention" // they were last received before it
)

// QuarantineDiscards says how many quarantined requests of a source were discarded.
type QuarantineDiscards struct {
	Source, Reason string
	Requests       uint64
}

// DefaultQuarantine is the share of a source in the quarantine of a journal of
// maxBytes, where 0 is no limit: a twentieth, and no more than 1 GiB.
func DefaultQuarantine(maxBytes uint64) uint64 {
	const limit = 1 << 30
	if maxBytes == 0 {
		return limit
	}
	return min(maxBytes/20, limit)
}

// DeliveryID names a dead letter: the sink, and the place of the event.
type DeliveryID struct {
	Sink string
	Seq  Seq
}

// DeadLetter says why a sink could not take the event at Seq.
type DeadLetter struct {
	Seq      Seq       `json:"seq"`
	Reason   string    `json:"reason"` // one of a closed set
	Err      string    `json:"error"`  // what the broker said
	Attempts int       `json:"attempts"`
	First    time.Time `json:"first"` // first attempt
	Last     time.Time `json:"last"`  // last attempt
}

// Dead is a dead letter with the event it is about, which stays as long as
// the dead letter does.
type Dead struct {
	Sink   string
	Letter DeadLetter
	Record
}

// ID names the dead letter.
func (d Dead) ID() DeliveryID { return DeliveryID{d.Sink, d.Letter.Seq} }

// Disposition says that a sink was never given the events from one place through
// another, less those that its filter did not take.
type Disposition struct {
	From          Seq       `json:"from"`
	To            Seq       `json:"to"`
	Reason        string    `json:"reason"` // after, beyond, dropped, or redelivered
	At            time.Time `json:"at"`
	RedeliveredAs Seq       `json:"as,omitempty"` // where a retried event stands now
}

// Why a sink was never given an event.
const (
	DiscardedAfter    = "after"
	DiscardedBeyond   = "beyond"
	DroppedByOperator = "dropped"     // an operator dropped the dead letter
	Redelivered       = "redelivered" // it stands behind As
)
