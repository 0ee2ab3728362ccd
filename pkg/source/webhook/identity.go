package webhook

import (
	"strconv"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source/jsonbody"
)

// id returns the mapped id, or the digest of the JSON. The journal and consumers store IDs
// and keys: they must be equal in every later version.
func (s *Source) id(in *scope, data []byte) (string, error) {
	if s.mapping.id == nil {
		return jsonbody.Digest(data), nil
	}
	id, err := s.mapping.id.neededText(in)
	if err != nil {
		return "", malformed(s.mapping.id.key, err)
	}
	return id, nil
}

// keys returns the identity keys: one key for each expression of dedupe with a value, with
// the index of the expression; without dedupe, the id.
func (s *Source) keys(in *scope, id string) ([]event.Key, error) {
	if len(s.mapping.dedupe) == 0 {
		return []event.Key{event.NewKey(s.env.Name, "id", id)}, nil
	}
	var keys []event.Key
	for i, x := range s.mapping.dedupe {
		value, err := x.text(in)
		if err != nil {
			return nil, malformed(x.key, err)
		}
		if value != "" {
			keys = append(keys, event.NewKey(s.env.Name, "dedupe", strconv.Itoa(i), value))
		}
	}
	if len(keys) == 0 {
		return nil, malformed("dedupe", errNothing)
	}
	return keys, nil
}
