// Package jsonbody holds what all sources of JSON webhooks do alike: they read
// a body so strictly that no other reader can understand it differently, know
// it by its content, and make attributes only of text that every broker takes.
package jsonbody

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/postwire/postwire/pkg/source"
)

const (
	// ContentType is the datacontenttype of the events.
	ContentType = "application/json"

	// MaxDepth is how deep a body may nest: as deep as the strictest common
	// readers (Jackson) follow, with room for the envelope of structured mode.
	MaxDepth = 900
	// MaxAttribute is how long text may be that becomes an attribute, in
	// bytes: what fits a broker's headers.
	MaxAttribute = 1024
)

// Object reads a JSON object into v strictly: UTF-8 (RFC 8259), names unique
// (RFC 7493), nothing behind it, and not too deep. What another reader might
// understand differently is not passed on. Its error is a
// *source.MalformedError.
func Object(body []byte, v any) error { return unmarshal(body, v, '{', "a JSON object") }

// List is Object for a JSON array.
func List(body []byte, v any) error { return unmarshal(body, v, '[', "a JSON array") }

// unmarshal reads a body that begins with kind, where that is not 0.
func unmarshal(body []byte, v any, kind byte, name string, options ...json.Options) error {
	if err := CheckDepth(body); err != nil {
		return err
	}
	err := json.Unmarshal(body, v, options...)
	if err == nil {
		if first := bytes.TrimLeft(body, " \t\r\n"); kind != 0 && first[0] != kind { // null
			return malformed(errors.New("is not " + name))
		}
		return nil
	}
	semantic, ok := errors.AsType[*json.SemanticError](err)
	if _, syntactic := errors.AsType[*jsontext.SyntacticError](err); ok && semantic.JSONPointer == "" && !syntactic {
		return malformed(errors.New("is not " + name))
	}
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return malformed(errors.New("has a name twice in one object"))
	}
	if !utf8.Valid(body) {
		return malformed(errors.New("is not valid UTF-8"))
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
		} else if plain, err = jsontext.AppendUnquote(nil, name); err != nil {
			return err
		}
		if err := member(plain); err != nil {
			return err
		}
	}
	_, err := d.ReadToken()
	return err
}

// Value reads a body as strictly as Object does, into map[string]any,
// []any, string, bool and nil. A number that is written as an integer is an
// int64 or a uint64, so that no digit of an identifier is lost; any other, and
// one that fits neither, is a float64.
func Value(body []byte) (any, error) {
	var v any
	err := unmarshal(body, &v, 0, "JSON", json.WithUnmarshalers(json.UnmarshalFromFunc(number)))
	return v, err
}

// number reads numbers, and leaves everything else to the package.
func number(d *jsontext.Decoder, v *any) error {
	if d.PeekKind() != '0' {
		return errors.ErrUnsupported
	}
	text, err := d.ReadValue()
	if err != nil {
		return err
	}
	if i, err := strconv.ParseInt(string(text), 10, 64); err == nil {
		*v = i
		return nil
	}
	if u, err := strconv.ParseUint(string(text), 10, 64); err == nil {
		*v = u
		return nil
	}
	f, err := strconv.ParseFloat(string(text), 64)
	if err != nil { // out of range: not a number that anybody could use
		return err
	}
	*v = f
	return nil
}

// CheckDepth refuses bodies that nest deeper than MaxDepth. It reads tokens only
// where there are brackets enough. Its error is a *source.MalformedError.
func CheckDepth(body []byte) error {
	if bytes.Count(body, []byte{'['})+bytes.Count(body, []byte{'{'}) <= MaxDepth {
		return nil
	}
	d := jsontext.NewDecoder(bytes.NewReader(body))
	for {
		if _, err := d.ReadToken(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return nil //nolint:nilerr // What is wrong besides is for the reader behind to say.
		}
		if d.StackDepth() > MaxDepth {
			return malformed(fmt.Errorf("nests deeper than %d", MaxDepth))
		}
	}
}

// Digest returns sha256: and the digest of the body's canonical form (RFC
// 8785), in lower-case hex: however it is spelled, equal JSON has one digest.
// Digests are kept on disk and by consumers, and must come out the same in
// every later version.
func Digest(body []byte) (string, error) {
	canonical := jsontext.Value(slices.Clone(body))
	if err := canonical.Canonicalize(); err != nil {
		return "", malformed(errors.New("has no canonical form (RFC 8785)"))
	}
	digest := sha256.Sum256(canonical)
	return "sha256:" + hex.EncodeToString(digest[:]), nil
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
