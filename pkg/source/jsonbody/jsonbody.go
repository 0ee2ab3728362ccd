// Package jsonbody has the common parts of sources with JSON bodies. It parses identifying
// fields strictly, so that no other reader can understand them differently, and passes
// other fields on unchanged. It identifies a body by its content, and makes attributes only
// of text that every broker accepts.
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

	// MaxAttribute is the maximum length of an attribute from a body, in bytes: it fits the
	// headers of brokers.
	MaxAttribute = 1024
)

// Lenient returns the options of a parser that accepts repeated names in an object and
// invalid UTF-8. The caller checks both for each member that it uses.
func Lenient() jsontext.Options {
	return json.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
}

// Object parses a JSON object into v, without trailing data and within event.MaxDepth. A
// byte order mark before the object is allowed. V implements json.UnmarshalerFrom, and must
// reject ambiguous members that it uses. The error is a *source.MalformedError.
func Object(body []byte, v json.UnmarshalerFrom) error {
	return unmarshal(body, v, '{', "a JSON object")
}

// List is Object for a JSON array.
func List(body []byte, v json.UnmarshalerFrom) error { return unmarshal(body, v, '[', "a JSON array") }

// Any is Object for any JSON value.
func Any(body []byte, v json.UnmarshalerFrom) error { return unmarshal(body, v, 0, "JSON") }

// unmarshal parses a body that begins with kind; kind 0 is any.
func unmarshal(body []byte, v json.UnmarshalerFrom, kind byte, name string) error {
	body = event.TrimBOM(body)
	if err := CheckDepth(body); err != nil {
		return err
	}
	// The options of Lenient one by one: joined options cost an allocation per body.
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

// errKind is the error of Members for a value that is not an object.
var errKind = errors.New("is not a JSON object")

// Members parses an object for a json.UnmarshalerFrom, without reflection. It calls member
// after each name; member must read the value and must not keep the name.
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
			// Invalid UTF-8 becomes a name that no caller uses.
			plain, _ = jsontext.AppendUnquote(nil, name)
		}
		if err := member(plain); err != nil {
			return err
		}
	}
	_, err := d.ReadToken()
	return err
}

// CheckDepth rejects bodies nested deeper than event.MaxDepth. The error is a
// *source.MalformedError.
func CheckDepth(body []byte) error {
	if event.Deeper(body, event.MaxDepth) {
		return malformed(fmt.Errorf("nests deeper than %d", event.MaxDepth))
	}
	return nil
}

// Digest returns "sha256:" and the digest of the body's canonical form in lower-case hex:
// sorted members and no white space as in RFC 8785, but numbers with their sent digits. RFC
// 8785 rounds numbers to doubles, so that bodies that differ in an integer beyond 2^53
// would be one event. The digest of a body without a canonical form (repeated names,
// invalid UTF-8) is the digest of its bytes. The journal and consumers store digests: a
// digest must be equal in every later version.
func Digest(body []byte) string {
	body = event.TrimBOM(body)
	canonical := jsontext.Value(slices.Clone(body))
	if err := canonical.Canonicalize(jsontext.CanonicalizeRawInts(false), jsontext.CanonicalizeRawFloats(false)); err != nil {
		canonical = body
	}
	digest := sha256.Sum256(canonical)
	return "sha256:" + hex.EncodeToString(digest[:])
}

// Usable returns s if s can be an attribute value: a CloudEvents String (no control
// characters, no noncharacters) of at most MaxAttribute bytes. Otherwise Usable returns "".
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

// Text returns s if s can be any attribute, also an id, type or subject: Usable and not
// only white space, which readers treat as empty. Otherwise Text returns "".
func Text(s string) string {
	if strings.TrimSpace(s) == "" {
		return ""
	}
	return Usable(s)
}

func malformed(err error) error { return &source.MalformedError{Err: err} }
