package app

import (
	"strings"
	"testing"
)

func TestDeadLetterSinks(t *testing.T) {
	sink := func(name, to, subject string) string {
		text := "{name: " + name + ", type: nats, url: 'nats://a:4222', stream: S, subject: '" + subject + "'"
		if to != "" {
			text += ", dead_letters: {sink: " + to + "}"
		}
		return text + "}"
	}
	for _, tt := range []struct {
		name  string
		sinks []string
		want  []string // parts of the error; none is valid
	}{
		{"another sink", []string{sink("a", "b", "x"), sink("b", "", "dead.{deadlettersink}.{deadletterreason}")}, nil},
		{"a chain", []string{sink("a", "b", "x"), sink("b", "c", "y"), sink("c", "", "z")}, nil},
		{"its own sink", []string{sink("a", "a", "x"), sink("b", "", "y")}, []string{"postwire.yaml:3:", "sinks[0].dead_letters.sink", "names its own sink", "name another sink"}},
		{"an unknown sink", []string{sink("a", "ded", "x"), sink("dead", "", "y")}, []string{"sinks[0].dead_letters.sink", `names "ded", and there is no such sink`, `did you mean "dead"?`}},
		{"the only sink", []string{sink("a", "b", "x")}, []string{"there is no other sink"}},
		{"a circle", []string{sink("a", "b", "x"), sink("b", "c", "y"), sink("c", "b", "z")}, []string{"sinks[1].dead_letters.sink", "circle of dead letters: b → c → b", "circle of dead letters: c → b → c"}},
		{"attributes of dead letters at a sink that gets none", []string{sink("a", "b", "dead.{deadlettersink}"), sink("b", "", "y")}, []string{"sinks[0].subject", "uses {deadlettersink}"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := "journal: {dir: /d}\nsources: [{name: uploads, type: uploadpost, paths: [/a], auth: none}]\nsinks: [" + strings.Join(tt.sinks, ", ") + "]\n"
			_, err := Parse("postwire.yaml", []byte(text), env)
			if (err == nil) != (len(tt.want) == 0) {
				t.Fatalf("%s\n%v", text, err)
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the error has no %q:\n%v", part, err)
				}
			}
			if err != nil && strings.Contains(err.Error(), "sinks[0]") && tt.name == "a circle" {
				t.Errorf("a sink outside the circle is part of it:\n%v", err)
			}
		})
	}
}
