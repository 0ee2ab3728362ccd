package relay

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/postwire/postwire/pkg/journal"
)

// MoveEntry makes of a note of the relay's what it is to be in a journal where
// events have other places: when events were delivered is told of the same ones,
// and a replay is of the same events there, and goes on
// where it stood. First maps the place of the first event of a range, last that
// of its last one.
func MoveEntry(n journal.KVEntry, first, last func(journal.Seq) journal.Seq) (journal.KVEntry, error) {
	if strings.HasPrefix(n.Key, checkpointPrefix) {
		var err error
		if n.Value, err = moveCheckpoints(n.Value, first, last); err != nil {
			return n, fmt.Errorf("moving %s: %w", n.Key, err)
		}
		return n, nil
	}
	if !strings.HasPrefix(n.Key, replayPrefix) {
		return n, nil
	}
	var re Replay
	err := json.Unmarshal(n.Value, &re)
	if err == nil {
		re.First, re.Last = first(re.First), last(re.Last)
		if re.Seq > 0 {
			re.Seq = re.First
		}
		n.Value, err = json.Marshal(re)
	}
	if err != nil {
		return n, fmt.Errorf("moving %s: %w", n.Key, err)
	}
	return n, nil
}
