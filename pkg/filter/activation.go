package filter

import (
	"errors"
	"reflect"
	"time"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
	"cel.dev/cel-go/interpreter"

	"github.com/postwire/postwire/pkg/event"
)

// activation provides the attributes of one event to an expression.
type activation struct{ event event.Event }

var _ interpreter.Activation = (*activation)(nil)

// ResolveName implements interpreter.Activation.
func (a *activation) ResolveName(name string) (any, bool) {
	switch name {
	case timeName:
		return types.Timestamp{Time: a.time()}, true
	case attributesName:
		return (*attributes)(&a.event), true
	}
	value, _ := a.event.Attribute(name)
	return types.String(value), true
}

// Parent implements interpreter.Activation.
func (a *activation) Parent() interpreter.Activation { return nil }

// time returns the time of the event, or its recordedtime.
func (a *activation) time() time.Time {
	ce := a.event.CloudEvent.Context
	if ce == nil {
		return time.Time{}
	}
	if t := ce.GetTime(); !t.IsZero() {
		return t
	}
	text, _ := a.event.Attribute(event.RecordedTime)
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{} // absent extension: year 1, before every time
	}
	return t
}

// attributes is the map of all attributes; an absent attribute is "".
type attributes event.Event

var _ traits.Mapper = (*attributes)(nil)

func (a *attributes) value(key ref.Val) (string, bool) {
	name, ok := key.(types.String)
	if !ok {
		return "", false
	}
	return event.Event(*a).Attribute(string(name))
}

// Find implements traits.Mapper.
func (a *attributes) Find(key ref.Val) (ref.Val, bool) {
	value, _ := a.value(key)
	return types.String(value), true
}

// Get implements traits.Indexer.
func (a *attributes) Get(key ref.Val) ref.Val {
	value, _ := a.value(key)
	return types.String(value)
}

// Contains implements traits.Container.
func (a *attributes) Contains(key ref.Val) ref.Val {
	_, ok := a.value(key)
	return types.Bool(ok)
}

// Comprehensions and map values would need the rest of traits.Mapper. The language has
// neither.

// Iterator implements traits.Iterable.
func (a *attributes) Iterator() traits.Iterator {
	return types.DefaultTypeAdapter.NativeToValue([]string{}).(traits.Lister).Iterator()
}

// Size implements traits.Sizer.
func (a *attributes) Size() ref.Val { return types.WrapErr(errNotValue) }

// ConvertToNative implements ref.Val.
func (a *attributes) ConvertToNative(reflect.Type) (any, error) { return nil, errNotValue }

// ConvertToType implements ref.Val.
func (a *attributes) ConvertToType(ref.Type) ref.Val { return types.WrapErr(errNotValue) }

// Equal implements ref.Val.
func (a *attributes) Equal(ref.Val) ref.Val { return types.WrapErr(errNotValue) }

// Type implements ref.Val.
func (a *attributes) Type() ref.Type { return types.MapType }

// Value implements ref.Val.
func (a *attributes) Value() any { return nil }

var errNotValue = errors.New("attributes can only be indexed: attributes[\"name\"]")
