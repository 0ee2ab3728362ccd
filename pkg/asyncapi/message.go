package asyncapi

import (
	"maps"
	"slices"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/sinks"
)

const eventFormat = "application/cloudevents+json"

// attribute describes a context attribute.
var attributes = map[string]object{
	"specversion":       {"const": "1.0"},
	"id":                {"type": "string", "description": "The same event has the same id, whenever and however often it comes."},
	"source":            {"type": "string", "format": "uri-reference", "description": "Who sent it. Together with id it names the event."},
	"type":              {"type": "string"},
	"subject":           {"type": "string"},
	"time":              {"type": "string", "format": "date-time", "description": "When it happened, where the sender tells."},
	"dataschema":        {"type": "string", "format": "uri"},
	event.Platform:      {"type": "string"},
	event.MediaType:     {"type": "string"},
	event.Profile:       {"type": "string"},
	event.Outcome:       {"type": "string", "description": "success or failure; of an account its status."},
	event.PublishID:     {"type": "string"},
	event.PartitionKey:  {"type": "string", "description": "Events of one key keep their order."},
	event.CorrelationID: {"type": "string", "description": "The sender's job."},
	event.DeliveryID:    {"type": "string", "description": "Of the first delivery of the event to Postwire."},
	event.RecordedTime:  {"type": "string", "format": "date-time", "description": "When Postwire accepted it."},
	event.TraceParent:   {"type": "string", "description": "W3C trace context, while tracing is on."},
}

var (
	core   = []string{"specversion", "id", "source", "type", "subject", "time", "dataschema"}
	needed = []string{"specversion", "id", "source", "type"}
)

// described returns the schemas of the possible attributes of e.
func (e Event) described() object {
	all := object{}
	for _, name := range slices.Concat(core, e.Extensions) {
		a := object{"type": "string"}
		if known, ok := attributes[name]; ok {
			a = maps.Clone(known)
		}
		all[name] = a
	}
	if e.Type != "" {
		all["type"] = object{"const": e.Type}
		if e.DataSchema != "" {
			all["dataschema"] = object{"const": e.DataSchema}
		}
	}
	return all
}

// message adds the message of an event for a destination, and returns its key.
func (b *builder) message(d sinks.Subscription, e Event) string {
	key := d.Protocol + "." + d.ContentMode + "." + e.key
	if _, there := b.messages[key]; there {
		return key
	}
	m := object{"name": e.key, "title": e.Title, "summary": e.Text}
	switch d.ContentMode {
	case sinks.Binary:
		m["headers"] = headers(d.Protocol, e)
		m["payload"] = ref("components", "schemas", e.key)
		m["contentType"] = "application/json"
		if e.Type == "" {
			delete(m, "contentType") // the event has its own content type
		}
	case sinks.Structured:
		m["contentType"] = eventFormat
		m["payload"] = ref("components", "schemas", b.envelope(e))
		m["headers"] = object{"type": "object", "properties": object{"content-type": object{"const": eventFormat}}}
	default: // batched
		m["contentType"] = "application/cloudevents-batch+json"
		m["payload"] = object{"type": "array", "items": ref("components", "schemas", b.envelope(e))}
	}
	if d.Protocol == "kafka" {
		m["bindings"] = object{"kafka": object{
			"key": object{"type": "string", "description": "The attribute partitionkey; none where the event has none."}, "bindingVersion": "0.5.0",
		}}
	}
	b.messages[key] = m
	return key
}

// headers returns the headers of binary mode.
func headers(protocol string, e Event) object {
	text := "Attributes of the CloudEvent."
	if protocol != "kafka" {
		text += " Values are percent-encoded, as the binding has it."
	}
	p, properties, required := prefix(protocol), object{}, []any{}
	for name, a := range e.described() {
		properties[p+name] = a
	}
	for _, name := range needed {
		required = append(required, p+name)
	}
	properties["content-type"] = object{"type": "string", "description": "Media type of the payload."}
	if e.Type != "" {
		properties["content-type"] = object{"type": "string", "description": "Media type of the payload.", "examples": []any{"application/json"}}
	}
	if protocol == "nats" {
		properties["ce-datacontenttype"] = object{"type": "string", "description": "The same, as the binding has it."}
		properties["Nats-Msg-Id"] = object{"type": "string", "description": "Identifies the stored event. JetStream drops a second message of one ID inside the duplicate window of the stream."}
	}
	return object{"type": "object", "description": text, "required": required, "properties": properties}
}

// envelope adds the schema of a whole event in JSON.
func (b *builder) envelope(e Event) string {
	key := "event." + e.key
	properties, required := e.described(), []any{}
	for _, name := range needed {
		required = append(required, name)
	}
	properties["datacontenttype"] = object{"type": "string"}
	properties["data"] = ref("components", "schemas", e.key)
	properties["data_base64"] = object{"type": "string", "description": "The data, where it is not JSON and not text."}
	b.schemas[key] = object{"type": "object", "required": required, "properties": properties}
	return key
}
