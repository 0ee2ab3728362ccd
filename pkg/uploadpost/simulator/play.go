package simulator

import (
	"context"
	"sync"

	"golang.org/x/time/rate"

	"github.com/postwire/postwire/pkg/source/uploadpost/sample"
)

// Piece is what the simulator plays.
type Piece struct {
	Rate     float64 // events a second
	Burst    int     // events at once, as when a queue is published; below 2 is one by one
	Count    int     // events in all; 0 is until ctx is done
	Failures float64 // share of uploads that fail
	Accounts float64 // share of events that are of accounts
	TwoHooks bool    // each profile has a webhook of its own, at the account's URL
}

// atOnce is how many deliveries may be under way: a hook that hangs must not
// hold up the rest for long, nor pile up without end.
const atOnce = 256

// Play lets events take place until ctx is done, or as many as the piece has, and
// returns when the last is told of.
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
				return ctx.Err() // or there is not enough time left for another
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

// next chooses what happens.
func (s *Simulator) next(p Piece) (event sample.Event, failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.random.Float64() < p.Accounts {
		return sample.Events()[1+s.random.IntN(len(sample.Events())-1)], false
	}
	return sample.UploadCompleted, s.random.Float64() < p.Failures
}
