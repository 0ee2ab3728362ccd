package app

import (
	"testing"

	"github.com/postwire/postwire/internal/texts"
)

// TestHelpOfMetricsStandsAlone: Prometheus and Grafana show the HELP of a metric
// without any other text.
func TestHelpOfMetricsStandsAlone(t *testing.T) {
	_, own := gathered(t)
	for _, f := range own {
		if words := texts.Dangling(f.GetHelp()); words != "" {
			t.Errorf("%s: the HELP refers to a different text by %q: %s", f.GetName(), words, f.GetHelp())
		}
	}
}
