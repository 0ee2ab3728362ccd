package app

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	client "github.com/postwire/postwire/pkg/uploadpost"
)

// oneService answers requests of a client itself.
type oneService struct {
	secret atomic.Pointer[string]
	asked  atomic.Int64
}

func (s *oneService) RoundTrip(r *http.Request) (*http.Response, error) {
	s.asked.Add(1)
	answer := httptest.NewRecorder()
	answer.Header().Set("Content-Type", "application/json")
	err := json.NewEncoder(answer).Encode(map[string]any{"success": true, "notifications": map[string]any{"webhook_secret": *s.secret.Load()}})
	resp := answer.Result()
	resp.Request = r
	return resp, err
}

// TestADoubtIsAnsweredWhoeverDoubts: while a stranger sends wrong signatures all the
// time, a secret that the service rotates is known before those who were held for it
// are let go, and the service is not asked more often than it may be.
func TestADoubtIsAnsweredWhoeverDoubts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &oneService{}
		set := func(secret string) { service.secret.Store(&secret) }
		set("whsec_0123456789abcdef0")
		api, err := client.New(client.Options{BaseURL: "https://service.example.com/api", APIKey: "key", Transport: service})
		if err != nil {
			t.Fatal(err)
		}
		s := newSecrets(time.Now, zap.NewNop())
		s.scrub = &config.Scrubber{}
		s.change = func(string) {}
		s.setSources(map[string]*apis{"source": {secret: api}})
		go s.run(t.Context())
		synctest.Wait()
		began, before := time.Now(), service.asked.Load()
		for i := range 20 {
			for range 5 { // forged ones, every two seconds
				time.Sleep(2 * time.Second)
				s.requestRead("source")
			}
			secret := "whsec_0123456789abcdef" + string(rune('a'+i))
			set(secret)
			next := time.Now().Add(s.requestRead("source"))
			for time.Now().Before(next) && string(s.of("source").current(time.Now())[0]) != secret {
				time.Sleep(100 * time.Millisecond)
			}
			if got := s.of("source").current(time.Now())[0]; string(got) != secret {
				t.Fatalf("rotation %d was not seen while the webhook was held", i)
			}
		}
		if asked, most := service.asked.Load()-before, int64(time.Since(began)/askEvery)+askBurst; asked > most {
			t.Errorf("the service was asked %d times, at most %d are allowed", asked, most)
		}
	})
}
