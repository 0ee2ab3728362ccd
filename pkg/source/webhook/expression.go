package webhook

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"

	celexpr "github.com/postwire/postwire/pkg/expression"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/jsonbody"
)

// maxRequestCost limits the cost of all expressions of one request, in CEL's units.
const maxRequestCost = 1_000_000

// Variables of the language.
const (
	varBody     = "body"
	varEnvelope = "envelope"
	varHeaders  = "headers"
	varPath     = "path"
	varQuery    = "query"
)

// digitsOf is the prefix of variables that expressions cannot name: the body or envelope
// with each number as the sent text.
const digitsOf = "@"

// textOf is a macro: string(…) of a value of the body keeps the sent digits of a number.
// CEL's doubles have 15 digits, so that two different IDs could have one text.
func textOf(h cel.MacroExprFactory, _ celast.Expr, args []celast.Expr) (celast.Expr, *cel.Error) {
	keepDigits(h, args[0])
	return h.NewCall("string", args[0]), nil
}

// isThere is a macro: has(…) of a null field is false, as of an absent field.
func isThere(h cel.MacroExprFactory, _ celast.Expr, args []celast.Expr) (celast.Expr, *cel.Error) {
	if args[0].Kind() != celast.SelectKind {
		return nil, h.NewError(args[0].ID(), "has() takes a field, such as body.id")
	}
	field := args[0].AsSelect()
	found := h.NewCall(operators.OptSelect, field.Operand(), h.NewLiteral(types.String(field.FieldName())))
	null := h.NewLiteral(types.NullValue)
	return h.NewCall(operators.NotEquals, h.NewMemberCall("orValue", found, h.NewCall("dyn", null)), h.NewLiteral(types.NullValue)), nil
}

// uses reports whether an expression uses a part of the request that is not signed.
func (x *expression) uses(signs *source.Signs) (unsigned bool) {
	if x == nil {
		return false
	}
	signed := map[celast.Expr]bool{} // uses of signed headers
	celast.PreOrderVisit(x.ast.NativeRep().Expr(), celast.NewExprVisitor(func(e celast.Expr) {
		if e.Kind() == celast.IdentKind {
			switch e.AsIdent() {
			case varHeaders:
				unsigned = unsigned || !signed[e]
			case varPath, varQuery:
				unsigned = unsigned || !signs.URL
			}
			return
		}
		var of celast.Expr
		var name string
		switch e.Kind() {
		case celast.SelectKind:
			of, name = e.AsSelect().Operand(), e.AsSelect().FieldName()
		case celast.CallKind:
			args := e.AsCall().Args()
			switch e.AsCall().FunctionName() {
			case operators.Index, operators.OptIndex, operators.OptSelect:
				of = args[0]
				name, _ = literalText(args[1])
			case operators.In:
				of = args[1]
				name, _ = literalText(args[0])
			}
		case celast.UnspecifiedExprKind, celast.ComprehensionKind, celast.IdentKind, celast.ListKind, celast.LiteralKind, celast.MapKind, celast.StructKind:
		}
		if of != nil && of.Kind() == celast.IdentKind && of.AsIdent() == varHeaders && slices.Contains(signs.Headers, name) {
			signed[of] = true
		}
	}))
	return unsigned
}

// keepDigits replaces number values by their texts where an expression only looks up a
// value and does not calculate.
func keepDigits(h cel.MacroExprFactory, e celast.Expr) {
	switch e.Kind() {
	case celast.IdentKind:
		if name := e.AsIdent(); name == varBody || name == varEnvelope {
			e.SetKindCase(h.NewIdent(digitsOf + name))
		}
	case celast.SelectKind:
		if !e.AsSelect().IsTestOnly() {
			keepDigits(h, e.AsSelect().Operand())
		}
	case celast.ListKind:
		for _, element := range e.AsList().Elements() {
			keepDigits(h, element)
		}
	case celast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			keepDigits(h, entry.AsMapEntry().Value())
		}
	case celast.CallKind:
		call := e.AsCall()
		args := call.Args()
		switch call.FunctionName() {
		case operators.Index, operators.OptIndex, operators.OptSelect:
			keepDigits(h, args[0])
		case operators.Conditional:
			keepDigits(h, args[1])
			keepDigits(h, args[2])
		case "dyn", "of", "ofNonZeroValue", "or", "orValue", "value", "string":
			if call.IsMemberFunction() {
				keepDigits(h, call.Target())
			}
			for _, arg := range args {
				keepDigits(h, arg)
			}
		}
	case celast.UnspecifiedExprKind, celast.ComprehensionKind, celast.LiteralKind, celast.StructKind:
	}
}

// language is CEL with the variables of a source's expressions.
type language struct {
	env  *cel.Env
	hint string // lists the variables
}

// newLanguage returns the language of expressions. For a split body the language has the
// variable envelope.
func newLanguage(split bool) (language, error) {
	texts := cel.MapType(cel.StringType, cel.StringType)
	options := []cel.EnvOption{
		// The text of null is null, which is absent.
		cel.Function("string", cel.Overload("null_to_string", []*cel.Type{cel.NullType}, cel.StringType, cel.UnaryBinding(func(ref.Val) ref.Val { return types.NullValue }))),
		cel.Variable(varBody, cel.DynType), cel.Variable(digitsOf+varBody, cel.DynType), cel.Variable(varHeaders, texts),
		cel.Variable(varPath, cel.StringType), cel.Variable(varQuery, texts),
	}
	l := language{hint: "the variables are body, headers, path and query"}
	if split {
		options = append(options, cel.Variable(varEnvelope, cel.DynType), cel.Variable(digitsOf+varEnvelope, cel.DynType))
		l.hint = "the variables are body, envelope, headers, path and query"
	}
	var err error
	l.env, err = celexpr.NewEnv([]cel.Macro{cel.GlobalMacro("has", 1, isThere), cel.GlobalMacro("string", 1, textOf)}, options...)
	return l, err
}

// want is the expected type of an expression.
type want struct {
	noun  string
	kinds []types.Kind // besides null, dyn and optionals of the kinds
	hint  string
}

func wantText() want {
	return want{noun: "text", kinds: []types.Kind{types.StringKind}, hint: "string(…) makes text of a number"}
}

func wantTime() want {
	return want{
		noun: "a time", kinds: []types.Kind{types.StringKind, types.IntKind, types.TimestampKind},
		hint: "give RFC 3339 text, Unix seconds, or timestamp(…)",
	}
}

func (w want) takes(t *cel.Type) bool {
	if t.Kind() == types.OpaqueKind && t.TypeName() == "optional_type" && len(t.Parameters()) == 1 {
		t = t.Parameters()[0]
	}
	if t.Kind() == types.DynKind || t.Kind() == types.NullTypeKind {
		return true
	}
	for _, k := range w.kinds {
		if t.Kind() == k {
			return true
		}
	}
	return false
}

// expression is a compiled expression. It may be used concurrently.
type expression struct {
	key     string // configuration key
	program cel.Program
	ast     *cel.Ast
}

// check parses an expression and checks its types.
func (l language) check(text string, w want) (*cel.Ast, *celexpr.Error) {
	if strings.TrimSpace(text) == "" {
		return nil, &celexpr.Error{What: "is empty", Hint: `write an expression, for example "body.id"; or remove it`}
	}
	a, wrong := celexpr.Compile(l.env, text, l.hint, l.explain)
	if wrong != nil {
		return nil, &celexpr.Error{What: strings.ReplaceAll(wrong.What, "'"+digitsOf, "'"), Hint: wrong.Hint}
	}
	if t := a.OutputType(); !w.takes(t) {
		at := a.NativeRep().SourceInfo().GetStartLocation(a.NativeRep().Expr().ID())
		return nil, &celexpr.Error{What: fmt.Sprintf("gives %s, must give %s", cel.FormatCELType(t), w.noun), Hint: w.hint + celexpr.Snippet(text, at.Line(), at.Column())}
	}
	return a, nil
}

// compile compiles an expression.
func (l language) compile(key, text string, w want) (*expression, *celexpr.Error) {
	a, f := l.check(text, w)
	if f != nil {
		return nil, f
	}
	p, err := l.env.Program(a, cel.CostLimit(celexpr.MaxCost), cel.EvalOptions(cel.OptOptimize))
	if err != nil { // a constant part of the expression has an error
		return nil, &celexpr.Error{What: "is not an expression: " + err.Error(), Hint: "correct the part that holds no variable"}
	}
	return &expression{key: key, program: p, ast: a}, nil
}

// explain returns a hint for an undeclared name.
func (l language) explain(name string) string {
	if name == varEnvelope {
		return "envelope is there only where split is set; " + l.hint
	}
	return ""
}

// scope holds the variables of one request and the remaining cost.
type scope struct {
	variables map[string]any
	spent     uint64
}

var (
	errNothing   = errors.New("finds nothing in the request")
	errUnusable  = errors.New("gives text that is blank, too long or holds control characters")
	errExpensive = errors.New("costs too much to work out")
)

// see sets a variable.
func (s *scope) see(name string, data []byte) (err error) {
	if s.variables[name], err = value(data, false); err != nil {
		return err
	}
	s.variables[digitsOf+name] = func() any { // evaluated on demand, because few expressions use it
		v, err := value(data, true)
		if err != nil {
			return types.WrapErr(err) // impossible: value has parsed the JSON above
		}
		return v
	}
	return nil
}

// value evaluates the expression. Nil is an absent or null value. The error quotes nothing
// of the request.
func (x *expression) value(in *scope) (ref.Val, error) {
	out, details, err := x.program.Eval(in.variables)
	if details != nil && details.ActualCost() != nil {
		in.spent += *details.ActualCost()
	}
	if _, cancelled := errors.AsType[interpreter.EvalCancelledError](err); cancelled || in.spent > maxRequestCost {
		return nil, errExpensive
	}
	if err != nil {
		return nil, x.failure(err)
	}
	if optional, ok := out.(*types.Optional); ok {
		if !optional.HasValue() {
			return nil, nil //nolint:nilnil // an absent value is no error
		}
		out = optional.GetValue()
	}
	if failed, ok := out.(*types.Err); ok { // an error value of the body
		return nil, x.failure(failed)
	}
	if out == types.NullValue {
		return nil, nil //nolint:nilnil // an absent value is no error
	}
	if text, ok := out.(types.String); ok { // CEL counts no cost for joining values of type dyn
		in.spent += uint64(len(text)) / 10
	}
	return out, nil
}

// failure returns nil for an error that means an absent value. CEL does not export the type
// of the error of a missing key or index; its text is constant.
func (x *expression) failure(err error) error {
	text := err.Error()
	if strings.HasPrefix(text, "no such key: ") || strings.HasPrefix(text, "index out of bounds: ") {
		return nil
	}
	for _, meets := range []error{errTwice, errUnicode} {
		if errors.Is(err, meets) {
			return meets
		}
	}
	what := "cannot be worked out"
	if text == "no such overload" {
		what = "meets a value of a type that it is not for"
	}
	if failed, ok := errors.AsType[*types.Err](err); ok && failed.NodeID() != 0 {
		at := x.ast.NativeRep().SourceInfo().GetStartLocation(failed.NodeID())
		if at.Line() == 1 {
			return fmt.Errorf("%s, at column %d", what, at.Column()+1)
		}
		return fmt.Errorf("%s, at line %d, column %d", what, at.Line(), at.Column()+1)
	}
	return errors.New(what)
}

// text evaluates a text that can be an attribute. It is empty for an absent value, a value
// of another type, or an unusable text.
func (x *expression) text(in *scope) (string, error) {
	v, err := x.value(in)
	if err != nil {
		return "", err
	}
	text, _ := v.(types.String)
	return jsonbody.Text(string(text)), nil
}

// neededText is text for a required attribute.
func (x *expression) neededText(in *scope) (string, error) {
	v, err := x.value(in)
	if err != nil {
		return "", err
	}
	if v == nil {
		return "", errNothing
	}
	text, ok := v.(types.String)
	if !ok {
		return "", fmt.Errorf("gives %s, must give text", v.Type().TypeName())
	}
	if s := jsonbody.Text(string(text)); s != "" {
		return s, nil
	}
	return "", errUnusable
}

// time evaluates a time: RFC 3339 text, Unix seconds or a timestamp. It is zero for an
// absent or invalid value.
func (x *expression) time(in *scope) (time.Time, error) {
	v, err := x.value(in)
	if v == nil || err != nil {
		return time.Time{}, err
	}
	var t time.Time
	switch v := v.(type) {
	case types.String:
		if t, err = time.Parse(time.RFC3339, string(v)); err != nil {
			return time.Time{}, nil //nolint:nilerr // an invalid time is an absent time
		}
	case types.Int:
		const first, last = -62135596800, 253402300799 // years 1 to 9999
		if v < first || v > last {
			return time.Time{}, nil
		}
		t = time.Unix(int64(v), 0)
	case types.Timestamp:
		t = v.Time
	default:
		return time.Time{}, nil
	}
	t = t.UTC()
	if y := t.Year(); y < 1 || y > 9999 { // RFC 3339
		return time.Time{}, nil
	}
	return t, nil
}
