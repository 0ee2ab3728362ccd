// Package all lists the kinds of sources. A new kind is one line here.
package all

import (
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/cloudevents"
	"github.com/postwire/postwire/pkg/source/uploadpost"
	"github.com/postwire/postwire/pkg/source/webhook"
)

// Kinds returns every kind of source there is.
func Kinds() []source.Kind {
	return []source.Kind{
		cloudevents.Kind(),
		uploadpost.Kind(),
		webhook.Kind(),
	}
}
