// Package relay is the fourth step (ingress, source, journal, relay, sinks): a
// pump for each sink, which reads from its own cursor, filters, delivers,
// retries, and sets aside what can never be delivered. One sink's trouble
// touches neither another nor the ingress.
package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/pkg/journal"
	"github.com/postwire/postwire/sinks"
)

// Options of a Relay. Journal, Log and Metrics are needed.
type Options struct {
	Journal journal.Journal
	Sinks   []sinks.Configured
	Log     *zap.Logger
	Metrics *Metrics
	Now     func() time.Time                                                  // nil is time.Now
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error) // nil is the network
}

// Relay is the pumps of all sinks.
type Relay struct {
	pumps   []*Pump
	cursors []journal.Cursor
}

// New opens a cursor for each sink. From then on the journal keeps what the
// sink has not been given.
func New(ctx context.Context, opts Options) (*Relay, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Dial == nil {
		opts.Dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	r := &Relay{}
	for _, out := range opts.Sinks {
		filter, err := ParseFilter(out.Settings.Filter)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("sink %s: filter: %w", out.Name, err), r.Close())
		}
		start := journal.Latest
		if out.Settings.Start == "earliest" {
			start = journal.Earliest
		}
		cursor, err := opts.Journal.Reader(ctx, out.Name, start)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("sink %s: %w", out.Name, err), r.Close())
		}
		r.cursors = append(r.cursors, cursor)
		log := opts.Log.With(zap.String("sink", out.Name))
		r.pumps = append(r.pumps, &Pump{
			name: out.Name, settings: out.Settings, filter: filter, cursor: cursor, open: out.Open, log: log,
			env:     sinks.Env{Name: out.Name, Log: log, Dial: opts.Dial, Now: opts.Now},
			metrics: opts.Metrics.sink(out.Name, opts.Journal, cursor, opts.Now),
		})
	}
	return r, nil
}

// Run runs all pumps until ctx is done; what is with a broker at that moment
// may take until hard is done. When a pump fails, as it does only when the
// journal is broken, the others end too.
func (r *Relay) Run(ctx, hard context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(r.pumps))
	var pumps sync.WaitGroup
	for i, p := range r.pumps {
		pumps.Go(func() {
			if errs[i] = p.Run(ctx, hard); errs[i] != nil {
				cancel()
			}
		})
	}
	pumps.Wait()
	return errors.Join(errs...)
}

// Close closes the cursors.
func (r *Relay) Close() error {
	var errs []error
	for _, c := range r.cursors {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
