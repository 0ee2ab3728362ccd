package app

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/uploadpost"
	client "github.com/postwire/postwire/pkg/uploadpost"
)

const (
	// The service is asked at most so often when signatures stop matching, in
	// the long run: whoever sends a wrong one must not make us ask it all the
	// time. A few more are for those who came a moment too early to see the
	// secret that was just read.
	askEvery = time.Minute
	askBurst = 3
	// After an attempt that failed it is asked again by itself, so that a
	// webhook which is held meanwhile need not be refused.
	askAgain = 2 * time.Second
	// askFor is how long a webhook is held while the service is asked.
	askFor = 5 * time.Second
	// overlap is how long the secret before the last one is still taken:
	// webhooks that were signed with it may be on their way.
	overlap = time.Hour
)

// secrets are those of sources that read theirs from the sender's API.
type secrets struct {
	log     *zap.Logger
	now     func() time.Time
	sources map[string]*secret
	change  func(name string) // a source has another secret now
}

// secret is that of one source.
type secret struct {
	ask chan struct{} // asks for a look

	mu       sync.Mutex
	api      *client.Client
	last     config.Secret // empty until it could be read
	previous config.Secret
	rotated  time.Time // when previous was the last one
	asking   bool      // a look is asked for, or under way
	limiter  *rate.Limiter
	failed   bool // the last attempt
}

func newSecrets(p *Plan, now func() time.Time, log *zap.Logger) (*secrets, error) {
	s := &secrets{log: log, now: now, sources: map[string]*secret{}}
	for _, src := range p.Sources {
		if own, ok := fromAPI(src); ok {
			api, err := client.New(client.Options{BaseURL: own.API.URL, APIKey: own.API.Key, Timeout: askFor, Attempts: 1})
			if err != nil {
				return nil, fmt.Errorf("source %s: api: %w", src.Name, err)
			}
			s.sources[src.Name] = &secret{api: api, ask: make(chan struct{}, 1), asking: true, limiter: newAskLimiter()}
		}
	}
	return s, nil
}

func newAskLimiter() *rate.Limiter { return rate.NewLimiter(rate.Every(askEvery), askBurst) }

// fromAPI returns the configuration of a source that reads its secret from the
// sender's API.
func fromAPI(s source.Configured) (uploadpost.Config, bool) {
	own, ok := s.Own.(uploadpost.Config)
	return own, ok && own.Auth.Signature != nil && own.Auth.Signature.FromAPI
}

// open opens a source with the secrets that are known by now.
func (s *secrets) open(p *Plan, src source.Configured) (source.Source, error) {
	own, ok := fromAPI(src)
	known := s.sources[src.Name]
	if !ok || known == nil {
		return src.Open(p.sourceEnv(src))
	}
	signature := *own.Auth.Signature
	signature.Secrets = slices.Concat(known.current(s.now()), signature.Secrets)
	own.Auth.Signature = &signature
	return uploadpost.New(own, p.sourceEnv(src))
}

// current is what signatures may be made with now.
func (k *secret) current(now time.Time) (all []config.Secret) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last != "" {
		all = append(all, k.last)
	}
	if k.previous != "" && now.Sub(k.rotated) < overlap {
		all = append(all, k.previous)
	}
	return all
}

// doubt asks for a look where one is due, and returns how long it is worth
// waiting for.
func (s *secrets) doubt(name string) time.Duration {
	k := s.sources[name]
	if k == nil {
		return 0
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failed || k.asking {
		return askFor
	}
	if !k.limiter.AllowN(s.now(), 1) {
		return 0
	}
	k.asking = true
	k.ask <- struct{}{} // it has room: nobody else asks
	return askFor
}

// run reads the secrets at once, and again when they are in doubt, until ctx is
// done.
func (s *secrets) run(ctx context.Context) {
	var all sync.WaitGroup
	for name, k := range s.sources {
		all.Go(func() {
			for {
				var again <-chan time.Time // never, unless it failed
				if !s.read(ctx, name, k) {
					again = time.After(askAgain)
				}
				select {
				case <-k.ask:
				case <-again:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	all.Wait()
}

// read reads a secret, lets the source have it if it is another one, and reports
// whether there is one.
func (s *secrets) read(ctx context.Context, name string, k *secret) bool {
	settings, err := k.api.Notifications(ctx)
	if ctx.Err() != nil {
		return true // it is over
	}
	k.mu.Lock()
	failedBefore := k.failed
	k.asking, k.failed = false, err != nil || settings.WebhookSecret == ""
	failed := k.failed
	changed := !failed && settings.WebhookSecret != k.last
	if changed {
		k.previous, k.last, k.rotated = k.last, settings.WebhookSecret, s.now()
		k.limiter = newAskLimiter() // who rotates may do so again
	}
	k.mu.Unlock()
	log := s.log.With(zap.String("source", name))
	switch {
	case failed && failedBefore: // it has been said
	case err != nil:
		log.Error("the signing secret cannot be read from the sender's API; it is tried again until it can", zap.Error(err))
	case settings.WebhookSecret == "":
		log.Error("the sender's API tells no signing secret; it makes one when a webhook is saved: see 'postwire register'")
	case changed:
		s.change(name)
		log.Info("the signing secret was read from the sender's API")
	}
	return !failed
}
