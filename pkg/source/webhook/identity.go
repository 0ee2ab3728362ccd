package webhook

import (
	"strconv"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/source/jsonbody"
)

// id is what the configuration maps, or the digest of the JSON. Ids and keys
// are kept on disk and by consumers: they must come out the same in every later
// version.
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

// keys are those by which a repeat is recognized: a key for each expression of
// dedupe that finds something, told apart by their places in the list; or the
// id, where there is no such list.
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
