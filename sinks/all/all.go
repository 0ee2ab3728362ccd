// Package all lists the kinds of sinks. A new kind is a line here.
package all

import (
	"github.com/postwire/postwire/sinks"
	"github.com/postwire/postwire/sinks/http"
	"github.com/postwire/postwire/sinks/kafka"
	"github.com/postwire/postwire/sinks/nats"
	"github.com/postwire/postwire/sinks/stdout"
	"github.com/postwire/postwire/sinks/telegram"
)

// Kinds returns every kind of sink.
func Kinds() []sinks.Kind {
	return []sinks.Kind{
		nats.Kind(),
		kafka.Kind(),
		http.Kind(),
		telegram.Kind(),
		stdout.Kind(),
	}
}
