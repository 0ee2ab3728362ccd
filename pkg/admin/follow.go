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

// Message is one message of a tail. Data is JSON: an EventView for "event", a
// StatusChanged for "status", a Dropped for "dropped", a Heartbeat for "heartbeat", a
// TailEnd for "end".
type Message struct {
	Name string
	Data json.RawMessage
}

// Tail calls handle for every message of a tail, until ctx is done, handle fails, or
// the relay ends the tail (io.ErrUnexpectedEOF). The query has the parameters of the
// operation tail-events.
func (c *Client) Tail(ctx context.Context, query url.Values, handle func(Message) error) error {
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
				if err := handle(m); err != nil {
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
		return fmt.Errorf("reading from the relay: %w: %w", errConnectionLost, err)
	}
	return io.ErrUnexpectedEOF
}

const (
	// silenceTimeout limits the time between two messages of a tail. A relay sends a
	// message at least every ten seconds.
	silenceTimeout = 45 * time.Second
	// reconnectTimeout limits the time of Follow's attempts to reconnect.
	reconnectTimeout = 2 * time.Minute
)

var (
	// errConnectionLost is wrapped by errors of a broken connection.
	errConnectionLost = errors.New("connection lost")
	// ErrSilent is wrapped by the error of a tail without any message.
	ErrSilent = errors.New("no message from the relay")
)

// Follow is a Tail that reconnects when the connection ends: at the maximum age,
// because the relay stops, or because the network fails. Follow continues at the next
// sequence, without a missed or repeated event. Follow calls interrupted with the cause
// of a lost connection, except for the maximum age. Follow returns if the relay is
// unreachable for reconnectTimeout, or refuses the caller.
func (c *Client) Follow(ctx context.Context, query url.Values, handle func(Message) error, interrupted func(error)) error {
	if query = maps.Clone(query); query == nil {
		query = url.Values{}
	}
	retries := backoff.NewExponentialBackOff()
	retries.InitialInterval, retries.MaxInterval = 200*time.Millisecond, 5*time.Second
	var connected time.Time // last time with a connection; zero before the first
	for {
		f := &tailConnection{handle: handle}
		err := f.once(ctx, c, query)
		if f.failed != nil || ctx.Err() != nil {
			return err
		}
		if f.next > 0 {
			if f.ended.Reason != EndFailed {
				retries.Reset()
			}
			connected = time.Now()
			query.Del("from")
			query.Set("seq", strconv.FormatUint(uint64(f.next), 10))
		}
		if f.ended.Reason == EndConnectionAge {
			continue
		}
		if !transient(err) || time.Since(connected) > reconnectTimeout {
			return err
		}
		if f.next > 0 { // report a lost connection once
			interrupted(f.describe(err))
		}
		select {
		case <-time.After(retries.NextBackOff()):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// transient reports whether a retry may succeed: the relay is stopping or busy, or the
// connection is lost.
func transient(err error) bool {
	if r, ok := errors.AsType[*RefusedError](err); ok {
		return r.Status == http.StatusTooManyRequests || r.Status >= http.StatusInternalServerError
	}
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrUnreachable) || errors.Is(err, errConnectionLost)
}

// tailConnection is one connection of Follow.
type tailConnection struct {
	handle func(Message) error
	next   journal.Seq // next sequence; 0 before the first message
	ended  TailEnd
	failed error // of handle
}

func (f *tailConnection) once(ctx context.Context, c *Client, query url.Values) error {
	tailing, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := time.AfterFunc(silenceTimeout, func() { cancel(ErrSilent) })
	defer silent.Stop()
	err := c.Tail(tailing, query, func(m Message) error {
		silent.Reset(silenceTimeout)
		f.failed = f.message(m)
		return f.failed
	})
	if ctx.Err() == nil && errors.Is(context.Cause(tailing), ErrSilent) {
		if f.next == 0 {
			return fmt.Errorf("following events at %s: %w for %v; a proxy may buffer the messages", c.URL, ErrSilent, silenceTimeout)
		}
		return fmt.Errorf("%w: %w", errConnectionLost, ErrSilent)
	}
	return err
}

// message records the position of the tail, and calls handle.
func (f *tailConnection) message(m Message) error {
	var at struct {
		Seq, Next journal.Seq
	}
	if err := json.Unmarshal(m.Data, &at); err != nil {
		return fmt.Errorf("reading a message of the tail: %w", err)
	}
	switch m.Name {
	case "event":
		if err := f.handle(m); err != nil {
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
	return f.handle(m)
}

// describe returns the cause of an interruption.
func (f *tailConnection) describe(err error) error {
	if f.ended.Reason != "" {
		return fmt.Errorf("the relay ended the tail: %s", f.ended.Reason)
	}
	return err
}
