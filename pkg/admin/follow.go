package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/postwire/postwire/pkg/journal"
)

// Message is one message of a tail: "event" holds a Seen, "fate" a Became,
// "missed" a Missed, "heartbeat" a Quiet, "end" an Ended.
type Message struct {
	Name string
	Data json.RawMessage
}

// Tail follows events until ctx is done, see fails, or the relay ends the tail, which
// is io.ErrUnexpectedEOF. The query holds the parameters of the operation
// tail-events.
func (c *Client) Tail(ctx context.Context, query url.Values, see func(Message) error) error {
	resp, err := c.do(ctx, http.MethodGet, "/events/tail?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 64<<20)
	var m Message
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "event":
			m.Name = value
		case "data":
			m.Data = json.RawMessage(value)
		case "":
			if m.Data != nil {
				if err := see(m); err != nil {
					return err
				}
			}
			m = Message{}
		}
	}
	switch err := lines.Err(); {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("reading from the relay: %w: %w", errCut, err)
	}
	return io.ErrUnexpectedEOF
}

const (
	// silentFor is how long a tail may say nothing: a relay says something each ten
	// seconds.
	silentFor = 45 * time.Second
	// reachFor is how long Follow tries to reach a relay again.
	reachFor = 2 * time.Minute
)

var (
	// errCut is wrapped where a connection breaks.
	errCut = errors.New("the connection broke")
	// ErrSilent is wrapped where a tail says nothing at all.
	ErrSilent = errors.New("the relay says nothing")
)

// Follow is a Tail that goes on where it was, without a gap and without a repeat, when
// its connection ends: for its age, because the relay stops or a network fails. It
// calls interrupted with what happened, unless that was the age, and returns when the
// relay cannot be reached for a while or does not let the caller in any more.
func (c *Client) Follow(ctx context.Context, query url.Values, see func(Message) error, interrupted func(error)) error {
	if query = maps.Clone(query); query == nil {
		query = url.Values{}
	}
	again := backoff.NewExponentialBackOff()
	again.InitialInterval, again.MaxInterval = 200*time.Millisecond, 5*time.Second
	var reached time.Time // zero before the first time
	for {
		f := &following{see: see}
		err := f.once(ctx, c, query)
		if f.failed != nil || ctx.Err() != nil {
			return err
		}
		if f.next > 0 {
			if f.ended.Reason != EndFailed {
				again.Reset()
			}
			reached = time.Now()
			query.Del("from")
			query.Set("seq", strconv.FormatUint(uint64(f.next), 10))
		}
		if f.ended.Reason == EndConnectionAge {
			continue
		}
		if !passing(err) || time.Since(reached) > reachFor {
			return err
		}
		if f.next > 0 { // for the first time since it ran
			interrupted(f.describe(err))
		}
		select {
		case <-time.After(again.NextBackOff()):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// passing reports whether an error is one that may go by itself: the relay stops, or
// is busy, or the connection broke.
func passing(err error) bool {
	if r, ok := errors.AsType[*RefusedError](err); ok {
		return r.Status == http.StatusTooManyRequests || r.Status >= http.StatusInternalServerError
	}
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrUnreachable) || errors.Is(err, errCut)
}

// following is one tail of those that follow each other.
type following struct {
	see    func(Message) error
	next   journal.Seq // 0 before the relay has said anything
	ended  TailEnd
	failed error // of see
}

func (f *following) once(ctx context.Context, c *Client, query url.Values) error {
	tailing, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(silentFor, func() { cancel(ErrSilent) })
	defer silent.Stop()
	err := c.Tail(tailing, query, func(m Message) error {
		silent.Reset(silentFor)
		f.failed = f.message(m)
		return f.failed
	})
	if ctx.Err() == nil && errors.Is(context.Cause(tailing), ErrSilent) {
		if f.next == 0 {
			return fmt.Errorf("following events at %s: %w, for %v; a proxy in between may hold the messages back", c.URL, ErrSilent, silentFor)
		}
		return fmt.Errorf("%w: %w", errCut, ErrSilent)
	}
	return err
}

// message notes where the tail is, and hands the message on.
func (f *following) message(m Message) error {
	var at struct {
		Seq, Next journal.Seq
	}
	if err := json.Unmarshal(m.Data, &at); err != nil {
		return fmt.Errorf("reading a message of the relay: %w", err)
	}
	switch m.Name {
	case "event":
		if err := f.see(m); err != nil {
			return err
		}
		f.next = at.Seq + 1
		return nil
	case "heartbeat":
		f.next = at.Next
	case "end":
		f.next = at.Next
		return json.Unmarshal(m.Data, &f.ended)
	}
	return f.see(m)
}

// describe is why a tail was interrupted.
func (f *following) describe(err error) error {
	if f.ended.Reason != "" {
		return fmt.Errorf("the relay ended the tail: %s", f.ended.Reason)
	}
	return err
}
