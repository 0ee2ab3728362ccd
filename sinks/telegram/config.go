package telegram

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/sinks"
)

// Config is the block of a sink of type telegram.
type Config struct {
	Token    config.Secret `yaml:"token" required:"true" doc:"Token of the bot, as BotFather gave it." example:"${TELEGRAM_BOT_TOKEN}"`
	ChatID   string        `yaml:"chat_id" required:"true" doc:"Chat that the messages go to: its number, in quotes, or the @name of a public channel. The bot must be a member of it." example:"\"123456789\""`
	ThreadID int64         `yaml:"thread_id" doc:"Topic of a forum; 0 is none."`
	Silent   bool          `yaml:"silent" doc:"Messages make no sound."`
	Template string        `yaml:"template" doc:"A message, as a Go template of HTML: {{.event.platform}} is an attribute, {{get .data \"result\" \"url\"}} a field of the data, {{.json}} the whole event; {{cut 100 …}} shortens. Values are escaped. Telegram knows b, i, u, s, a, code, pre and blockquote. Empty is a message that suits Upload-Post, and names the event otherwise." example:"\"<b>{{.event.platform}}</b>: {{get .data \\\"title\\\" | cut 80}}\""`
	Digest   int           `yaml:"digest" doc:"When more events than this wait, one message tells of all of them: how many, and which failed. 0 sends each by itself, however many there are."`
	URL      config.URL    `yaml:"url" doc:"Where the Bot API is: Telegram's own, or a server of your own."`
}

func defaults() Config { return Config{Digest: 5, URL: "https://api.telegram.org"} }

var (
	tokens = regexp.MustCompile(`^[0-9]+:[A-Za-z0-9_-]+$`)
	chats  = regexp.MustCompile(`^(-?[0-9]+|@[A-Za-z][A-Za-z0-9_]{3,})$`)
)

// Route implements sinks.Config.
func (Config) Route() sinks.Route { return sinks.Route{} }

// Subscription implements sinks.Config: a chat is for people.
func (Config) Subscription() sinks.Subscription { return sinks.Subscription{} }

// Validate implements config.Settings.
func (c Config) Validate() error {
	var p config.Invalids
	switch token := c.Token.Reveal(); {
	case token == "":
		p.Add("token", "is missing", "set it, for example ${TELEGRAM_BOT_TOKEN}, to what BotFather gave you")
	case !tokens.MatchString(token):
		p.Add("token", "is not the token of a bot", "copy it whole from BotFather: digits, a colon, and letters")
	}
	if !chats.MatchString(c.ChatID) {
		p.Add("chat_id", fmt.Sprintf("%q is not a chat", c.ChatID), `use its number, for example "123456789" or "-1001234567890", or the @name of a public channel`)
	}
	if c.ThreadID < 0 {
		p.Add("thread_id", "is negative", "use 0 for none")
	}
	if c.Digest < 0 {
		p.Add("digest", "is negative", "use 0 for never")
	}
	if u, err := url.Parse(c.URL.Reveal()); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || strings.HasSuffix(u.Path, "/") {
		p.Add("url", "is not the URL of a server", "for example https://api.telegram.org, without a slash at its end")
	}
	if _, err := parse(c.Template); err != nil {
		p.Add("template", err.Error(), `for example "<b>{{.event.platform}}</b>: {{get .data \"title\"}}"`)
	}
	return p.Err()
}
