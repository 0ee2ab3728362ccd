package jetstream

import (
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
)

// The messages of one value stay in one batch: whole reads consecutive sequences.
func TestBatchesKeepValuesTogether(t *testing.T) {
	message := func(size, parts int) *nats.Msg {
		m := nats.NewMsg("s")
		m.Data = make([]byte, size)
		if parts > 0 {
			m.Header.Set(partsHeader, strconv.Itoa(parts))
		}
		return m
	}
	most := maxGroupBytes
	var many []*nats.Msg
	for range maxGroupMessages {
		many = append(many, message(1, 0))
	}
	for name, tt := range map[string]struct {
		messages []*nats.Msg
		want     []int // sizes of the batches
	}{
		"nothing":                  {nil, []int{0}},
		"one value":                {[]*nats.Msg{message(1, 1), message(1, 0)}, []int{2}},
		"split before a value":     {[]*nats.Msg{message(most/2, 0), message(most/3, 1), message(most/3, 0), message(1, 0)}, []int{1, 3}},
		"a value beyond the limit": {[]*nats.Msg{message(1, 0), message(most, 2), message(most, 0), message(1, 0), message(1, 0)}, []int{1, 3, 1}},
		"too many messages":        {append(many, message(1, 1), message(1, 0)), []int{maxGroupMessages, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []int
			for _, group := range batches(tt.messages) {
				got = append(got, len(group))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("batches (-want +got):\n%s", diff)
			}
		})
	}
}
