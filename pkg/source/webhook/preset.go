package webhook

import (
	"maps"

	"github.com/postwire/postwire/pkg/source/auth"
)

// preset returns the mapping of a known sender, and false for an unknown preset. Package
// auth has the signature format of the same name.
func preset(name auth.Preset) (c Config, ok bool) {
	switch name {
	case auth.GitHub: // as in the CloudEvents adapter for GitHub, except that source is the page of the repository
		return Config{
			Form: "payload", // GitHub can send webhooks as forms
			Event: Mapping{
				Type: `"com.github." + headers["x-github-event"] + (has(body.action) ? "." + body.action : "")`,
				Source: `has(body.repository) ? body.repository.html_url` +
					` : has(body.organization) ? "https://github.com/" + body.organization.login : "https://github.com"`,
				Subject: `has(body.pull_request) ? string(body.pull_request.number)` +
					` : has(body.issue) ? string(body.issue.number) : has(body.ref) ? body.ref : null`,
				ID:           `headers["x-github-delivery"]`,
				PartitionKey: `has(body.repository) ? body.repository.full_name : body.organization.login`,
			},
		}, true
	case auth.Stripe: // snapshot events, and thin events, which name the object in related_object
		return Config{Event: Mapping{
			Type:         `"com.stripe." + body.type`,
			Source:       `has(body.account) ? "https://stripe.com/accounts/" + body.account : "https://stripe.com"`,
			Subject:      `body.?data.?object.?id.or(body.?related_object.?id)`,
			ID:           `body.id`,
			Time:         `body.created`,
			PartitionKey: `body.?data.?object.?id.or(body.?related_object.?id)`,
		}}, true
	case auth.StandardWebhooks: // svix-id is the older name of the header
		return Config{Event: Mapping{
			Type: `body.type`,
			ID:   `"webhook-id" in headers ? headers["webhook-id"] : headers["svix-id"]`,
			Time: `body.timestamp`,
		}}, true
	case auth.Slack: // the Events API, and interactions, which are forms and have a trigger_id
		return Config{
			Form: "payload",
			Event: Mapping{
				Type:   `"com.slack." + (has(body.event) ? body.event.type : body.type)`,
				Source: `has(body.team_id) ? "https://slack.com/teams/" + body.team_id : "https://slack.com"`,
				// In some events the channel is an object.
				Subject: `type(body.event.channel) == string ? body.event.channel : null`,
				ID: `has(body.event_id) ? body.event_id : has(body.trigger_id) ? body.trigger_id` +
					` : body.type + "/" + body.team_id + "/" + string(body.minute_rate_limited)`,
				Time:         `body.event_time`,
				PartitionKey: `body.team_id`,
			},
			Challenge: `body.type == "url_verification" ? body.challenge : null`,
		}, true
	}
	return Config{}, false
}

// completed returns c with the mapping of its preset for missing keys. A second call
// changes nothing.
func (c Config) completed() Config {
	p, ok := preset(c.Preset)
	if !ok {
		return c
	}
	for _, key := range []struct {
		own *string
		of  string
	}{
		{&c.Form, p.Form},
		{&c.Challenge, p.Challenge},
		{&c.Event.Type, p.Event.Type},
		{&c.Event.Source, p.Event.Source},
		{&c.Event.Subject, p.Event.Subject},
		{&c.Event.ID, p.Event.ID},
		{&c.Event.Time, p.Event.Time},
		{&c.Event.PartitionKey, p.Event.PartitionKey},
	} {
		if *key.own == "" {
			*key.own = key.of
		}
	}
	if len(p.Event.Extensions) > 0 {
		extensions := maps.Clone(p.Event.Extensions)
		maps.Copy(extensions, c.Event.Extensions)
		c.Event.Extensions = extensions
	}
	if len(c.Dedupe) == 0 {
		c.Dedupe = p.Dedupe
	}
	c.Auth = c.Auth.Following(c.Preset)
	return c
}
