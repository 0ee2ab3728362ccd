package cloudevents

import (
	"errors"
	"mime"
	"net/url"
	"slices"
	"strings"
	"time"

	ceevent "github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source/jsonbody"
)

const (
	// maxName is the maximum length of an attribute name; CloudEvents recommends 20.
	maxName = 64
	// maxExtensions is the maximum number of extensions of an event; each extension becomes
	// a header.
	maxExtensions = 100
)

// The errors of an attribute quote nothing of its value.
var (
	errName     = errors.New("is not a name of an attribute: lower-case letters and digits, at most 64")
	errString   = errors.New("is not a string")
	errEmpty    = errors.New("is empty")
	errUnusable = errors.New("has control characters, or is longer than 1024 bytes, or is not UTF-8")
	errURI      = errors.New("is not a URI reference, or not one that stays as it is")
	errAbsolute = errors.New("is not an absolute URI")
	errTime     = errors.New("is not a time as in RFC 3339, or not one that stays as it is")
	errType     = errors.New("is not a media type")
	errMany     = errors.New("is one extension too many: an event may have 100")
	errMissing  = errors.New("is missing")
	errVersion  = errors.New("is a version that is not read here, must be 1.0")
)

// attributes collects the attributes of an event, as canonical text or as a JSON string,
// bool or int32.
type attributes struct {
	ceevent.EventContextV1

	version bool
}

// set sets an attribute. A value that cannot be passed on unchanged is an error.
func (a *attributes) set(name string, value any) error {
	text, ok := value.(string)
	if ok && text == "" {
		return errEmpty
	}
	if ok && jsonbody.Usable(text) == "" {
		return errUnusable
	}
	if !slices.Contains(core, name) {
		return a.extend(name, value)
	}
	if !ok {
		return errString
	}
	if strings.TrimSpace(text) == "" {
		return errEmpty
	}
	switch name {
	case "specversion":
		if a.version = text == ceevent.CloudEventsVersionV1; !a.version {
			return errVersion
		}
	case "id":
		a.ID = text
	case "type":
		a.Type = text
	case "subject":
		a.Subject = &text
	case "source":
		ref := types.ParseURIRef(text)
		if ref == nil || ref.String() != text {
			return errURI
		}
		a.Source = *ref
	case "dataschema":
		uri := types.ParseURI(text)
		switch {
		case uri == nil || uri.String() != text:
			return errURI
		case !uri.IsAbs():
			return errAbsolute
		}
		a.DataSchema = uri
	case "time":
		at, err := parseTime(text)
		if err != nil {
			return err
		}
		a.Time = &types.Timestamp{Time: at}
	case "datacontenttype":
		if _, _, err := mime.ParseMediaType(text); err != nil {
			return errType
		}
		a.DataContentType = &text
	}
	return nil
}

// core are the core attributes of CloudEvents.
var core = []string{"specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema"}

// extend sets an extension. An extension named data would become the data in structured
// mode.
func (a *attributes) extend(name string, value any) error {
	if !validName(name) || name == "data" {
		return errName
	}
	if name == event.RecordedTime {
		return nil // Postwire sets the attribute
	}
	if len(a.Extensions) >= maxExtensions {
		return errMany
	}
	if a.Extensions == nil {
		a.Extensions = make(map[string]any, 8)
	}
	a.Extensions[name] = value
	return nil
}

func validName(name string) bool {
	return name != "" && len(name) <= maxName &&
		!strings.ContainsFunc(name, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
}

// missing returns the name of a required attribute that the event lacks.
func (a *attributes) missing() string {
	switch {
	case !a.version:
		return "specversion"
	case a.ID == "":
		return "id"
	case a.Source.URL == url.URL{}:
		return "source"
	case a.Type == "":
		return "type"
	}
	return ""
}

// parseTime parses a time that is encoded again as the same instant: in UTC, with at most
// nanoseconds, in the years of RFC 3339. Year 0 is an error, because Go's zero time is
// near.
func parseTime(text string) (time.Time, error) {
	at, err := time.Parse(time.RFC3339Nano, strings.ToUpper(text))
	if err != nil || strings.Contains(text, ",") { // ISO 8601 only
		return time.Time{}, errTime
	}
	if at = at.UTC(); at.IsZero() || at.Year() < 1 || at.Year() > 9999 {
		return time.Time{}, errTime
	}
	if _, fraction, ok := strings.Cut(text, "."); ok {
		digits := len(fraction) - len(strings.TrimLeft(fraction, "0123456789"))
		if digits > 9 && strings.Trim(fraction[9:digits], "0") != "" {
			return time.Time{}, errTime
		}
	}
	return at, nil
}
