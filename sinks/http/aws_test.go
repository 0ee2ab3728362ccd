package http

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	nethttp "net/http"
	"slices"
	"strings"
	"testing"

	"github.com/postwire/postwire/sinks"
)

func digest(key []byte, text string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

// The receiver computes the signature by the steps of AWS's specification, from what has arrived.
func TestAWS(t *testing.T) {
	for name, tt := range map[string]struct {
		block string
		env   map[string]string
		token string
	}{
		"configured":  {"aws: {service: execute-api, region: eu-central-1, access_key_id: AKID, secret_access_key: s3cret, session_token: s3cret-session}\n", nil, "s3cret-session"},
		"environment": {"aws: {service: execute-api}\n", map[string]string{"AWS_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "s3cret"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			for name, value := range tt.env {
				t.Setenv(name, value)
			}
			r := start(t, nil)
			if err := deliver(t, r.open(t, tt.block+"headers: {X-Own: a}\n"), numbered(1)); err != nil {
				t.Fatal(err)
			}
			got := r.all()[0]
			authorization := got.header.Get("Authorization")
			credential, rest, _ := strings.Cut(strings.TrimPrefix(authorization, "AWS4-HMAC-SHA256 Credential="), ", SignedHeaders=")
			signed, signature, ok := strings.Cut(rest, ", Signature=")
			at := got.header.Get("X-Amz-Date")
			if !ok || len(at) < 8 || credential != "AKID/"+at[:8]+"/eu-central-1/execute-api/aws4_request" {
				t.Fatalf("Authorization: %s", authorization)
			}
			names := strings.Split(signed, ";")
			for _, name := range []string{"host", "ce-id", "ce-type", "content-type", "x-own"} {
				if !slices.Contains(names, name) {
					t.Errorf("%s is not signed: %s", name, signed)
				}
			}
			sum := sha256.Sum256(got.body)
			canonical := "POST\n/events\nat=1\n"
			for _, name := range names {
				value := got.header.Get(name)
				switch name {
				case "host":
					value = strings.TrimPrefix(got.at, "http://")
				case "content-length":
					value = fmt.Sprint(len(got.body))
				}
				canonical += name + ":" + strings.TrimSpace(value) + "\n"
			}
			canonical += "\n" + signed + "\n" + hex.EncodeToString(sum[:])
			whole := sha256.Sum256([]byte(canonical))
			key := []byte("AWS4s3cret")
			for _, part := range []string{at[:8], "eu-central-1", "execute-api", "aws4_request"} {
				key = digest(key, part)
			}
			want := hex.EncodeToString(digest(key, "AWS4-HMAC-SHA256\n"+at+"\n"+strings.TrimPrefix(credential, "AKID/")+"\n"+hex.EncodeToString(whole[:])))
			if signature != want {
				t.Errorf("signature %s, want %s of\n%s", signature, want, canonical)
			}
			if got.header.Get("X-Amz-Security-Token") != tt.token {
				t.Errorf("session token %q", got.header.Get("X-Amz-Security-Token"))
			}
		})
	}
	t.Run("nothing is set", func(t *testing.T) {
		for _, name := range []string{"AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} {
			t.Setenv(name, "")
		}
		for block, want := range map[string]string{
			"aws: {service: lambda}": "AWS_REGION is not set", "aws: {service: lambda, region: a}": "AWS_SECRET_ACCESS_KEY are not set",
		} {
			if _, err := tryOpen(t, "url: http://127.0.0.1:1/\n"+block, sinks.Env{}); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", block, err)
			}
		}
	})
}

func TestOwnSignature(t *testing.T) {
	r := start(t, func(nethttp.ResponseWriter, request) int { return nethttp.StatusNoContent })
	for block, check := range map[string]func(h nethttp.Header, body string) (got, want string){
		"signing: {secret: s3cret, header: X-Hub-Signature-256, value: 'sha256={signature}'}\n": func(h nethttp.Header, body string) (got, want string) {
			return h.Get("X-Hub-Signature-256"), "sha256=" + hex.EncodeToString(digest([]byte("s3cret"), body))
		},
		"signing: {secret: s3cret, header: X-Signature, value: 't={timestamp},v1={signature}', signed: '{timestamp}.{body}'}\n": func(h nethttp.Header, body string) (got, want string) {
			at, _, _ := strings.Cut(strings.TrimPrefix(h.Get("X-Signature"), "t="), ",")
			return h.Get("X-Signature"), "t=" + at + ",v1=" + hex.EncodeToString(digest([]byte("s3cret"), at+"."+body))
		},
		"signing: {secret: s3cret, header: X-Signature, signed: '{id}:{timestamp}:{body}', encoding: base64, timestamp_header: X-At, id_header: X-Id}\n": func(h nethttp.Header, body string) (got, want string) {
			return h.Get("X-Signature"), base64.StdEncoding.EncodeToString(digest([]byte("s3cret"), h.Get("X-Id")+":"+h.Get("X-At")+":"+body))
		},
	} {
		events := numbered(1)
		if err := events[0].CloudEvent.SetData("application/json", []byte(`{"text": "{timestamp}{id}"}`)); err != nil {
			t.Fatal(err)
		}
		before := len(r.all())
		if err := deliver(t, r.open(t, block), events); err != nil {
			t.Fatal(err)
		}
		sent := r.all()[before]
		if got, want := check(sent.header, string(sent.body)); got != want {
			t.Errorf("%s: %s, want %s", block, got, want)
		}
		if sent.header.Get("Webhook-Signature") != "" {
			t.Errorf("%s: the headers of Standard Webhooks are set, too", block)
		}
	}
}
