package http

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	nethttp "net/http"
	"strings"
	"testing"
	"time"

	"github.com/postwire/postwire/sinks"
)

const testSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// TestTheExampleOfStandardWebhooks is the one that its libraries are tested with.
func TestTheExampleOfStandardWebhooks(t *testing.T) {
	k, err := parseKey(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	h := nethttp.Header{}
	k.sign(h, "msg_p5jXN8AQM9LWM0D4loKWxJek", time.Unix(1614265330, 0), []byte(`{"test": 2432232314}`))
	for name, want := range map[string]string{
		"webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp": "1614265330",
		"webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
	} {
		if got := h.Get(name); got != want {
			t.Errorf("%s is %s", name, got)
		}
	}
}

func TestRequestsAreSigned(t *testing.T) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(testSecret, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range modes() {
		r := start(t, nil)
		s, err := tryOpen(t, "url: "+r.URL+"\nsigning: {secret: "+testSecret+"}\ncontent_mode: "+mode,
			sinks.Env{Now: func() time.Time { return time.Unix(1800000000, 0) }})
		if err != nil {
			t.Fatal(err)
		}
		if err := deliver(t, s, numbered(3)); err != nil {
			t.Fatal(err)
		}
		if len(r.kept()) == 0 {
			t.Error("nothing came")
		}
		for _, got := range r.kept() {
			mac := hmac.New(sha256.New, key)
			mac.Write([]byte(got.header.Get("webhook-id") + "." + got.header.Get("webhook-timestamp") + "." + string(got.body)))
			want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
			if signature := got.header.Get("webhook-signature"); signature != want || got.header.Get("webhook-timestamp") != "1800000000" {
				t.Errorf("mode %s: the headers are %v", mode, got.header)
			}
		}
	}
}
