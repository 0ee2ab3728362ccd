package webhook

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	ceevent "github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/jsonbody"
)

// Normalize implements source.Source.
func (s *Source) Normalize(r *source.Request) ([]event.Event, error) {
	r = s.proof.Public(r)
	body, err := s.content(r)
	if err != nil {
		return nil, err
	}
	in := &scope{variables: map[string]any{varHeaders: headersOf(r.Header), varPath: r.Path, varQuery: queryOf(r.RawQuery)}}
	if err := in.see(varBody, body); err != nil {
		return nil, err
	}
	if s.mapping.challenge != nil {
		text, err := s.mapping.challenge.text(in)
		if err != nil {
			return nil, malformed(s.mapping.challenge.key, err)
		}
		if text != "" {
			return nil, &source.ChallengeError{Answer: text}
		}
	}
	if !s.mapping.split {
		e, err := s.event(in, body, r, s.signedKey(body, r, 0))
		if err != nil {
			return nil, err
		}
		return []event.Event{e}, nil
	}
	return s.events(in, body, r)
}

// events returns an event for each element of the body's list, or an error for all of them.
func (s *Source) events(in *scope, body []byte, r *source.Request) ([]event.Event, error) {
	list, err := elements(body, s.mapping.path)
	if err != nil {
		return nil, malformed("split", err)
	}
	if err := in.see(varEnvelope, body); err != nil {
		return nil, err
	}
	events := make([]event.Event, len(list))
	for i, element := range list {
		if err := in.see(varBody, element); err != nil {
			return nil, err
		}
		if events[i], err = s.event(in, element, r, s.signedKey(body, r, i)); err != nil {
			if bad, ok := errors.AsType[*source.MalformedError](err); ok {
				return nil, malformed(bad.Field, fmt.Errorf("in element [%d]: %w", i, bad.Err))
			}
			return nil, err
		}
	}
	return events, nil
}

// signedKey returns an identity key of the event at an index of a verified body if other
// parts of its identity are not signed, otherwise nil. The key contains the whole body:
// equal elements of different bodies are different events.
func (s *Source) signedKey(body []byte, r *source.Request, index int) []event.Key {
	if !s.digest {
		return nil
	}
	parts := append([]string{"signed", jsonbody.Digest(body), strconv.Itoa(index)}, s.proof.Signed(r)...)
	return []event.Key{event.NewKey(s.env.Name, parts...)}
}

// event returns the event of one JSON value, with further identity keys.
func (s *Source) event(in *scope, data []byte, r *source.Request, further []event.Key) (event.Event, error) {
	m := s.mapping
	typ, err := m.typ.neededText(in)
	if err != nil {
		return event.Event{}, malformed(m.typ.key, err)
	}
	uri, err := s.source(in)
	if err != nil {
		return event.Event{}, malformed("event.source", err)
	}
	id, err := s.id(in, data)
	if err != nil {
		return event.Event{}, err
	}
	ce := &ceevent.EventContextV1{
		ID:              id,
		Type:            typ,
		Source:          *uri,
		DataContentType: new(jsonbody.ContentType),
		DataSchema:      types.ParseURI(s.env.Schema(typ)),
		Extensions:      map[string]any{event.RecordedTime: types.Timestamp{Time: r.Received.UTC()}},
	}
	if m.subject != nil {
		subject, err := m.subject.text(in)
		if err != nil && !ambiguous(err) {
			return event.Event{}, malformed(m.subject.key, err)
		}
		if subject != "" {
			ce.Subject = &subject
		}
	}
	if m.time != nil {
		at, err := m.time.time(in)
		if err != nil && !ambiguous(err) {
			return event.Event{}, malformed(m.time.key, err)
		}
		if !at.IsZero() {
			ce.Time = &types.Timestamp{Time: at}
		}
	}
	for _, x := range append([]extension{{event.PartitionKey, m.partitionKey}}, m.extensions...) {
		if x.value == nil {
			continue
		}
		value, err := x.value.text(in)
		if err != nil && !ambiguous(err) {
			return event.Event{}, malformed(x.value.key, err)
		}
		if value != "" {
			ce.Extensions[x.name] = value
		}
	}
	keys, err := s.keys(in, id)
	if err != nil {
		return event.Event{}, err
	}
	return event.Event{CloudEvent: ceevent.Event{Context: ce, DataEncoded: data}, Keys: append(keys, further...)}, nil
}

// ambiguous reports whether an expression used a value that readers understand differently.
// An optional attribute is then absent.
func ambiguous(err error) bool { return errors.Is(err, errTwice) || errors.Is(err, errUnicode) }

// source evaluates the source attribute: a URI reference that journal and receivers encode
// unchanged.
func (s *Source) source(in *scope) (*types.URIRef, error) {
	text := "urn:postwire:source:" + s.env.Name
	if s.mapping.source != nil {
		var err error
		if text, err = s.mapping.source.neededText(in); err != nil {
			return nil, err
		}
	}
	ref := types.ParseURIRef(text)
	if ref == nil {
		return nil, errors.New("gives text that is no URI reference")
	}
	written := ref.String()
	if again := types.ParseURIRef(written); written == "" || again == nil || again.String() != written {
		return nil, errors.New("gives text that is no URI reference")
	}
	return ref, nil
}

// headersOf returns the first value of each header, by lower-case name.
func headersOf(h http.Header) map[string]string {
	headers := make(map[string]string, len(h))
	for name, values := range h {
		if len(values) > 0 {
			headers[strings.ToLower(name)] = values[0]
		}
	}
	return headers
}

// queryOf returns the first value of each valid parameter.
func queryOf(raw string) map[string]string {
	values, _ := url.ParseQuery(raw) // the valid parameters are set also with an error
	query := make(map[string]string, len(values))
	for name := range values {
		query[name] = values.Get(name)
	}
	return query
}

func malformed(field string, err error) error { return &source.MalformedError{Field: field, Err: err} }
