// Package expression is the expression language of mappings and filters: CEL without loops
// and with bounded cost. Package webhook and package filter declare the variables. The
// functions may be called concurrently.
package expression

import (
	"fmt"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/checker"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/ext"
)

// Limits of one expression. The cost is in CEL's units: a character of text costs a tenth
// of a unit. There is no time limit, because equal events must have equal results, also on
// a busy machine.
const (
	MaxLength  = 4096 // characters
	MaxNesting = 250  // levels of parentheses, lists and calls
	MaxCost    = 100_000
)

// The versions of CEL's extension libraries are fixed, so that an upgrade of cel-go does
// not change the meaning of a configuration.
const (
	stringsVersion  = 5
	optionalVersion = 2
)

// NewEnv returns the language with the given variables and macros. The language has no
// comprehensions (all, exists, filter, map), so that each part of an expression is
// evaluated once. Functions that expand a text, or search a text, take the argument as a
// literal in the configuration, never from an event.
func NewEnv(macros []cel.Macro, variables ...cel.EnvOption) (*cel.Env, error) {
	options := append([]cel.EnvOption{
		cel.StdLib(),
		cel.OptionalTypes(cel.OptionalTypesVersion(optionalVersion)),
		cel.ClearMacros(), cel.Macros(macros...),
		ext.Strings(ext.StringsVersion(stringsVersion)),
		cel.DefaultUTCTimeZone(true),
		cel.ParserExpressionSizeLimit(MaxLength), cel.ParserRecursionLimit(MaxNesting),
		cel.ASTValidators(bounded{}, cel.ValidateRegexLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateDurationLiterals()),
		cel.RegexProgramSizeLimit(1000),
	}, variables...)
	env, err := cel.NewCustomEnv(options...)
	if err != nil {
		return nil, fmt.Errorf("declaring the expression language: %w", err)
	}
	return env, nil
}

var _ cel.ASTValidator = bounded{}

// bounded is a validator that rejects calls whose cost depends on a sender.
type bounded struct{}

// Name implements cel.ASTValidator.
func (bounded) Name() string { return "postwire.bounded" }

// Validate implements cel.ASTValidator.
func (bounded) Validate(_ *cel.Env, _ cel.ValidatorConfig, a *celast.AST, issues *cel.Issues) {
	celast.PreOrderVisit(a.Expr(), celast.NewExprVisitor(func(e celast.Expr) {
		if e.Kind() != celast.CallKind {
			return
		}
		call := e.AsCall()
		switch call.FunctionName() {
		case "format":
			issues.ReportErrorAtID(e.ID(), "format is not available")
		case "matches", "replace", "join", "indexOf", "lastIndexOf":
			args := call.Args()
			if !call.IsMemberFunction() && len(args) > 0 { // matches(text, pattern)
				args = args[1:]
			}
			for _, arg := range args {
				if arg.Kind() != celast.LiteralKind {
					issues.ReportErrorAtID(arg.ID(), "%s takes what is written here, not what was sent", call.FunctionName())
				}
			}
		}
	}))
}

// Bounded reports whether every evaluation costs at most MaxCost if no text of an event has
// more than maxText characters. Such an expression needs no cost limit at run time.
func Bounded(env *cel.Env, a *cel.Ast, maxText uint64) bool {
	estimate, err := env.EstimateCost(a, sizes(maxText))
	return err == nil && estimate.Max <= MaxCost
}

// sizes is a checker.CostEstimator with the size of every value of an event.
type sizes uint64

// EstimateSize implements checker.CostEstimator.
func (s sizes) EstimateSize(checker.AstNode) *checker.SizeEstimate {
	return &checker.SizeEstimate{Min: 0, Max: uint64(s)}
}

// EstimateCallCost implements checker.CostEstimator.
func (sizes) EstimateCallCost(string, string, *checker.AstNode, []checker.AstNode) *checker.CallEstimate {
	return nil
}

// Error describes an error in an expression, with a suggested fix.
type Error struct{ What, Hint string }

func (e *Error) Error() string {
	if e.Hint == "" {
		return e.What
	}
	return e.What + "; " + e.Hint
}

// Compile parses and checks an expression. Explain returns a hint for an undeclared name,
// or "". Hint lists the variables of the caller.
func Compile(env *cel.Env, text, hint string, explain func(name string) string) (*cel.Ast, *Error) {
	a, issues := env.Compile(text)
	if all := issues.Errors(); len(all) > 0 {
		first := all[0]
		what, advice := explained(first.Message, hint, explain)
		return nil, &Error{"is not an expression: " + what, advice + Snippet(text, first.Location.Line(), first.Location.Column())}
	}
	if err := issues.Err(); err != nil { // an issue without a position
		return nil, &Error{"is not an expression: " + strings.TrimPrefix(err.Error(), "ERROR: "), hint}
	}
	return a, nil
}

// explained rewrites a compiler error in plain words, with a suggested fix.
func explained(message, variables string, explain func(string) string) (what, hint string) {
	what = strings.ReplaceAll(message, " (in container '')", "")
	what = strings.TrimPrefix(what, "Syntax error: ")
	what, _, _ = strings.Cut(what, " expecting {") // the rest lists half the language
	sql := `write == for equal, && for and, || for or, ! for not, and text in quotes: platform == "instagram" && outcome != "success"`
	switch {
	case strings.HasPrefix(what, "mismatched input '<EOF>'"):
		what = "the expression ends too early"
	case strings.HasPrefix(what, "undeclared reference to "):
		name := strings.Trim(strings.TrimPrefix(what, "undeclared reference to "), "'")
		switch name {
		case "all", "exists", "exists_one", "filter", "map":
			return what, "there are no loops; take an element by its index, or split the body"
		case "NOT", "AND", "OR", "LIKE", "IN", "EXISTS":
			return what, sql
		}
		if own := explain(name); own != "" {
			return what, own
		}
		return what, variables + `; text is in quotes: "text"`
	case strings.HasPrefix(what, "reserved identifier: "):
		if own := explain(strings.TrimPrefix(what, "reserved identifier: ")); own != "" {
			return what, own
		}
	case strings.HasPrefix(what, "token recognition error at: '= '"), strings.HasPrefix(what, "token recognition error at: '='"),
		strings.HasPrefix(what, "mismatched input 'AND'"), strings.HasPrefix(what, "mismatched input 'OR'"), strings.HasPrefix(what, "mismatched input 'LIKE'"),
		strings.HasPrefix(what, "extraneous input '>'"):
		return what, sql
	case strings.HasPrefix(what, "token recognition error at: "):
		return "the expression cannot be read from here on", `close what is open; text is in quotes: "text"`
	case strings.HasPrefix(what, "format is"):
		return what, "concatenate texts with +"
	case strings.Contains(what, " takes what is written here"):
		return what, "write the text itself, in quotes"
	case what == "invalid matches argument":
		return "there is a mistake in the regular expression", "the syntax is that of RE2"
	case what == "invalid timestamp argument", what == "invalid duration argument":
		return what, `times are in RFC 3339, durations such as "90s"`
	case strings.Contains(what, "'_?_:_'"):
		return what, "both sides of a choice must be of one type; for nothing, write optional.of(…) and optional.none()"
	case strings.Contains(what, "does not support field selection"):
		return what, "an attribute is text and has no fields; the payload is not visible to a filter, map what it needs to an attribute"
	case strings.HasPrefix(what, "found no matching overload for '!_'"):
		return what, "put what ! negates into parentheses: !(a == b)"
	case strings.HasPrefix(what, "found no matching overload for "):
		return what, "string(…) makes text of a number"
	}
	return what, variables
}

// Snippet returns the line of a position in a text, for the second line of a message. Lines
// count from 1, columns from 0, as in the compiler.
func Snippet(text string, line, column int) string {
	lines := strings.Split(text, "\n")
	if line < 1 || line > len(lines) {
		return ""
	}
	const around = 60
	runes := []rune(strings.ReplaceAll(lines[line-1], "\t", " "))
	column = min(max(column, 0), len(runes))
	begin, end := max(0, column-around), min(len(runes), column+around)
	shown, indent := string(runes[begin:end]), column-begin
	if begin > 0 {
		shown, indent = "…"+shown, indent+1
	}
	if end < len(runes) {
		shown += "…"
	}
	return "\n    " + strings.TrimRight(shown, " ") + "\n    " + strings.Repeat(" ", indent) + "^"
}
