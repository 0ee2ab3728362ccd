package described

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Requirements of the chart on the configuration beyond those of the product, because the
// templates read the keys. Every Helm 3 and Helm 4 reads draft 7; the product's schema uses
// no newer keyword.
const narrowed = `{
  "required": ["server", "admin", "journal"],
  "properties": {
    "server": {
      "required": ["listen"],
      "properties": {"listen": {"pattern": "^[^$]*:[1-9][0-9]{0,4}$"}}
    },
    "admin": {
      "required": ["listen"],
      "properties": {"listen": {"pattern": "^[^$]*:[1-9][0-9]{0,4}$"}}
    },
    "journal": {
      "required": ["engine"],
      "properties": {"engine": {"enum": ["local", "jetstream"]}}
    }
  }
}`

// kubernetes has definitions of Kubernetes types, as far as the values use the types. Helm 3
// does not report an unknown field of an object, so a misspelled limit would be no limit.
const kubernetes = `{
  "quantity": {
    "type": ["string", "number", "null"],
    "minimum": 0,
    "pattern": "^[+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+|[KMGTPE]i|[numkMGTPE])?$"
  },
  "quantities": {
    "type": ["object", "null"],
    "patternProperties": {"^(cpu|memory|ephemeral-storage|hugepages-.+|.+/.+)$": {"$ref": "#/$defs/quantity"}},
    "additionalProperties": false
  },
  "resources": {
    "type": "object",
    "properties": {
      "requests": {"$ref": "#/$defs/quantities"},
      "limits": {"$ref": "#/$defs/quantities"},
      "claims": {"type": "array", "items": {"type": "object", "required": ["name"]}}
    },
    "additionalProperties": false
  },
  "probe": {
    "type": "object",
    "properties": {
      "initialDelaySeconds": {"type": "integer", "minimum": 0},
      "periodSeconds": {"type": "integer", "minimum": 1},
      "timeoutSeconds": {"type": "integer", "minimum": 1},
      "successThreshold": {"type": "integer", "minimum": 1},
      "failureThreshold": {"type": "integer", "minimum": 1},
      "terminationGracePeriodSeconds": {"type": ["integer", "null"], "minimum": 1}
    },
    "additionalProperties": false
  }
}`

// reference is the pattern of a secret in a ConfigMap: empty or ${…}. The error message
// shows the expected form and not the value.
func reference(secret map[string]any) {
	secret["if"] = map[string]any{"not": map[string]any{"pattern": `^$|\$\{`}}
	secret["then"] = map[string]any{"const": "${NAME} or ${file:/path}"}
}

// Schema returns values.schema.json for keys and the schema of the product.
func Schema(keys []Key, product []byte) ([]byte, error) {
	var config map[string]any
	if err := json.Unmarshal(product, &config); err != nil {
		return nil, fmt.Errorf("the product's schema: %w", err)
	}
	defs, ok := config["$defs"].(map[string]any)
	if !ok {
		return nil, errors.New("the product's schema has no $defs")
	}
	delete(config, "$defs")
	delete(config, "$schema")
	own := map[string]any{}
	if err := json.Unmarshal([]byte(kubernetes), &own); err != nil {
		return nil, err
	}
	for _, name := range slices.Concat([]string{"written", "postwire"}, slices.Collect(maps.Keys(own))) {
		if _, taken := defs[name]; taken {
			return nil, fmt.Errorf("the product's schema has a definition %s of its own", name)
		}
	}
	defs["postwire"] = config
	refer(defs)
	var narrow any
	if err := json.Unmarshal([]byte(narrowed), &narrow); err != nil {
		return nil, err
	}
	defs["written"] = narrow
	maps.Copy(defs, own)

	root, err := object(keys)
	if err != nil {
		return nil, err
	}
	properties, _ := root["properties"].(map[string]any)
	properties["enabled"] = map[string]any{"type": "boolean", "description": "Unused; for the condition of a chart that depends on this one."}
	root["$schema"] = "http://json-schema.org/draft-07/schema#"
	root["title"] = "Values of the chart postwire"
	root["$defs"] = defs

	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(root); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// refer makes every secret of the product's schema a reference, because the configuration
// becomes a ConfigMap, which many users can read.
func refer(schema any) {
	switch s := schema.(type) {
	case map[string]any:
		if s["writeOnly"] == true && s["type"] == "string" {
			reference(s)
		}
		for _, inner := range s {
			refer(inner)
		}
	case []any:
		for _, inner := range s {
			refer(inner)
		}
	}
}

// object returns the schema of a mapping with exactly the given keys.
func object(keys []Key) (map[string]any, error) {
	properties := map[string]any{}
	for _, k := range keys {
		s, err := k.schema()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.Path, err)
		}
		properties[k.Name] = s
	}
	return map[string]any{"type": "object", "properties": properties, "additionalProperties": false}, nil
}

func (k Key) schema() (map[string]any, error) {
	if !k.Opaque() {
		return object(k.Keys)
	}
	s := maps.Clone(k.Schema)
	if s == nil {
		s = map[string]any{}
	}
	if k.Doc != "" {
		s["description"] = k.Doc
	}
	if _, typed := s["type"]; typed {
		return s, nil
	}
	if ref, ok := s["$ref"]; ok { // draft 7 ignores all other keywords beside $ref
		delete(s, "$ref")
		s["type"], s["allOf"] = "object", []any{map[string]any{"$ref": ref}}
		return s, nil
	}
	name, err := typeName(k.Default)
	if err != nil {
		return nil, err
	}
	s["type"] = name
	return s, nil
}

func typeName(value any) (string, error) {
	switch value.(type) {
	case string:
		return "string", nil
	case bool:
		return "boolean", nil
	case int:
		return "integer", nil
	case float64:
		return "number", nil
	case []any:
		return "array", nil
	case map[string]any:
		return "object", nil
	}
	return "", fmt.Errorf("a default of type %T needs a type in @schema", value)
}

// Choices returns the allowed values of a key if the schema lists the values.
func (k Key) Choices() []string {
	list, _ := k.Schema["enum"].([]any)
	var all []string
	for _, v := range list {
		if s, _ := v.(string); s != "" {
			all = append(all, s)
		}
	}
	return slices.Clip(all)
}
