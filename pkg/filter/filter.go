// Package filter selects events by a CEL expression over their context attributes: the
// filter of a sink, a search, a tail or a replay (design, section "Configuration").
package filter

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/interpreter"

	"github.com/postwire/postwire/internal/spelling"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/expression"
)

const (
	attributesName = "attributes"
	timeName       = "time"

	// maxText is longer than any attribute: the ingress accepts headers of 64 KiB, and
	// mapped attributes are far shorter.
	maxText = 128 << 10
)

// advice is the last sentence of an error.
const advice = `a filter compares attributes: platform == "instagram" && outcome != "success"`

// Filter is a compiled filter. The zero Filter matches every event. A Filter is immutable
// and may be used concurrently.
type Filter struct {
	text    string
	program cel.Program
	names   []name

	// activations holds unused activations.
	activations *sync.Pool
}

// name is an attribute of the expression and its position.
type name struct {
	text         string
	line, column int
}

// Parse compiles a filter. Blank text is the zero Filter. Parse accepts every valid
// attribute name; Check compares the names with the attributes of the sources. The error is
// an *expression.Error.
func Parse(text string) (Filter, error) {
	if strings.TrimSpace(text) == "" {
		return Filter{}, nil
	}
	base, err := expression.NewEnv(nil)
	if err != nil {
		return Filter{}, err
	}
	names := []name{}
	if parsed, issues := base.Parse(text); issues.Err() == nil {
		names = namesIn(parsed)
	}
	variables := []cel.EnvOption{
		cel.Variable(attributesName, cel.MapType(cel.StringType, cel.StringType)),
		cel.Variable(timeName, cel.TimestampType),
	}
	for _, n := range names {
		if n.text != attributesName && n.text != timeName {
			variables = append(variables, cel.Variable(n.text, cel.StringType))
		}
	}
	env, err := expression.NewEnv(nil, variables...)
	if err != nil {
		return Filter{}, err
	}
	a, fault := expression.Compile(env, text, advice, explain)
	if fault != nil {
		return Filter{}, fault
	}
	if a.OutputType() != cel.BoolType {
		what := fmt.Sprintf("gives %s, must give true or false", cel.FormatCELType(a.OutputType()))
		return Filter{}, &expression.Error{What: what, Hint: advice}
	}
	options := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	if !expression.Bounded(env, a, maxText) {
		options = append(options, cel.CostLimit(expression.MaxCost))
	}
	program, err := env.Program(a, options...)
	if err != nil { // a constant part of the expression has an error
		return Filter{}, &expression.Error{What: "is not an expression: " + err.Error(), Hint: "correct the part that holds no attribute"}
	}
	return Filter{text: text, program: program, names: names, activations: &sync.Pool{New: func() any { return new(activation) }}}, nil
}

// namesIn lists the valid attribute names among the identifiers of an expression, each with
// its first position.
func namesIn(a *cel.Ast) []name {
	var names []name
	info := a.NativeRep().SourceInfo()
	celast.PreOrderVisit(a.NativeRep().Expr(), celast.NewExprVisitor(func(e celast.Expr) {
		if e.Kind() != celast.IdentKind {
			return
		}
		text := e.AsIdent()
		if !event.ValidName(text) || slices.ContainsFunc(names, func(n name) bool { return n.text == text }) {
			return
		}
		at := info.GetStartLocation(e.ID())
		names = append(names, name{text, at.Line(), at.Column()})
	}))
	return names
}

// explain returns a hint for a name that cannot be a variable.
func explain(name string) string {
	if lower := strings.ToLower(name); lower != name && event.ValidName(lower) {
		return fmt.Sprintf("attribute names are lower case: %s", lower)
	}
	if event.ValidName(name) {
		return fmt.Sprintf("CEL reserves this name; write attributes[%q]", name)
	}
	return ""
}

// String returns the text of the filter.
func (f Filter) String() string { return f.text }

// Check returns an *expression.Error if the filter uses a name that is not in names: the
// attribute would always be "".
func (f Filter) Check(names []string) error {
	for _, n := range f.names {
		if n.text == attributesName || slices.Contains(names, n.text) {
			continue
		}
		hint := fmt.Sprintf("the configured sources set %s; attributes[%q] reaches any extension; text is in quotes: %q",
			strings.Join(names, ", "), n.text, n.text)
		if near := spelling.Nearest(n.text, names); near != "" {
			hint = fmt.Sprintf("did you mean %s? ", near) + hint
		}
		return &expression.Error{
			What: fmt.Sprintf("uses %s, an attribute that no configured source sets", n.text),
			Hint: hint + expression.Snippet(f.text, n.line, n.column),
		}
	}
	return nil
}

// Matches reports whether the filter matches e. If the evaluation fails or costs more than
// expression.MaxCost, Matches returns false and an error that quotes no value of e. Matches
// never panics.
func (f Filter) Matches(e event.Event) (matched bool, err error) {
	if f.program == nil {
		return true, nil
	}
	defer func() {
		if cause := recover(); cause != nil { // an error of the CEL library affects one event, not the process
			matched, err = false, errors.New("the filter cannot be evaluated: the expression library panicked")
		}
	}()
	a, _ := f.activations.Get().(*activation) // New makes this type only
	a.event = e
	defer func() {
		*a = activation{} // drops the reference to the event
		f.activations.Put(a)
	}()
	out, _, err := f.program.Eval(a)
	if err != nil {
		return false, failure(err)
	}
	selected, ok := out.(types.Bool)
	if !ok {
		return false, errors.New("the filter cannot be evaluated: it gives neither true nor false")
	}
	return bool(selected), nil
}

// failure is an evaluation error without the values of the event, which the library quotes.
func failure(err error) error {
	if _, cancelled := errors.AsType[interpreter.EvalCancelledError](err); cancelled {
		return fmt.Errorf("the filter costs more than %d units for this event", expression.MaxCost)
	}
	for _, known := range []struct{ has, say string }{
		{"cost limit", fmt.Sprintf("the filter costs more than %d units for this event", expression.MaxCost)},
		{"division by zero", "the filter cannot be evaluated: division by zero"},
		{"modulus by zero", "the filter cannot be evaluated: modulus by zero"},
		{"overflow", "the filter cannot be evaluated: a number is out of range"},
		{"index out of range", "the filter cannot be evaluated: a character index is out of range"},
		{"substring range", "the filter cannot be evaluated: a character index is out of range"},
		{"index out of bounds", "the filter cannot be evaluated: an index is out of range"},
	} {
		if strings.Contains(err.Error(), known.has) {
			return errors.New(known.say)
		}
	}
	return errors.New("the filter cannot be evaluated: a function does not accept an attribute's value")
}
