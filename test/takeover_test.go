package test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestTakeOver replaces the relay by another process again and again while webhooks come in.
// No webhook is refused, no connection is cut, and each event is delivered once, in order.
func TestTakeOver(t *testing.T) {
	w := newWorld(t)
	r := start(t, strings.Replace(w.config, "shutdown_delay: 0s", "shutdown_delay: 300ms", 1))
	const profiles, rate = 20, 200 // webhooks per second
	l := startLoad(t, r.endpoint, profiles, profiles*time.Second/rate)
	for range pick(3, 20) {
		l.more(t, rate/4)
		before := r
		r = &postwire{endpoint: before.endpoint, config: before.config, args: []string{"--takeover"}, secret: newPrivate()}
		r.launch(t)
		t.Cleanup(func() {
			if r.cmd.ProcessState == nil {
				r.kill(t)
			}
		})
		if err := <-before.exited; err != nil {
			t.Fatalf("the relay that was replaced: %v", err)
		}
		r.ready(t)
		l.more(t, rate/4)
	}
	l.stop()
	l.mu.Lock()
	if refused := l.posted - len(l.acked); refused > 0 {
		t.Errorf("%d of %d webhooks were refused", refused, l.posted)
	}
	t.Logf("%d webhooks, the longest time without an answer was %v", l.posted, l.stall)
	l.mu.Unlock()
	w.settled(t, r.endpoint)
	for sink, got := range map[string][]arrival{"nats": w.onNATS(t), "kafka": w.onKafka(t)} {
		check(t, sink, l.acked, got, true)
	}
	if err := r.stop(t); err != nil {
		t.Fatal(err)
	}

	// Without a relay to take over from it starts as always.
	r.start(t)
	second := exec.Command(program, "serve", "-c", r.config)
	second.Env = os.Environ()
	for name, value := range r.env() {
		second.Env = append(second.Env, name+"="+value)
	}
	out, err := second.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--takeover") {
		t.Errorf("a second relay without --takeover: %v\n%s", err, out)
	}
}
