// Package asyncapi generates an AsyncAPI 3.0 document for consumers: the servers, subjects
// and topics of each sink, and the messages there. The document has no secrets.
package asyncapi

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

// object is a JSON object.
type object = map[string]any

// Sink is a configured sink.
type Sink struct {
	Name         string
	Filter       string // CEL; empty matches every event
	Redacts      bool   // the sink redacts fields of the data
	Subscription sinks.Subscription
}

// Event is a type of events.
type Event struct {
	Type        string // empty for all types without a schema
	DataSchema  string
	Schema      []byte   // JSON Schema 2020-12 of the data
	Extensions  []string // possible extension attributes besides the core
	Title, Text string   // defaults: title and description of the schema

	key string // key in the document
}

// Description is the content of a document.
type Description struct {
	Version string // version of Postwire
	Sinks   []Sink
	Events  []Event
}

// Document returns the AsyncAPI document, for encoding as JSON or YAML. The document leaves
// out sinks without subscribers, such as telegram.
func Document(d Description) (map[string]any, error) {
	b := &builder{
		servers: object{}, channels: object{}, operations: object{},
		messages: object{}, schemas: object{}, security: object{}, names: map[string]map[string]bool{},
	}
	events := slices.Clone(d.Events)
	for i := range events {
		events[i].key = b.name("events", cmp.Or(events[i].Type, "other"))
		if err := b.data(&events[i]); err != nil {
			return nil, fmt.Errorf("schema of %s: %w", events[i].Type, err)
		}
	}
	for _, s := range d.Sinks {
		if s.Subscription.Protocol != "" {
			b.sink(s, events)
		}
	}
	components := object{}
	for name, part := range map[string]object{"messages": b.messages, "schemas": b.schemas, "securitySchemes": b.security} {
		if len(part) > 0 {
			components[name] = part
		}
	}
	return object{
		"asyncapi": "3.0.0",
		"info": object{
			"title": "Postwire", "version": d.Version,
			"description": "CloudEvents that this relay sends, made of webhooks. An event may come more than once: readers drop what has a `source` and an `id` that they have seen. Order holds among events of one `partitionkey`.",
		},
		"defaultContentType": "application/json",
		"servers":            b.servers, "channels": b.channels, "operations": b.operations, "components": components,
	}, nil
}

// builder collects the parts of a document.
type builder struct {
	servers, channels, operations, messages, schemas, security object
	names                                                      map[string]map[string]bool // used names, by part
}

// name returns an unused key for text in a part.
func (b *builder) name(part, text string) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_", r) {
			return r
		}
		return '_'
	}, text)
	if b.names[part] == nil {
		b.names[part] = map[string]bool{}
	}
	name := clean
	for n := 2; b.names[part][name]; n++ {
		name = fmt.Sprintf("%s-%d", clean, n)
	}
	b.names[part][name] = true
	return name
}

func ref(path ...string) object {
	return object{"$ref": "#/" + strings.Join(path, "/")}
}

// selfContained are the keywords of references inside a schema, and keywords that are
// unknown in draft 7, which AsyncAPI's own schemas use.
var selfContained = []string{
	"$ref", "$defs", "$anchor", "$dynamicRef", "$dynamicAnchor", "$vocabulary", "prefixItems", "dependentRequired", "dependentSchemas",
	"unevaluatedProperties", "unevaluatedItems", "minContains", "maxContains",
}

// data adds the schema of an event's data.
func (b *builder) data(e *Event) error {
	var s object
	if len(e.Schema) > 0 {
		if err := json.Unmarshal(e.Schema, &s); err != nil {
			return err
		}
		title, _ := s["title"].(string)
		text, _ := s["description"].(string)
		e.Title, e.Text = cmp.Or(e.Title, title), cmp.Or(e.Text, text)
	}
	delete(s, "$schema")
	delete(s, "$id")
	if has(s, selfContained) {
		s = object{"description": fmt.Sprintf("As %s has it, which the relay serves on its admin port below /schemas/.", e.DataSchema)}
	}
	if s == nil {
		s = object{"description": "Whatever the sender sent."}
	}
	b.schemas[e.key] = s
	return nil
}

func has(v any, keywords []string) bool {
	switch v := v.(type) {
	case object:
		for k, value := range v {
			if slices.Contains(keywords, k) || has(value, keywords) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(v, func(value any) bool { return has(value, keywords) })
	}
	return false
}

func (b *builder) sink(s Sink, events []Event) {
	d := s.Subscription
	name := b.name("channels", s.Name)
	var servers []any
	for _, server := range d.Servers {
		servers = append(servers, ref("servers", b.server(name, d, server)))
	}
	messages := object{}
	var carried []any
	for _, e := range events {
		key := b.message(d, e)
		messages[e.key] = ref("components", "messages", key)
		carried = append(carried, ref("channels", name, "messages", e.key))
	}
	channel := object{
		"title": s.Name, "address": d.Address, "servers": servers, "messages": messages, "description": describe(s),
	}
	if p := parameters(d); len(p) > 0 {
		channel["parameters"] = p
	}
	operation := object{"action": "send", "channel": ref("channels", name), "messages": carried, "summary": "Events that sink " + s.Name + " delivers."}
	switch d.Protocol {
	case "kafka":
		binding := object{"bindingVersion": "0.5.0"}
		if d.Partitions > 0 {
			binding["partitions"] = d.Partitions
		}
		if d.Replicas > 0 {
			binding["replicas"] = d.Replicas
		}
		channel["bindings"] = object{"kafka": binding}
	case "nats":
		operation["bindings"] = object{"nats": object{"bindingVersion": "0.1.0"}}
		if d.Stream != "" {
			channel["x-nats-jetstream"] = object{"stream": d.Stream}
		}
	case "http":
		operation["bindings"] = object{"http": object{"method": "POST", "bindingVersion": "0.3.0"}}
	}
	b.channels[name] = channel
	b.operations["send-"+name] = operation
}

func describe(s Sink) string {
	text := "Events of sink " + s.Name + "."
	if s.Subscription.Stream != "" {
		text += " JetStream's stream " + s.Subscription.Stream + " stores them."
	}
	if s.Filter != "" {
		text += " Only those for which this is true: `" + s.Filter + "`."
	}
	if s.Redacts {
		text += " Of their data some is left out or replaced by a digest, so that a schema may ask for more than there is."
	}
	return text
}

// server returns the key of a server. Sinks with one server share the key.
func (b *builder) server(channel string, d sinks.Subscription, s sinks.Server) string {
	server := object{"host": s.Host, "protocol": s.Protocol}
	if s.TLS {
		server["description"] = "By TLS."
	}
	var security []any
	for _, way := range d.Security {
		security = append(security, ref("components", "securitySchemes", b.scheme(way)))
	}
	if len(security) > 0 {
		server["security"] = security
	}
	text := fmt.Sprint(server)
	for _, key := range slices.Sorted(maps.Keys(b.servers)) {
		if fmt.Sprint(b.servers[key]) == text {
			return key
		}
	}
	key := b.name("servers", channel)
	b.servers[key] = server
	return key
}

func (b *builder) scheme(s sinks.Security) string {
	key := strings.Trim(s.Type+"-"+s.Name, "-")
	scheme := object{"type": s.Type}
	switch s.Type {
	case "http":
		scheme["scheme"] = s.Name
	case "httpApiKey":
		scheme["name"], scheme["in"] = s.Name, "header"
	}
	key = strings.NewReplacer("/", "_", ":", "_").Replace(key)
	b.security[key] = scheme
	return key
}

// parameters returns the attributes in an address.
func parameters(d sinks.Subscription) object {
	all := object{}
	if d.Protocol == "http" { // the address of an HTTP sink is not a template
		return all
	}
	rest := d.Address
	for {
		_, after, ok := strings.Cut(rest, "{")
		if !ok {
			return all
		}
		name, after, _ := strings.Cut(after, "}")
		rest = after
		parameter := object{"description": fmt.Sprintf("Attribute %s, with an underscore in place of what may not stand there; %s where the event has none.", name, event.None)}
		if d.ContentMode == sinks.Binary {
			parameter["location"] = "$message.header#/" + prefix(d.Protocol) + name
		} else {
			parameter["location"] = "$message.payload#/" + name
		}
		all[name] = parameter
	}
}

// prefix returns the prefix of attribute headers in the binding of a protocol.
func prefix(protocol string) string {
	if protocol == "kafka" {
		return "ce_"
	}
	return "ce-"
}
