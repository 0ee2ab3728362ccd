// Package all lists the kinds of sources. A new kind adds one line here.
package all

import (
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/cloudevents"
	"github.com/postwire/postwire/pkg/source/uploadpost"
	"github.com/postwire/postwire/pkg/source/webhook"
)

// Kinds returns every kind of source.
func Kinds() []source.Kind {
	return []source.Kind{
		cloudevents.Kind(),
		uploadpost.Kind(),
		webhook.Kind(),
	}
}
