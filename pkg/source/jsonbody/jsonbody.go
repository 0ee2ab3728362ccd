// Package jsonbody reads bodies that are JSON as every source must: strictly,
// so that no reader behind understands them otherwise, and not too deep.
package jsonbody

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/postwire/postwire/pkg/source"
)

const (
	// MaxDepth is how deep a body may nest: as deep as the strictest common
	// readers (Jackson) follow, with room for the envelope of structured mode.
	MaxDepth = 900
	// MaxAttribute is how long a value may be that becomes an attribute, in
	// bytes: what fits a broker's headers.
	MaxAttribute = 1024
)

// Decode reads a JSON object into v strictly: UTF-8 (RFC 8259), names unique
// (RFC 7493), nothing behind it, and not too deep. What another reader might
// understand differently is not passed on. Its error is a
// *source.MalformedError.
func Decode(body []byte, v any) error { return decode(body, v, '{', "a JSON object") }

// DecodeList is Decode for a JSON array.
func DecodeList(body []byte, v any) error { return decode(body, v, '[', "a JSON array") }

func decode(body []byte, v any, kind byte, name string) error {
	if err := CheckDepth(body); err != nil {
		return err
	}
	other := malformed(fmt.Errorf("is not %s", name))
	err := json.Unmarshal(body, v)
	if err == nil {
		if first := bytes.TrimLeft(body, " \t\r\n"); first[0] != kind { // null
			return other
		}
		return nil
	}
	if semantic, ok := errors.AsType[*json.SemanticError](err); ok && semantic.JSONPointer == "" {
		return other
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

// CheckDepth refuses bodies that nest deeper than MaxDepth. It reads tokens
// only where there are brackets enough. Its error is a *source.MalformedError.
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

func malformed(err error) error { return &source.MalformedError{Err: err} }

// Usable returns s if it is a CloudEvents String (no control characters, no
// noncharacters) of at most MaxAttribute bytes, and otherwise nothing.
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
