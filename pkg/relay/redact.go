package relay

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// redactor removes or hashes fields in the data of events. Data that the redactor cannot
// parse is refused. A nil redactor changes nothing. The methods may be called concurrently.
type redactor struct {
	fields map[string]treatment // by name, or by JSON pointer
	key    []byte
}

type treatment int

const (
	keep treatment = iota
	drop
	hash
)

// newRedactor returns nil without fields to redact.
func newRedactor(s sinks.Redact) *redactor {
	if len(s.Drop)+len(s.Hash) == 0 {
		return nil
	}
	r := &redactor{fields: map[string]treatment{}, key: []byte(s.Key.Reveal())}
	for _, f := range s.Drop {
		r.fields[f] = drop
	}
	for _, f := range s.Hash {
		r.fields[f] = hash
	}
	return r
}

var errNotJSON = errors.New("the data is not JSON, so that redact cannot find the fields in it")

// apply returns the redacted event. Its error quotes nothing of the data.
func (r *redactor) apply(e event.Event) (event.Event, error) {
	if r == nil || len(e.CloudEvent.DataEncoded) == 0 {
		return e, nil
	}
	if !event.IsJSON(e.CloudEvent.DataContentType()) {
		return event.Event{}, errNotJSON
	}
	// Strings and numbers that are not redacted keep their bytes.
	options := []jsontext.Options{
		jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true), jsontext.PreserveRawStrings(true),
	}
	var out bytes.Buffer
	out.Grow(len(e.CloudEvent.DataEncoded))
	in, to := jsontext.NewDecoder(bytes.NewReader(event.TrimBOM(e.CloudEvent.DataEncoded)), options...), jsontext.NewEncoder(&out, options...)
	if err := r.value(in, to, ""); err != nil {
		return event.Event{}, errNotJSON // not wrapped: it may quote the data
	}
	if _, err := in.ReadToken(); err == nil { // trailing data
		return event.Event{}, errNotJSON
	}
	e.CloudEvent.DataEncoded = bytes.TrimSuffix(out.Bytes(), []byte{'\n'})
	e.CloudEvent.DataBase64 = false
	return e, nil
}

// value copies the value at a JSON pointer.
func (r *redactor) value(in *jsontext.Decoder, out *jsontext.Encoder, place string) error {
	switch in.PeekKind() {
	case '{':
		return r.object(in, out, place)
	case '[':
		return r.array(in, out, place)
	}
	v, err := in.ReadValue()
	if err != nil {
		return err
	}
	return out.WriteValue(v)
}

func (r *redactor) object(in *jsontext.Decoder, out *jsontext.Encoder, place string) error {
	if err := copyToken(in, out); err != nil {
		return err
	}
	for in.PeekKind() != '}' {
		raw, err := in.ReadValue()
		if err != nil {
			return err
		}
		raw = slices.Clone(raw)
		// Invalid UTF-8 becomes U+FFFD, as in most readers.
		name, _ := jsontext.AppendUnquote(nil, raw)
		if err := r.member(in, out, place, raw, string(name)); err != nil {
			return err
		}
	}
	return copyToken(in, out)
}

// member copies, hashes or drops an object member. The name is already read.
func (r *redactor) member(in *jsontext.Decoder, out *jsontext.Encoder, place string, raw jsontext.Value, name string) error {
	place += "/" + pointerEscaper.Replace(name)
	what := r.fields[name]
	if at := r.fields[place]; at != keep {
		what = at
	}
	if what == drop {
		return in.SkipValue()
	}
	if err := out.WriteValue(raw); err != nil {
		return err
	}
	if what == keep {
		return r.value(in, out, place)
	}
	v, err := in.ReadValue()
	if err != nil {
		return err
	}
	return out.WriteToken(r.digest(v))
}

// pointerEscaper escapes a name for a JSON pointer (RFC 6901).
var pointerEscaper = strings.NewReplacer("~", "~0", "/", "~1")

func (r *redactor) array(in *jsontext.Decoder, out *jsontext.Encoder, place string) error {
	if err := copyToken(in, out); err != nil {
		return err
	}
	for i := 0; in.PeekKind() != ']'; i++ {
		if err := r.element(in, out, place+"/"+strconv.Itoa(i)); err != nil {
			return err
		}
	}
	return copyToken(in, out)
}

// element copies, hashes or drops an array element.
func (r *redactor) element(in *jsontext.Decoder, out *jsontext.Encoder, place string) error {
	switch r.fields[place] {
	case drop: // null keeps the indexes of later elements
		if err := in.SkipValue(); err != nil {
			return err
		}
		return out.WriteToken(jsontext.Null)
	case hash:
		v, err := in.ReadValue()
		if err != nil {
			return err
		}
		return out.WriteToken(r.digest(v))
	case keep:
	}
	return r.value(in, out, place)
}

func copyToken(in *jsontext.Decoder, out *jsontext.Encoder) error {
	t, err := in.ReadToken()
	if err != nil {
		return err
	}
	return out.WriteToken(t)
}

// digest returns the HMAC that replaces a value: of the text for a string, of the canonical
// form for other values (RFC 8785, except that numbers keep their digits), and of the raw
// bytes for a value without a canonical form. Null stays null.
func (r *redactor) digest(v jsontext.Value) jsontext.Token {
	if v.Kind() == 'n' {
		return jsontext.Null
	}
	text := []byte(slices.Clone(v))
	if v.Kind() == '"' {
		if plain, err := jsontext.AppendUnquote(nil, v); err == nil {
			text = plain
		}
	} else {
		canonical := jsontext.Value(slices.Clone(text))
		if canonical.Canonicalize(jsontext.CanonicalizeRawInts(false), jsontext.CanonicalizeRawFloats(false)) == nil {
			text = canonical
		}
	}
	mac := hmac.New(sha256.New, r.key)
	mac.Write(text)
	return jsontext.String("hmac-sha256:" + hex.EncodeToString(mac.Sum(nil)))
}
