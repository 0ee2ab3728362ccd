package config

import "slices"

// Settings are keys of a block that can tell what is wrong with them.
type Settings interface {
	// Validate reports everything that is wrong, as Invalids with keys
	// relative to the block, not just the first.
	Validate() error
}

// Kind is one kind of plug-in: what its blocks look like, and how one becomes
// an O. S are the keys that all kinds share. Kinds are made by Define.
type Kind[S Settings, O any] struct {
	Name    string // value of `type`
	Summary string // one line for the reference page
	Example string // YAML for the reference page; it is a configuration's part that is valid

	settings  func() S
	own       func() any
	configure func(Block) (Plugin[S, O], error)
}

// Define makes a Kind. Common and own return what a block holds that sets
// nothing; open makes an O of a block's own keys. The compiler holds own and
// open to one type.
func Define[S, C Settings, O any](name, summary, example string, common func() S, own func() C, open func(C) O) Kind[S, O] {
	return DefineCompleted(name, summary, example, common, own, func(*C) {}, open)
}

// DefineCompleted is Define for a kind with keys that decide over the defaults
// of others: complete fills those in when the whole block has been read, and
// before it is validated.
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

// Plugin is a block that has been read.
type Plugin[S Settings, O any] struct {
	Name     string // in the configuration
	Kind     string // its type there
	Settings S      // the keys that all kinds share
	Own      any    // the kind's own keys
	Open     O
}

// Registry finds kinds by name.
type Registry[S Settings, O any] struct{ kinds []Kind[S, O] }

// NewRegistry panics if two kinds bear one name: a fault of the program.
func NewRegistry[S Settings, O any](kinds ...Kind[S, O]) Registry[S, O] {
	seen := map[string]bool{}
	for _, k := range kinds {
		if seen[k.Name] {
			panic("config: two kinds are named " + k.Name)
		}
		seen[k.Name] = true
	}
	return Registry[S, O]{slices.Clone(kinds)}
}

// Configure decodes and validates one block. What is "source" or "sink". Its
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
