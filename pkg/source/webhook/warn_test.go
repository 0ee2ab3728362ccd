package webhook

import "testing"

func TestWarnings(t *testing.T) {
	for keys, warns := range map[string]bool{
		"event: {type: body.type, id: body.order}\ndedupe: [\"body.order + '/' + body.status\"]":                                  true,
		"event: {type: body.type, id: string(body.order.id)}\ndedupe: [headers.x, body.status]":                                   true,
		"event: {type: body.type}\ndedupe: [headers.x]":                                                                           true,
		"event: {type: body.type, id: body.order}\ndedupe: ['body.?seq.orValue(\"\") + body.order']":                              true,
		"event: {type: body.type, id: body.order}\ndedupe: ['body[body.key]']":                                                    true,
		"event: {type: body.type, id: body.order}":                                                                                false,
		"event: {type: body.type, id: body.order}\ndedupe: [body.order]":                                                          false,
		"event: {type: body.type, id: string(body.order)}\ndedupe: ['string(body[\"order\"])']":                                   false,
		"event: {type: body.type, id: body.order}\ndedupe: [body.status, body.order]":                                             false,
		"event: {type: body.type, id: \"body.order + '/' + body.status\"}\ndedupe: [\"body.order + '/' + body.status\"]":          false,
		"event: {type: body.type, id: body.order, source: \"'/shops/' + body.shop\"}\ndedupe: [\"body.shop + '/' + body.order\"]": false,
		"event: {type: body.type}\ndedupe: [body.order]":                                                                          false,
		"event: {type: body.type, id: 'has(body.a) ? body.a : body.b'}\ndedupe: ['has(body.a) ? body.a : body.b']":                false,
		"preset: github": false,
		"preset: github\ndedupe: ['headers[\"x-github-delivery\"] + body.action']": true,
	} {
		c, err := configured(keys + "\nauth: none")
		if err != nil {
			t.Fatalf("%s: %v", keys, err)
		}
		if got := c.Own.(Config).Warnings(); (len(got) > 0) != warns {
			t.Errorf("%s\nwarnings: %v, want some: %v", keys, got, warns)
		}
	}
}
