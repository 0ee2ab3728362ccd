package nats

import (
	"strings"
	"testing"

	"github.com/postwire/postwire/sinks/sinktest"
)

func TestWhatIsWrongIsSaid(t *testing.T) {
	const good = "stream: EVENTS\n"
	tests := []struct{ name, block, want string }{
		{"empty subject", good + `subject: ""`, "subject"},
		{"unknown attribute", good + "subject: events.{Platform}", "{Platform} names no attribute; did you mean {platform}?"},
		{"open brace", good + "subject: events.{platform", "a { without its }; write an attribute as {platform}"},
		{"star", good + "subject: events.*", "wildcard"},
		{"tail", good + "subject: events.>", "wildcard"},
		{"space", good + "subject: my events", "has a space"},
		{"dots", good + "subject: a..b", "empty token"},
		{"first dot", good + "subject: .a", "empty token"},
		{"last dot", good + "subject: a.", "empty token"},
		{"dollar", good + "subject: $JS.API", "begins with $"},
		{"no stream", "subject: a", "name the stream that takes the subjects, or set mode: core"},
		{"bad stream", "subject: a\nstream: a.b", "is not a name for a stream"},
		{"stream in core", good + "subject: a\nmode: core", "has no effect in mode core"},
		{"create in core", "subject: a\nmode: core\ncreate: true", "has no effect in mode core"},
		{"mode", good + "subject: a\nmode: jetsream", "jetstream"},
		{"content mode", good + "subject: a\ncontent_mode: xml", "structured"},
		{"window", good + "subject: a\nwindow: 0", "use 1 to 10000"},
		{"two logins", good + "subject: a\nuser: a\ntoken: b", "several ways to log in"},
		{"password alone", good + "subject: a\npassword: b", "name the user"},
		{"credentials", good + "subject: a\ncredentials_file: /no/such", "cannot be read"},
		{"url", good + "subject: a\nurl: http://a", "is not a list of URLs"},
		{"handshake first", good + "subject: a\ntls: {handshake_first: true}", "tls.handshake_first: has no effect, because enabled is false"},
		{"tls", good + "subject: a\ntls: {ca_file: /no/such}", "has no effect, because enabled is false"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := sinktest.TryConfigure(Kind(), test.block)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("want %q, got: %v", test.want, err)
			}
		})
	}
	sinktest.Configure(t, Kind(), good+"subject: a.{platform}-x.{outcome}{id}\nurl: nats://a:4222, b:4222")
}

func TestSafeToken(t *testing.T) {
	for value, want := range map[string]string{
		"instagram": "instagram", "": "_", "a.b*c>d e\tf\x00g\u00a0h$i\x7fj\xffk": "a_b_c_d_e_f_g_h_i_j_k", "größe🎬": "größe🎬",
	} {
		if got := safeToken(value); got != want {
			t.Errorf("%q becomes %q, want %q", value, got, want)
		}
	}
}

func TestOverlap(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"a.b", "a.b", true},
		{"a.b", "a.c", false},
		{"a.*", "a.b", true},
		{"a.*", "*.b", true},
		{"a.>", "a.b.c", true},
		{">", "a", true},
		{"a.>", "a", false},
		{"a", "a.b", false},
		{"a.*.c", "a.b.d", false},
	} {
		if got := overlap(test.a, test.b); got != test.want || overlap(test.b, test.a) != test.want {
			t.Errorf("%s and %s: %v", test.a, test.b, got)
		}
	}
}
