package simulator

import (
	"context"
	"sync"

	"golang.org/x/time/rate"

	"github.com/postwire/postwire/pkg/source/uploadpost/sample"
)

// Piece configures simulated events.
type Piece struct {
	Rate     float64 // events per second
	Burst    int     // events at once, as from a published queue; below 2 is one by one
	Count    int     // number of events; 0 is until ctx is done
	Failures float64 // share of failed uploads
	Accounts float64 // share of account events
	TwoHooks bool    // each profile has its own webhook, at the URL of the account
}

// atOnce is the maximum number of deliveries in flight: a hanging webhook must neither
// delay the others for long nor pile up deliveries.
const atOnce = 256

// Play simulates events until ctx is done, or as many as the piece has, and returns after
// the last delivery.
func (s *Simulator) Play(ctx context.Context, p Piece) error {
	if p.TwoHooks {
		s.mu.Lock()
		if s.account != nil {
			for _, profile := range sample.Profiles() {
				s.profiles[profile] = &hook{url: s.account.url}
			}
		}
		s.mu.Unlock()
	}
	burst := max(1, p.Burst)
	limiter := rate.NewLimiter(rate.Limit(p.Rate), burst)
	slots := make(chan struct{}, atOnce)
	var under sync.WaitGroup
	defer under.Wait()
	for n := 0; p.Count == 0 || n < p.Count; n++ {
		if n%burst == 0 {
			if err := limiter.WaitN(ctx, burst); err != nil {
				return ctx.Err() // or the deadline is too close
			}
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		event, failed := s.next(p)
		under.Go(func() {
			defer func() { <-slots }()
			var err error
			if event == sample.UploadCompleted {
				err = s.Upload(ctx, failed)
			} else {
				err = s.Account(ctx, event)
			}
			if err != nil && ctx.Err() == nil {
				s.opts.Log.Error(err.Error())
			}
		})
	}
	return nil
}

// next chooses the next event.
func (s *Simulator) next(p Piece) (event sample.Event, failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.random.Float64() < p.Accounts {
		return sample.Events()[1+s.random.IntN(len(sample.Events())-1)], false
	}
	return sample.UploadCompleted, s.random.Float64() < p.Failures
}
