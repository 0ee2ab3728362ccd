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
	Token    config.Secret `yaml:"token" required:"true" doc:"Bot token from BotFather." example:"${TELEGRAM_BOT_TOKEN}"`
	ChatID   string        `yaml:"chat_id" required:"true" doc:"Chat for the messages: a number in quotes, or the @name of a public channel. The bot must be a member of the chat." example:"\"123456789\""`
	ThreadID int64         `yaml:"thread_id" doc:"Topic of a forum; 0 uses no topic."`
	Silent   bool          `yaml:"silent" doc:"Send messages without a notification sound."`
	Template string        `yaml:"template" doc:"Template of a message, as a Go template of HTML: {{.event.platform}} is an attribute, {{get .data \"result\" \"url\"}} a field of the data, {{.json}} the whole event; {{cut 100 …}} shortens a text. Values are escaped. Telegram supports b, i, u, s, a, code, pre and blockquote. Empty gives a summary of Upload-Post events, and the type and id of other events." example:"\"<b>{{.event.platform}}</b>: {{get .data \\\"title\\\" | cut 80}}\""`
	Digest   int           `yaml:"digest" doc:"Maximum number of events sent as single messages. If more events are pending, one message gives the number of events and lists the failures. 0 always sends single messages."`
	URL      config.URL    `yaml:"url" doc:"URL of the Bot API: Telegram's server, or a self-hosted server."`
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
