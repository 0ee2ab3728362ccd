package cloudevents

import (
	"errors"
	"fmt"
	"mime"
	"slices"
	"strings"

	ceevent "github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/jsonbody"
)

// formats is the prefix of the media types of all event formats. It distinguishes
// structured and batched mode from binary mode.
const formats = "application/cloudevents"

// Normalize implements source.Source.
//
// The package parses bodies itself. Tests compare the parser with the parser of the SDK,
// which panics for some bodies (cloudevents/sdk-go#1309, or a number in data_base64), does
// not decode percent-encoded headers, and silently changes some values: it truncates
// fractions, drops a dataschema that is not a URI, and accepts repeated names.
func (s *Source) Normalize(r *source.Request) ([]event.Event, error) {
	contentType, err := single(r.Header, "Content-Type")
	if err != nil {
		return nil, err
	}
	var read []ceevent.Event
	var signed []string // identity of a request whose signature does not cover the attributes
	if !strings.HasPrefix(strings.ToLower(contentType), formats) {
		if err := s.allows(modeBinary); err != nil {
			return nil, err
		}
		read, err = readBinary(r.Header, contentType, r.Body)
		if signs := s.proof.Signs; signs != nil {
			if len(r.Body) == 0 && len(signs.Headers) == 0 {
				return nil, malformed("", errors.New("is empty, and auth.signature covers no header, so that the signature proves nothing of the event"))
			}
			signed = append([]string{"signed", jsonbody.Digest(r.Body)}, s.proof.Signed(r)...)
		}
	} else {
		read, err = s.readFormat(contentType, r.Body)
	}
	if err != nil {
		return nil, err
	}
	events := make([]event.Event, len(read))
	for i, ce := range read {
		if err := ce.Context.SetExtension(event.RecordedTime, types.Timestamp{Time: r.Received.UTC()}); err != nil {
			return nil, malformed("", err)
		}
		events[i] = event.Event{
			CloudEvent: ce,
			// The journal and consumers store IDs and keys: they must be equal in every
			// later version.
			Keys: []event.Key{event.NewKey(s.name, "ce", ce.Source(), ce.ID())},
		}
		if signed != nil {
			events[i].Keys = append(events[i].Keys, event.NewKey(s.name, signed...))
		}
	}
	return events, nil
}

// allows rejects a mode that the configuration does not allow.
func (s *Source) allows(mode string) error {
	if slices.Contains(s.modes, mode) {
		return nil
	}
	err := fmt.Errorf("says %s mode, which content_modes does not list", mode)
	if mode == modeBinary && s.proof.Signs != nil {
		err = errors.New("says binary mode, whose attributes auth.signature does not cover; list binary in content_modes to take it all the same")
	}
	return malformed("Content-Type", err)
}

// readFormat parses a body with one event or a list of events.
func (s *Source) readFormat(contentType string, body []byte) ([]ceevent.Event, error) {
	mediaType, parameters, err := mime.ParseMediaType(contentType)
	if err != nil || !utf8Compatible(parameters["charset"]) {
		return nil, malformed("Content-Type", errors.New("is not an event format in UTF-8"))
	}
	switch mediaType {
	case ceevent.ApplicationCloudEventsJSON:
		if err := s.allows(modeStructured); err != nil {
			return nil, err
		}
		return readStructured(body)
	case ceevent.ApplicationCloudEventsBatchJSON:
		if err := s.allows(modeBatched); err != nil {
			return nil, err
		}
		return readBatch(body, s.maxBatch)
	}
	return nil, malformed("Content-Type", fmt.Errorf("is an event format that is not read here, must be %s or %s",
		ceevent.ApplicationCloudEventsJSON, ceevent.ApplicationCloudEventsBatchJSON))
}

// utf8Compatible reports whether ASCII text, or all text, of a charset is UTF-8.
func utf8Compatible(charset string) bool {
	return slices.Contains([]string{"", "utf-8", "utf8", "us-ascii", "ascii"}, strings.ToLower(charset))
}

func malformed(field string, err error) error { return &source.MalformedError{Field: field, Err: err} }
