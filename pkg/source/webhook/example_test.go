package webhook_test

import (
	"fmt"

	"github.com/postwire/postwire/pkg/source"
	"github.com/postwire/postwire/pkg/source/auth"
	"github.com/postwire/postwire/pkg/source/webhook"
)

// CEL expressions map a JSON body to the attributes and the identity of an event.
func Example() {
	shop, err := webhook.New(webhook.Config{
		Event: webhook.Mapping{Type: `"com.example.order." + body.event`, ID: "string(body.id)", PartitionKey: "body.customer"},
		Auth:  auth.Auth{None: true},
	}, source.Env{Name: "shop"})
	if err != nil {
		panic(err)
	}
	events, err := shop.Normalize(&source.Request{Method: "POST", Path: "/shop", Body: []byte(`{"event":"paid","id":4711,"customer":"c-1"}`)})
	if err != nil {
		panic(err)
	}
	for _, e := range events {
		fmt.Println(e.CloudEvent.Type(), e.CloudEvent.ID(), e.CloudEvent.Extensions()["partitionkey"])
	}
	// Output: com.example.order.paid 4711 c-1
}
