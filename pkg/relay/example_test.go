package relay_test

import (
	"context"
	"fmt"
	"os"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/event"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/pkg/relay"
	"github.com/postwire/postwire/sinks"
)

// printer is a sink that prints the types of events.
type printer struct{ delivered chan struct{} }

func (p printer) Deliver(_ context.Context, events []event.Event) error {
	for _, e := range events {
		fmt.Println("delivered", e.CloudEvent.Type())
	}
	close(p.delivered)
	return nil
}

func (printer) Destination(event.Event) sinks.Destination { return sinks.Destination{} }
func (printer) Close() error                              { return nil }

// A relay delivers the events of a journal that the filter of a sink matches.
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

	sink := printer{delivered: make(chan struct{})}
	settings := sinks.DefaultSettings()
	settings.Filter = `type == "com.example.invoice.paid"`
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, err := relay.New(ctx, relay.Options{
		Journal: j, Log: zap.NewNop(), Metrics: relay.NewMetrics(prometheus.NewRegistry()),
		Sinks: []sinks.Configured{{
			Name: "printer", Settings: settings,
			Open: func(context.Context, sinks.Env) (sinks.Sink, error) { return sink, nil },
		}},
	})
	if err != nil {
		panic(err)
	}
	ended := make(chan error)
	go func() { ended <- r.Run(ctx, context.Background()) }()

	for i, eventType := range []string{"com.example.invoice.created", "com.example.invoice.paid"} {
		ce := cloudevents.NewEvent()
		ce.SetID(fmt.Sprint(i))
		ce.SetSource("/billing")
		ce.SetType(eventType)
		if _, err := j.Append(ctx, event.Event{CloudEvent: ce, Keys: []event.Key{event.NewKey("billing", ce.ID())}}); err != nil {
			panic(err)
		}
	}
	<-sink.delivered
	cancel() // graceful shutdown: batches in flight complete
	if err := <-ended; err != nil {
		panic(err)
	}
	if err := r.Close(); err != nil {
		panic(err)
	}
	// Output: delivered com.example.invoice.paid
}

// Limits implements sinks.Sink.
func (printer) Limits() sinks.Limits { return sinks.Limits{} }
