// Package telegram sends events to a Telegram chat: a message per event, or a
// single message for many pending events.
//
// The text is a template over the event, escaped, and cut to Telegram's limit.
// When the service asks to wait, the sink waits. An event becomes a dead letter
// if the template fails for the event, or if Telegram cannot read the message.
// If the bot was removed from the chat, or the token is wrong, all events stay
// pending until the operator fixes the cause. After a lost response a message
// may arrive twice.
//
// The filter of the sink selects the events: outcome == "failure" sends
// failures only.
package telegram

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

//go:embed example.yaml
var example string

// Kind is the sink of type telegram.
func Kind() sinks.Kind {
	return sinks.Define("telegram", "Messages to a Telegram chat: one message per event, or one message for many pending events.", example, defaults, open)
}

// Sink implements sinks.Sink. Messages are sent sequentially, because a chat is
// read from top to bottom.
type Sink struct {
	config    Config
	template  *template.Template
	transport *http.Transport

	life context.Context // ends with Close
	end  context.CancelFunc
}

func open(ctx context.Context, c Config, env sinks.Env) (sinks.Sink, error) {
	t, err := parse(c.Template)
	if err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	dial := env.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	s := &Sink{config: c, template: t, transport: &http.Transport{
		DialContext: dial, ForceAttemptHTTP2: true, MaxIdleConns: 1, IdleConnTimeout: time.Minute, TLSHandshakeTimeout: 10 * time.Second,
	}}
	s.life, s.end = context.WithCancel(context.Background()) // longer than ctx, until Close
	// A wrong token shows at the start.
	if err := s.call(ctx, "getMe", nil); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close implements sinks.Sink.
func (s *Sink) Close() error {
	s.end()
	s.transport.CloseIdleConnections()
	return nil
}

// Destination implements sinks.Sink: the sink has a single chat.
func (*Sink) Destination(event.Event) sinks.Destination { return sinks.Destination{} }

// message is the body of sendMessage.
type message struct {
	ChatID   string `json:"chat_id"`
	ThreadID int64  `json:"message_thread_id,omitempty"`
	Silent   bool   `json:"disable_notification,omitempty"`
	Text     string `json:"text"`
	Mode     string `json:"parse_mode,omitempty"`
}

// Deliver implements sinks.Sink.
func (s *Sink) Deliver(ctx context.Context, batch []event.Event) error {
	if s.config.Digest > 0 && len(batch) > s.config.Digest {
		if err := s.send(ctx, digest(batch), false); err != nil {
			return sinks.BatchError(slices.Repeat([]error{err}, len(batch)))
		}
		return nil
	}
	errs := make([]error, len(batch))
	var failed error // holds back later events
	for i, e := range batch {
		if failed != nil {
			errs[i] = fmt.Errorf("held back behind an event that failed: %w", failed)
			continue
		}
		text, isHTML, err := render(s.template, e)
		if err != nil {
			errs[i] = sinks.Permanent(sinks.ReasonInvalid, err)
			continue
		}
		errs[i] = s.send(ctx, text, isHTML)
		if _, refused := sinks.IsPermanent(errs[i]); !refused {
			failed = errs[i]
		}
	}
	return sinks.Outcome(errs)
}

func (s *Sink) send(ctx context.Context, text string, isHTML bool) error {
	m := message{ChatID: s.config.ChatID, ThreadID: s.config.ThreadID, Silent: s.config.Silent, Text: text}
	if isHTML {
		m.Mode = "HTML"
	}
	if text == "" {
		return sinks.Permanent(sinks.ReasonInvalid, errors.New("the template gives no text for this event"))
	}
	return s.call(ctx, "sendMessage", m)
}

// answer is a response of the Bot API.
type answer struct {
	OK          bool   `json:"ok"`
	Code        int    `json:"error_code"`
	Description string `json:"description"`
	Parameters  struct {
		RetryAfter int   `json:"retry_after"` // seconds
		MigrateTo  int64 `json:"migrate_to_chat_id"`
	} `json:"parameters"`
}

// maxAnswer is how much of an answer is read, in bytes.
const maxAnswer = 64 << 10

// call calls a method of the Bot API. The errors do not contain the token,
// which is part of every URL.
func (s *Sink) call(ctx context.Context, method string, body any) error {
	if s.life.Err() != nil {
		return errors.New("the sink is closed")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)() //nolint:contextcheck // both end it
	text, err := json.Marshal(body)
	if err != nil {
		return sinks.Permanent(sinks.ReasonInvalid, err)
	}
	target := s.config.URL.Reveal() + "/bot" + s.config.Token.Reveal() + "/" + method
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(text))
	if err != nil {
		return errors.New("url is not a URL") // not wrapped, because the error contains the token
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := s.transport.RoundTrip(r) // follows no redirect
	if err != nil {
		return sinks.AtDestination(fmt.Errorf("calling %s: %w", method, s.hide(err)))
	}
	defer resp.Body.Close()
	var a answer
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&a); err != nil {
		return sinks.AtDestination(fmt.Errorf("calling %s: %s is not an answer of the Bot API; is url right?", method, resp.Status))
	}
	return judge(method, a)
}

// hide returns the cause of an error without the URL.
func (s *Sink) hide(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	if text := err.Error(); strings.Contains(text, s.config.Token.Reveal()) {
		return errors.New(strings.ReplaceAll(text, s.config.Token.Reveal(), s.config.Token.String()))
	}
	return err
}

// judge classifies a response. Only an error in the text of a message is
// permanent. An error of the chat or the token is of the destination.
func judge(method string, a answer) error {
	if a.OK {
		return nil
	}
	err := fmt.Errorf("calling %s: answered %d: %s", method, a.Code, cut(200, a.Description))
	about := strings.ToLower(a.Description)
	switch {
	case a.Code == http.StatusTooManyRequests:
		return sinks.RetryAfter(time.Duration(max(1, a.Parameters.RetryAfter))*time.Second, err)
	case a.Parameters.MigrateTo != 0:
		return sinks.AtDestination(fmt.Errorf("%w; the group has become a supergroup: set chat_id to %q", err, fmt.Sprint(a.Parameters.MigrateTo)))
	case a.Code == http.StatusBadRequest && strings.Contains(about, "too long"):
		return sinks.Permanent(sinks.ReasonTooLarge, err)
	case a.Code == http.StatusBadRequest && (strings.Contains(about, "parse entities") || strings.Contains(about, "text is empty")):
		return sinks.Permanent(sinks.ReasonInvalid, err)
	case a.Code == http.StatusBadRequest || a.Code == http.StatusForbidden:
		return sinks.AtDestination(fmt.Errorf("%w; check chat_id, and that the bot may write there", err))
	case a.Code == http.StatusUnauthorized || a.Code == http.StatusNotFound:
		return sinks.AtDestination(fmt.Errorf("%w; check token", err))
	}
	return err
}

// Limits implements sinks.Sink: one message at a time.
func (*Sink) Limits() sinks.Limits { return sinks.Limits{} }
