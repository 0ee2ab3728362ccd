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

// redactor takes out of an event's data what a sink is not to see. What it
// cannot read it lets nobody see. A nil redactor changes nothing. It may be used
// concurrently.
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

// newRedactor returns nil where there is nothing to do.
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

// apply returns e as the sink may see it. The error of data that cannot be
// redacted quotes nothing of it.
func (r *redactor) apply(e event.Event) (event.Event, error) {
	if r == nil || len(e.CloudEvent.DataEncoded) == 0 {
		return e, nil
	}
	if !event.IsJSON(e.CloudEvent.DataContentType()) {
		return event.Event{}, errNotJSON
	}
	// What is not redacted stays as it is: no string is written otherwise, and
	// no number.
	options := []jsontext.Options{
		jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true), jsontext.PreserveRawStrings(true),
	}
	var out bytes.Buffer
	out.Grow(len(e.CloudEvent.DataEncoded))
	in, to := jsontext.NewDecoder(bytes.NewReader(event.TrimBOM(e.CloudEvent.DataEncoded)), options...), jsontext.NewEncoder(&out, options...)
	if err := r.value(in, to, ""); err != nil {
		return event.Event{}, errNotJSON // not wrapped: it may quote the data
	}
	if _, err := in.ReadToken(); err == nil { // something stands behind it
		return event.Event{}, errNotJSON
	}
	e.CloudEvent.DataEncoded = bytes.TrimSuffix(out.Bytes(), []byte{'\n'})
	e.CloudEvent.DataBase64 = false
	return e, nil
}

// value copies the value at a place.
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
		// Of a name that is no Unicode this makes the one that readers make of it.
		name, _ := jsontext.AppendUnquote(nil, raw)
		if err := r.member(in, out, place, raw, string(name)); err != nil {
			return err
		}
	}
	return copyToken(in, out)
}

// member copies a member whose name has been read, or does not.
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

// pointerEscaper writes a name as a part of a JSON pointer.
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

// element copies an element of an array, which has no name, but a place.
func (r *redactor) element(in *jsontext.Decoder, out *jsontext.Encoder, place string) error {
	switch r.fields[place] {
	case drop: // its neighbors keep their places
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

// digest stands for a value: of a string the digest of its text, of anything else
// that of its canonical form (RFC 8785, save that numbers keep their digits), and
// of what has neither the digest of its bytes. There is nothing in a null.
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
