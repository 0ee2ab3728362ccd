package bench

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var caption = strings.Repeat("Lorem ipsum dolor sit amet. ", 12)

// webhook is a payload of about 700 bytes, each an event of its own.
func webhook(number int64) []byte { return appendWebhook(nil, number) }

func appendWebhook(b []byte, number int64) []byte {
	return fmt.Appendf(b, `{"event":"upload_completed","user_email":"user@example.com","profile_username":"profile%d","platform":"instagram","media_type":"video","title":"My Awesome Video","caption":"%s","result":{"success":true,"url":"https://www.instagram.com/p/%d/","publish_id":"%d","post_id":"%d","error":null},"created_at":"2024-03-15T14:30:00.000000"}`, number%100, caption, number, number, number)
}

// load is what a fleet of senders over kept connections achieves.
type load struct {
	perSecond      float64
	p50, p99, p999 time.Duration
}

// summarize makes a load of the times of each sender.
func summarize(tb testing.TB, times [][]time.Duration, took time.Duration) load {
	tb.Helper()
	all := slices.Concat(times...)
	if len(all) == 0 {
		tb.Fatal("nothing was measured")
	}
	slices.Sort(all)
	at := func(p float64) time.Duration { return all[int(p*float64(len(all)-1))] }
	return load{float64(len(all)) / took.Seconds(), at(.5), at(.99), at(.999)}
}

// sender is one kept connection. It costs less than net/http's client, whose
// own work would hide what the servers' differ in.
type sender struct {
	conn      net.Conn
	answers   *bufio.Reader
	head      string
	body, out []byte
}

func newSender(to string) (*sender, error) {
	u, err := url.Parse(to)
	if err != nil {
		return nil, err
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		return nil, err
	}
	head := "POST " + u.RequestURI() + " HTTP/1.1\r\nHost: " + u.Host + "\r\nUser-Agent: bench\r\nContent-Type: application/json\r\nContent-Length: "
	return &sender{conn: conn, answers: bufio.NewReader(conn), head: head}, nil
}

// request is a webhook as it is sent, until the next call.
func (s *sender) request(number int64) []byte {
	s.body = appendWebhook(s.body[:0], number)
	s.out = fmt.Appendf(append(s.out[:0], s.head...), "%d\r\n\r\n", len(s.body))
	s.out = append(s.out, s.body...)
	return s.out
}

// post sends a webhook and waits for its 2xx.
func (s *sender) post(number int64) error {
	if _, err := s.conn.Write(s.request(number)); err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	resp, err := http.ReadResponse(s.answers, nil)
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("answered %s", resp.Status)
	}
	return nil
}

// fleet runs senders until each has returned.
func fleet(tb testing.TB, to string, connections int, send func(s *sender, nth int) error) {
	tb.Helper()
	var all sync.WaitGroup
	for nth := range connections {
		s, err := newSender(to)
		if err != nil {
			tb.Fatal(err)
		}
		all.Go(func() {
			defer s.conn.Close()
			if err := send(s, nth); err != nil {
				tb.Errorf("%s: %v", to, err)
			}
		})
	}
	all.Wait()
	if tb.Failed() {
		tb.FailNow()
	}
}

// closed posts n webhooks, each as soon as the one before it on its connection
// is answered.
func closed(tb testing.TB, to string, connections, n int, next *atomic.Int64) load {
	tb.Helper()
	var left atomic.Int64
	left.Store(int64(n))
	times := make([][]time.Duration, connections)
	start := time.Now()
	fleet(tb, to, connections, func(s *sender, nth int) error {
		for left.Add(-1) >= 0 {
			number, began := next.Add(1), time.Now()
			if err := s.post(number); err != nil {
				return err
			}
			times[nth] = append(times[nth], time.Since(began))
		}
		return nil
	})
	return summarize(tb, times, time.Since(start))
}

// paced posts at a rate for a time, whether or not what was sent before is
// answered, as long as one of many connections is free. Each time counts from
// the moment at which the webhook was due: a relay that stalls is not spared
// those that had to wait meanwhile. sent is told each number when it was due.
func paced(tb testing.TB, to string, perSecond float64, lasting time.Duration, next *atomic.Int64, sent func(number int64, due time.Time)) {
	tb.Helper()
	const connections = 64
	var nth atomic.Int64
	total := int64(perSecond * lasting.Seconds())
	start := time.Now()
	fleet(tb, to, connections, func(s *sender, _ int) error {
		for {
			i := nth.Add(1) - 1
			if i >= total {
				return nil
			}
			due := start.Add(time.Duration(float64(i) / perSecond * float64(time.Second)))
			if wait := time.Until(due); wait > 0 {
				time.Sleep(wait)
				due = time.Now() // the timer's own lateness is not the relay's
			}
			number := next.Add(1)
			sent(number, due)
			if err := s.post(number); err != nil {
				return err
			}
		}
	})
}

// numbers are those of the webhooks of a load. No two loads share one: another
// relay keeps its journal from one to the next, and drops what it has seen.
func numbers() *atomic.Int64 {
	var next atomic.Int64
	next.Store(time.Now().UnixMicro())
	return &next
}
