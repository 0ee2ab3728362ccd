package webhook

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/postwire/postwire/pkg/event"
	celexpr "github.com/postwire/postwire/pkg/expression"
	"github.com/postwire/postwire/pkg/source/jsonbody"
)

// maxEvents is the maximum number of events of one request, because one atomic write stores
// them.
const maxEvents = 1000

// splitPath compiles the path of the list that splits a body: body, or fields of body. It
// is a path and not an expression, because the data of each event are the sent bytes.
func (l language) splitPath(text string) ([]string, *celexpr.Error) {
	a, f := l.check(text, want{noun: "a list", kinds: []types.Kind{types.ListKind}, hint: "name a field of the body"})
	if f != nil {
		return nil, f
	}
	names, at := pathOf(a.NativeRep().Expr())
	if at != nil {
		place := a.NativeRep().SourceInfo().GetStartLocation(at.ID())
		return nil, &celexpr.Error{What: "is no path into the body", Hint: "write body where the body is a list, or fields such as body.events" + celexpr.Snippet(text, place.Line(), place.Column())}
	}
	return names, nil
}

// pathOf returns the names after body in an expression, or the part of the expression that
// is not a path.
func pathOf(e celast.Expr) (names []string, bad celast.Expr) {
	for {
		switch {
		case e.Kind() == celast.IdentKind && e.AsIdent() == varBody:
			slices.Reverse(names)
			return names, nil
		case e.Kind() == celast.SelectKind && !e.AsSelect().IsTestOnly():
			names = append(names, e.AsSelect().FieldName())
			e = e.AsSelect().Operand()
		case e.Kind() == celast.CallKind && e.AsCall().FunctionName() == "_[_]":
			args := e.AsCall().Args()
			name, ok := literalText(args[1])
			if !ok {
				return nil, args[1]
			}
			names = append(names, name)
			e = args[0]
		default:
			return nil, e
		}
	}
}

func literalText(e celast.Expr) (string, bool) {
	if e.Kind() != celast.LiteralKind {
		return "", false
	}
	s, ok := e.AsLiteral().(types.String)
	return string(s), ok
}

// elements returns the elements of the list at a path, as sent. The body is JSON.
func elements(body []byte, path []string) ([][]byte, error) {
	at := jsontext.Value(event.TrimBOM(body))
	for _, name := range path {
		var err error
		if at, err = member(at, name); err != nil {
			return nil, err
		}
	}
	d := jsontext.NewDecoder(bytes.NewReader(at), jsonbody.Lenient())
	if d.PeekKind() != '[' {
		return nil, errors.New("gives no list")
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	var all [][]byte
	for d.PeekKind() != ']' {
		if len(all) == maxEvents {
			return nil, fmt.Errorf("gives more than %d elements", maxEvents)
		}
		v, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		all = append(all, bytes.Clone(v))
	}
	return all, nil
}

// member returns the value of a member of an object, which must occur once.
func member(object jsontext.Value, name string) (jsontext.Value, error) {
	d := jsontext.NewDecoder(bytes.NewReader(object), jsonbody.Lenient())
	if d.PeekKind() != '{' {
		return nil, errNothing
	}
	if _, err := d.ReadToken(); err != nil {
		return nil, err
	}
	var found jsontext.Value
	for d.PeekKind() != '}' {
		t, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		wanted := t.String() == name // the decoder reuses the token
		v, err := d.ReadValue()
		switch {
		case err != nil:
			return nil, err
		case wanted && found != nil:
			return nil, errTwice
		case wanted:
			found = bytes.Clone(v)
		}
	}
	if found == nil {
		return nil, errNothing
	}
	return found, nil
}
