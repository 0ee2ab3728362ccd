package webhook

import (
	"fmt"
	"strings"

	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/source"
)

var _ source.Warner = Config{}

// Warnings implements source.Warner. If dedupe distinguishes events with equal source and
// id, the journal stores both, and consumers that identify an event by source and id drop
// the second.
func (c Config) Warnings() config.Invalids {
	c = c.completed()
	m, err := c.compile()
	if err != nil || len(m.dedupe) == 0 {
		return nil //nolint:nilerr // an invalid configuration has errors instead of warnings
	}
	id := lookups(m.source)
	for at := range lookups(m.id) {
		id[at] = true
	}
	for _, x := range m.dedupe {
		finer := false
		for at := range lookups(x) {
			// Without event.id the id is the digest of the whole body.
			digested := m.id == nil && (at == varBody || strings.HasPrefix(at, varBody+"."))
			finer = finer || !id[at] && !digested
		}
		if !finer { // by this expression, events of one id are one event
			return nil
		}
	}
	var p config.Invalids
	p.Add("dedupe", fmt.Sprintf("tells apart events that share %s: both are stored, and consumers that know an event by source and id drop the second", identity(m)),
		"make event.id of all that dedupe is made of, or leave dedupe out")
	return p
}

// identity returns the keys that determine source and id.
func identity(m *mapping) string {
	names := "the digest of their body"
	if m.id != nil {
		names = "event.id"
	}
	if m.source != nil {
		names += " and event.source"
	}
	return names
}

// lookups returns the parts of a request that an expression uses, such as body.order.id.
func lookups(x *expression) map[string]bool {
	found := map[string]bool{}
	if x != nil {
		collectLookups(x.ast.NativeRep().Expr(), found)
	}
	return found
}

// collectLookups collects the parts that an expression uses, and returns its own path, or nothing.
func collectLookups(e celast.Expr, found map[string]bool) (place string) {
	at := func(of celast.Expr, name string) string {
		inner := map[string]bool{}
		if outer := collectLookups(of, inner); outer != "" {
			place = outer + "." + name
			delete(inner, outer)
			found[place] = true
		}
		for p := range inner {
			found[p] = true
		}
		return place
	}
	switch e.Kind() {
	case celast.IdentKind:
		place = strings.TrimPrefix(e.AsIdent(), digitsOf)
		found[place] = true
		return place
	case celast.SelectKind:
		return at(e.AsSelect().Operand(), e.AsSelect().FieldName())
	case celast.ListKind:
		for _, element := range e.AsList().Elements() {
			collectLookups(element, found)
		}
	case celast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			collectLookups(entry.AsMapEntry().Key(), found)
			collectLookups(entry.AsMapEntry().Value(), found)
		}
	case celast.CallKind:
		call := e.AsCall()
		args := call.Args()
		switch call.FunctionName() {
		case operators.Index, operators.OptIndex, operators.OptSelect:
			if args[1].Kind() == celast.LiteralKind {
				return at(args[0], fmt.Sprint(args[1].AsLiteral().Value()))
			}
		}
		if call.IsMemberFunction() {
			collectLookups(call.Target(), found)
		}
		for _, arg := range args {
			collectLookups(arg, found)
		}
	case celast.UnspecifiedExprKind, celast.ComprehensionKind, celast.LiteralKind, celast.StructKind:
	}
	return ""
}
