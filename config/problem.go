package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/postwire/postwire/internal/spelling"
)

// Problem is an error in a configuration, with its position.
type Problem struct { //nolint:errname // it is a value first, and an error on the way out
	File         string
	Line, Column int    // from 1; 0 is unknown
	Key          string // path of the key, such as sinks[0].subject; "" is the document
	What         string // the error
	Hint         string // the suggested fix

	// Missing: the document names an environment variable or a file that this process does
	// not have. Another process may have it.
	Missing bool
}

// Error implements error.
func (p Problem) Error() string { return p.String() }

// String prints the problem on a single line: postwire.yaml:12:5:
// sinks[0].subject: what; hint.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
		if p.Column > 0 {
			fmt.Fprintf(&b, ":%d", p.Column)
		}
	}
	for _, part := range []string{p.Key, p.What} {
		if part == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(part)
	}
	if p.Hint != "" {
		b.WriteString("; ")
		b.WriteString(p.Hint)
	}
	return b.String()
}

// Problems are all errors of a configuration. As an error, Problems is never
// empty.
type Problems []Problem //nolint:errname // it is a list first, and an error on the way out

// Error prints each problem on a line.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i, problem := range p {
		lines[i] = problem.String()
	}
	return strings.Join(lines, "\n")
}

// err sorts the problems by position, removes repeats, and returns nil if there
// are no problems.
func (p Problems) err() error {
	if len(p) == 0 {
		return nil
	}
	sorted := slices.Clone(p)
	slices.SortStableFunc(sorted, func(a, b Problem) int {
		return cmp.Or(
			strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
			strings.Compare(a.Key, b.Key), strings.Compare(a.What, b.What), strings.Compare(a.Hint, b.Hint),
		)
	})
	return slices.Compact(sorted)
}

// Merge collects the Problems of several errors into a single error, sorted and
// without repeats. Any other error becomes a Problem without a position. Merge
// returns nil if all errs are nil.
func Merge(errs ...error) error {
	var all Problems
	for _, err := range errs {
		leaves(err, func(err error) {
			switch err := err.(type) { //nolint:errorlint // leaves has unwrapped it
			case Problems:
				all = append(all, err...)
			case Problem:
				all = append(all, err)
			case Invalids:
				for _, i := range err {
					all = append(all, Problem{Key: i.Key, What: i.What, Hint: i.Hint, Missing: i.Missing})
				}
			default:
				all = append(all, Problem{What: err.Error()})
			}
		})
	}
	return all.err()
}

// leaves calls visit for each error inside err. Wrappers of errors of this
// package are skipped.
func leaves(err error, visit func(error)) {
	if err == nil {
		return
	}
	switch err := err.(type) { //nolint:errorlint // wrapped ones are looked for below
	case Problems, Problem, Invalids:
		visit(err)
		return
	case interface{ Unwrap() []error }:
		for _, inner := range err.Unwrap() {
			leaves(inner, visit)
		}
		return
	}
	var (
		problems Problems
		problem  Problem
		invalids Invalids
	)
	switch {
	case errors.As(err, &problems):
		visit(problems)
	case errors.As(err, &problem):
		visit(problem)
	case errors.As(err, &invalids):
		visit(invalids)
	default:
		visit(err)
	}
}

// Invalid is a value that a Validate method refuses. Unlike a Problem, an
// Invalid has no position in the file; Block.Check finds the position.
type Invalid struct {
	Key  string // path relative to the validated value, such as retry.max or paths[1]
	What string
	Hint string

	Missing bool // as of a Problem
}

// Invalids are all values that a Validate method refuses. As an error, Invalids
// is never empty.
type Invalids []Invalid //nolint:errname // it is a list first, and an error on the way out

// Add adds a refused value.
func (i *Invalids) Add(key, what, hint string) {
	*i = append(*i, Invalid{Key: key, What: what, Hint: hint})
}

// Nest adds the refused values of err, the error of the Validate method of the
// value below key. A nil err adds nothing.
func (i *Invalids) Nest(key string, err error) {
	leaves(err, func(err error) {
		nested, ok := err.(Invalids) //nolint:errorlint // leaves has unwrapped it
		if !ok {
			i.Add(key, err.Error(), "")
			return
		}
		for _, n := range nested {
			n.Key = join(key, n.Key)
			*i = append(*i, n)
		}
	})
}

// Err returns the invalids as an error, or nil if there are none.
func (i Invalids) Err() error {
	if len(i) == 0 {
		return nil
	}
	return i
}

// Error prints each invalid value on a line.
func (i Invalids) Error() string {
	lines := make([]string, len(i))
	for n, invalid := range i {
		lines[n] = Problem{Key: invalid.Key, What: invalid.What, Hint: invalid.Hint}.String()
	}
	return strings.Join(lines, "\n")
}

// Join combines the results of several Validate methods. Join returns nil if
// all errs are nil.
func Join(errs ...error) error {
	var all Invalids
	for _, err := range errs {
		all.Nest("", err)
	}
	return all.Err()
}

// join appends a key to the key of the parent.
func join(parent, key string) string {
	if parent == "" || key == "" || strings.HasPrefix(key, "[") {
		return parent + key
	}
	return parent + "." + key
}

// suggest returns a hint for an unknown word: the most similar known word, or
// all known words. Plural is the noun for known words.
func suggest(word string, allowed []string, plural string) string {
	if near := spelling.Nearest(word, allowed); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	if len(allowed) == 0 {
		return "there are no " + plural + " here"
	}
	return "the " + plural + " are " + strings.Join(allowed, ", ")
}
