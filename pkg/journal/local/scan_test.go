package local

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/postwire/postwire/pkg/journal"
)

// A list of large requests holds few of them at once, whatever the caller wants
// of it, and ends with its context.
func TestScanIsBoundedByBytes(t *testing.T) {
	j := mustOpen(t, options(t, vfs.NewMem(), "data", newClock()))
	const many = 12
	var ids []string
	for i := range many {
		id, err := j.Quarantine(t.Context(), journal.QuarantinedRequest{Source: "s", Received: time.Unix(1, 0), Body: append(bytes.Repeat([]byte("x"), 400<<10), byte(i))})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	decoded := 0
	decode := func(st *store, key, value []byte) (journal.QuarantinedRequest, int, error) {
		decoded++
		r, err := st.rejected(key, value)
		return r, len(r.Body), err
	}
	for _, err := range scan(t.Context(), j, []byte{quarantineSpace}, []byte{quarantineSpace}, decode) {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	if decoded > 3 {
		t.Errorf("%d requests were read for one", decoded)
	}
	var got []string
	for r, err := range j.Quarantined(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.ID)
	}
	if len(got) != many {
		t.Errorf("%d of %d requests were listed", len(got), many)
	}
	for i := range got {
		if got[i] != ids[i] {
			t.Errorf("request %d is %s, want %s", i, got[i], ids[i])
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range j.Quarantined(ctx, "") {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("after its context ended: %v", err)
		}
	}
}
