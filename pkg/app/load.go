package app

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/handover"
	"github.com/postwire/postwire/internal/spelling"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/expression"
	"github.com/postwire/postwire/pkg/filter"
	"github.com/postwire/postwire/pkg/schema"
	"github.com/postwire/postwire/pkg/source"
	allsources "github.com/postwire/postwire/pkg/source/all"
	"github.com/postwire/postwire/pkg/source/uploadpost"
	"github.com/postwire/postwire/sinks"
	allsinks "github.com/postwire/postwire/sinks/all"
)

// Plan is a valid configuration. It starts nothing.
type Plan struct {
	Config  *config.Config
	Sources []source.Configured
	Sinks   []sinks.Configured
	Schemas *schema.Library

	// Warnings describe valid but suspicious settings.
	Warnings config.Problems

	// For tests; nil is the disk and time.Now.
	Disk  vfs.FS
	Clock func() time.Time

	blocks     map[string]config.Block // configuration of the sinks
	attributes source.Attributes       // possible attributes of events
	incomplete bool                    // a source has errors, so that attributes may lack names

	// scrub knows the secrets of this plan and, after the plan is applied, of earlier
	// plans.
	scrub *config.Scrubber

	inherited *handover.Inherited // listeners of the relay that this one replaces; nil is none

	// Origin of the plan.
	name  string
	file  bool   // name is a file name
	stamp string // stamp of the file before it was read
	text  []byte
	env   func(string) (string, bool)
}

// Load reads the configuration at path. Its error is a config.Problems with all errors.
func Load(path string) (*Plan, error) {
	stamp := config.Stamp(path) // before the read
	text, err := config.Read(path)
	if err != nil {
		return nil, err
	}
	p, err := Parse(path, text, os.LookupEnv)
	if p != nil {
		p.file, p.stamp = true, stamp
	}
	return p, err
}

// Parse parses a configuration that is not in a file; name replaces the file name in
// messages.
func Parse(name string, text []byte, env func(string) (string, bool)) (*Plan, error) {
	c, err := config.Parse(name, text, env)
	p, err := check(c, err)
	if p != nil {
		p.name, p.text, p.env = name, text, env
	}
	return p, err
}

// check parses the blocks of sources and sinks, and checks their relations.
func check(c *config.Config, err error) (*Plan, error) {
	if c == nil {
		return nil, err
	}
	p := &Plan{Config: c, blocks: map[string]config.Block{}, scrub: config.NewScrubber()}
	errs := []error{err}
	paths := map[string]string{} // name of the source by path
	for _, b := range c.Sources {
		s, err := sources().Configure("source", b)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for i, path := range s.Settings.Paths {
			if other, taken := paths[path]; taken {
				errs = append(errs, b.Problem(fmt.Sprintf("paths[%d]", i), fmt.Sprintf("%s is a path of source %s already", path, other), "give each source paths of its own"))
			}
			paths[path] = s.Name
		}
		src, err := checkSource(c, b, s)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.attributes.Names = append(p.attributes.Names, src.Attributes().Names...)
		p.attributes.Any = p.attributes.Any || src.Attributes().Any
		if w, ok := s.Own.(source.Warner); ok {
			for _, i := range w.Warnings() {
				p.Warnings = append(p.Warnings, b.Problem(i.Key, i.What, i.Hint))
			}
		}
		p.Sources = append(p.Sources, s)
	}
	slices.Sort(p.attributes.Names)
	p.attributes.Names = slices.Compact(append(event.Core(), p.attributes.Names...))
	p.incomplete = len(p.Sources) < len(c.Sources)
	for _, b := range c.Sinks {
		s, err := outputs().Configure("sink", b)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if len(s.Settings.Retry.DeadLetterOn) > 0 && s.Kind != "http" {
			errs = append(errs, b.Problem("retry.dead_letter_on", "is for sinks of type http: other brokers answer without an HTTP status", "remove it"))
		}
		s.Open = p.scrubbed(s.Open)
		p.Sinks = append(p.Sinks, s)
		p.blocks[b.Name] = b
	}
	for _, s := range p.Sinks {
		errs = append(errs, p.checkAttributes(p.blocks[s.Name], s), p.checkDeadLetters(p.blocks[s.Name], s))
	}
	if p.Schemas, err = schema.Open(c.Schemas.Dir); err != nil {
		errs = append(errs, c.Problem("schemas.dir", err.Error(), "a file is named <type>/<version>.json and holds one whole JSON Schema"))
	}
	if len(c.Sources) == 0 {
		errs = append(errs, c.Problem("sources", "is empty: there is nothing to take webhooks from", "add a source"))
	}
	if len(c.Sinks) == 0 {
		errs = append(errs, c.Problem("sinks", "is empty: events would go nowhere", "add a sink"))
	}
	if c.Journal.Engine == engineJetStream {
		for _, i := range checkCluster(c.Journal.JetStream) {
			p := c.Problem("journal.jetstream."+i.Key, i.What, i.Hint)
			p.Missing = i.Missing
			errs = append(errs, p)
		}
	}
	if err := config.Merge(errs...); err != nil {
		return nil, err
	}
	p.scrub.Add(c.Secrets()...)
	return p, nil
}

// scrubbed returns an opener whose errors contain no secret of this plan or of the replaced
// plan.
func (p *Plan) scrubbed(open sinks.Opener) sinks.Opener {
	return func(ctx context.Context, env sinks.Env) (sinks.Sink, error) {
		return sinks.Scrubbed(open, p.scrub)(ctx, env)
	}
}

// checkSource compares the proof of a source with the settings of the server.
func checkSource(c *config.Config, b config.Block, s source.Configured) (source.Source, error) {
	if least := c.Server.LeastBuffered(s.Settings.MaxBodyBytes); c.Server.MaxBufferedBytes < least {
		return nil, b.Problem("max_body_bytes", fmt.Sprintf("server.max_buffered_bytes, %v, is too little for a body of %v", c.Server.MaxBufferedBytes, s.Settings.MaxBodyBytes), fmt.Sprintf("make it smaller, or server.max_buffered_bytes %v or more", least))
	}
	if own, ok := s.Own.(uploadpost.Config); ok && own.Reconcile.Interval > 0 && own.Reconcile.Lookback > c.Journal.Retention {
		return nil, b.Problem("reconcile.lookback", fmt.Sprintf("%v is longer than journal.retention, %v: what came before that cannot be told from what did not", own.Reconcile.Lookback, c.Journal.Retention), "make one of them shorter, or the other longer")
	}
	src, err := s.Open(source.Env{Name: s.Name}) // pure, without I/O
	if err != nil {
		return nil, b.Problem("", err.Error(), "")
	}
	if src.Proof().ClientCertificate && c.Server.TLS.ClientCAFile == "" {
		return nil, b.Problem("auth.client_certificate", "needs server.tls.client_ca_file, or no sender is asked for a certificate", "name the authorities of the senders there")
	}
	return src, nil
}

// checkDeadLetters checks that the dead letters of a sink go to another sink, and that sinks do
// not pass dead letters in a circle.
func (p *Plan) checkDeadLetters(b config.Block, s sinks.Configured) error {
	const key = "dead_letters.sink"
	to := s.Settings.DeadLetters.Sink
	var names []string
	for _, c := range p.Config.Sinks {
		if c.Name != s.Name {
			names = append(names, c.Name)
		}
	}
	switch {
	case to == "":
		return nil
	case to == s.Name:
		return b.Problem(key, "names its own sink: what a sink refuses, the sink would refuse again", "name another sink, or remove the key")
	case !slices.Contains(names, to):
		hint := "add a sink with this name, or remove the key: there is no other sink"
		if len(names) > 0 {
			hint = "the other sinks are " + strings.Join(names, ", ")
		}
		if near := spelling.Nearest(to, names); near != "" {
			hint = fmt.Sprintf("did you mean %q? %s", near, hint)
		}
		return b.Problem(key, fmt.Sprintf("names %q, and there is no such sink", to), hint)
	}
	next := map[string]string{}
	for _, other := range p.Sinks {
		next[other.Name] = other.Settings.DeadLetters.Sink
	}
	path := []string{s.Name}
	for at := to; at != "" && len(path) <= len(p.Sinks); at = next[at] {
		if path = append(path, at); at == s.Name {
			return b.Problem(key, "is part of a circle of dead letters: "+strings.Join(path, " → "), "remove the key of one of these sinks")
		}
	}
	return nil
}

// attributesOf returns the attribute names that the events of a sink can have.
func (p *Plan) attributesOf(sink string) []string {
	if slices.ContainsFunc(p.Sinks, func(s sinks.Configured) bool { return s.Settings.DeadLetters.Sink == sink }) {
		return slices.Concat(p.attributes.Names, event.DeadLetterAttributes())
	}
	return p.attributes.Names
}

// checkAttributes compares the attribute names in the filter and the templates of a sink
// with the attributes of the sources.
func (p *Plan) checkAttributes(b config.Block, s sinks.Configured) error {
	var errs []error
	selects, err := filter.Parse(s.Settings.Filter)
	if err == nil && !p.incomplete {
		err = selects.Check(p.attributes.Names)
	}
	if fault, ok := errors.AsType[*expression.Error](err); ok {
		errs = append(errs, b.Problem("filter", fault.What, fault.Hint))
	} else if err != nil {
		errs = append(errs, b.Problem("filter", err.Error(), ""))
	}
	own, ok := s.Own.(sinks.Config)
	if !ok || p.incomplete {
		return errors.Join(errs...)
	}
	route, names := own.Route(), p.attributesOf(s.Name)
	for _, name := range route.Template.Names() {
		near := spelling.Nearest(name, names)
		if slices.Contains(names, name) || p.attributes.Any && (near == "" || spelling.Distance(name, near) > 1) {
			continue // CloudEvents senders name extensions of their own; still suggest a similar name
		}
		hint := "the configured sources set " + strings.Join(names, ", ")
		if near != "" {
			hint = fmt.Sprintf("did you mean {%s}? %s", near, hint)
		}
		errs = append(errs, b.Problem(route.Key, fmt.Sprintf("uses {%s}, an attribute that no configured source sets", name), hint))
	}
	return errors.Join(errs...)
}

// sourceEnv returns the environment of a source.
func (p *Plan) sourceEnv(s source.Configured) source.Env {
	return source.Env{Name: s.Name, SchemaBase: p.schemaBase(), Rate: s.Settings.Rate}
}

func (p *Plan) schemaBase() string { return strings.TrimRight(p.Config.Schemas.BaseURL, "/") }

func sources() source.Registry { return config.NewRegistry(allsources.Kinds()...) }

func outputs() sinks.Registry { return config.NewRegistry(allsinks.Kinds()...) }

// destinations are the keys that a replay may override. An address is not among them: a
// user who starts replays must not be able to send a sink's credentials elsewhere, or to
// read a file.
func destinations() []string { return []string{"subject", "topic"} }

// redirect opens a sink with other values of some keys.
func (p *Plan) redirect(sink string, keys map[string]string) (sinks.Opener, error) {
	b := p.blocks[sink]
	for key, text := range keys {
		if !slices.Contains(destinations(), key) {
			return nil, fmt.Errorf("%s: cannot be set otherwise for a replay; %s can", key, strings.Join(destinations(), " and "))
		}
		b = b.With(key, text)
	}
	s, err := outputs().Configure("sink", b)
	if problems, ok := errors.AsType[config.Problems](err); ok {
		// The values are not from the file, so drop the position.
		var what []string
		for _, problem := range problems {
			what = append(what, strings.TrimSuffix(fmt.Sprintf("%s: %s; %s", problem.Key, problem.What, problem.Hint), "; "))
		}
		return nil, errors.New(strings.Join(what, "\n"))
	}
	return p.scrubbed(s.Open), err
}

// Schema returns the JSON Schema of the configuration.
func Schema() ([]byte, error) { return config.Schema(sources().Docs(), outputs().Docs()) }

// Reference returns the reference page of the configuration in Markdown.
func Reference() ([]byte, error) { return config.Reference(sources().Docs(), outputs().Docs()) }

// YAML returns the configuration of the plan with defaults and without secrets.
func (p *Plan) YAML() ([]byte, error) {
	var sources, sinks [][]any
	for _, s := range p.Sources {
		sources = append(sources, []any{s.Settings, s.Own})
	}
	for _, s := range p.Sinks {
		sinks = append(sinks, []any{s.Settings, s.Own})
	}
	return config.Render(p.Config, sources, sinks)
}
