// Package journal is the third step (ingress, source, journal, relay, sinks):
// the durable, deduplicating log between the two halves of the relay. What it
// has acknowledged survives a crash; what it has seen inside the window is not
// stored twice. Engines are packages below this one.
package journal

import (
	"context"
	"errors"
	"io"
	"iter"
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
)

// Seq is a place in the journal. It only grows; zero is before the first event.
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
	Quarantine(ctx context.Context, r Rejected) (id string, err error)
}

// Journal is the durable log between the two halves of the relay. It may be
// used by several goroutines; each Cursor by one.
type Journal interface {
	Appender

	// Reader opens the cursor of that name. A cursor seen for the first
	// time stands at start; a known one stands where Commit left it. The
	// events that an open cursor has not passed are kept, however old.
	Reader(ctx context.Context, name string, start Start) (Cursor, error)

	// Last is the place of the newest event on stable storage.
	Last() Seq

	// Check returns nil if an append would be tried, and otherwise why not:
	// an error that wraps ErrFull, ErrUnavailable or ErrClosed.
	Check() error

	// DeadLetters yields what the sink's cursor set aside, in Seq order.
	DeadLetters(ctx context.Context, sink string) iter.Seq2[Dead, error]

	// Quarantined yields what Quarantine kept, oldest first.
	Quarantined(ctx context.Context) iter.Seq2[Rejected, error]

	// Close ends every other call with ErrClosed. It returns when all that
	// was acknowledged is on stable storage.
	io.Closer
}

// Cursor is one reader's durable place in the journal: the outbox of a sink.
type Cursor interface {
	// Next returns the records after those it returned last, at least one
	// and at most limit, in Seq order and without gaps. It waits for one,
	// and while storage fails it waits for that to pass.
	Next(ctx context.Context, limit int) ([]Record, error)

	// Commit makes through the durable place and keeps the dead letters
	// among what it passes. Both are one act where the engine can; where it
	// cannot, the dead letters come first: a crash repeats, it never skips.
	// While storage fails it waits for that to pass.
	Commit(ctx context.Context, through Seq, dead ...DeadLetter) error

	// Committed is the durable place.
	Committed() Seq

	io.Closer
}

// Start says where a cursor that is seen for the first time stands.
type Start int

// Places to start.
const (
	Latest   Start = iota // after the newest event
	Earliest              // before the oldest event still stored
)

// Receipt tells what became of one event.
type Receipt struct {
	Seq       Seq    // where it is stored; where the first one is, if Duplicate
	ID        string // CloudEvents id; that of the first one, if Duplicate
	Duplicate bool
}

// Record is an event as it is stored. Its Keys are not read back.
type Record struct {
	Seq      Seq
	Accepted time.Time // never before that of the record before it
	Event    event.Event
}

// Rejected is a request that was genuine but made no sense.
type Rejected struct {
	ID       string      `json:"id"` // given by Quarantine
	Source   string      `json:"source"`
	Received time.Time   `json:"received"`
	Header   http.Header `json:"header"` // less the secrets
	Body     []byte      `json:"body"`
	Reason   string      `json:"reason"` // says what was wrong, and quotes nothing of the body
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
	Letter DeadLetter
	Record
}
