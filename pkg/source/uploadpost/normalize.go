package uploadpost

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	ceevent "github.com/cloudevents/sdk-go/v2/event"
	"github.com/cloudevents/sdk-go/v2/types"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/jsonbody"
)

// TypePrefix is the prefix of event types; the event name of the payload follows.
const TypePrefix = "com.upload-post."

const (
	uploadCompleted = "upload_completed"
	success         = "success"
	failure         = "failure"
)

// accountEvents have a status instead of a result.
var accountEvents = []string{"social_account_connected", "social_account_disconnected", "social_account_reauth_required"}

// payload has the fields that become attributes.
type payload struct {
	event, profile, platform, mediaType   field
	accountName, status, jobID, createdAt field
	result                                field // an object, or another JSON value
	success, publishID, postID            field // fields of the result
}

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (p *payload) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	return jsonbody.Members(d, func(name []byte) error {
		if string(name) == "result" {
			return p.readResult(d)
		}
		return p.field(name).read(d)
	})
}

func (p *payload) readResult(d *jsontext.Decoder) error {
	p.result.twice = p.result.kind != 0
	if p.result.kind = d.PeekKind(); p.result.kind != '{' {
		return d.SkipValue()
	}
	return jsonbody.Members(d, func(name []byte) error { return p.resultField(name).read(d) })
}

// field returns the destination of a member; nil for an unused member.
func (p *payload) field(name []byte) *field {
	switch string(name) {
	case "event":
		return &p.event
	case "profile_username":
		return &p.profile
	case "platform":
		return &p.platform
	case "media_type":
		return &p.mediaType
	case "account_name":
		return &p.accountName
	case "status":
		return &p.status
	case "job_id":
		return &p.jobID
	case "created_at":
		return &p.createdAt
	}
	return nil
}

func (p *payload) resultField(name []byte) *field {
	switch string(name) {
	case "success":
		return &p.success
	case publishID:
		return &p.publishID
	case postID:
		return &p.postID
	}
	return nil
}

// field is a JSON value. The source ignores a value of a wrong type, white space only, or a
// repeated member, unless the field is required. The zero field is absent.
type field struct {
	kind  jsontext.Kind
	twice bool
	empty bool   // empty string
	text  string // string that can be an attribute value
}

// read reads a value; a nil field skips the value.
func (f *field) read(d *jsontext.Decoder) error {
	if f == nil {
		return d.SkipValue()
	}
	v, err := d.ReadValue()
	if err != nil {
		return err
	}
	if f.kind != 0 {
		*f = field{kind: v.Kind(), twice: true}
		return nil
	}
	f.kind = v.Kind()
	if f.kind != '"' {
		return nil
	}
	var short [64]byte
	text, err := jsontext.AppendUnquote(short[:0], v)
	if err != nil { // invalid UTF-8
		return nil //nolint:nilerr // and therefore no attribute
	}
	f.empty = len(text) == 0
	if known, ok := usual[string(text)]; ok {
		f.text = known.(string) // without a copy
	} else {
		f.text = jsonbody.Text(string(text))
	}
	return nil
}

// usual are the most frequent values of some fields, as interned attribute values.
var usual = func() map[string]any {
	m := map[string]any{}
	for _, text := range []string{
		uploadCompleted, "instagram", "tiktok", "youtube", "facebook", "linkedin", "x", "threads", "pinterest", "reddit", "bluesky",
		"video", "photo", "text", success, failure,
	} {
		m[text] = text
	}
	return m
}()

// boxed returns a text as an attribute value, or nil for an empty text.
func boxed(text string) any {
	if text == "" {
		return nil
	}
	if known, ok := usual[text]; ok {
		return known
	}
	return text
}

// isString reports whether f is empty or a string that can be an attribute.
func (f *field) isString() bool { return f.text != "" || f.empty }

// facts are the values of a payload; absent or unusable values are empty.
type facts struct {
	event, platform, profile, mediaType string
	accountName, outcome, jobID         string
	publishID, postID                   string
	time                                time.Time
}

// Normalize implements source.Source. A delivery has one event.
func (s *Source) Normalize(r *source.Request) ([]event.Event, error) {
	f, err := s.read(r.Body)
	if err != nil {
		return nil, err
	}
	id, keys := identify(s.env.Name, f, r.Body)
	profile := boxed(f.profile)
	extensions := [...]struct {
		name  string
		value any
	}{
		{event.Platform, boxed(f.platform)},
		{event.MediaType, boxed(f.mediaType)},
		{event.Profile, profile},
		{event.Outcome, boxed(f.outcome)},
		{event.PublishID, boxed(f.publishID)},
		{event.PartitionKey, profile},
		{event.CorrelationID, boxed(f.jobID)},
		{event.DeliveryID, boxed(jsonbody.Usable(r.Header.Get(DeliveryHeader)))},
	}
	count := 1
	for _, e := range extensions {
		if e.value != nil {
			count++
		}
	}
	kind := s.kindOf(f.event)
	ce := &ceevent.EventContextV1{
		ID:              id,
		Type:            kind.name,
		Source:          sourceOf(f),
		DataContentType: &s.contentType,
		DataSchema:      kind.schema,
		Extensions:      make(map[string]any, count),
	}
	for _, e := range extensions {
		if e.value != nil {
			ce.Extensions[e.name] = e.value
		}
	}
	ce.Extensions[event.RecordedTime] = types.Timestamp{Time: r.Received.UTC()}
	if subject := subjectOf(f); subject != "" {
		ce.Subject = &subject
	}
	if !f.time.IsZero() {
		ce.Time = &types.Timestamp{Time: f.time}
	}
	return []event.Event{{
		CloudEvent: ceevent.Event{Context: ce, DataEncoded: r.Body},
		Keys:       keys,
	}}, nil
}

// read reads the facts of a body. Its error is a *source.MalformedError.
func (s *Source) read(body []byte) (facts, error) {
	var p payload
	if err := jsonbody.Object(body, &p); err != nil {
		return facts{}, err
	}
	f := facts{
		event:       p.event.text,
		platform:    p.platform.text,
		profile:     p.profile.text,
		mediaType:   p.mediaType.text,
		accountName: p.accountName.text,
		jobID:       p.jobID.text,
		publishID:   p.publishID.text,
		postID:      p.postID.text,
		time:        parseTime(p.createdAt.text, s.location),
	}
	switch p.success.kind {
	case 't':
		f.outcome = success
	case 'f':
		f.outcome = failure
	}
	// Readers differ for repeated members, so identifying members must occur once.
	for _, identifying := range []struct {
		name  string
		field field
	}{
		{"/event", p.event},
		{"/platform", p.platform},
		{"/profile_username", p.profile},
		{"/status", p.status},
		{"/result", p.result},
		{"/result/success", p.success},
		{"/result/publish_id", p.publishID},
		{"/result/post_id", p.postID},
	} {
		if identifying.field.twice {
			return facts{}, malformed(identifying.name, errTwice)
		}
	}
	if f.event == "" {
		return facts{}, need("/event", p.event, "a string that is not blank")
	}
	account := slices.Contains(accountEvents, f.event)
	if account {
		f.outcome = p.status.text
	}
	if (account || f.event == uploadCompleted) && !p.platform.isString() {
		return facts{}, need("/platform", p.platform, "a string")
	}
	if account && !p.status.isString() {
		return facts{}, need("/status", p.status, "a string")
	}
	if f.event == uploadCompleted && f.outcome == "" {
		if p.result.kind != '{' {
			return facts{}, need("/result", p.result, "an object")
		}
		return facts{}, need("/result/success", p.success, "true or false")
	}
	return f, nil
}

var errTwice = errors.New("is there twice")

func malformed(field string, err error) error { return &source.MalformedError{Field: field, Err: err} }

// need describes the expected value of a field.
func need(name string, f field, want string) error {
	is := map[jsontext.Kind]string{
		0: "missing", 'n': "null", 't': "true", 'f': "false", '"': "a string", '0': "a number", '[': "an array", '{': "an object",
	}[f.kind]
	if f.kind == '"' && strings.HasPrefix(want, "a string") {
		is = "a blank string, or one with control characters, or too long, or no Unicode"
	}
	return malformed(name, fmt.Errorf("is %s, must be %s", is, want))
}

// parseTime parses ISO 8601 as the sender writes it, with or without a zone.
func parseTime(s string, location *time.Location) time.Time {
	if len(s) < len("2006-01-02T15:04:05") {
		return time.Time{}
	}
	if s[10] == ' ' {
		s = s[:10] + "T" + s[11:]
	}
	for _, layout := range []string{"2006-01-02T15:04:05", "2006-01-02T15:04:05Z07:00", "2006-01-02T15:04:05Z0700"} {
		// The layouts accept fractions of a second.
		if t, err := time.ParseInLocation(layout, s, location); err == nil {
			if y := t.UTC().Year(); y < 1 || y > 9999 { // RFC 3339; Go's zero time may have year 0
				return time.Time{}
			}
			return t.UTC()
		}
	}
	return time.Time{}
}

// kind holds the common attributes of events with one name.
type kind struct {
	name   string // CloudEvents type
	schema *types.URI
}

func (s *Source) kindOf(name string) kind {
	if known, ok := s.kinds[name]; ok {
		return known
	}
	return kind{TypeOf(name), types.ParseURI(s.env.Schema(TypeOf(name)))}
}

// sourceOf returns the source attribute: the URI of the profile.
func sourceOf(f facts) types.URIRef {
	const profiles = "/profiles/"
	ref := types.URIRef{URL: url.URL{Scheme: "https", Host: "upload-post.com"}}
	if f.profile != "" {
		ref.Path = profiles + f.profile
		if escaped := url.PathEscape(f.profile); escaped != f.profile {
			ref.RawPath = profiles + escaped
		}
	}
	return ref
}

func subjectOf(f facts) string {
	switch id := first(f.publishID, f.postID); {
	case id != "":
		return join(f.platform, id)
	case slices.Contains(accountEvents, f.event):
		return join(f.platform, f.accountName)
	}
	return f.platform
}

// join joins the parts that are not empty with slashes.
func join(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "/")
}

// first returns the first string that is not empty.
func first(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}
