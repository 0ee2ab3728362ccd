package sinks

import (
	"testing"

	"github.com/postwire/postwire/config"
)

func TestRedactMistakes(t *testing.T) {
	const key = "0123456789abcdef"
	for _, tt := range []struct {
		name   string
		redact Redact
		want   []string // keys
	}{
		{"nothing", Redact{}, nil},
		{"right", Redact{Drop: []string{"title", "/a~1b/~0"}, Hash: []string{"user_email"}, Key: key}, nil},
		{"no key", Redact{Hash: []string{"user_email"}}, []string{"key"}},
		{"a key for nothing", Redact{Drop: []string{"title"}, Key: key}, []string{"key"}},
		{"a short key", Redact{Hash: []string{"user_email"}, Key: "short"}, []string{"key"}},
		{"no name", Redact{Drop: []string{"", "/"}}, []string{"drop[0]", "drop[1]"}},
		{"twice", Redact{Drop: []string{"a", "a"}}, []string{"drop[1]"}},
		{"in both", Redact{Drop: []string{"a"}, Hash: []string{"a"}, Key: key}, []string{"hash[0]"}},
		{"no pointers", Redact{Drop: []string{"/a~", "/a~2"}}, []string{"drop[0]", "drop[1]"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := tt.redact.Validate()
			if err == nil {
				if len(tt.want) > 0 {
					t.Fatalf("nothing is wrong, want %v", tt.want)
				}
				return
			}
			found, ok := err.(config.Invalids) //nolint:errorlint // it is not wrapped
			if !ok || len(found) != len(tt.want) {
				t.Fatalf("%v, want %v", err, tt.want)
			}
			for i, invalid := range found {
				if invalid.Key != tt.want[i] || invalid.Hint == "" {
					t.Errorf("%d: %+v, want %s", i, invalid, tt.want[i])
				}
			}
		})
	}
}
