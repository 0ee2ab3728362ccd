package webhook

import (
	"errors"
	"strconv"

	"cel.dev/cel-go/common/types"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/postwire/postwire/pkg/source/jsonbody"
)

// Errors in place of values that readers understand differently. An expression that uses
// such a value fails.
var (
	errTwice   = errors.New("meets a name that is twice in one object")
	errUnicode = errors.New("meets text that is no Unicode")
)

// value parses JSON into the values of expressions: maps, lists, texts, bools, null and
// numbers. Its error is a *source.MalformedError.
//
// A number is an int64, a uint64 or a double, for CEL to calculate with. A double may lose
// digits, so that with digits set each number is the sent text.
func value(body []byte, digits bool) (any, error) {
	r := reader{digits: digits}
	err := jsonbody.Any(body, &r)
	return r.whole, err
}

// reader reads values.
type reader struct {
	*jsontext.Decoder
	digits bool
	whole  any
}

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (r *reader) UnmarshalJSONFrom(d *jsontext.Decoder) (err error) {
	r.Decoder = d
	r.whole, err = r.value()
	return err
}

func (r *reader) value() (any, error) {
	switch r.PeekKind() {
	case '{':
		return r.object()
	case '[':
		return r.list()
	}
	v, err := r.ReadValue()
	if err != nil {
		return nil, err
	}
	switch v.Kind() {
	case 't', 'f':
		return v.Kind() == 't', nil
	case '"':
		text, err := jsontext.AppendUnquote(nil, v)
		if err != nil {
			return types.WrapErr(errUnicode), nil //nolint:nilerr // reported when an expression uses the value
		}
		return string(text), nil
	case '0':
		return r.number(string(v)), nil
	}
	return nil, nil //nolint:nilnil // null
}

func (r *reader) object() (any, error) {
	if _, err := r.ReadToken(); err != nil {
		return nil, err
	}
	object := map[string]any{}
	for r.PeekKind() != '}' {
		raw, err := r.ReadValue()
		if err != nil {
			return nil, err
		}
		// Invalid UTF-8 in a name becomes U+FFFD.
		text, _ := jsontext.AppendUnquote(nil, raw)
		name := string(text)
		v, err := r.value()
		if err != nil {
			return nil, err
		}
		if _, twice := object[name]; twice {
			v = types.WrapErr(errTwice)
		}
		object[name] = v
	}
	_, err := r.ReadToken()
	return object, err
}

func (r *reader) list() (any, error) {
	if _, err := r.ReadToken(); err != nil {
		return nil, err
	}
	list := []any{}
	for r.PeekKind() != ']' {
		v, err := r.value()
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	_, err := r.ReadToken()
	return list, err
}

func (r *reader) number(text string) any {
	if r.digits {
		return text
	}
	if i, err := strconv.ParseInt(text, 10, 64); err == nil {
		return i
	}
	if u, err := strconv.ParseUint(text, 10, 64); err == nil {
		return u
	}
	f, _ := strconv.ParseFloat(text, 64) // infinite if out of range
	return f
}
