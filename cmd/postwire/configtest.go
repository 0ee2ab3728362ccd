package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/net/http/httpguts"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/app"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
)

// trial is a webhook for config test.
type trial struct {
	source, file, path string
	headers, query     []string
}

// tried is the result of a trial: events, or the answer to a challenge, or the
// reason of a malformed webhook.
type tried struct {
	Events    []triedEvent    `json:"events,omitempty"`
	Challenge string          `json:"challenge,omitempty"`
	Malformed *triedMalformed `json:"malformed,omitempty"`
}

type triedEvent struct {
	Event json.RawMessage `json:"event"`
	Keys  [][]string      `json:"keys"` // parts of every identity key
	Sinks []app.Routed    `json:"sinks"`
}

type triedMalformed struct {
	Field  string `json:"field"` // "" for the body
	Reason string `json:"reason"`
}

func testCommand() *cobra.Command {
	var path string
	var out output
	t := &trial{}
	cmd := &cobra.Command{
		Use:   "test",
		Short: "Convert a webhook to events without a relay, and show matching sinks",
		Long: `Convert a webhook to events by a source of the configuration, and show attributes,
data and identity keys of every event, and the sinks with a matching filter, with
subject or topic. The command sends and stores nothing, and skips authentication.
The exit code is 1 if the webhook is malformed.`,
		Example: `  postwire config test --source orders --file order.json
  postwire config test --source github --file push.json --header 'X-GitHub-Event: push' --header 'X-GitHub-Delivery: 1'
  postwire config test --source orders --file - --path /webhooks/orders --query region=eu -o json < order.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := out.check("text"); err != nil {
				return err
			}
			plan, err := app.Load(path)
			if err != nil {
				return err
			}
			got, err := t.run(plan, cmd.InOrStdin())
			if err != nil {
				return err
			}
			if out == "json" {
				err = printJSON(cmd.OutOrStdout(), got)
			} else {
				err = got.print(cmd.OutOrStdout())
			}
			if err == nil && got.Malformed != nil {
				return fmt.Errorf("the webhook is malformed: %w", &source.MalformedError{Field: got.Malformed.Field, Err: errors.New(got.Malformed.Reason)})
			}
			return err
		},
	}
	configFlag(cmd, &path)
	f := cmd.Flags()
	f.StringVar(&t.source, "source", "", "name of the source; required if the configuration has several sources")
	f.StringVar(&t.file, "file", "", "file with the body; - for standard input")
	f.StringVar(&t.path, "path", "", "request path (default the first path of the source)")
	f.StringArrayVar(&t.headers, "header", nil, "request header as 'Name: value'; repeatable")
	f.StringArrayVar(&t.query, "query", nil, "query parameter as name=value; repeatable")
	out.register(cmd, "text")
	return cmd
}

// run builds the request, and converts the request to events.
func (t *trial) run(plan *app.Plan, stdin io.Reader) (tried, error) {
	s, err := t.sourceOf(plan)
	if err != nil {
		return tried{}, err
	}
	r, err := t.request(s)
	if err != nil {
		return tried{}, err
	}
	if r.Body, err = t.body(stdin, plan.Config.Server.MaxBodyBytes); err != nil {
		return tried{}, err
	}
	events, err := plan.Normalize(s, r)
	if malformed, ok := errors.AsType[*source.MalformedError](err); ok {
		return tried{Malformed: &triedMalformed{malformed.Field, malformed.Err.Error()}}, nil
	}
	if challenge, ok := errors.AsType[*source.ChallengeError](err); ok {
		return tried{Challenge: challenge.Answer}, nil
	}
	if err != nil {
		return tried{}, err
	}
	got := tried{Events: []triedEvent{}}
	for _, e := range events {
		one, err := triedOf(plan, e)
		if err != nil {
			return tried{}, err
		}
		got.Events = append(got.Events, one)
	}
	return got, nil
}

func (t *trial) sourceOf(plan *app.Plan) (source.Configured, error) {
	var names []string
	for _, s := range plan.Sources {
		if s.Name == t.source || t.source == "" && len(plan.Sources) == 1 {
			return s, nil
		}
		names = append(names, s.Name)
	}
	if t.source == "" {
		return source.Configured{}, fmt.Errorf("%w: --source: name one of %s", errUsage, strings.Join(names, ", "))
	}
	return source.Configured{}, fmt.Errorf("%w: --source: there is no source %q; use one of %s", errUsage, t.source, strings.Join(names, ", "))
}

func (t *trial) request(s source.Configured) (*source.Request, error) {
	r := &source.Request{Method: http.MethodPost, Path: t.path, Header: http.Header{}, Received: time.Now().UTC()}
	if r.Path == "" {
		r.Path = s.Settings.Paths[0]
	}
	for _, h := range t.headers {
		name, value, ok := strings.Cut(h, ":")
		value = strings.TrimSpace(value)
		if !ok || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return nil, fmt.Errorf("%w: --header: write 'Name: value'", errUsage)
		}
		r.Header.Add(name, value)
	}
	var query []string
	for _, q := range t.query {
		name, value, ok := strings.Cut(q, "=")
		if !ok {
			return nil, fmt.Errorf("%w: --query: write name=value", errUsage)
		}
		query = append(query, url.QueryEscape(name)+"="+url.QueryEscape(value))
	}
	r.RawQuery = strings.Join(query, "&")
	return r, nil
}

// body reads the file, up to limit, which is server.max_body_bytes.
func (t *trial) body(stdin io.Reader, limit config.Size) ([]byte, error) {
	in := stdin
	switch t.file {
	case "":
		return nil, fmt.Errorf("%w: --file: name the file with the body, or - for standard input", errUsage)
	case "-":
	default:
		f, err := os.Open(t.file)
		if err != nil {
			return nil, fmt.Errorf("%w: --file: %w", errUsage, err)
		}
		defer f.Close()
		in = f
	}
	body, err := io.ReadAll(io.LimitReader(in, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("reading the body: %w", err)
	}
	if int64(len(body)) > int64(limit) {
		return nil, fmt.Errorf("the body is larger than server.max_body_bytes, %v: a relay would answer 413", limit)
	}
	return body, nil
}

func triedOf(plan *app.Plan, e event.Event) (triedEvent, error) {
	text, _, err := event.Structured(e)
	if err != nil {
		return triedEvent{}, fmt.Errorf("writing event %s as JSON: %w", e.CloudEvent.ID(), err)
	}
	one := triedEvent{Event: text, Sinks: plan.Route(e)}
	for _, k := range e.Keys {
		one.Keys = append(one.Keys, k.Parts())
	}
	return one, nil
}

// routedText formats the result of one sink.
func routedText(s app.Routed) string {
	switch {
	case s.Error != "":
		return s.Sink + ": no match, " + s.Error
	case !s.Match:
		return s.Sink + ": no match"
	case s.Destination == "":
		return s.Sink
	}
	return fmt.Sprintf("%s: %s %s", s.Sink, s.Noun, oneLine(s.Destination))
}

// print prints the result as text. The caller reports a malformed webhook as an error.
func (t tried) print(w io.Writer) error {
	switch {
	case t.Malformed != nil:
		return nil
	case t.Challenge != "":
		_, err := fmt.Fprintf(w, "challenge, answered 200 with: %s\n", t.Challenge)
		return err
	case len(t.Events) == 0:
		_, err := fmt.Fprintln(w, "no events")
		return err
	}
	for i, e := range t.Events {
		if len(t.Events) > 1 {
			fmt.Fprintf(w, "event %d of %d\n", i+1, len(t.Events))
		}
		if err := printJSON(w, e.Event); err != nil {
			return err
		}
		for _, s := range e.Sinks {
			if _, err := fmt.Fprintf(w, "sink: %s\n", routedText(s)); err != nil {
				return err
			}
		}
		for _, parts := range e.Keys {
			for i, part := range parts {
				parts[i] = fmt.Sprintf("%q", part)
			}
			if _, err := fmt.Fprintf(w, "key: %s\n", strings.Join(parts, " ")); err != nil {
				return err
			}
		}
	}
	return nil
}
