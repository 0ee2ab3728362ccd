// Package sample makes sample webhooks of Upload-Post.
package sample

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

//go:embed example.json
var example []byte

// Example returns the documented example.
func Example() []byte { return slices.Clone(example) }

// Event is the name of a webhook event.
type Event string

// Webhook events.
const (
	UploadCompleted     Event = "upload_completed"
	AccountConnected    Event = "social_account_connected"
	AccountDisconnected Event = "social_account_disconnected"
	AccountReauth       Event = "social_account_reauth_required"
)

// Events returns all events.
func Events() []Event {
	return []Event{UploadCompleted, AccountConnected, AccountDisconnected, AccountReauth}
}

type upload struct {
	Event     Event  `json:"event"`
	Email     string `json:"user_email"`
	Profile   string `json:"profile_username"`
	JobID     string `json:"job_id"`
	Platform  string `json:"platform"`
	MediaType string `json:"media_type"`
	Title     string `json:"title"`
	Caption   string `json:"caption"`
	Result    result `json:"result"`
	CreatedAt string `json:"created_at"`
}

type result struct {
	Success   bool    `json:"success"`
	URL       string  `json:"url,omitempty"`
	PublishID string  `json:"publish_id,omitempty"`
	PostID    string  `json:"post_id,omitempty"`
	Error     *string `json:"error"`
}

type account struct {
	Event       Event  `json:"event"`
	Email       string `json:"user_email"`
	Profile     string `json:"profile_username"`
	Platform    string `json:"platform"`
	AccountName string `json:"account_name"`
	Status      string `json:"status"`
	Reason      string `json:"reason,omitempty"`
	CreatedAt   string `json:"created_at"`
}

// Profiles returns the profiles in samples.
func Profiles() []string {
	return []string{"brightside_bakery", "north.trail.runners", "studio_lumen", "marta-cooks", "café_olé", "retro games"}
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// Random returns a realistic webhook with a unique identity. Failed uploads have no IDs, as
// in real webhooks.
func Random(r *rand.Rand, event Event, failed bool, at time.Time) ([]byte, error) {
	profile := pick(r, Profiles()...)
	platform := pick(r, "instagram", "tiktok", "youtube", "facebook", "linkedin", "x", "threads", "pinterest")
	created := at.UTC().Format("2006-01-02T15:04:05.000000")
	if event != UploadCompleted {
		a := account{
			Event: event, Email: "owner@example.com", Profile: profile, Platform: platform,
			AccountName: fmt.Sprintf("%s_%04d", platform, r.IntN(10000)), CreatedAt: created,
		}
		switch event {
		case AccountDisconnected:
			a.Status = "disconnected"
			a.Reason = pick(r, "manual_disconnect", "account_blocked", "token_refresh_threshold_exceeded", "max_auth_strikes")
		case AccountReauth:
			a.Status = "reauth_required"
		default:
			a.Status = "connected"
		}
		return json.Marshal(a)
	}
	u := upload{
		Event: event, Email: "owner@example.com", Profile: profile, Platform: platform,
		JobID:     fmt.Sprintf("job_%012x", r.Uint64()>>16),
		MediaType: pick(r, "video", "photo", "text"),
		Title:     pick(r, "Five minutes, one pan", "Sunrise on the ridge 🌄", "Ça marche!", "新しい動画", "Behind the scenes"),
		Caption:   pick(r, "Check this out! #cool", "Full recipe in the comments 👩‍🍳", "Wir sind zurück — und wie.", "Part 2 of 3\nStay tuned"),
		CreatedAt: created,
	}
	if failed {
		reason := pick(r, "The access token has expired", "The video is longer than this account may post", "Rate limited by the platform")
		u.Result = result{Error: &reason}
		return json.Marshal(u)
	}
	id := fmt.Sprintf("%d", 1e16+r.Uint64N(9e16))
	u.Result = result{Success: true, PublishID: id, PostID: id, URL: "https://www." + platform + ".com/p/" + id}
	if platform == "tiktok" { // TikTok has two different IDs
		u.Result.PublishID = fmt.Sprintf("v_pub_url~v2-1.%d", r.Uint64N(9e18))
	}
	return json.Marshal(u)
}
