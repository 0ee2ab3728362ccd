package auth

import (
	"errors"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/source"
)

// vector is a delivery whose signature somebody else made.
type vector struct {
	from      string
	signature Signature
	header    map[string]string
	body      string
	at        int64
	url       [3]string // scheme, host, target
}

const slackBody = "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar" +
	"&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=" +
	"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN" +
	"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"

// vectors returns those that the owners of the schemes publish, and for what is
// spelled out some that openssl made.
func vectors(t testing.TB) []vector {
	t.Helper()
	stripe, err := os.ReadFile("testdata/stripe.json")
	if err != nil {
		t.Fatal(err)
	}
	one := func(secret string) []config.Secret { return []config.Secret{config.Secret(secret)} }
	return []vector{
		{
			from:      "docs.github.com: validating webhook deliveries",
			signature: Signature{Preset: GitHub, Secrets: one("It's a Secret to Everybody")},
			header:    map[string]string{"X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"},
			body:      "Hello, World!",
		},
		{
			from:      "github.com/standard-webhooks/standard-webhooks: libraries",
			signature: Signature{Preset: StandardWebhooks, Secrets: one("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")},
			header: map[string]string{
				"Webhook-Id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "Webhook-Timestamp": "1614265330",
				"Webhook-Signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
			},
			body: `{"test": 2432232314}`, at: 1614265330,
		},
		{
			from:      "docs.slack.dev: verifying requests from Slack",
			signature: Signature{Preset: Slack, Secrets: one("8f742231b10e8888abcd99yyyzzz85a5")},
			header: map[string]string{
				"X-Slack-Request-Timestamp": "1531420618",
				"X-Slack-Signature":         "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
			},
			body: slackBody, at: 1531420618,
		},
		{
			from:      "github.com/stripe/stripe-dotnet: tests of EventUtility",
			signature: Signature{Preset: Stripe, Secrets: one("webhook_secret")},
			header: map[string]string{
				"Stripe-Signature": "t=1533204620,v1=2220f87ef101a04665f11cdf770523143f875572008577fa0f20882ddb9cc3c7",
			},
			body: string(stripe), at: 1533204620,
		},
		{
			from:      "upload-post, by openssl",
			signature: Signature{Preset: UploadPost, Secrets: one("whsec_new")},
			header: map[string]string{
				"X-Upload-Post-Timestamp": "1767323045",
				"X-Upload-Post-Signature": "sha256=6b1e929cdbfb23666fbc6aa44ed11aa400c8ffae5e145b06eb2ded6183d00dc9",
			},
			body: `{"event":"ping"}`, at: 1767323045,
		},
		{
			from:      "spelled out: the bare body with SHA-1, by openssl",
			signature: Signature{Algorithm: "sha1", Header: "x-signature", Secrets: one("s3cret")},
			header:    map[string]string{"X-Signature": "79999786a1bff10cd4d7dd0b0752574af76be0b5"},
			body:      `{"a":1}`,
		},
		{
			from: "spelled out: SHA-512 in base64 with a timestamp, by openssl",
			signature: Signature{
				Algorithm: "sha512", Encoding: "base64", Header: "X-Signature", Signed: "{timestamp}:{body}",
				TimestampHeader: "x-timestamp", Secrets: one("s3cret"),
			},
			header: map[string]string{
				"X-Timestamp": "1700000000",
				"X-Signature": "Cm/sBaa51H6ODLxPIkuLvabTOA9mp2NA+3774b5NW4OdeX8d/tFnjohxDtg3aK4mdYijR+THNrLCJSAoBPUQTw==",
			},
			body: `{"a":1}`, at: 1700000000,
		},
		{
			from:      "spelled out: the URL and the body, by openssl",
			signature: Signature{Encoding: "base64", Header: "X-Signature", Signed: "{url}{body}", Secrets: one("s3cret")},
			header:    map[string]string{"X-Signature": "vefLfz291u2ndpuqmk4CnI8MJ1YIsEFT3vY1L60uqqw="},
			body:      `{"a":1}`, url: [3]string{"https", "hooks.example.com", "/in?x=1"},
		},
		{
			from: "spelled out: id, timestamp and body, by openssl",
			signature: Signature{
				Header: "X-Signature", Prefix: "HMAC ", Signed: "{id}|{timestamp}|{body}",
				TimestampHeader: "X-Timestamp", IDHeader: "X-Id", Secrets: one("s3cret"),
			},
			header: map[string]string{
				"X-Id": "42", "X-Timestamp": "1700000000",
				"X-Signature": "HMAC ad038bffdb22cc42f50f414117438a15000c3c49aac5959dee3f886f279cee79",
			},
			body: `{"a":1}`, at: 1700000000,
		},
	}
}

func (v vector) request() *source.Request {
	h := http.Header{}
	for name, value := range v.header {
		h.Set(name, value)
	}
	return &source.Request{
		Header: h, Body: []byte(v.body), Received: time.Unix(v.at, 0),
		Scheme: v.url[0], Host: v.url[1], Target: v.url[2],
	}
}

func verifier(t testing.TB, a Auth) *Verifier {
	t.Helper()
	v, err := weak(a).Verifier()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// weak allows the short secrets of the senders' own examples.
func weak(a Auth) Auth {
	if s := a.Signature; s != nil {
		allowed := *s
		allowed.AllowWeak, a.Signature = true, &allowed
	}
	if b := a.Basic; b != nil {
		a.Basic = &Basic{b.Username, b.Passwords, true}
	}
	if b := a.Bearer; b != nil {
		a.Bearer = &Bearer{b.Tokens, true}
	}
	if h := a.Header; h != nil {
		a.Header = &Header{h.Name, h.Values, true}
	}
	if t := a.PathToken; t != nil {
		a.PathToken = &PathToken{t.Tokens, true}
	}
	return a
}

// refused fails the test if a request is let in, or if the refusal tells what
// it must not.
func refused(t *testing.T, v *Verifier, r *source.Request, secrets []config.Secret, what string) {
	t.Helper()
	err := v.Verify(r)
	if !errors.Is(err, source.ErrUnauthenticated) {
		t.Errorf("%s: Verify = %v", what, err)
		return
	}
	for _, secret := range secrets {
		if strings.Contains(err.Error(), secret.Reveal()) {
			t.Errorf("%s: the error shows a secret: %v", what, err)
		}
	}
	for name, values := range r.Header {
		for _, value := range values {
			if len(value) > 8 && strings.Contains(err.Error(), value) {
				t.Errorf("%s: the error shows header %s: %v", what, name, err)
			}
		}
	}
}

// TestVectors: what the owners of the schemes publish is accepted, and nothing
// of it may be changed.
func TestVectors(t *testing.T) {
	for _, vec := range vectors(t) {
		t.Run(vec.from, func(t *testing.T) {
			v := verifier(t, Auth{Signature: &vec.signature})
			if err := v.Verify(vec.request()); err != nil {
				t.Fatalf("Verify = %v", err)
			}
			refuse := func(what string, change func(r *source.Request)) {
				t.Helper()
				r := vec.request()
				change(r)
				refused(t, v, r, vec.signature.Secrets, what)
			}
			for name, value := range vec.header {
				for i := range value {
					refuse(name+" with another character at "+strconv.Itoa(i), func(r *source.Request) {
						other := []byte(value)
						other[i] ^= 1
						r.Header.Set(name, string(other))
					})
					refuse(name+" cut at "+strconv.Itoa(i), func(r *source.Request) { r.Header.Set(name, value[:i]) })
				}
				refuse("no "+name, func(r *source.Request) { r.Header.Del(name) })
				refuse(name+" twice", func(r *source.Request) { r.Header.Add(name, value) })
				refuse(name+" twice, the other empty", func(r *source.Request) { r.Header.Add(name, "") })
				refuse(name+" with more behind", func(r *source.Request) { r.Header.Set(name, value+"0") })
				refuse(name+" with more before", func(r *source.Request) { r.Header.Set(name, "0"+value) })
			}
			for i := range vec.body {
				refuse("another body", func(r *source.Request) { r.Body[i] ^= 1 })
			}
			refuse("an empty body", func(r *source.Request) { r.Body = nil })
			refuse("a longer body", func(r *source.Request) { r.Body = append(r.Body, ' ') })
			if vec.url[0] != "" {
				refuse("another scheme", func(r *source.Request) { r.Scheme = "http" })
				refuse("another host", func(r *source.Request) { r.Host = "hooks.example.org" })
				refuse("another target", func(r *source.Request) { r.Target = "/in?x=2" })
			}
			refuse("nothing", func(r *source.Request) { r.Header = http.Header{} })

			how, err := vec.signature.scheme()
			if err != nil {
				t.Fatal(err)
			}
			refuse("another encoding", func(r *source.Request) {
				s, err := how.compile(nil)
				if err != nil {
					t.Fatal(err)
				}
				name := http.CanonicalHeaderKey(how.headers[0].signature)
				before, text, _ := strings.Cut(r.Header.Get(name), how.prefix)
				signature, err := s.decode(text)
				if err != nil {
					t.Fatal(err)
				}
				how.encoding = map[string]string{hexName: base64Name, base64Name: hexName}[how.encoding]
				if s, err = how.compile(nil); err != nil {
					t.Fatal(err)
				}
				r.Header.Set(name, before+how.prefix+s.encode(signature))
			})

			// The tolerance.
			for after, want := range map[time.Duration]bool{
				-DefaultTolerance: true, DefaultTolerance: true,
				-DefaultTolerance - time.Second: false, DefaultTolerance + time.Second: false, 1000 * time.Hour: false,
			} {
				r := vec.request()
				r.Received = r.Received.Add(after)
				if vec.at == 0 {
					want = true // there is no timestamp
				}
				if err := v.Verify(r); (err == nil) != want {
					t.Errorf("%v later: Verify = %v", after, err)
				}
			}

			// Rotation: the secret that fits may stand anywhere; without it, no.
			other := config.Secret("d2hhdGV2ZXI=") // base64, for those who want that
			for _, secrets := range [][]config.Secret{
				{other, vec.signature.Secrets[0]}, {vec.signature.Secrets[0], other}, {other, other, vec.signature.Secrets[0], other},
			} {
				rotated := vec.signature
				rotated.Secrets = secrets
				if err := verifier(t, Auth{Signature: &rotated}).Verify(vec.request()); err != nil {
					t.Errorf("with several secrets: %v", err)
				}
			}
			without := vec.signature
			without.Secrets = []config.Secret{other}
			refused(t, verifier(t, Auth{Signature: &without}), vec.request(), without.Secrets, "another secret")
		})
	}
}

// TestSign: a preset that signs makes what the owners publish.
func TestSign(t *testing.T) {
	for _, vec := range vectors(t) {
		if vec.signature.Preset == "" {
			continue
		}
		h := http.Header{}
		err := vec.signature.Preset.Sign(h, vec.signature.Secrets[0].Reveal(), vec.header["Webhook-Id"], time.Unix(vec.at, 0), []byte(vec.body))
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for name := range h {
			got[name] = h.Get(name)
		}
		if !maps.Equal(got, vec.header) {
			t.Errorf("%s signs %v, want %v", vec.signature.Preset, got, vec.header)
		}
	}
	if err := Preset("pigeon").Sign(http.Header{}, "s", "", time.Time{}, nil); err == nil {
		t.Error("a preset that does not exist signs")
	}
	if err := StandardWebhooks.Sign(http.Header{}, "not base64!", "", time.Time{}, nil); err == nil || strings.Contains(err.Error(), "not base64!") {
		t.Errorf("a secret that is none gives %v", err)
	}
}

// TestForms: what the lists of signatures may and may not hold.
func TestForms(t *testing.T) {
	byName := map[Preset]vector{}
	for _, vec := range vectors(t) {
		byName[vec.signature.Preset] = vec
	}
	zeros := strings.Repeat("0", 64)
	standard := byName[StandardWebhooks].header["Webhook-Signature"]
	stripe := strings.TrimPrefix(byName[Stripe].header["Stripe-Signature"], "t=1533204620,")
	for _, tt := range []struct {
		name   string
		preset Preset
		header map[string]string // on top of the vector's; an empty one is removed
		want   string            // in the error; none is accepted
	}{
		{"another version before", StandardWebhooks, map[string]string{"Webhook-Signature": "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw== " + standard}, ""},
		{"another version behind", StandardWebhooks, map[string]string{"Webhook-Signature": standard + " v2,x"}, ""},
		{"an old signature before", StandardWebhooks, map[string]string{"Webhook-Signature": "v1,AAAASsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OEA= " + standard}, ""},
		{"what cannot be read before", StandardWebhooks, map[string]string{"Webhook-Signature": "v1, v1,%% v1  , " + standard}, ""},
		{"only another version", StandardWebhooks, map[string]string{"Webhook-Signature": strings.Replace(standard, "v1,", "v1a,", 1)}, "holds no v1, and 44 characters of base64"},
		{"no version", StandardWebhooks, map[string]string{"Webhook-Signature": strings.TrimPrefix(standard, "v1,")}, "holds no v1,"},
		{"bits that are not used", StandardWebhooks, map[string]string{"Webhook-Signature": strings.Replace(standard, "1OE=", "1OF=", 1)}, "holds no v1,"},
		{"the older names", StandardWebhooks, map[string]string{
			"Webhook-Id": "", "Webhook-Timestamp": "", "Webhook-Signature": "",
			"Svix-Id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "Svix-Timestamp": "1614265330", "Svix-Signature": standard,
		}, ""},
		{"both names", StandardWebhooks, map[string]string{"Svix-Id": "x", "Svix-Timestamp": "1", "Svix-Signature": "v1,x"}, ""},
		{"names mixed", StandardWebhooks, map[string]string{"Webhook-Signature": "", "Svix-Signature": standard}, "Svix-Timestamp is missing"},
		{"an id that holds what ends it", StandardWebhooks, map[string]string{"Webhook-Id": "msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"}, `Webhook-Id holds "."`},

		{"several", Stripe, map[string]string{"Stripe-Signature": "t=1533204620,v1=" + zeros + "," + stripe + ",v0=63f3a7,v1=zz"}, ""},
		{"the timestamp behind", Stripe, map[string]string{"Stripe-Signature": stripe + ",t=1533204620"}, ""},
		{"two timestamps", Stripe, map[string]string{"Stripe-Signature": "t=1533204620,t=1533204621," + stripe}, "does not hold one timestamp"},
		{"no timestamp", Stripe, map[string]string{"Stripe-Signature": stripe}, "does not hold one timestamp"},
		{"an empty timestamp", Stripe, map[string]string{"Stripe-Signature": "t=," + stripe}, "is not a number"},
		{"another number that is equal", Stripe, map[string]string{"Stripe-Signature": "t=01533204620," + stripe}, "has a sign or leading zeros"},
		{"a number with a sign", Stripe, map[string]string{"Stripe-Signature": "t=+1533204620," + stripe}, "has a sign or leading zeros"},
		{"only another version", Stripe, map[string]string{"Stripe-Signature": "t=1533204620," + strings.Replace(stripe, "v1", "v0", 1)}, "holds no v1= and 64 hex digits"},
		{"nothing but commas", Stripe, map[string]string{"Stripe-Signature": ",,"}, "does not hold one timestamp"},

		{"upper case", GitHub, map[string]string{"X-Hub-Signature-256": "sha256=" + strings.ToUpper(strings.TrimPrefix(byName[GitHub].header["X-Hub-Signature-256"], "sha256="))}, ""},
		{"the older header", GitHub, map[string]string{"X-Hub-Signature": "sha1=00", "X-Hub-Signature-256": ""}, "X-Hub-Signature-256 is missing"},
		{"another version", Slack, map[string]string{"X-Slack-Signature": "v1=" + zeros}, "is not v0= and 64 hex digits"},

		{"the least timestamp", UploadPost, map[string]string{"X-Upload-Post-Timestamp": "-9223372036854775808"}, "more than"},
		{"a timestamp whose distance overflows", UploadPost, map[string]string{"X-Upload-Post-Timestamp": "-9223372035087452763"}, "more than"},
		{"the greatest timestamp", UploadPost, map[string]string{"X-Upload-Post-Timestamp": "9223372036854775807"}, "more than"},
		{"a timestamp beyond", UploadPost, map[string]string{"X-Upload-Post-Timestamp": "9223372036854775808"}, "not a number"},
		{"a timestamp in milliseconds", UploadPost, map[string]string{"X-Upload-Post-Timestamp": "1767323045000"}, "more than"},
	} {
		t.Run(string(tt.preset)+": "+tt.name, func(t *testing.T) {
			vec := byName[tt.preset]
			r := vec.request()
			for name, value := range tt.header {
				if r.Header.Del(name); value != "" {
					r.Header.Set(name, value)
				}
			}
			v := verifier(t, Auth{Signature: &vec.signature})
			if tt.want == "" {
				if err := v.Verify(r); err != nil {
					t.Errorf("Verify = %v", err)
				}
				return
			}
			refused(t, v, r, vec.signature.Secrets, tt.name)
			if err := v.Verify(r); !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Verify = %v, want %q", err, tt.want)
			}
		})
	}
}

// TestStandardSecrets: with whsec_ or without, padded or not, a secret is the
// same key.
func TestStandardSecrets(t *testing.T) {
	vec := vectors(t)[1]
	for _, secret := range []config.Secret{"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"} {
		if err := verifier(t, Auth{Signature: &Signature{Preset: StandardWebhooks, Secrets: []config.Secret{secret}}}).Verify(vec.request()); err != nil {
			t.Error(err)
		}
	}
	for _, secret := range []string{"c2VjcmV0cw==", "c2VjcmV0cw", "whsec_c2VjcmV0cw"} {
		if key, err := standardKey(secret); err != nil || string(key) != "secrets" {
			t.Errorf("%s is the key %q, %v", secret, key, err)
		}
	}
}

// TestDefault: the preset of the kind counts where nothing is said, and only
// there.
func TestDefault(t *testing.T) {
	var uploadPost, github vector
	for _, vec := range vectors(t) {
		switch vec.signature.Preset {
		case UploadPost:
			uploadPost = vec
		case GitHub:
			github = vec
		}
	}
	plain := Signature{Secrets: uploadPost.signature.Secrets}
	if err := verifier(t, Auth{Default: UploadPost, Signature: &plain}).Verify(uploadPost.request()); err != nil {
		t.Error(err)
	}
	if plain.Preset != "" {
		t.Error("the configuration was changed")
	}
	if _, err := (Auth{Signature: &plain}).Verifier(); err == nil {
		t.Error("without a default, a signature of no form is accepted")
	}
	if err := verifier(t, Auth{Default: UploadPost, Signature: &github.signature}).Verify(github.request()); err != nil {
		t.Error(err)
	}
	spelled := Signature{Header: "X-Hub-Signature-256", Prefix: "sha256=", Secrets: github.signature.Secrets}
	if err := verifier(t, Auth{Default: UploadPost, Signature: &spelled}).Verify(github.request()); err != nil {
		t.Error(err)
	}
}

// TestSignatureHeadersAreSecret: what proves a request is not kept.
func TestSignatureHeadersAreSecret(t *testing.T) {
	for _, vec := range vectors(t) {
		secret := verifier(t, Auth{Signature: &vec.signature}).Proof().SecretHeaders
		for name, value := range vec.header {
			if strings.Contains(strings.ToLower(name), "signature") != slices.Contains(secret, name) {
				t.Errorf("%s: header %s: %s, of the secret headers %v", vec.from, name, value, secret)
			}
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, vec := range vectors(b) {
		b.Run(strings.ReplaceAll(vec.from, " ", "_"), func(b *testing.B) {
			vec.signature.Secrets = append([]config.Secret{"d2hhdGV2ZXI="}, vec.signature.Secrets...)
			v, r := verifier(b, Auth{Signature: &vec.signature}), vec.request()
			b.ReportAllocs()
			for b.Loop() {
				if err := v.Verify(r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
