// Package journal is the third step (ingress, source, journal, relay, sinks): the
// durable, deduplicating log between the ingress and the sinks. The packages below this
// one are its engines.
//
// Every engine keeps these invariants:
//
//  1. An append stores all of its events and their identity keys, or nothing.
//  2. Append returns nil only after its events, and the first events of its duplicates,
//     are on stable storage.
//  3. Inside the dedupe window an identity key is stored once, also by concurrent
//     appends of several processes.
//  4. Sequences increase, and a sequence is never given to a second event.
//  5. An event is not removed before it is done for every open cursor.
//  6. An event is done for a cursor only by Commit. A crash may repeat events; it never
//     skips one.
//  7. Dead letters, dispositions and quarantined requests are as durable as events.
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
	// ErrFull is wrapped by Append when the journal has no room. A later append may
	// succeed.
	ErrFull = errors.New("journal is full")
	// ErrUnavailable is wrapped by Append while storage fails. A later append may
	// succeed.
	ErrUnavailable = errors.New("journal is unavailable")
	// ErrClosed is wrapped by every method after Close.
	ErrClosed = errors.New("journal is closed")
	// ErrOwnershipLost is wrapped by Cursor.Commit when another process owns the cursor.
	// The new owner delivers the records that Next returned last.
	ErrOwnershipLost = errors.New("another process reads for this sink now")
	// ErrNotFound is wrapped when the journal has no such entry.
	ErrNotFound = errors.New("not in the journal")
)

// Seq is the sequence of an event: its position in the journal. Sequences increase, may
// have gaps of any size, and are below 2^53, so that JSON keeps them. A difference of two
// sequences tells nothing about the number of events between them: Log.Count does. Zero is
// before the first event.
type Seq uint64

// Appender is the part of the journal that the ingress uses. The methods may be called
// concurrently.
type Appender interface {
	// Append stores the events whose identity keys are new inside the dedupe window,
	// with their keys, in one atomic write. Of two concurrent appends of one key exactly
	// one stores its event. With a nil error every event is on stable storage, and so is
	// the first event of each duplicate; the receipts are in the order of the events.
	// With an error the events may be stored or not: the caller may append again, and a
	// stored event is then a duplicate.
	Append(ctx context.Context, events ...event.Event) ([]Receipt, error)

	// Quarantine stores an authenticated request that its source does not understand,
	// as durably as Append stores an event, and returns the ID of the stored request.
	// Requests of one Identity are stored once: a repeat increments Count, updates
	// LastReceived and returns the ID of the stored request. The ID of a new request is
	// its own ID if set. A crash or a lost answer may count a repeat twice.
	//
	// The requests of one source have a limit in bytes. Beyond the limit the engine
	// discards the requests with the oldest LastReceived, never the given one. The
	// engine also discards requests whose LastReceived is older than the retention.
	Quarantine(ctx context.Context, r QuarantinedRequest) (id string, err error)
}

// Journal is the durable log between ingress and sinks. The methods may be called
// concurrently; one goroutine at a time uses a Cursor.
type Journal interface {
	Appender
	Log
	DeadLetterStore
	QuarantineStore
	KV

	// Reader opens the cursor of a name. A new cursor begins at start, an existing
	// cursor at its committed sequence. The journal keeps the events after an open
	// cursor, also beyond the retention.
	Reader(ctx context.Context, name string, start Start) (Cursor, error)

	// Cursors returns the stored position of every cursor, open or not, sorted by name.
	Cursors(ctx context.Context) ([]Position, error)

	// DeleteCursor deletes a cursor. The cursor must not be open.
	DeleteCursor(ctx context.Context, name string) error

	// AcquireLease reports whether this process holds the lease of a name among the
	// processes that share the journal. A call takes a free lease, or renews the lease
	// of the caller, for the duration ttl.
	AcquireLease(ctx context.Context, name string, ttl time.Duration) (bool, error)

	// Check returns nil if the journal accepts appends. Otherwise the error wraps
	// ErrFull, ErrUnavailable or ErrClosed.
	Check() error

	// Usage returns the size of the journal and its limits.
	Usage() Usage

	// Close ends every other call with ErrClosed.
	io.Closer
}

// Log reads the stored events without a cursor.
type Log interface {
	// ID identifies this journal. ID, sequence and acceptance time together identify
	// one stored event among all journals. A migration, or a repair that lost events,
	// changes the ID. The ID is empty until the engine has reached its storage; it is
	// set when Cursor.Next has returned a record.
	ID() string

	// Last returns the sequence of the newest event on stable storage.
	Last() Seq

	// Oldest returns the sequence of the oldest stored event, or Last+1 without events.
	Oldest() Seq

	// Read returns up to limit consecutive records with a sequence of at least from.
	// Expired records are missing; beyond Last the result is empty.
	Read(ctx context.Context, from Seq, limit int) ([]Record, error)

	// Count returns the number of stored events from one sequence through another, as of a
	// moment ago.
	Count(ctx context.Context, from, through Seq) (uint64, error)

	// Since returns the sequence of the first event accepted at t or later, or Last+1.
	Since(ctx context.Context, t time.Time) (Seq, error)

	// Wait blocks until the event with sequence s is on stable storage.
	Wait(ctx context.Context, s Seq) error
}

// DeadLetterStore stores dead letters and dispositions. A dead letter stays until an
// operator redelivers or drops the dead letter.
type DeadLetterStore interface {
	// DeadLetters yields the dead letters after a delivery ID, ordered by sink and
	// sequence. The zero ID is before the first.
	DeadLetters(ctx context.Context, after DeliveryID) iter.Seq2[Dead, error]

	// DeadLetter returns a dead letter. Its error may wrap ErrNotFound.
	DeadLetter(ctx context.Context, id DeliveryID) (Dead, error)

	// Redeliver appends the event of a dead letter again, for the sink of the dead
	// letter only, and removes the dead letter in the same atomic write. Redeliver
	// returns the new sequence.
	Redeliver(ctx context.Context, id DeliveryID) (Seq, error)

	// Drop removes a dead letter and records its disposition.
	Drop(ctx context.Context, id DeliveryID) error

	// Disposition returns why a sink did not get an event that its cursor has passed.
	// Its error may wrap ErrNotFound.
	Disposition(ctx context.Context, id DeliveryID) (Disposition, error)
}

// QuarantineStore stores quarantined requests. A request stays until an operator releases or
// drops the request, or until the limits of Appender.Quarantine discard the request.
type QuarantineStore interface {
	// Quarantined yields the quarantined requests after an ID, oldest first.
	Quarantined(ctx context.Context, after string) iter.Seq2[QuarantinedRequest, error]

	// QuarantinedRequest returns a quarantined request. Its error may wrap ErrNotFound.
	QuarantinedRequest(ctx context.Context, id string) (QuarantinedRequest, error)

	// Release appends the events of a quarantined request as Append does, and removes
	// the request in the same atomic write. Without events Release only removes the
	// request. A repeat that arrives later is quarantined again.
	Release(ctx context.Context, id string, events ...event.Event) ([]Receipt, error)
}

// KV stores small values, such as the decisions of operators.
type KV interface {
	// PutValue stores a value under a key.
	PutValue(ctx context.Context, key string, value []byte) error

	// DeleteValue deletes a key. A missing key is no error.
	DeleteValue(ctx context.Context, key string) error

	// Values yields the entries whose keys begin with prefix, sorted by key.
	Values(ctx context.Context, prefix string) iter.Seq2[KVEntry, error]
}

// KVEntry is a key and its value.
type KVEntry struct {
	Key   string
	Value []byte
}

// Usage is the size of the journal and its limits. Sizes are in bytes.
type Usage struct {
	Events   uint64 // stored events, delivered or not
	Keys     uint64 // identity keys in the dedupe window; 0 if unknown
	Bytes    uint64 // size of the journal
	MaxBytes uint64 // size at which appends fail; 0 is no limit
	Free     uint64 // free space of the disk; 0 if unknown
	MinFree  uint64 // free space below which appends fail; 0 is no limit
	Trimmed  uint64 // events removed before their retention, since the journal was opened

	Spilled      uint64    // events and requests in the spill of this process
	SpilledSince time.Time // acceptance of the oldest spilled event; zero if the spill is empty
}

// Cursor is the durable position of one reader, such as a sink.
type Cursor interface {
	// Next returns the 1 to limit records after the records that Next returned last. Next
	// blocks until there is a record, and while storage fails. The records may be done.
	// Of the processes that share a journal, one owns the cursor and gets records. The next
	// owner begins after the committed sequence.
	Next(ctx context.Context, limit int) ([]Record, error)

	// Commit stores the progress of the sink, and why the sink did not get some of the
	// events. An engine that cannot do both atomically stores the progress last, so that a
	// crash repeats events and never skips one. Commit blocks while storage fails. Its error
	// wraps ErrOwnershipLost if another process owns the cursor; Next then blocks until this
	// process is the owner again. Commit may be called while Next blocks.
	Commit(ctx context.Context, p Progress) error

	// Committed returns the sequence up to which every event is done, as of the last Commit.
	Committed() Seq

	// Done reports whether an event is done, as of the last Commit: at most Committed, or in
	// a range that was committed. Done may be called concurrently.
	Done(s Seq) bool

	// StartSeq returns the sequence at which the cursor was created.
	StartSeq() Seq

	// Lag returns the number of stored events that are not done, as of a moment ago.
	Lag() uint64

	// OwnershipLost returns a channel that is closed when another process becomes the
	// owner of the records that Next returned last. The channel is nil if no other
	// process can share the journal.
	OwnershipLost() <-chan struct{}

	// Owner returns the process that gets the records, as of a moment ago.
	Owner() Owner

	io.Closer
}

// Owner is the process that owns a cursor.
type Owner struct {
	Name  string    // empty if no process owns the cursor
	Since time.Time // zero if unknown
	Local bool      // this process is the owner
}

// Range is the sequences from From through To.
type Range struct{ From, To Seq }

// Progress is what a sink has done with the events of its cursor.
type Progress struct {
	// Done are the events that the sink needs no more. The ranges may contain sequences
	// without an event, and events that were done before. To move Committed, the ranges
	// must cover also the sequences without an event.
	Done []Range
	// Open is the number of events that Next has returned and that are not done. An engine
	// that can count these events itself ignores Open.
	Open uint64

	Undelivered
}

// UpTo is the progress of a sink that is done with every event up to a sequence.
func UpTo(s Seq) Progress { return Progress{Done: []Range{{1, s}}} }

// Undelivered are the events that a cursor passes without a delivery.
type Undelivered struct {
	Sink      string // sink of the dead letters; empty is the name of the cursor
	Dead      []DeadLetter
	Discarded []Disposition
}

// Position is the stored position of a cursor.
type Position struct {
	Name      string
	Committed Seq
	Done      []Range // done events after Committed
	StartSeq  Seq     // sequence at which the cursor was created
	Lag       uint64  // stored events that are not done
	InUse     bool    // a process has opened the cursor
}

// Start is the sequence after which a new cursor begins.
type Start Seq

// Starts of a new cursor.
const (
	Earliest Start = 0              // before the oldest stored event
	Latest   Start = math.MaxUint64 // after the newest event
)

// Receipt is the result of the append of one event.
type Receipt struct {
	Seq       Seq    // sequence of the event, of the first one for a duplicate; 0 if not known yet
	ID        string // CloudEvents id, of the first event for a duplicate
	Duplicate bool
}

// Record is a stored event. An engine reads Event.Keys back only with an option for it.
type Record struct {
	Seq      Seq
	Accepted time.Time // increases with Seq, except between processes whose clocks differ, and for events from a spill
	Event    event.Event

	// Set for a redelivered dead letter, and for the copy of a dead letter.
	TargetSink string // only sink of the event; empty is every sink
	OriginSeq  Seq    // sequence of the original event; 0 for an original

	// DeadLetterOf is the sink that refused the original of a copy of a dead letter; empty
	// for every other event. See DeadLetter.CopyTo.
	DeadLetterOf string
}

// QuarantinedRequest is an authenticated request that its source does not understand. Its
// JSON holds the fields that never change, without the body.
type QuarantinedRequest struct {
	ID       string      `json:"id"` // assigned by Quarantine
	Source   string      `json:"source"`
	Received time.Time   `json:"received"` // first receipt
	Method   string      `json:"method,omitempty"`
	Path     string      `json:"path,omitempty"`
	RawQuery string      `json:"raw_query,omitempty"`
	Header   http.Header `json:"header"` // without secrets
	Reason   string      `json:"reason"` // quotes nothing of the body
	Body     []byte      `json:"-"`

	Count        uint64    `json:"-"` // receipts; as an argument of Quarantine, 0 is 1
	LastReceived time.Time `json:"-"` // as an argument of Quarantine, zero is Received
}

// Identity identifies repeats of a request by source and body. Method, path and query are
// part of the identity only without a body, and the header never is: signatures often
// cover the body alone, so that a third party can repeat a request with other values.
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

// WithDefaults returns the request with a Count of at least 1 and with LastReceived set.
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

// Reasons to discard quarantined requests.
const (
	QuarantineMaxBytes  = "max_bytes" // the limit of the source is used up
	QuarantineRetention = "retention" // the last receipt is older than the retention
)

// QuarantineDiscards counts discarded quarantined requests of a source.
type QuarantineDiscards struct {
	Source, Reason string
	Requests       uint64
}

// DefaultQuarantine returns the default limit for the quarantined requests of one source,
// in bytes: a twentieth of maxBytes, at most 1 GiB. A maxBytes of 0 is no limit.
func DefaultQuarantine(maxBytes uint64) uint64 {
	const limit = 1 << 30
	if maxBytes == 0 {
		return limit
	}
	return min(maxBytes/20, limit)
}

// DeliveryID identifies the delivery of one event to one sink.
type DeliveryID struct {
	Sink string
	Seq  Seq
}

// DeadLetter describes why a sink refused the event with sequence Seq.
type DeadLetter struct {
	Seq      Seq       `json:"seq"`
	Reason   string    `json:"reason"` // one of sinks.Reasons
	Err      string    `json:"error"`  // error of the broker
	Attempts int       `json:"attempts"`
	First    time.Time `json:"first"` // first attempt
	Last     time.Time `json:"last"`  // last attempt

	// CopyTo is a further sink that gets the dead letter; empty is none. Commit appends a copy
	// of the event for this sink only, in the atomic write that stores the dead letter. The
	// copy has the attributes of the event, those of event.DeadLetterAttributes, and no
	// identity keys.
	CopyTo string `json:"copy_to,omitempty"`
}

// Dead is a dead letter with its event. The journal keeps the event as long as the dead
// letter.
type Dead struct {
	Sink   string
	Letter DeadLetter
	Record
}

// ID returns the delivery ID of the dead letter.
func (d Dead) ID() DeliveryID { return DeliveryID{d.Sink, d.Letter.Seq} }

// Disposition records that a sink did not get the events with sequences From to To that
// its filter matches.
type Disposition struct {
	From          Seq       `json:"from"`
	To            Seq       `json:"to"`
	Reason        string    `json:"reason"` // one of the constants below
	At            time.Time `json:"at"`
	RedeliveredAs Seq       `json:"as,omitempty"` // sequence of the redelivered event
}

// Reasons of a disposition.
const (
	DiscardedAfter      = "after"       // discard policy: the event was too old
	DiscardedBeyond     = "beyond"      // discard policy: the sink had too many pending events
	DroppedByOperator   = "dropped"     // an operator dropped the dead letter
	DiscardedByOperator = "operator"    // an operator discarded an event that failed again and again
	Redelivered         = "redelivered" // an operator redelivered the dead letter as RedeliveredAs
	CopyRefused         = "refused"     // the sink refused the copy of another sink's dead letter
)
