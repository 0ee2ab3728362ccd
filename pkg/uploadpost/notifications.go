package uploadpost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/postwire/postwire/config"
)

const notificationsPath = "/uploadposts/users/notifications"

// Channels are the enabled notification channels by name: webhook, telegram and others.
type Channels map[string]bool

// Events are the enabled webhook events. Nil enables all events.
type Events map[string]bool

// UnmarshalJSON implements json.Unmarshaler.
func (c *Channels) UnmarshalJSON(text []byte) (err error) {
	*c, err = choice("channels", text)
	return err
}

// UnmarshalJSON implements json.Unmarshaler.
func (e *Events) UnmarshalJSON(text []byte) (err error) {
	*e, err = choice("webhook_events", text)
	return err
}

// choice decodes the two shapes of a choice: an object of booleans, or a list of names.
func choice(field string, text []byte) (map[string]bool, error) {
	if text[0] != '[' {
		var object map[string]bool
		err := json.Unmarshal(text, &object)
		return object, inField(field, err)
	}
	var names []string
	if err := json.Unmarshal(text, &names); err != nil {
		return nil, inField(field, err)
	}
	list := map[string]bool{}
	for _, name := range names {
		list[name] = true
	}
	return list, nil
}

// inField adds the name of the field to an error, because the decoder loses the name.
func inField(name string, err error) error {
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		e.Field = strings.Trim(name+"."+e.Field, ".")
	}
	return err
}

// Names returns the enabled events, sorted.
func (e Events) Names() []string {
	var on []string
	for _, name := range slices.Sorted(maps.Keys(e)) {
		if e[name] {
			on = append(on, name)
		}
	}
	return on
}

// Notifications are the settings of an account.
type Notifications struct {
	Channels        Channels      `json:"channels"`
	WebhookURL      string        `json:"webhook_url"`
	WebhookEvents   Events        `json:"webhook_events"`
	WebhookSecret   config.Secret `json:"webhook_secret"` // signs webhooks; empty until the service has made a secret
	TelegramChatID  string        `json:"telegram_chat_id"`
	SlackWebhookURL config.Secret `json:"slack_webhook_url"` // a secret: the URL permits posting
	WhatsAppToPhone string        `json:"whatsapp_to_phone"`
}

// Change is a change of settings. A nil field stays unchanged.
type Change struct {
	Channels       Channels `json:"channels,omitempty"`
	WebhookURL     *string  `json:"webhook_url,omitempty"`
	WebhookEvents  Events   `json:"webhook_events,omitempty"` // as an object, which every version of the service accepts
	TelegramChatID *string  `json:"telegram_chat_id,omitempty"`
}

// notifications is an answer with the settings, which have two names.
type notifications struct {
	Notifications *Notifications `json:"notifications"`
	Config        *Notifications `json:"config"`
}

func (n notifications) settings() Notifications {
	switch {
	case n.Notifications != nil:
		return *n.Notifications
	case n.Config != nil:
		return *n.Config
	}
	return Notifications{}
}

// Notifications reads the settings.
func (c *Client) Notifications(ctx context.Context) (Notifications, error) {
	var out notifications
	err := c.call(ctx, freely, http.MethodGet, notificationsPath, nil, nil, &out)
	return out.settings(), err
}

// SetNotifications changes the settings. Read the settings to see the result.
func (c *Client) SetNotifications(ctx context.Context, change Change) error {
	return c.call(ctx, freely, http.MethodPost, notificationsPath, nil, change, nil)
}

// DeleteNotifications deletes all settings, also those of other channels.
func (c *Client) DeleteNotifications(ctx context.Context) error {
	return c.call(ctx, freely, http.MethodDelete, notificationsPath, nil, nil, nil)
}

// TestNotifications asks the service to send a test through the enabled channels.
func (c *Client) TestNotifications(ctx context.Context) error {
	return c.call(ctx, once, http.MethodPost, notificationsPath+"/test", nil, struct{}{}, nil)
}

// RotateSecret makes the service create a new signing secret, effective at once, and
// returns the secret. RotateSecret does not retry a call with an unknown outcome: read the
// settings after an error.
func (c *Client) RotateSecret(ctx context.Context) (config.Secret, error) {
	var out struct {
		notifications
		WebhookSecret config.Secret `json:"webhook_secret"`
		Secret        config.Secret `json:"secret"`
	}
	if err := c.call(ctx, once, http.MethodPost, "/uploadposts/users/webhook-secret", nil, struct{}{}, &out); err != nil {
		return "", err
	}
	for _, secret := range []config.Secret{out.WebhookSecret, out.Secret, out.settings().WebhookSecret} {
		if secret != "" {
			return secret, nil
		}
	}
	settings, err := c.Notifications(ctx) // the answer does not contain the secret
	if err != nil {
		return "", fmt.Errorf("the secret was rotated, and cannot be read: %w", err)
	}
	return settings.WebhookSecret, nil
}

const profilePath = "/uploadposts/users/profile-webhook"

// ProfileWebhook is the webhook of one profile, besides the webhook of the account.
type ProfileWebhook struct {
	Profile       string `json:"profile_username"`
	WebhookURL    string `json:"webhook_url"`
	WebhookEvents Events `json:"webhook_events,omitempty"`
}

// ProfileWebhook reads the webhook of a profile. Its URL is empty without a webhook.
func (c *Client) ProfileWebhook(ctx context.Context, profile string) (ProfileWebhook, error) {
	var out struct {
		ProfileWebhook
		Nested *ProfileWebhook `json:"profile_webhook"`
	}
	err := c.call(ctx, freely, http.MethodGet, profilePath, url.Values{"profile_username": {profile}}, nil, &out)
	if isNotFound(err) {
		return ProfileWebhook{Profile: profile}, nil
	}
	if out.Nested != nil {
		out.ProfileWebhook = *out.Nested
	}
	out.Profile = profile
	return out.ProfileWebhook, err
}

// SetProfileWebhook sets the webhook of a profile.
func (c *Client) SetProfileWebhook(ctx context.Context, w ProfileWebhook) error {
	return c.call(ctx, freely, http.MethodPost, profilePath, nil, w, nil)
}

// DeleteProfileWebhook deletes the webhook of a profile.
func (c *Client) DeleteProfileWebhook(ctx context.Context, profile string) error {
	err := c.call(ctx, freely, http.MethodDelete, profilePath, url.Values{"profile_username": {profile}}, map[string]string{"profile_username": profile}, nil)
	if isNotFound(err) {
		return nil
	}
	return err
}
