package relay

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/pkg/journal"
)

func TestReplaysMoveWithTheirEvents(t *testing.T) {
	first := func(s journal.Seq) journal.Seq { return s * 10 }
	last := func(s journal.Seq) journal.Seq { return s*10 + 1 }
	re := Replay{
		ID: "x", ReplaySpec: ReplaySpec{Sink: "s", Keys: map[string]string{"topic": "t"}, Rate: 7}, State: ReplayRunning,
		First: 3, Last: 8, Total: 5, Sent: 2, Created: time.Unix(1, 0).UTC(), Updated: time.Unix(2, 0).UTC(),
	}
	b, err := json.Marshal(re)
	if err != nil {
		t.Fatal(err)
	}
	n, err := MoveEntry(journal.KVEntry{Key: replayPrefix + "x", Value: b}, first, last)
	if err != nil {
		t.Fatal(err)
	}
	var moved Replay
	if err := json.Unmarshal(n.Value, &moved); err != nil {
		t.Fatal(err)
	}
	re.First, re.Last = 30, 81
	if diff := cmp.Diff(re, moved); diff != "" || n.Key != replayPrefix+"x" {
		t.Errorf("%s (-want +got):\n%s", n.Key, diff)
	}
	marks := encodeCheckpoints([]checkpoint{{3, 8, 1, 2}, {9, 9, 3, 4}})
	n, err = MoveEntry(journal.KVEntry{Key: checkpointPrefix + "s/1", Value: marks}, first, func(s journal.Seq) journal.Seq { return s*10 - s/9 }) // the ninth is gone
	if err != nil {
		t.Fatal(err)
	}
	if all, err := decodeCheckpoints(n.Value); err != nil || !cmp.Equal(all, []checkpoint{{30, 80, 1, 2}}, cmp.AllowUnexported(checkpoint{})) || n.Key != checkpointPrefix+"s/1" {
		t.Errorf("marks moved to %v, %v", all, err)
	}
	if _, err := MoveEntry(journal.KVEntry{Key: checkpointPrefix + "s/1"}, first, last); err == nil {
		t.Error("marks that cannot be read were moved")
	}
	other := journal.KVEntry{Key: "other", Value: []byte("{")}
	if n, err := MoveEntry(other, first, last); err != nil || !cmp.Equal(n, other) {
		t.Errorf("a note that is no replay: %v, %v", n, err)
	}
	if _, err := MoveEntry(journal.KVEntry{Key: replayPrefix + "x", Value: []byte("{")}, first, last); err == nil {
		t.Error("a replay that cannot be read was moved")
	}
}
