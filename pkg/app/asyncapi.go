package app

import (
	"slices"
	"strings"

	"github.com/postwire/postwire/pkg/asyncapi"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/uploadpost"
	"github.com/postwire/postwire/sinks"
)

// AsyncAPI returns the AsyncAPI document of the plan. Version is the version of Postwire.
func (p *Plan) AsyncAPI(version string) (map[string]any, error) {
	d := asyncapi.Description{Version: version, Events: p.events()}
	for _, s := range p.Sinks {
		own, ok := s.Own.(sinks.Config)
		if !ok {
			continue // impossible: Define checks the type
		}
		d.Sinks = append(d.Sinks, asyncapi.Sink{
			Name: s.Name, Filter: s.Settings.Filter, Redacts: len(s.Settings.Redact.Drop)+len(s.Settings.Redact.Hash) > 0, Subscription: own.Subscription(),
		})
	}
	return asyncapi.Document(d)
}

// events returns the event types of the sources that have schemas, and one entry for all
// other types.
func (p *Plan) events() (all []asyncapi.Event) {
	uploads, others := false, false
	for _, s := range p.Sources {
		if _, ok := s.Own.(uploadpost.Config); ok {
			uploads = true
		} else {
			others = true
		}
	}
	env := source.Env{SchemaBase: p.schemaBase()}
	every := []string{event.PartitionKey, event.RecordedTime}
	if p.Config.Telemetry.Traces.Enabled() {
		every = append(every, event.TraceParent)
	}
	for _, n := range p.Schemas.Names() {
		own := strings.HasPrefix(n.Type, uploadpost.TypePrefix)
		if n.Record() || n.Version != "1" || own && !uploads || !own && !others {
			continue
		}
		extensions := every
		if own {
			extensions = slices.Concat([]string{event.Platform, event.MediaType, event.Profile, event.Outcome, event.PublishID, event.CorrelationID, event.DeliveryID}, every)
		}
		text, _ := p.Schemas.Text(n)
		all = append(all, asyncapi.Event{Type: n.Type, DataSchema: env.Schema(n.Type), Schema: text, Extensions: extensions})
	}
	return append(all, asyncapi.Event{
		Title: "Any other event", Text: "Of a type that has no schema, or that a source passes on as it is.", Extensions: every,
	})
}
