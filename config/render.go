package config

import (
	"bytes"
	"encoding"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Render prints a configuration as YAML with all defaults. Secrets and
// credentials of URLs are ***; text with ${ is escaped. For each block the
// caller passes the decoded structs, as values or pointers; the keys of a block
// are printed together.
func Render(c *Config, sources, sinks [][]any) ([]byte, error) {
	root := &yaml.Node{Kind: yaml.MappingNode}
	v := reflect.ValueOf(c).Elem()
	for _, f := range fieldsOf(v.Type()) {
		var (
			value *yaml.Node
			err   error
		)
		switch f.name {
		case "sources":
			value, err = renderedBlocks("sources", c.Sources, sources)
		case "sinks":
			value, err = renderedBlocks("sinks", c.Sinks, sinks)
		default:
			value = rendered(v.FieldByIndex(f.index))
		}
		if err != nil {
			return nil, err
		}
		root.Content = append(root.Content, textNode(f.name), value)
	}
	return encode(root)
}

// renderedBlocks adds the names and types of blocks before their values.
func renderedBlocks(section string, blocks []Block, values [][]any) (*yaml.Node, error) {
	if len(blocks) != len(values) {
		return nil, fmt.Errorf("render %s: %d blocks with the values of %d", section, len(blocks), len(values))
	}
	list := &yaml.Node{Kind: yaml.SequenceNode}
	for i, b := range blocks {
		entry := &yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{
			textNode("name"), textNode(escape(b.Name)),
			textNode("type"), textNode(escape(b.Type)),
		}}
		for _, value := range values[i] {
			v := reflect.Indirect(reflect.ValueOf(value))
			if v.Kind() != reflect.Struct {
				return nil, fmt.Errorf("render %s: a %T is not a struct", b.Path, value)
			}
			entry.Content = append(entry.Content, renderedFields(v).Content...)
		}
		list.Content = append(list.Content, entry)
	}
	return list, nil
}

// rendered returns the YAML of a value, or null for an unset value.
func rendered(v reflect.Value) *yaml.Node {
	switch value := v.Interface().(type) {
	case Secret:
		return textNode(value.String())
	case URL:
		return textNode(escape(value.String()))
	case time.Duration:
		if value == 0 {
			return plainNode("!!int", "0")
		}
		return textNode(FormatDuration(value))
	case netip.Prefix:
		return textNode(value.String())
	case *time.Location:
		if value == nil {
			return nullNode()
		}
		return textNode(value.String())
	}
	pointer := reflect.New(v.Type())
	pointer.Elem().Set(v)
	switch value := pointer.Interface().(type) {
	case Value:
		if written := value.MarshalConfig(); written != nil {
			return rendered(reflect.ValueOf(written))
		}
	case encoding.TextMarshaler:
		if text, err := value.MarshalText(); err == nil {
			return textNode(escape(redactURLs(string(text))))
		}
		return nullNode()
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nullNode()
		}
		return rendered(v.Elem())
	case reflect.Struct:
		return renderedFields(v)
	case reflect.Slice:
		list := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for i := range v.Len() {
			item := rendered(v.Index(i))
			if item.Kind != yaml.ScalarNode {
				list.Style = 0
			}
			list.Content = append(list.Content, item)
		}
		return list
	case reflect.Map:
		mapping := &yaml.Node{Kind: yaml.MappingNode}
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, k := range keys {
			mapping.Content = append(mapping.Content, textNode(k.String()), rendered(v.MapIndex(k)))
		}
		return mapping
	case reflect.String:
		return textNode(escape(redactURLs(v.String())))
	case reflect.Bool:
		return plainNode("!!bool", strconv.FormatBool(v.Bool()))
	case reflect.Float32, reflect.Float64:
		return plainNode("", strconv.FormatFloat(v.Float(), 'g', -1, 64))
	}
	return plainNode("!!int", fmt.Sprint(v.Interface()))
}

// renderedFields returns the keys of a struct, without unset keys.
func renderedFields(v reflect.Value) *yaml.Node {
	mapping := &yaml.Node{Kind: yaml.MappingNode}
	for _, f := range fieldsOf(v.Type()) {
		if value := rendered(v.FieldByIndex(f.index)); !isNull(value) {
			mapping.Content = append(mapping.Content, textNode(f.name), value)
		}
	}
	return mapping
}

func textNode(text string) *yaml.Node { return plainNode("!!str", text) }

func nullNode() *yaml.Node { return plainNode("!!null", "null") }

func plainNode(tag, text string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: text}
}

// encode prints a node.
func encode(n *yaml.Node) ([]byte, error) {
	var out bytes.Buffer
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := e.Encode(n); err != nil {
		return nil, err
	}
	if err := e.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
