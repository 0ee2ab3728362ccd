package ingress_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/ingress"
	"github.com/postwire/postwire/pkg/journal/local"
	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/pkg/source/uploadpost"
)

// The ingress answers 202 after the event is on stable storage, and 200 to a duplicate.
func Example() {
	dir, err := os.MkdirTemp("", "journal")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	j, err := local.Open(local.Options{Dir: dir, Window: time.Hour, Retention: time.Hour})
	if err != nil {
		panic(err)
	}
	defer j.Close()

	sender, err := uploadpost.New(uploadpost.Config{Timezone: "UTC", Auth: auth.Auth{None: true}}, source.Env{Name: "upload-post"})
	if err != nil {
		panic(err)
	}
	server, err := ingress.New(ingress.Options{
		Config: config.Default().Server, Journal: j, Log: zap.NewNop(), Metrics: ingress.NewMetrics(prometheus.NewRegistry()),
		Routes: []ingress.Route{{Name: "upload-post", Source: sender, Settings: source.Settings{Paths: []string{"/webhooks/upload-post"}}}},
	})
	if err != nil {
		panic(err)
	}
	listener := httptest.NewServer(server)
	defer listener.Close()

	body := `{"event":"upload_completed","platform":"instagram","result":{"success":true,"publish_id":"17841"}}`
	for range 2 { // the sender repeats the webhook
		resp, err := http.Post(listener.URL+"/webhooks/upload-post", "application/json", strings.NewReader(body))
		if err != nil {
			panic(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			panic(err)
		}
		_ = resp.Body.Close()
		fmt.Println(resp.Status)
	}
	// Output:
	// 202 Accepted
	// 200 OK
}
