package simulator

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/postwire/postwire/pkg/uploadpost"
)

// maxRequest is the maximum size of a request in bytes.
const maxRequest = 1 << 20

// Handler serves the API below /api.
func (s *Simulator) Handler() http.Handler {
	mux := http.NewServeMux()
	const users = "/api/uploadposts/users/"
	mux.HandleFunc("GET "+users+"notifications", s.getNotifications)
	mux.HandleFunc("POST "+users+"notifications", s.setNotifications)
	mux.HandleFunc("DELETE "+users+"notifications", s.deleteNotifications)
	mux.HandleFunc("POST "+users+"notifications/test", s.testNotifications)
	mux.HandleFunc("POST "+users+"webhook-secret", s.rotateSecret)
	mux.HandleFunc("GET "+users+"profile-webhook", s.getProfileWebhook)
	mux.HandleFunc("POST "+users+"profile-webhook", s.setProfileWebhook)
	mux.HandleFunc("DELETE "+users+"profile-webhook", s.deleteProfileWebhook)
	mux.HandleFunc("GET /api/uploadposts/history", s.getHistory)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
		if s.odd(w, r) {
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// odd answers instead of the API if a quirk applies or the key is wrong.
func (s *Simulator) odd(w http.ResponseWriter, r *http.Request) bool {
	s.mu.Lock()
	s.requests++
	n, q := s.requests, s.opts.Quirks
	s.mu.Unlock()
	switch {
	case q.WebPages:
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write([]byte("<!doctype html><html><title>Upload-Post</title></html>"))
	case q.NotAllowed && strings.HasSuffix(r.URL.Path, "/notifications"):
		refuse(w, http.StatusMethodNotAllowed, "Method Not Allowed")
	case q.LimitEvery > 0 && n%q.LimitEvery == 0:
		if n%(2*q.LimitEvery) == 0 {
			w.Header().Set("Retry-After", "1")
		} else {
			w.Header().Set("X-RateLimit-Remaining", "0")
			w.Header().Set("X-RateLimit-Reset", strconv.FormatInt(s.opts.Now().Add(time.Second).Unix(), 10))
		}
		refuse(w, http.StatusTooManyRequests, "Too many requests")
	case q.FailEvery > 0 && n%q.FailEvery == 0:
		refuse(w, http.StatusServiceUnavailable, "Try again later")
	case !s.knows(r.Header.Get("Authorization")):
		refuse(w, http.StatusUnauthorized, "Invalid API key")
	default:
		return false
	}
	return true
}

func (s *Simulator) knows(authorization string) bool {
	key, ok := strings.CutPrefix(authorization, "Apikey ")
	return ok && key != "" && (s.opts.APIKey == "" || key == s.opts.APIKey.Reveal())
}

func reply(w http.ResponseWriter, body map[string]any) {
	body["success"] = true
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body) // the client has disconnected
}

func refuse(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"success": false, "message": message}) // the client has disconnected
}

// shown returns the settings as the API shows them. The caller holds mu.
func (s *Simulator) shown() map[string]any {
	url := ""
	if s.account != nil {
		url = s.account.url
	}
	n := map[string]any{
		"channels": maps.Clone(s.settings.channels), "webhook_url": url, "webhook_events": s.shownEvents(s.settings.events),
		"telegram_chat_id": s.settings.telegram, "slack_webhook_url": s.settings.slack, "whatsapp_to_phone": s.settings.whatsapp,
	}
	if s.settings.secret != "" {
		n["webhook_secret"] = s.settings.secret.Reveal()
	}
	return n
}

// shownEvents returns a choice of events in the configured shape.
func (s *Simulator) shownEvents(events map[string]bool) any {
	if !s.opts.Quirks.EventsAsList {
		if events == nil {
			return map[string]bool{}
		}
		return events
	}
	names := []string{}
	for _, name := range slices.Sorted(maps.Keys(events)) {
		if events[name] {
			names = append(names, name)
		}
	}
	return names
}

func (s *Simulator) settingsKey() string {
	if s.opts.Quirks.ConfigKey {
		return "config"
	}
	return "notifications"
}

func (s *Simulator) getNotifications(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	reply(w, map[string]any{s.settingsKey(): s.shown()})
}

func (s *Simulator) setNotifications(w http.ResponseWriter, r *http.Request) {
	var change struct {
		Channels   uploadpost.Channels `json:"channels"`
		WebhookURL *string             `json:"webhook_url"`
		Events     *uploadpost.Events  `json:"webhook_events"`
		Telegram   *string             `json:"telegram_chat_id"`
		Slack      *string             `json:"slack_webhook_url"`
		WhatsApp   *string             `json:"whatsapp_to_phone"`
	}
	if err := json.NewDecoder(r.Body).Decode(&change); err != nil {
		refuse(w, http.StatusBadRequest, "The body is not what was expected")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.settings.channels, change.Channels)
	if change.Events != nil {
		s.settings.events = *change.Events
	}
	if change.WebhookURL != nil {
		s.setAccount(*change.WebhookURL)
	}
	for _, text := range []struct {
		to   *string
		from *string
	}{{&s.settings.telegram, change.Telegram}, {&s.settings.slack, change.Slack}, {&s.settings.whatsapp, change.WhatsApp}} {
		if text.from != nil {
			*text.to = *text.from
		}
	}
	reply(w, map[string]any{s.settingsKey(): s.shown()})
}

func (s *Simulator) deleteNotifications(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.account = nil
	s.settings = settings{channels: map[string]bool{"webhook": false, "telegram": false}, secret: s.settings.secret}
	reply(w, map[string]any{})
}

// testNotifications sends a test to the account's webhook, and does not wait for its
// answer.
func (s *Simulator) testNotifications(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	h := s.account
	on := h != nil && s.settings.channels["webhook"]
	body := fmt.Sprintf(`{"event":"test_notification","user_email":"owner@example.com","message":"This is a test","created_at":%q}`,
		s.opts.Now().UTC().Format("2006-01-02T15:04:05.000000"))
	s.mu.Unlock()
	if !on {
		refuse(w, http.StatusBadRequest, "No notification channel is enabled")
		return
	}
	ctx := context.WithoutCancel(r.Context())
	go s.deliver(ctx, h, "test_notification", []byte(body))
	reply(w, map[string]any{"message": "Test notification sent"})
}

func (s *Simulator) rotateSecret(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settings.secret = newSecret()
	reply(w, map[string]any{"webhook_secret": s.settings.secret.Reveal()})
}

func (s *Simulator) getProfileWebhook(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := r.URL.Query().Get("profile_username")
	h := s.profiles[name]
	if h == nil {
		refuse(w, http.StatusNotFound, "This profile has no webhook")
		return
	}
	reply(w, map[string]any{"profile_username": name, "webhook_url": h.url, "webhook_events": s.shownEvents(h.events)})
}

func (s *Simulator) setProfileWebhook(w http.ResponseWriter, r *http.Request) {
	var p uploadpost.ProfileWebhook
	if err := json.NewDecoder(r.Body).Decode(&p); err != nil || p.Profile == "" || p.WebhookURL == "" {
		refuse(w, http.StatusBadRequest, "profile_username and webhook_url are needed")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.profiles[p.Profile] = &hook{url: p.WebhookURL, events: p.WebhookEvents}
	if s.settings.secret == "" {
		s.settings.secret = newSecret()
	}
	reply(w, map[string]any{"profile_username": p.Profile, "webhook_url": p.WebhookURL})
}

func (s *Simulator) deleteProfileWebhook(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.profiles, r.URL.Query().Get("profile_username"))
	reply(w, map[string]any{})
}

func (s *Simulator) getHistory(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	page, err1 := strconv.Atoi(cmp.Or(q.Get("page"), "1"))
	limit, err2 := strconv.Atoi(cmp.Or(q.Get("limit"), "20"))
	if err1 != nil || err2 != nil || page < 1 || !slices.Contains([]int{10, 20, 50, 100}, limit) {
		refuse(w, http.StatusBadRequest, "limit must be one of 10, 20, 50, 100")
		return
	}
	start, end, ok := span(q.Get("start"), q.Get("end"))
	if !ok {
		refuse(w, http.StatusBadRequest, "start and end must be dates, at most two months apart")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rows := []map[string]any{}
	for _, e := range slices.Backward(s.history) { // newest first
		switch {
		case !start.IsZero() && e.at.Before(start), !end.IsZero() && e.at.After(end),
			e.at.After(s.opts.Now().Add(-s.opts.Quirks.LateHistory)),
			q.Get("platform") != "" && q.Get("platform") != e.body.Platform,
			q.Get("profile_username") != "" && q.Get("profile_username") != e.body.Profile,
			q.Get("request_id") != "" && q.Get("request_id") != e.requestID,
			q.Get("job_id") != "" && q.Get("job_id") != e.body.JobID,
			q.Get("status") == "success" && !e.body.Result.Success, q.Get("status") == "failed" && e.body.Result.Success:
			continue
		}
		rows = append(rows, s.row(e))
	}
	total := len(rows)
	rows = rows[min(total, (page-1)*limit):min(total, page*limit)]
	reply(w, map[string]any{
		cmp.Or(s.opts.Quirks.HistoryKey, "history"): rows, "page": page, "limit": limit, "total": total,
	})
}

// span parses the ends of a query; either may be missing.
func span(start, end string) (from, to time.Time, ok bool) {
	read := func(text string) (time.Time, bool) {
		if text == "" {
			return time.Time{}, true
		}
		for _, layout := range []string{time.RFC3339, time.DateOnly} {
			if at, err := time.Parse(layout, text); err == nil {
				return at, true
			}
		}
		return time.Time{}, false
	}
	from, ok1 := read(start)
	to, ok2 := read(end)
	if !ok1 || !ok2 {
		return from, to, false
	}
	return from, to, from.IsZero() || to.IsZero() || to.Sub(from) <= 62*24*time.Hour
}

// row returns an upload as an entry of the history.
func (s *Simulator) row(e entry) map[string]any {
	r := e.body.Result
	row := map[string]any{
		"platform": e.body.Platform, "success": r.Success, "platform_post_id": nil, "post_url": nil, "error_message": nil,
		"media_type": e.body.MediaType, "upload_timestamp": e.at.UTC().Format("2006-01-02T15:04:05.000000"),
		"request_id": e.requestID, "job_id": e.body.JobID, "external_id": nil, "profile_username": e.body.Profile,
	}
	if id := cmp.Or(r.PostID, r.PublishID); id != "" {
		row["platform_post_id"] = id
		if s.opts.Quirks.PostIDLists {
			row["platform_post_id"] = []string{id}
		}
	}
	if r.URL != "" {
		row["post_url"] = r.URL
	}
	if r.Error != "" {
		row["error_message"] = r.Error
	}
	return row
}
