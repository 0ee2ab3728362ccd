package journal_test

import (
	"context"
	"fmt"
	"os"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/pkg/journal/local"
)

// A journal stores an event once inside the dedupe window. A cursor reads the stored
// events, and its committed sequence survives a restart.
func Example() {
	dir, err := os.MkdirTemp("", "journal")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	j, err := local.Open(local.Options{Dir: dir, Window: time.Hour, Retention: time.Hour})
	if err != nil {
		panic(err)
	}
	defer j.Close()

	ctx := context.Background()
	ce := cloudevents.NewEvent()
	ce.SetID("evt_1")
	ce.SetSource("/billing")
	ce.SetType("com.example.invoice.paid")
	e := event.Event{CloudEvent: ce, Keys: []event.Key{event.NewKey("billing", "evt_1")}}
	for range 2 { // the sender repeats the webhook
		receipts, err := j.Append(ctx, e)
		if err != nil {
			panic(err)
		}
		fmt.Printf("sequence %d, duplicate %t\n", receipts[0].Seq, receipts[0].Duplicate)
	}

	cursor, err := j.Reader(ctx, "kafka", journal.Earliest)
	if err != nil {
		panic(err)
	}
	defer cursor.Close()
	records, err := cursor.Next(ctx, 10)
	if err != nil {
		panic(err)
	}
	for _, r := range records {
		fmt.Println("deliver", r.Event.CloudEvent.Type())
	}
	if err := cursor.Commit(ctx, journal.UpTo(records[len(records)-1].Seq)); err != nil {
		panic(err)
	}
	fmt.Println("lag", cursor.Lag())
	// Output:
	// sequence 1, duplicate false
	// sequence 1, duplicate true
	// deliver com.example.invoice.paid
	// lag 0
}
