// Package jsonbody holds what all sources of JSON webhooks do alike: they read
// what identifies an event so strictly that no other reader can understand it
// differently, and pass on what else stands in a body; they know a body by its
// content, and make attributes only of text that every broker takes.
package jsonbody

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
)

const (
	// ContentType is the datacontenttype of the events.
	ContentType = "application/json"

	// MaxAttribute is how long text may be that becomes an attribute, in
	// bytes: what fits a broker's headers.
	MaxAttribute = 1024
)

// Lenient returns the options of a reader that goes on where a strict one stops:
// at a name twice in one object, and at text that is no Unicode. Whoever reads a
// member with it must look at both for that member alone.
func Lenient() jsontext.Options {
	return json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
}

// Object reads a JSON object into v: with nothing behind it, and not too deep. A
// byte order mark may stand before it. V, which implements json.UnmarshalerFrom,
// must refuse members that it needs and that other readers might understand
// differently. Its error is a *source.MalformedError.
func Object(body []byte, v json.UnmarshalerFrom) error {
	return unmarshal(body, v, '{', "a JSON object")
}

// List is Object for a JSON array.
func List(body []byte, v json.UnmarshalerFrom) error { return unmarshal(body, v, '[', "a JSON array") }

// Any is Object for any JSON.
func Any(body []byte, v json.UnmarshalerFrom) error { return unmarshal(body, v, 0, "JSON") }

// unmarshal reads a body that begins with kind, where that is not 0.
func unmarshal(body []byte, v json.UnmarshalerFrom, kind byte, name string) error {
	body = event.TrimBOM(body)
	if err := CheckDepth(body); err != nil {
		return err
	}
	// The options of Lenient, each by itself: joined they are allocated for each body.
	err := json.Unmarshal(body, v, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if first := bytes.TrimLeft(body, " \t\r\n"); err == nil && kind != 0 && first[0] != kind {
		return malformed(errors.New("is not " + name))
	}
	if err == nil {
		return nil
	}
	if bad, ok := errors.AsType[*source.MalformedError](err); ok {
		return bad
	}
	if errors.Is(err, errKind) {
		return malformed(errors.New("is not " + name))
	}
	if syntactic, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		return malformed(fmt.Errorf("is not valid JSON at byte %d", syntactic.ByteOffset))
	}
	return malformed(errors.New("is not valid JSON"))
}

// errKind is why Members reads nothing.
var errKind = errors.New("is not a JSON object")

// Members reads an object, for what implements json.UnmarshalerFrom: it costs
// no reflection. Behind each name it calls member, which must read the value,
// and must not keep the name.
func Members(d *jsontext.Decoder, member func(name []byte) error) error {
	if d.PeekKind() != '{' {
		return cmp.Or(d.SkipValue(), errKind)
	}
	if _, err := d.ReadToken(); err != nil {
		return err
	}
	for d.PeekKind() != '}' {
		name, err := d.ReadValue()
		if err != nil {
			return err
		}
		var plain []byte
		if bytes.IndexByte(name, '\\') < 0 && name.Kind() == '"' {
			plain = name[1 : len(name)-1]
		} else {
			// Of a name that is no Unicode this makes one that nobody asks for.
			plain, _ = jsontext.AppendUnquote(nil, name)
		}
		if err := member(plain); err != nil {
			return err
		}
	}
	_, err := d.ReadToken()
	return err
}

// CheckDepth refuses bodies that nest deeper than event.MaxDepth. Its error is a
// *source.MalformedError.
func CheckDepth(body []byte) error {
	if event.Deeper(body, event.MaxDepth) {
		return malformed(fmt.Errorf("nests deeper than %d", event.MaxDepth))
	}
	return nil
}

// Digest returns sha256: and the digest of the body's canonical form, in
// lower-case hex: members are sorted and white space is gone, as in RFC 8785, and
// every number keeps the digits that were sent. RFC 8785 rounds numbers to
// doubles, so that bodies that differ in an integer beyond 2^53 would be one
// event. A body without a canonical form (a name twice in one object, text that is
// no Unicode) is known by its bytes. Digests are kept on disk and by consumers, and
// must come out the same in every later version.
func Digest(body []byte) string {
	body = event.TrimBOM(body)
	canonical := jsontext.Value(slices.Clone(body))
	if err := canonical.Canonicalize(jsontext.CanonicalizeRawInts(false), jsontext.CanonicalizeRawFloats(false)); err != nil {
		canonical = body
	}
	digest := sha256.Sum256(canonical)
	return "sha256:" + hex.EncodeToString(digest[:])
}

// Usable returns s if it can be the value of an attribute: a CloudEvents String
// (no control characters, no noncharacters) of reasonable length; and otherwise
// nothing.
func Usable(s string) string {
	if len(s) > MaxAttribute || !utf8.ValidString(s) {
		return ""
	}
	for _, r := range s {
		if r < 0x20 || r >= 0x7f && r <= 0x9f || r >= 0xfdd0 && r <= 0xfdef || r&0xfffe == 0xfffe {
			return ""
		}
	}
	return s
}

// Text returns s if it can be any attribute, and otherwise nothing: beyond what
// is Usable, no id, type or subject can be of white space alone, which readers
// take for empty.
func Text(s string) string {
	if strings.TrimSpace(s) == "" {
		return ""
	}
	return Usable(s)
}

func malformed(err error) error { return &source.MalformedError{Err: err} }
