package sinks

import (
	"context"
	"fmt"
	"time"

	"github.com/postwire/postwire/config"
)

// Settings are the keys of every sink, regardless of kind. The relay implements
// the settings; a sink does not see the settings.
type Settings struct {
	Filter  string        `yaml:"filter" doc:"CEL expression over the attributes of an event; the sink gets the events with a true result. Empty matches every event. An absent attribute is \"\". See docs/filters.md." example:"platform == \"instagram\""`
	Start   string        `yaml:"start" enum:"latest,earliest" doc:"Start of a sink that is new to the journal. latest: at events accepted from now on. earliest: at the oldest stored event."`
	Batch   int           `yaml:"batch" doc:"Maximum number of events per batch to the broker, 1 to 10000."`
	Timeout time.Duration `yaml:"timeout" doc:"Maximum time for one attempt to deliver a batch; after this time the attempt counts as failed and is repeated."`
	Retry   Retry         `yaml:"retry" doc:"Retries of failed deliveries."`

	MaxPending int  `yaml:"max_pending" doc:"Maximum number of events that are read ahead for this sink and not yet delivered, 1 to 1000000. Events behind an event of their partition key that fails do not count: they are read again later."`
	Rate       Rate `yaml:"rate" doc:"Limit of the events that are sent per second, retries included."`

	Redact Redact `yaml:"redact" doc:"Redaction of event data for this sink. The data is written as JSON again: values that are not redacted stay equal, white space may change. An event with data in another format than JSON becomes a dead letter. Attributes, such as profile, are not changed."`

	DeadLetters DeadLetters `yaml:"dead_letters" doc:"Further delivery of the dead letters of this sink. The dead-letter queue keeps every dead letter, with and without this key."`

	Discard Discard `yaml:"discard" doc:"Discards pending events of this sink by age or by number. Discarded events are not delivered and do not become dead letters."`
}

// DeadLetters says where the dead letters of a sink go besides the dead-letter queue.
type DeadLetters struct {
	Sink string `yaml:"sink" doc:"Name of another sink that gets every new dead letter of this sink, at least once: the event with its attributes, and deadletterid, deadlettersink, deadletterreason, deadletterattempts and deadlettertime. The filter of the other sink does not apply. A dead letter that the other sink refuses makes no further dead letter. Empty sends dead letters nowhere. See docs/dead-letters.md." example:"dead"`
}

// Rate limits the events of a sink per second.
type Rate struct {
	PerSecond float64 `yaml:"per_second" doc:"Maximum number of events per second, on average. 0 is no limit." example:"50"`
	Burst     int     `yaml:"burst" doc:"Maximum number of events at once after a pause. 0 is the number of events of one second."`
}

// Discard selects the pending events to discard.
type Discard struct {
	After  time.Duration `yaml:"after" doc:"Discards pending events older than this, counted from acceptance. Discarded events are not delivered and do not become dead letters; a log line and postwire_sink_discarded_total record the loss. 0 disables discarding. To keep such events, set retry.dead_letter_after instead."`
	Beyond int           `yaml:"beyond" doc:"Discards the oldest pending events when more than this number are pending. Discarded events are not delivered and do not become dead letters; a log line and postwire_sink_discarded_total record the loss. 0 disables discarding."`
}

// Retry says how a failed delivery is tried again.
type Retry struct {
	Initial time.Duration `yaml:"initial" doc:"Wait before the second attempt; each further wait is 1.5 times as long, with jitter."`
	Max     time.Duration `yaml:"max" doc:"Maximum wait between two attempts."`

	DeadLetterAfter time.Duration `yaml:"dead_letter_after" doc:"Age, counted from acceptance, at which an undelivered event becomes a dead letter. 0 retries forever."`

	MaxAttempts int `yaml:"max_attempts" doc:"Number of failed attempts after which an event becomes a dead letter. Only attempts count that fail for this event; while the broker or the destination is away, no attempt counts. 0 retries forever."`

	DeadLetterOn []int `yaml:"dead_letter_on" doc:"Additional HTTP statuses that make an event a dead letter, besides 400, 409, 413, 422 and, in binary mode, 415. Only for sinks of type http. By default, 401, 403, 404, 405 and other statuses are retried." example:"[404]"`
}

// DefaultSettings returns the defaults of Settings.
func DefaultSettings() Settings {
	return Settings{
		Start: "latest", Batch: 512, Timeout: 30 * time.Second, MaxPending: 10000,
		Retry: Retry{Initial: 200 * time.Millisecond, Max: 30 * time.Second},
	}
}

// Validate reports all invalid settings.
func (s Settings) Validate() error {
	var p config.Invalids
	if s.Batch < 1 || s.Batch > 10000 {
		p.Add("batch", fmt.Sprintf("%d is out of range", s.Batch), "use 1 to 10000")
	}
	if s.Timeout <= 0 {
		p.Add("timeout", "must be longer than 0", "for example 30s")
	}
	if s.Retry.Initial <= 0 {
		p.Add("retry.initial", "must be longer than 0", "for example 200ms")
	}
	if s.Retry.Max < s.Retry.Initial {
		p.Add("retry.max", fmt.Sprintf("%v is shorter than retry.initial, %v", s.Retry.Max, s.Retry.Initial), "use a longer one, for example 30s")
	}
	if s.MaxPending < 1 || s.MaxPending > 1_000_000 {
		p.Add("max_pending", fmt.Sprintf("%d is out of range", s.MaxPending), "use 1 to 1000000, for example 10000")
	}
	if !(s.Rate.PerSecond >= 0 && s.Rate.PerSecond <= 1e9) {
		p.Add("rate.per_second", fmt.Sprintf("%v is out of range", s.Rate.PerSecond), "use 0 for no limit, or a number of events such as 50")
	}
	if s.Rate.Burst < 0 {
		p.Add("rate.burst", "is negative", "use 0 for the events of one second, or a number such as 100")
	}
	if s.Retry.MaxAttempts < 0 {
		p.Add("retry.max_attempts", "is negative", "use 0 to retry for ever, or a number such as 20")
	}
	p.Nest("redact", s.Redact.Validate())
	if s.Discard.After < 0 {
		p.Add("discard.after", "is negative", "use 0 to discard nothing, or an age such as 72h")
	}
	if s.Discard.Beyond < 0 {
		p.Add("discard.beyond", "is negative", "use 0 to discard nothing, or a number such as 1000000")
	}
	if s.Retry.DeadLetterAfter < 0 {
		p.Add("retry.dead_letter_after", "is negative", "use 0 to retry for ever, or an age such as 72h")
	}
	for i, status := range s.Retry.DeadLetterOn {
		if status < 400 || status > 599 {
			p.Add(fmt.Sprintf("retry.dead_letter_on[%d]", i), fmt.Sprintf("%d is no status of a failure", status), "use 400 to 599, for example 404")
		}
	}
	return p.Err()
}

// Opener connects a configured sink. Errors are like errors of Deliver: an
// unavailable broker is a transient error, and the relay calls Opener again.
type Opener func(ctx context.Context, env Env) (Sink, error)

// Kind is a kind of sink. Define makes a Kind; package all lists the kinds.
type Kind = config.Kind[Settings, Opener]

// Registry finds kinds by name.
type Registry = config.Registry[Settings, Opener]

// Configured is a decoded block of a sink.
type Configured = config.Plugin[Settings, Opener]

// Define makes a Kind from the name in the configuration, a summary and an
// example for the reference page, the defaults, and the function that opens a
// sink.
func Define[C Config](name, summary, example string, defaults func() C, open func(context.Context, C, Env) (Sink, error)) Kind {
	return config.Define(name, summary, example, DefaultSettings, defaults, func(c C) Opener {
		return func(ctx context.Context, env Env) (Sink, error) { return open(ctx, c, env) }
	})
}
