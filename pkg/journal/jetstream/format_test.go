package jetstream

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/postwire/postwire/internal/golden"
	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/journaltest"
	"github.com/postwire/postwire/pkg/journal/record"
)

// What one version of format 5 has stored every other one reads: they run beside
// each other.
func TestFormat(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	e := of("profile", "id")
	e.Keys = []event.Key{event.NewKey("source", "a"), event.NewKey("source", "b")}
	// Extensions have no order in a record: one is enough to tell a change.
	e.CloudEvent.SetExtension(event.Platform, nil)
	e.CloudEvent.SetExtension(event.RecordedTime, nil)
	s, err := stageOne(e)
	if err != nil {
		t.Fatal(err)
	}
	record.SetAccepted(s.record, at)
	letter := journal.DeadLetter{Seq: seqOf(7), Reason: "too_large", Err: "it is", Attempts: 2, First: at, Last: at.Add(time.Second)}
	dead, err := encodeDead(letter, s.record)
	if err != nil {
		t.Fatal(err)
	}
	rejected := journal.QuarantinedRequest{
		ID: "0190", Source: "a/b", Received: at, Method: "POST", Path: "/in", RawQuery: "q", Header: http.Header{"A": {"b"}}, Reason: "odd", Body: []byte("{"),
		Count: 2, LastReceived: at.Add(time.Second),
	}
	kept := []*nats.Msg{nats.NewMsg(""), nats.NewMsg("")}
	if kept[0].Data, err = record.AppendRejected(nil, rejected); err != nil {
		t.Fatal(err)
	}
	if kept[1], err = (receipts{ID: "0190", Bytes: 5000, Count: 2, Last: rejected.LastReceived, Token: 3}).message("s", 0); err != nil {
		t.Fatal(err)
	}
	cursor := cursorRecord{
		Owner: "a", Since: at, Epoch: 2, Renewals: 3, Token: 4, Opened: at.Add(time.Second),
		Committed: seqOf(7), StartSeq: seqOf(5), Read: seqOf(90), Open: 6, Done: map[uint64][]byte{0: {1, 20, 70}}, Pages: [][2]uint64{{2, 3}, {5, 5}},
		Retained: []retainedEvent{{uint64(seqOf(8)), 300}, {uint64(seqOf(19)), 20}}, RetainedThrough: seqOf(80),
	}
	position, err := (&Journal{names: names{"postwire"}}).recordMessage("nats", cursor, 0)
	if err != nil {
		t.Fatal(err)
	}
	made := claim{first: at.UnixNano(), token: 0x0102030405060708, seq: seqOf(7), id: "id"}
	n := names{"postwire"}
	var text strings.Builder
	for _, m := range []struct {
		subject string
		data    []byte
	}{
		{n.event(), s.record},
		{n.key(e.Keys[0]), made.encode(1)},
		{n.key(e.Keys[1]), made.encode(0)},
		{n.dead(journal.DeliveryID{Sink: "a/b", Seq: seqOf(7)}), dead},
		{n.lost("a/b"), nil},
		{n.rejected("0190"), kept[0].Data},
		{n.receipts("a/b", identity(rejected.Identity())), kept[1].Data},
		{n.value("replay/1"), nil},
		{n.cursor("nats"), position.Data},
		{n.done("nats", 3), nil},
		{n.retained("nats", seqOf(8)), s.record},
		{n.quorum("a"), nil},
		{n.lead("expire"), nil},
		{n.part(n.event()), nil},
	} {
		fmt.Fprintf(&text, "%s %s\n", m.subject, hex.EncodeToString(m.data))
	}
	golden.Check(t, "testdata/format-5.txt", text.String())

	// And back.
	r, err := record.Decode(seqOf(7), s.record)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(e.Keys, r.Event.Keys); diff != "" || !r.Accepted.Equal(at) {
		t.Errorf("accepted %v; keys (-want +got):\n%s", r.Accepted, diff)
	}
	for back, seq := range map[int]journal.Seq{1: seqOf(41), 0: seqOf(7)} {
		got, err := decodeClaim(message{seq: 42, data: made.encode(back)})
		if want := (claim{42, made.first, made.token, seq, "id"}); err != nil || got.at != want.at || got.first != want.first || got.token != want.token || got.seq != want.seq || got.id != want.id {
			t.Errorf("claim %+v, %v; want %+v", got, err, want)
		}
	}
	if got, rec, err := splitDead(dead); err != nil || got != letter || len(rec) != len(s.record) {
		t.Errorf("dead letter %+v, %v", got, err)
	}
}

// Bytes that no version has written are an error, and nothing worse.
func FuzzDecode(f *testing.F) {
	s, err := stageOne(journaltest.Event("id"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s.record)
	f.Add(claim{first: 1, token: 2, seq: 3, id: "id"}.encode(0))
	f.Add(claim{first: 1, token: 2, id: "id"}.encode(9))
	f.Add(binary.AppendUvarint(nil, 1<<40))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := decodeClaim(message{seq: 10, data: b}); err == nil && c.at != 10 {
			t.Errorf("claim %+v", c)
		}
		if _, rec, err := splitDead(b); err == nil && len(rec) > len(b) {
			t.Error("a record out of nothing")
		}
		_, _ = record.Decode(1, b)
	})
}
