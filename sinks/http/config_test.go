package http

import (
	"strings"
	"testing"

	"github.com/postwire/postwire/sinks/sinktest"
)

func TestWhatIsWrongIsSaid(t *testing.T) {
	const good = "url: https://a.example/events\n"
	tests := []struct{ name, block, want string }{
		{"no url", "content_mode: binary", "url: is required"},
		{"relative", "url: /events", "is not a URL of http or https with a host"},
		{"scheme", "url: ftp://a/", "is not a URL of http or https with a host"},
		{"no host", "url: http:///events", "is not a URL of http or https with a host"},
		{"template", `url: "https://{platform}.example/"`, "url: "},
		{"user", "url: https://relay:hunter2@a.example/", "set basic: {username: …, password: …} instead"},
		{"fragment", `url: "https://a.example/#x"`, "has a fragment"},
		{"host", "url: https://größe.example/", "write the host as xn--"},
		{"content mode", good + "content_mode: xml", "batched"},
		{"in flight", good + "max_in_flight: 0", "use 1 to 1000"},
		{"batch size", good + "batch_size: 0", "use 1 to 10000"},
		{"batch bytes", good + "batch_bytes: 100", "use 1KiB or more"},
		{"attribute", good + "headers: {CE-id: x}", "headers.CE-id: begins with ce-"},
		{"content type", good + "headers: {content-type: x}", "says what the body is"},
		{"content length", good + `headers: {Content-Length: "1"}`, "says what the body is"},
		{"host header", good + "headers: {host: hunter2}", "is the transport's own"},
		{"transfer encoding", good + "headers: {Transfer-Encoding: hunter2}", "is the transport's own"},
		{"connection", good + "headers: {connection: hunter2}", "is the transport's own"},
		{"te", good + "headers: {TE: hunter2}", "is the transport's own"},
		{"expect", good + "headers: {expect: hunter2}", "is the transport's own"},
		{"proxy", good + "headers: {Proxy-Authorization: hunter2}", "write the credentials into proxy"},
		{"idempotency", good + "headers: {X-Idempotency-Key: hunter2}", "would be the same for all events"},
		{"signature", good + "headers: {Webhook-Signature: hunter2}", "set signing instead"},
		{"authorization twice", good + "headers: {authorization: hunter2}\nbearer: hunter2", "keep one of them"},
		{"name", good + `headers: {"X Key": hunter2}`, "holds a name that no header has"},
		{"name with a line break", good + `headers: {"X\r\nEvil": hunter2}`, "holds a name that no header has"},
		{"empty name", good + `headers: {"": hunter2}`, "holds a name that no header has"},
		{"one header twice", good + "headers: {X-Key: hunter2, x-key: hunter2}", "is the same header as X-Key"},
		{"value", good + `headers: {X-Key: "hunter2\r\nEvil: yes"}`, "has a line break"},
		{"value of another alphabet", good + `headers: {X-Key: "hunter2ü"}`, "use printable ASCII"},
		{"two logins", good + "bearer: hunter2\nbasic: {username: a, password: hunter2}", "stands beside basic"},
		{"bearer with its word", good + "bearer: Bearer hunter2", "write the token alone"},
		{"bearer of two lines", good + `bearer: "hunter2\n"`, "ends with a line break"},
		{"password alone", good + "basic: {password: hunter2}", "name the user"},
		{"user alone", good + "basic: {username: a}", "basic.password: is missing"},
		{"colon", good + "basic: {username: \"a:b\", password: hunter2}", "has a colon"},
		{"secret", good + "signing: {secret: whsec_hunter2!}", "is not base64"},
		{"short secret", good + "signing: {secret: whsec_aHVudGVyMg==}", "has 7 bytes, which are too few"},
		{"aws beside bearer", good + "bearer: hunter2\naws: {service: lambda}", "aws: stands beside oauth2, bearer or basic"},
		{"aws without service", good + "aws: {region: a}", "aws.service: is missing"},
		{"aws without secret", good + "aws: {service: lambda, access_key_id: a}", "aws.secret_access_key: is missing"},
		{"aws without id", good + "aws: {service: lambda, secret_access_key: hunter2}", "aws.access_key_id: is missing"},
		{"aws header", good + "headers: {X-Amz-Date: hunter2}\naws: {service: lambda}", "is part of the signature of aws"},
		{"own signature without secret", good + "signing: {header: X-Sig}", "signing.secret: is missing"},
		{"own signature without header", good + "signing: {secret: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw, signed: '{body}'}", "signing.signed: has no effect without header"},
		{"own signature without signature", good + "signing: {secret: hunter2, header: X-Sig, value: sha256}", "has no {signature}"},
		{"own signature without body", good + "signing: {secret: hunter2, header: X-Sig, signed: '{id}'}", "has no {body}"},
		{"own signature of an unknown time", good + "signing: {secret: hunter2, header: X-Sig, signed: '{timestamp}.{body}'}", "set signing.timestamp_header"},
		{"own signature in a bad header", good + "signing: {secret: hunter2, header: X Sig}", "signing.header: is not the name of a header"},
		{"own signature in a header of the sink", good + "signing: {secret: hunter2, header: Ce-Sig}", "signing.header: begins with ce-"},
		{"own signature twice", good + "signing: {secret: hunter2, header: X-Sig, id_header: x-sig}", "is the name of another header"},
		{"oauth2 beside bearer", good + "bearer: hunter2\noauth2: {token_url: 'https://a.example/t', client_id: a, client_secret: hunter2}", "oauth2: stands beside bearer or basic"},
		{"oauth2 without secret", good + "oauth2: {token_url: 'https://a.example/t', client_id: a}", "oauth2.client_secret: is missing"},
		{"oauth2 without client", good + "oauth2: {token_url: 'https://a.example/t', client_secret: hunter2}", "oauth2.client_id: is missing"},
		{"oauth2 without url", good + "oauth2: {client_id: a, client_secret: hunter2}", "oauth2.token_url: is not a URL"},
		{"oauth2 with a password", good + "oauth2: {token_url: 'https://u:hunter2@a.example/t', client_id: a, client_secret: hunter2}", "set client_id and client_secret instead"},
		{"socks proxy", good + "proxy: socks5://u:hunter2@a.example:1080", "proxy: is not a URL of http"},
		{"proxy and private addresses", good + "proxy: http://u:hunter2@a.example:3128\nrefuse_private_addresses: true", "the sink cannot check the address"},
		{"connection age", good + "max_connection_age: 1ms", "max_connection_age: 1ms is too short"},
		{"tls", good + "tls: {ca_file: /no/such}", "has no effect, because enabled is false"},
		{"tls without https", "url: http://a.example/\ntls: {enabled: true}", "begin url with https://"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := sinktest.TryConfigure(Kind(), test.block)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("want %q, got: %v", test.want, err)
			}
			if err != nil && (strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "aHVudGVyMg")) {
				t.Errorf("a secret is shown: %v", err)
			}
		})
	}
	for _, block := range []string{
		good, "url: http://[::1]:8080", "url: https://a.example:8443/x?y=z\ncontent_mode: batched\ntls: {enabled: true}",
		good + "headers: {Authorization: \"ApiKey x\", X-Key: \"\"}", good + "signing: {secret: MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw}",
	} {
		sinktest.Configure(t, Kind(), block)
	}
}

func TestAllThatIsWrongIsSaidAtOnce(t *testing.T) {
	_, err := sinktest.TryConfigure(Kind(), "url: ftp://a\nmax_in_flight: 0\nbatch_size: 0\nheaders: {Host: a, ce-id: b}\nbasic: {password: c}")
	for _, key := range []string{"url", "max_in_flight", "batch_size", "headers.Host", "headers.ce-id", "basic.username"} {
		if err == nil || !strings.Contains(err.Error(), "."+key+": ") {
			t.Errorf("%s is not in %v", key, err)
		}
	}
}
