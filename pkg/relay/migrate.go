package relay

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/postwire/postwire/pkg/journal"
)

// MoveEntry translates an entry of the relay for a migrated journal, in which the events
// have other sequences. The function first translates the first sequence of a range, the
// function last the last one. Entries without sequences stay unchanged.
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
