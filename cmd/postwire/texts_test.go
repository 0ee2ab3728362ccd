package main

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/internal/texts"
)

// TestHelpStandsAlone: a user reads the help of a command or a flag without any other
// text.
func TestHelpStandsAlone(t *testing.T) {
	flags := 0
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, text := range []string{cmd.Short, cmd.Long} {
			if words := texts.Dangling(text); words != "" {
				t.Errorf("%s: the help refers to a different text by %q: %s", cmd.CommandPath(), words, text)
			}
		}
		if cmd.Short == "" {
			t.Errorf("%s has no help", cmd.CommandPath())
		}
		for line := range strings.Lines(cmd.LocalFlags().FlagUsages()) {
			flags++
			if words := texts.Dangling(line); words != "" {
				t.Errorf("%s: the help of a flag refers to a different text by %q: %s", cmd.CommandPath(), words, line)
			}
		}
		for _, inner := range cmd.Commands() {
			walk(inner)
		}
	}
	walk(rootCommand())
	if flags < 100 {
		t.Errorf("only %d flags were checked", flags)
	}
}
