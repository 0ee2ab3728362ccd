package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/golden"
	"github.com/postwire/postwire/pkg/source"
)

// basic is the value of a header for a name and a password.
func basic(pair string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(pair)) }

func header(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i+1 < len(pairs); i += 2 {
		h.Add(pairs[i], pairs[i+1])
	}
	return h
}

const (
	oldToken = "old-token-old-token"
	newToken = "new_token_new_token"
)

func tokens() []config.Secret { return []config.Secret{oldToken, newToken} }

func TestCredentials(t *testing.T) {
	var (
		withBasic  = Auth{Basic: &Basic{Username: "höok", Passwords: []config.Secret{"old", "n:w"}}}
		withBearer = Auth{Bearer: &Bearer{Tokens: tokens()}}
		withHeader = Auth{Header: &Header{Name: "x-gitlab-token", Values: tokens()}}
		withToken  = Auth{PathToken: &PathToken{Tokens: tokens()}}
		listed     = Auth{IPAllow: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}, Bearer: &Bearer{Tokens: tokens()}}
	)
	at := func(addr string, h http.Header) source.Request {
		return source.Request{Remote: netip.MustParseAddr(addr), Header: h}
	}
	for _, tt := range []struct {
		name string
		auth Auth
		r    source.Request
		want string // in the error; none is accepted
	}{
		{"none", Auth{None: true}, source.Request{}, ""},

		{"basic, old", withBasic, source.Request{Header: header("Authorization", basic("höok:old"))}, ""},
		{"basic, new, with a colon", withBasic, source.Request{Header: header("Authorization", basic("höok:n:w"))}, ""},
		{"basic, the scheme in another case, spaces", withBasic, source.Request{Header: header("Authorization", "bASIC  "+basic("höok:old")[6:])}, ""},
		{"basic, another name", withBasic, source.Request{Header: header("Authorization", basic("hook:old"))}, "name or password"},
		{"basic, another password", withBasic, source.Request{Header: header("Authorization", basic("höok:older"))}, "name or password"},
		{"basic, no password", withBasic, source.Request{Header: header("Authorization", basic("höok:"))}, "name or password"},
		{"basic, no colon", withBasic, source.Request{Header: header("Authorization", basic("höokold"))}, "no name and password"},
		{"basic, not base64", withBasic, source.Request{Header: header("Authorization", "Basic höok:old")}, "no name and password"},
		{"basic, nothing behind", withBasic, source.Request{Header: header("Authorization", "Basic")}, "no name and password"},
		{"basic, as bearer", withBasic, source.Request{Header: header("Authorization", "Bearer "+basic("höok:old")[6:])}, "not of the scheme Basic"},
		{"basic, glued", withBasic, source.Request{Header: header("Authorization", strings.Replace(basic("höok:old"), " ", "", 1))}, "not of the scheme Basic"},
		{"basic, missing", withBasic, source.Request{}, "Authorization is missing"},
		{"basic, twice", withBasic, source.Request{Header: header("Authorization", basic("höok:old"), "Authorization", basic("a:b"))}, "more than once"},
		{"basic, in the proxy's header", withBasic, source.Request{Header: header("Proxy-Authorization", basic("höok:old"))}, "Authorization is missing"},

		{"bearer, old", withBearer, source.Request{Header: header("Authorization", "Bearer "+oldToken)}, ""},
		{"bearer, new", withBearer, source.Request{Header: header("Authorization", "bearer "+newToken)}, ""},
		{"bearer, another", withBearer, source.Request{Header: header("Authorization", "Bearer "+oldToken+"x")}, "token in header"},
		{"bearer, a part", withBearer, source.Request{Header: header("Authorization", "Bearer "+oldToken[1:])}, "token in header"},
		{"bearer, empty", withBearer, source.Request{Header: header("Authorization", "Bearer ")}, "token in header"},
		{"bearer, no scheme", withBearer, source.Request{Header: header("Authorization", oldToken)}, "not of the scheme Bearer"},

		{"header, old", withHeader, source.Request{Header: header("X-Gitlab-Token", oldToken)}, ""},
		{"header, new", withHeader, source.Request{Header: header("X-Gitlab-Token", newToken)}, ""},
		{"header, another", withHeader, source.Request{Header: header("X-Gitlab-Token", "other")}, "X-Gitlab-Token is wrong"},
		{"header, two in one", withHeader, source.Request{Header: header("X-Gitlab-Token", oldToken+","+newToken)}, "X-Gitlab-Token is wrong"},
		{"header, twice", withHeader, source.Request{Header: header("X-Gitlab-Token", oldToken, "X-Gitlab-Token", newToken)}, "more than once"},
		{"header, empty", withHeader, source.Request{Header: header("X-Gitlab-Token", "")}, "is missing"},
		{"header, missing", withHeader, source.Request{}, "is missing"},

		{"path, old", withToken, source.Request{Token: oldToken}, ""},
		{"path, new", withToken, source.Request{Token: newToken}, ""},
		{"path, another", withToken, source.Request{Token: oldToken + "/"}, "is wrong"},
		{"path, missing", withToken, source.Request{}, "no token"},
		{"path, in the query", withToken, source.Request{RawQuery: oldToken}, "no token"},

		{"all that are listed", listed, at("203.0.113.7", header("Authorization", "Bearer "+oldToken)), ""},
		{"the address as IPv6", listed, at("::ffff:203.0.113.7", header("Authorization", "Bearer "+oldToken)), ""},
		{"only the address", listed, at("203.0.113.7", nil), "Authorization is missing"},
		{"only the token", listed, at("198.51.100.1", header("Authorization", "Bearer "+oldToken)), "forbidden"},
		{"neither: the address comes first", listed, at("198.51.100.1", nil), "forbidden"},
		{"no address", listed, source.Request{Header: header("Authorization", "Bearer "+oldToken)}, "forbidden"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := verifier(t, tt.auth).Verify(&tt.r)
			if tt.want == "" {
				if err != nil {
					t.Errorf("Verify = %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("Verify = %v, want %q", err, tt.want)
			}
			if forbidden := errors.Is(err, source.ErrForbidden); forbidden == errors.Is(err, source.ErrUnauthenticated) || forbidden != (tt.want == "forbidden") {
				t.Errorf("Verify = %v: not one of the two reasons", err)
			}
			for _, secret := range append(tokens(), "old", "n:w", "höok") {
				if len(secret) > 3 && strings.Contains(err.Error(), secret.Reveal()) {
					t.Errorf("the error shows %s: %v", secret.Reveal(), err)
				}
			}
		})
	}
}

func TestProof(t *testing.T) {
	names := &ClientCertificate{Subjects: []string{"a"}}
	for _, tt := range []struct {
		auth Auth
		want source.Proof
	}{
		{Auth{None: true}, source.Proof{}},
		{Auth{IPAllow: []netip.Prefix{netip.MustParsePrefix("::/0")}}, source.Proof{Required: true}},
		{Auth{Basic: &Basic{Passwords: tokens()}}, source.Proof{Required: true, SecretHeaders: []string{"Authorization"}}},
		{Auth{PathToken: &PathToken{Tokens: tokens()}}, source.Proof{Required: true, PathToken: true}},
		{
			Auth{ClientCertificate: names, Header: &Header{Name: "x-a", Values: tokens()}, Signature: &Signature{Preset: Stripe, Secrets: tokens()}},
			source.Proof{Required: true, ClientCertificate: true, SecretHeaders: []string{"X-A", "Stripe-Signature"}, HeaderSets: [][]string{{"Stripe-Signature"}}, Signs: &source.Signs{}},
		},
		{
			Auth{Signature: &Signature{Preset: StandardWebhooks, Secrets: []config.Secret{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}}},
			source.Proof{
				Required: true, SecretHeaders: []string{"Webhook-Signature", "Svix-Signature"},
				HeaderSets: [][]string{{"Webhook-Signature", "Webhook-Timestamp", "Webhook-Id"}, {"Svix-Signature", "Svix-Timestamp", "Svix-Id"}},
				Signs:      &source.Signs{Headers: []string{"webhook-timestamp", "webhook-id", "svix-timestamp", "svix-id"}},
			},
		},
	} {
		if diff := cmp.Diff(tt.want, verifier(t, tt.auth).Proof()); diff != "" {
			t.Errorf("%+v (- want, + got):\n%s", tt.auth, diff)
		}
	}
}

// certificate makes a client's certificate and reads it again.
func certificate(t *testing.T) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// The order is not the one that crypto/x509/pkix would choose.
	subject := func(id int, value string) pkix.RelativeDistinguishedNameSET {
		return pkix.RelativeDistinguishedNameSET{{Type: asn1.ObjectIdentifier{2, 5, 4, id}, Value: value}}
	}
	raw, err := asn1.Marshal(pkix.RDNSequence{subject(11, "Webhooks"), subject(6, "DE"), subject(10, "Example, Inc."), subject(3, "O=Other")})
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), RawSubject: raw, NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"hooks.example.com"}, EmailAddresses: []string{"hooks@example.com"},
		URIs: []*url.URL{{Scheme: "spiffe", Host: "example.com", Path: "/hooks"}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClientCertificate(t *testing.T) {
	client := certificate(t)
	anonymous := &x509.Certificate{}
	for _, tt := range []struct {
		name   string
		names  ClientCertificate
		client *x509.Certificate
		want   bool
	}{
		{"whole subject, with more escapes", ClientCertificate{Subjects: []string{`CN=O\=Other,O=Example\, Inc.,C=DE,OU=Webhooks`}}, client, false},
		{"whole subject", ClientCertificate{Subjects: []string{`CN=O=Other,O=Example\, Inc.,C=DE,OU=Webhooks`}}, client, true},
		{"a part of the subject", ClientCertificate{Subjects: []string{"OU=Webhooks"}}, client, false},
		{"a common name that looks like a subject", ClientCertificate{Subjects: []string{"O=Other"}}, client, false},
		{"another common name", ClientCertificate{Subjects: []string{"Other"}}, client, false},
		{"DNS name", ClientCertificate{SANs: []string{"Hooks.Example.com"}}, client, true},
		{"a part of the DNS name", ClientCertificate{SANs: []string{"example.com"}}, client, false},
		{"URI", ClientCertificate{SANs: []string{"spiffe://example.com/hooks"}}, client, true},
		{"another URI", ClientCertificate{SANs: []string{"spiffe://example.com/"}}, client, false},
		{"e-mail address", ClientCertificate{SANs: []string{"hooks@example.com"}}, client, true},
		{"another e-mail address", ClientCertificate{SANs: []string{"Hooks@example.com"}}, client, false},
		{"any entry of either list", ClientCertificate{Subjects: []string{"x", "y"}, SANs: []string{"z", "hooks.example.com"}}, client, true},
		{"none of the entries", ClientCertificate{Subjects: []string{"x", "y"}, SANs: []string{"z"}}, client, false},
		{"no certificate", ClientCertificate{Subjects: []string{"x"}}, nil, false},
		{"a certificate without names", ClientCertificate{Subjects: []string{"x"}, SANs: []string{"x"}}, anonymous, false},
		{"common name", ClientCertificate{Subjects: []string{"hooks"}}, &x509.Certificate{Subject: pkix.Name{CommonName: "hooks"}}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := verifier(t, Auth{ClientCertificate: &tt.names}).Verify(&source.Request{Client: tt.client})
			if (err == nil) != tt.want || err != nil && !errors.Is(err, source.ErrUnauthenticated) {
				t.Errorf("Verify = %v", err)
			}
		})
	}
}

// TestMistakes: each problem names its key, and what would be right; none
// shows a secret. What is not valid makes no verifier.
// What proves a sender has 16 bytes or more, unless the operator says otherwise
// beside it.
func TestWeakSecrets(t *testing.T) {
	const weakest, strong = "0123456789-15-b", "0123456789-16-by"
	for _, way := range []struct {
		key  string
		with func(secret config.Secret, allowed bool) Auth
	}{
		{"auth.signature.secrets[0]", func(s config.Secret, allowed bool) Auth {
			return Auth{Signature: &Signature{Preset: GitHub, Secrets: []config.Secret{s}, AllowWeak: allowed}}
		}},
		{"auth.signature.secrets[0]", func(s config.Secret, allowed bool) Auth { // the key, not its base64
			return Auth{Signature: &Signature{Preset: StandardWebhooks, Secrets: []config.Secret{config.Secret("whsec_" + base64.StdEncoding.EncodeToString([]byte(s)))}, AllowWeak: allowed}}
		}},
		{"auth.signature.secrets[0]", func(s config.Secret, allowed bool) Auth {
			return Auth{Signature: &Signature{Header: "X-Signature", Secrets: []config.Secret{s}, AllowWeak: allowed}}
		}},
		{"auth.basic.passwords[0]", func(s config.Secret, allowed bool) Auth {
			return Auth{Basic: &Basic{"name", []config.Secret{s}, allowed}}
		}},
		{"auth.bearer.tokens[0]", func(s config.Secret, allowed bool) Auth { return Auth{Bearer: &Bearer{[]config.Secret{s}, allowed}} }},
		{"auth.header.values[0]", func(s config.Secret, allowed bool) Auth {
			return Auth{Header: &Header{"X-Token", []config.Secret{s}, allowed}}
		}},
		{"auth.path_token.tokens[0]", func(s config.Secret, allowed bool) Auth {
			return Auth{PathToken: &PathToken{[]config.Secret{s}, allowed}}
		}},
	} {
		err := way.with(weakest, false).Validate()
		if err == nil || !strings.Contains(err.Error(), way.key+": has 15 bytes, but a secret shorter than 16") || strings.Contains(err.Error(), weakest) {
			t.Errorf("%s: %v", way.key, err)
		}
		for _, right := range []Auth{way.with(strong, false), way.with(weakest, true)} {
			if err := right.Validate(); err != nil {
				t.Errorf("%s: %v", way.key, err)
			}
		}
		if err := way.with("", true).Validate(); err == nil {
			t.Errorf("%s: an empty secret is allowed", way.key)
		}
	}
}

func TestMistakes(t *testing.T) {
	secrets := []config.Secret{"confidential"}
	spelled := func(change func(s *Signature)) Auth {
		s := Signature{Header: "X-Signature", Secrets: secrets}
		change(&s)
		return Auth{Signature: &s}
	}
	var text strings.Builder
	for _, tt := range []struct {
		name string
		auth Auth
	}{
		{"nothing", Auth{}},
		{"a signature of no form", Auth{Signature: &Signature{Secrets: secrets}}},
		{"a preset that does not exist", Auth{Signature: &Signature{Preset: "pigeon", Secrets: secrets}}},
		{"a default that does not exist", Auth{Default: "pigeon", Signature: &Signature{Secrets: secrets}}},
		{"a preset and more", Auth{Signature: &Signature{Preset: GitHub, Secrets: secrets, Header: "X-Signature", Algorithm: "sha1"}}},
		{"no secrets, and an empty one", Auth{Signature: &Signature{Preset: Slack}, Bearer: &Bearer{Tokens: []config.Secret{"confidential", ""}}}},
		{"an empty secret", Auth{Signature: &Signature{Preset: UploadPost, Secrets: []config.Secret{"confidential", ""}}}},
		{"secrets that are not of Standard Webhooks", Auth{Signature: &Signature{Preset: StandardWebhooks, Secrets: []config.Secret{"whsec_", "whpk_Y29uZmlkZW50aWFs", "confidential!"}}}},
		{"tolerance without a timestamp", Auth{Signature: &Signature{Preset: GitHub, Secrets: secrets, Tolerance: time.Minute}}},
		{"tolerance without a timestamp, spelled out", spelled(func(s *Signature) { s.Tolerance = time.Minute })},
		{"a negative tolerance", Auth{Signature: &Signature{Preset: Slack, Secrets: secrets, Tolerance: -time.Minute}}},
		{"no header", spelled(func(s *Signature) { s.Header, s.Prefix = "", "v1=" })},
		{"a header that is none", spelled(func(s *Signature) { s.Header = "X Signature" })},
		{"other words", spelled(func(s *Signature) { s.Algorithm, s.Encoding = "md5", "base32" })},
		{"no body", spelled(func(s *Signature) { s.Signed, s.TimestampHeader = "{timestamp}", "X-Timestamp" })},
		{"no headers for parts", spelled(func(s *Signature) { s.Signed = "{id}.{timestamp}.{body}" })},
		{"headers without parts", spelled(func(s *Signature) { s.TimestampHeader, s.IDHeader = "X-Timestamp", "X-Id" })},
		{"headers of parts that are none", spelled(func(s *Signature) {
			s.Signed, s.TimestampHeader, s.IDHeader = "{id}.{timestamp}.{body}", "X:", "Host"
		})},
		{"an unknown part", spelled(func(s *Signature) { s.Signed, s.Tolerance = "{bodyy}", time.Minute })},
		{"an id beside the body", spelled(func(s *Signature) { s.Signed, s.IDHeader = "{id}.{body}", "X-Id" })},
		{"the body beside an id", spelled(func(s *Signature) { s.Signed, s.IDHeader = "{body}{id}", "X-Id" })},
		{"an open brace", spelled(func(s *Signature) { s.Signed = "{body}{" })},
		{"a closed brace", spelled(func(s *Signature) { s.Signed = "}{body}" })},
		{"a colon in a name", Auth{Basic: &Basic{Username: "a:b", Passwords: secrets}}},
		{"no passwords", Auth{Basic: &Basic{}}},
		{"one header for two", Auth{Basic: &Basic{Passwords: secrets}, Bearer: &Bearer{Tokens: secrets}}},
		{"basic in a header", Auth{Basic: &Basic{Passwords: secrets}, Header: &Header{Name: "authorization", Values: secrets}}},
		{"bearer in a header", Auth{Bearer: &Bearer{Tokens: secrets}, Header: &Header{Name: "authorization", Values: secrets}}},
		{"values that cannot be sent", Auth{Header: &Header{Name: "X-Token", Values: []config.Secret{"confidential\n", " confidential", ""}}}},
		{"no name of a header", Auth{Header: &Header{}}},
		{"the header Host", Auth{Header: &Header{Name: "host", Values: secrets}}},
		{"tokens that are no part of a path", Auth{PathToken: &PathToken{Tokens: []config.Secret{"confidential", "confidential/confidential", "confidential%2Fconfidential", ""}}}},
		{"no tokens", Auth{PathToken: &PathToken{}}},
		{"nobody", Auth{ClientCertificate: &ClientCertificate{}}},
		{"names that are none", Auth{ClientCertificate: &ClientCertificate{Subjects: []string{""}, SANs: []string{"", "*.example.com"}}}},
	} {
		err := tt.auth.Validate()
		if err == nil {
			t.Errorf("%s: it was accepted", tt.name)
			continue
		}
		if _, ok := errors.AsType[config.Invalids](err); !ok {
			t.Errorf("%s: the error is a %T", tt.name, err)
		}
		if v, err := tt.auth.Verifier(); err == nil || v != nil {
			t.Errorf("%s: there is a verifier", tt.name)
		}
		if strings.Contains(err.Error(), "confidential") || strings.Contains(err.Error(), "Y29uZmlkZW50aWFs") {
			t.Errorf("%s: the problem shows a secret: %v", tt.name, err)
		}
		fmt.Fprintf(&text, "## %s\n%v\n\n", tt.name, err)
	}
	golden.Check(t, "testdata/mistakes.txt", text.String())
}
