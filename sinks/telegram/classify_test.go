package telegram

import (
	"testing"

	"github.com/postwire/postwire/sinks/sinktest"
)

// Each answer of the Bot API, and what becomes of the event: a dead letter only
// for what the event is. docs/dead-letters.md has the same table.
func TestClassification(t *testing.T) {
	for _, tt := range []struct {
		code        int
		description string
		want        string
	}{
		{400, "Bad Request: message is too long", "too_large"},
		{400, "Bad Request: can't parse entities: unsupported start tag", "invalid"},
		{400, "Bad Request: message text is empty", "invalid"},
		{400, "Bad Request: chat not found", "again"},
		{400, "Bad Request: group chat was upgraded to a supergroup chat", "again"},
		{401, "Unauthorized", "again"},
		{403, "Forbidden: bot was kicked from the group chat", "again"},
		{404, "Not Found", "again"},
		{409, "Conflict", "again"},
		{429, "Too Many Requests: retry after 5", "again"},
		{500, "Internal Server Error", "again"},
		{502, "Bad Gateway", "again"},
	} {
		if got := sinktest.Outcomes(judge("sendMessage", answer{Code: tt.code, Description: tt.description}), 1)[0]; got != tt.want {
			t.Errorf("%d %s: %q, want %q", tt.code, tt.description, got, tt.want)
		}
	}
	if got := sinktest.Outcomes(judge("sendMessage", answer{OK: true}), 1)[0]; got != "" {
		t.Errorf("an acknowledged message is %q", got)
	}
}
