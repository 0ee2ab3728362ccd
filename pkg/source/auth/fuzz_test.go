package auth

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/source"
)

// sentences are all that a refusal may say. It quotes nothing that a sender
// wrote, and so no secret and no signature.
var sentences = regexp.MustCompile(`^unauthenticated: (` + strings.Join([]string{
	`header H (is missing|is sent more than once)`,
	`header H (is not|holds no) (sha256=|v0=|v1=|v1,) and (64 hex digits|44 characters of base64)`,
	`header H does not hold one timestamp t=`,
	`header H holds "\.", which ends it in what is signed`,
	`header H is not of the scheme (Basic|Bearer)`,
	`header H holds no name and password in base64`,
	`name or password in header H is wrong`,
	`token in header H is wrong`,
	`the timestamp in header H is not a number of seconds`,
	`the timestamp in header H has a sign or leading zeros`,
	`the timestamp is more than 5m0s from this machine's clock`,
	`no secret fits the signature`,
}, "|") + `)$`)

// quotes reports whether an error says anything else than the sentences, with
// one of the names in place of H.
func quotes(err error, names []string) bool {
	text := err.Error()
	if sentences.MatchString(text) {
		return false
	}
	for _, name := range names {
		if sentences.MatchString(strings.Replace(text, "header "+name, "header H", 1)) {
			return false
		}
	}
	return true
}

// fuzzPreset is what holds for every request: strangers are refused, by a
// known sentence, and whoever has the secret is let in.
func fuzzPreset(t *testing.T, preset Preset, secret string, names []string, values [3]string, body []byte, now int64) {
	t.Helper()
	v := verifier(t, Auth{Signature: &Signature{Preset: preset, Secrets: []config.Secret{"c3RyYW5nZQ==", config.Secret(secret)}}})
	r := &source.Request{Header: http.Header{}, Body: body, Received: time.Unix(now, 0)}
	for i, name := range names {
		if values[i] != "" {
			r.Header.Set(name, values[i])
		}
	}
	if err := v.Verify(r); err == nil {
		t.Errorf("a stranger was let in: %v", r.Header)
	} else if quotes(err, names) {
		t.Errorf("the error quotes the request: %v", err)
	}
	id := strings.NewReplacer(".", "", "\n", "", "\r", "").Replace(values[2])
	if err := preset.Sign(r.Header, secret, id+"x", r.Received, body); err != nil {
		t.Fatal(err)
	}
	if err := v.Verify(r); err != nil {
		t.Errorf("who has the secret was refused: %v, %v", err, r.Header)
	}
}

// hidden is a secret that no corpus knows.
func hidden() string { return base64.StdEncoding.EncodeToString([]byte(rand.Text())) }

func FuzzSignature(f *testing.F) {
	single := []Preset{UploadPost, GitHub, Slack}
	for i, preset := range single {
		for _, vec := range vectors(f) {
			if vec.signature.Preset == preset {
				names, _ := preset.scheme()
				f.Add(uint8(i), vec.header[names.headers[0].signature], vec.header[names.headers[0].timestamp], []byte(vec.body), vec.at)
			}
		}
		f.Add(uint8(i), "sha256="+strings.Repeat("0", 64), "1", []byte{}, int64(0))
		f.Add(uint8(i), "v0=", "-9223372036854775808", []byte("{}"), int64(1<<40))
		f.Add(uint8(i), "", "", []byte("x"), int64(1))
	}
	secret := hidden()
	f.Fuzz(func(t *testing.T, i uint8, signature, timestamp string, body []byte, now int64) {
		preset := single[int(i)%len(single)]
		how, _ := preset.scheme()
		names := []string{how.headers[0].signature}
		if how.headers[0].timestamp != "" {
			names = append(names, how.headers[0].timestamp)
		}
		fuzzPreset(t, preset, secret, names, [3]string{signature, timestamp}, body, now>>8) // years that a clock can show
	})
}

func FuzzStripe(f *testing.F) {
	for _, vec := range vectors(f) {
		if vec.signature.Preset == Stripe {
			f.Add(vec.header["Stripe-Signature"], []byte(vec.body), vec.at)
		}
	}
	zeros := strings.Repeat("0", 64)
	f.Add("t=1,v1="+zeros+",v1="+zeros+",v0=x", []byte("{}"), int64(1))
	f.Add("t=1,t=2,v1="+zeros, []byte("{}"), int64(1))
	f.Add("v1="+zeros+",,t=", []byte{}, int64(0))
	secret := hidden()
	f.Fuzz(func(t *testing.T, signature string, body []byte, now int64) {
		fuzzPreset(t, Stripe, secret, []string{"Stripe-Signature"}, [3]string{signature}, body, now>>8)
	})
}

func FuzzStandardWebhooks(f *testing.F) {
	for _, vec := range vectors(f) {
		if vec.signature.Preset == StandardWebhooks {
			f.Add(vec.header["Webhook-Signature"], vec.header["Webhook-Timestamp"], vec.header["Webhook-Id"], []byte(vec.body), vec.at, false)
			f.Add("v1a,x "+vec.header["Webhook-Signature"]+" v1,", vec.header["Webhook-Timestamp"], "a.b", []byte(vec.body), vec.at, true)
		}
	}
	f.Add("v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "1", "1", []byte("{}"), int64(256), false)
	secret := "whsec_" + hidden()
	f.Fuzz(func(t *testing.T, signature, timestamp, id string, body []byte, now int64, older bool) {
		names := []string{"Webhook-Signature", "Webhook-Timestamp", "Webhook-Id"}
		if older {
			names = []string{"Svix-Signature", "Svix-Timestamp", "Svix-Id"}
			if signature == "" {
				return // the newer names are missing then, which is another sentence
			}
		}
		fuzzPreset(t, StandardWebhooks, secret, names, [3]string{signature, timestamp, id}, body, now>>8)
	})
}

func FuzzBasic(f *testing.F) {
	f.Add(basic("hook:password"))
	f.Add(basic("hook:"))
	f.Add(basic("hook"))
	f.Add("Basic")
	f.Add("Basic  =")
	f.Add("bearer x")
	f.Add("")
	password := hidden()
	f.Fuzz(func(t *testing.T, value string) {
		for _, a := range []Auth{
			{Basic: &Basic{Username: "hook", Passwords: []config.Secret{config.Secret(password)}}},
			{Bearer: &Bearer{Tokens: []config.Secret{config.Secret(password)}}},
		} {
			err := verifier(t, a).Verify(&source.Request{Header: http.Header{"Authorization": {value}}})
			if err == nil {
				t.Errorf("a stranger was let in by %q", value)
			} else if quotes(err, []string{"Authorization"}) {
				t.Errorf("the error quotes the request: %v", err)
			}
		}
	})
}

func FuzzTemplate(f *testing.F) {
	for _, text := range []string{"{body}", "{id}.{timestamp}.{body}", "v0:{timestamp}:{body}", "{url}{body}", "{id}{body}", "{", "}", "{}", "{{body}}", "a{b", "{body}}"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s := Signature{Header: "X-Signature", Signed: text, TimestampHeader: "X-Timestamp", IDHeader: "X-Id", Secrets: []config.Secret{"confidential"}, AllowWeak: true}
		parsed, err := parseTemplate(text)
		if err != nil {
			if s.Validate() == nil {
				t.Errorf("a template that cannot be read is valid: %v", err)
			}
			return
		}
		var again strings.Builder
		for _, p := range parsed {
			if p.field != "" {
				fmt.Fprintf(&again, "{%s}", p.field)
			}
			again.WriteString(p.text)
		}
		if again.String() != text {
			t.Errorf("%q was read as %q", text, again.String())
		}
		s.TimestampHeader, s.IDHeader = "", ""
		if parsed.has(fieldTimestamp) {
			s.TimestampHeader = "X-Timestamp"
		}
		if parsed.has(fieldID) {
			s.IDHeader = "X-Id"
		}
		_, _, ambiguous := parsed.ambiguous()
		if err := s.Validate(); (err == nil) != ((parsed.has(fieldBody) || text == "") && !ambiguous) {
			t.Errorf("%q: Validate = %v", text, err)
		}
	})
}
