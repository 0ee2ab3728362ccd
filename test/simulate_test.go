package test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/postwire/postwire/pkg/source/uploadpost/sample"
	"github.com/postwire/postwire/pkg/uploadpost/simulator"
)

// odd are bodies that the sender's page does not rule out, or that a defect of
// the sender could make.
func odd(n int) []byte {
	upload := func(result string) string {
		return fmt.Sprintf(`{"event":"upload_completed","platform":"instagram","number":%d,"result":%s}`, n, result)
	}
	forms := []string{
		``, `null`, `[]`, `"upload_completed"`, `{`, `{}`, "\xff\xfe{}", `{"event":""}`, `{"event":7}`, `{"event":null}`,
		`<html><body>502</body></html>`, `event=upload_completed`,
		upload(`null`), upload(`{}`), upload(`{"success":"true"}`), upload(`{"success":null,"publish_id":"1"}`), upload(`[]`),
		upload(`{"success":true}`), upload(`{"success":true,"publish_id":17987654321098765}`), upload(`{"success":true,"publish_id":null,"post_id":""}`),
		upload(`{"success":false,"error":null}`), upload(`{"success":false,"error":{"code":1}}`), upload(`{"success":true,"publish_id":"` + strings.Repeat("9", 5000) + `"}`),
		fmt.Sprintf(`{"event":"upload_completed","result":{"success":true,"publish_id":"p%d"}}`, n),
		fmt.Sprintf(`{"event":"upload_completed","event":"upload_completed","platform":"x","result":{"success":true,"publish_id":"d%d"}}`, n),
		fmt.Sprintf(`{"event":"something_new","number":%d}`, n), fmt.Sprintf(`{"event":"social_account_connected","platform":"x","number":%d}`, n),
		fmt.Sprintf(`{"event":"social_account_disconnected","platform":"x","status":7,"number":%d}`, n),
		fmt.Sprintf(`{"event":"upload_completed","platform":"tiktok","created_at":"yesterday","result":{"success":true,"publish_id":"t%d"}}`, n),
		fmt.Sprintf(`{"event":"upload_completed","platform":"tiktok","created_at":1710513000,"caption":"\ud83d","result":{"success":true,"publish_id":"s%d"}}`, n),
		fmt.Sprintf(`{"event":"upload_completed","platform":"tik\u0000tok","profile_username":"a\r\nb","result":{"success":true,"publish_id":"c%d"}}`, n),
		fmt.Sprintf(`{"event":"upload_completed","platform":"youtube","caption":%q,"result":{"success":true,"publish_id":"l%d"}}`, strings.Repeat("long 👩‍🍳 ", 20000), n),
		strings.Repeat(`{"event":`, 2000) + strings.Repeat(`}`, 2000), strings.Repeat("[", 100000),
	}
	return []byte(forms[n%len(forms)])
}

// TestOddDeliveriesNeverPause: of 1,000 deliveries a third are odd in every way
// there is. Each is answered 2xx: the sender's channel never pauses. What can be
// understood reaches the brokers, the rest is in quarantine.
func TestOddDeliveriesNeverPause(t *testing.T) {
	w := newWorld(t)
	r := start(t, w.config)
	s := simulator.New(simulator.Options{
		Random: rand.New(rand.NewPCG(5, 6)), Breaker: simulator.Breaker{Timeout: 10 * time.Second, Failures: 5, Pause: time.Hour},
	})
	defer s.Close()
	s.SetWebhook("http://"+r.addr+"/webhooks/upload-post", secret)
	for n := range 1000 {
		var err error
		switch {
		case n%3 == 0:
			err = s.Send(t.Context(), odd(n/3))
		case n%20 == 1:
			err = s.Account(t.Context(), sample.AccountReauth)
		default:
			err = s.Upload(t.Context(), n%7 == 1)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if c := s.Counts(); c.Events != 1000 || c.Delivered != 1000 || c.Failed != 0 || c.Pauses != 0 {
		t.Errorf("%+v", c)
	}
	w.settled(t, r.endpoint)
	aside := r.metric(t, `postwire_received_total{outcome="quarantined",source="upload-post"}`)
	nats := w.onNATS(t)
	t.Logf("%d events on JetStream, %s in quarantine", len(nats), aside)
	if aside == "0" || aside == "" || len(nats) < 700 {
		t.Error("that is not what was sent")
	}
}
