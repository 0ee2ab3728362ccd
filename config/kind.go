package config

import "slices"

// Settings are keys of a block with a Validate method.
type Settings interface {
	// Validate reports all errors at once, as Invalids with keys relative to
	// the block.
	Validate() error
}

// Kind is a kind of plug-in: it describes the blocks of the kind and makes an O
// from a block. S are the keys of all kinds. Define makes a Kind.
type Kind[S Settings, O any] struct {
	Name    string // value of `type`
	Summary string // a single line for the reference page
	Example string // YAML for the reference page; a valid part of a configuration

	settings  func() S
	own       func() any
	configure func(Block) (Plugin[S, O], error)
}

// Define makes a Kind. Common and own return the defaults of a block; open
// makes an O from a block's own keys. The compiler checks that own and open
// have equal types.
func Define[S, C Settings, O any](name, summary, example string, common func() S, own func() C, open func(C) O) Kind[S, O] {
	return DefineCompleted(name, summary, example, common, own, func(*C) {}, open)
}

// DefineCompleted is Define for a kind with keys that change the defaults of
// other keys: complete sets those defaults after the block was read and before
// the block is validated.
func DefineCompleted[S, C Settings, O any](name, summary, example string, common func() S, own func() C, complete func(*C), open func(C) O) Kind[S, O] {
	return Kind[S, O]{
		Name: name, Summary: summary, Example: example,
		settings: common,
		own:      func() any { return own() },
		configure: func(b Block) (Plugin[S, O], error) {
			p := Plugin[S, O]{Name: b.Name, Kind: name, Settings: common()}
			c := own()
			if err := b.Decode(&p.Settings, &c); err != nil {
				return p, err
			}
			complete(&c)
			p.Own, p.Open = c, open(c)
			return p, b.Check(p.Settings.Validate(), c.Validate())
		},
	}
}

// Plugin is a decoded block.
type Plugin[S Settings, O any] struct {
	Name     string // in the configuration
	Kind     string // type in the configuration
	Settings S      // common keys of all kinds
	Own      any    // the kind's own keys
	Open     O
}

// Registry finds kinds by name.
type Registry[S Settings, O any] struct{ kinds []Kind[S, O] }

// NewRegistry panics if two kinds have equal names, because duplicate names are
// a bug in the program.
func NewRegistry[S Settings, O any](kinds ...Kind[S, O]) Registry[S, O] {
	defined := map[string]bool{}
	for _, k := range kinds {
		if defined[k.Name] {
			panic("config: two kinds are named " + k.Name)
		}
		defined[k.Name] = true
	}
	return Registry[S, O]{slices.Clone(kinds)}
}

// Configure decodes and validates a block. What is "source" or "sink". The
// error is a Problems.
func (r Registry[S, O]) Configure(what string, b Block) (Plugin[S, O], error) {
	names := make([]string, len(r.kinds))
	for i, k := range r.kinds {
		if names[i] = k.Name; k.Name == b.Type {
			return k.configure(b)
		}
	}
	return Plugin[S, O]{}, b.UnknownType(what, names)
}

// Docs describes the kinds for the schema and the reference page.
func (r Registry[S, O]) Docs() []KindDoc {
	docs := make([]KindDoc, len(r.kinds))
	for i, k := range r.kinds {
		docs[i] = KindDoc{Name: k.Name, Summary: k.Summary, Example: k.Example, Values: []any{k.settings(), k.own()}}
	}
	return docs
}
