package uploadpost_test

import (
	"context"
	"fmt"
	"net/http/httptest"

	"github.com/postwire/postwire/pkg/uploadpost"
	"github.com/postwire/postwire/pkg/uploadpost/simulator"
)

// The client reads and changes the notification settings of an account. The simulator
// takes the place of the service.
func Example() {
	service := simulator.New(simulator.Options{APIKey: "key"})
	defer service.Close()
	api := httptest.NewServer(service.Handler())
	defer api.Close()

	client, err := uploadpost.New(uploadpost.Options{BaseURL: api.URL + "/api", APIKey: "key"})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	service.SetWebhook("https://relay.example.com/webhooks/upload-post", "")
	settings, err := client.Notifications(ctx)
	if err != nil {
		panic(err)
	}
	fmt.Println(settings.WebhookURL, settings.WebhookSecret) // a secret prints as ***
	// Output: https://relay.example.com/webhooks/upload-post ***
}
