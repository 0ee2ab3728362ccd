package test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// upload is a webhook whose event has the CloudEvents id that id returns.
func upload(profile, number int) []byte { return captioned(profile, number, caption) }

func captioned(profile, number int, caption string) []byte {
	return fmt.Appendf(nil, `{"event":"upload_completed","user_email":"%s","profile_username":"profile%d","platform":"instagram","media_type":"video","title":"%s","caption":"%s","result":{"success":true,"publish_id":"%d-%08d","error":null},"created_at":"2024-03-15T14:30:00.000000"}`, email, profile, title, caption, profile, number)
}

func id(profile, number int) string {
	return fmt.Sprintf("upload_completed/instagram/%d-%08d/success", profile, number)
}

// load is webhooks that come in while something breaks. Each profile waits for
// an answer before it sends its next; what was not answered with 2xx is gone.
type load struct {
	every  time.Duration // between two of a profile; 0 is as fast as answers come
	body   func(profile, number int) []byte
	base   int  // of the profiles' numbers
	steady bool // what was missed is made up for, so that the rate holds as long as the relay and the machine bear it
	twins  bool // each is posted twice at the same moment; one of the two may be a duplicate

	end     context.CancelFunc
	senders sync.WaitGroup

	began, ended time.Time

	mu     sync.Mutex
	epoch  int // odd while answers do not count
	posted int
	acked  map[string]bool
	times  []answered
	last   time.Time     // of an acknowledgement
	stall  time.Duration // longest time without one
}

// answered is the time that one webhook took.
type answered struct {
	at   time.Time // when it was sent
	took time.Duration
}

// startLoad sets profiles going.
func startLoad(t *testing.T, r endpoint, profiles int, every time.Duration, change ...func(*load)) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	now := time.Now()
	l := &load{every: every, body: upload, end: cancel, began: now, last: now, acked: map[string]bool{}}
	for _, f := range change {
		f(l)
	}
	for profile := range profiles {
		l.senders.Go(func() { l.send(ctx, t, r, profile) })
	}
	t.Cleanup(func() {
		cancel()
		l.senders.Wait()
	})
	return l
}

func (l *load) send(ctx context.Context, t *testing.T, r endpoint, profile int) {
	due := time.Now()
	for number := 0; ctx.Err() == nil; number++ {
		body := l.body(l.base+profile, number)
		l.mu.Lock()
		epoch := l.epoch
		l.posted++
		l.mu.Unlock()
		sent := time.Now()
		status, err := l.post(r, body)
		now := time.Now()
		l.mu.Lock()
		if err == nil && epoch == l.epoch && epoch%2 == 0 {
			l.acked[id(l.base+profile, number)] = true
			l.times = append(l.times, answered{sent, now.Sub(sent)})
			l.stall = max(l.stall, now.Sub(l.last))
			l.last = now
		}
		l.mu.Unlock()
		if err == nil && status != "accepted" {
			t.Errorf("%s was answered %s", id(l.base+profile, number), status)
		}
		due = due.Add(l.every)
		pause := time.Until(due)
		if err != nil {
			pause = max(pause, time.Millisecond) // the relay is away
		}
		if pause > 0 {
			time.Sleep(pause)
		} else if !l.steady {
			due = now // what was missed is not made up for
		}
	}
}

// post posts a webhook, or two that are the same at once; then the time and the
// error are those of the slower and of the one that failed.
func (l *load) post(r endpoint, body []byte) (string, error) {
	if !l.twins {
		return r.post(body)
	}
	var twin error
	var both sync.WaitGroup
	both.Go(func() { _, twin = r.post(body) })
	_, err := r.post(body)
	both.Wait()
	return "accepted", errors.Join(err, twin)
}

// stop ends the load and returns when the last answer is in.
func (l *load) stop() {
	l.end()
	l.senders.Wait()
	l.ended = time.Now()
}

// reached is how many webhooks a second were taken, from the start to the stop.
func (l *load) reached() float64 { return float64(l.acks()) / l.ended.Sub(l.began).Seconds() }

// flip begins or ends a time in which answers do not count: those of a machine
// that has lost its power, as far as the world is concerned.
func (l *load) flip() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epoch++
}

// add adds what an ended load has posted.
func (l *load) add(before *load) {
	l.posted += before.posted
	maps.Copy(l.acked, before.acked)
	l.times = append(before.times, l.times...)
}

func (l *load) acks() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// more waits for n more acknowledgements.
func (l *load) more(t *testing.T, n int) {
	t.Helper()
	moment := l.acks() + n
	eventually(t, "more events are accepted", func() bool { return l.acks() >= moment })
}

// between returns how long those took that were sent in a span of time.
func (l *load) between(from, to time.Time) (times []time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.times {
		if !a.at.Before(from) && a.at.Before(to) {
			times = append(times, a.took)
		}
	}
	return times
}

// delays returns how long the broker's first copy of each event took that was
// accepted in a span of time.
func delays(arrivals []arrival, from, to time.Time) (times []time.Duration) {
	seen := map[string]bool{}
	for _, a := range arrivals {
		if !seen[a.id] && !a.accepted.Before(from) && a.accepted.Before(to) {
			times = append(times, a.stored.Sub(a.accepted))
		}
		seen[a.id] = true
	}
	return times
}

// quantile returns the p-th part of times, 0 of none.
func quantile(times []time.Duration, p float64) time.Duration {
	if len(times) == 0 {
		return 0
	}
	slices.Sort(times)
	return times[min(len(times)-1, int(p*float64(len(times))))]
}

// tally is what came of acknowledged events at one broker.
type tally struct {
	delivered, lost, repeated int

	way time.Duration // longest time from acceptance to the broker
}

// check holds what is on a broker against what was acknowledged: nothing is
// missing, and the events of a profile stand in the order in which they were
// sent, but for those that are loose. Where once, nothing is there twice either.
func check(t *testing.T, broker string, acked map[string]bool, got []arrival, once bool, loose ...int) (sum tally) {
	t.Helper()
	seen := map[string]int{}
	last := map[string]string{} // by profile
	for _, a := range got {
		if seen[a.id]++; seen[a.id] > 1 {
			sum.repeated++
			continue
		}
		sum.delivered++
		sum.way = max(sum.way, a.stored.Sub(a.accepted))
		profile, _, _ := strings.Cut(a.id, "-")
		number, _ := strconv.Atoi(profile[strings.LastIndexByte(profile, '/')+1:])
		if a.id < last[profile] && !slices.Contains(loose, number) {
			t.Errorf("%s: %s stands behind %s", broker, a.id, last[profile])
		}
		last[profile] = a.id
	}
	for _, id := range slices.Sorted(maps.Keys(acked)) {
		if seen[id] == 0 {
			sum.lost++
			t.Errorf("%s: %s was acknowledged and never arrived", broker, id)
		}
		if once && seen[id] > 1 {
			t.Errorf("%s: %s arrived %d times", broker, id, seen[id])
		}
	}
	return sum
}
