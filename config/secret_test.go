package config_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/postwire/postwire/config"
)

// What stands around a secret is refused wherever the secret comes from, and
// named; the secret is not shown.
func TestStrayCharactersAroundASecret(t *testing.T) {
	for name, c := range map[string]struct{ value, seen string }{
		"line break":       {"sesame-open-now\n", "ends with a line break (LF)"},
		"two line breaks":  {"sesame-open-now\n\n", "ends with a line break (LF)"},
		"CR LF":            {"sesame-open-now\r\n", "ends with a line break (CR LF)"},
		"CR":               {"sesame-open-now\r", "ends with a carriage return (CR)"},
		"leading CR":       {"\rsesame-open-now", "begins with a carriage return (CR)"},
		"space":            {"sesame-open-now ", "ends with a space"},
		"leading space":    {" sesame-open-now", "begins with a space"},
		"tab":              {"sesame-open-now\t", "ends with a tab"},
		"no-break space":   {"sesame-open-now\u00a0", "ends with white space (U+00A0)"},
		"BOM":              {"\ufeffsesame-open-now", "begins with a byte order mark (BOM)"},
		"BOM behind":       {"sesame-open-now\ufeff", "ends with a byte order mark (BOM)"},
		"zero-width space": {"sesame-open-now\u200b", "ends with an invisible character (U+200B)"},
		"zero byte":        {"sesame-open-now\x00", "ends with an invisible character (U+0000)"},
		"double quotes":    {`"sesame-open-now"`, "is in double quotes"},
		"single quotes":    {"'sesame-open-now'", "is in single quotes"},
		"backquotes":       {"`sesame-open-now`", "is in backquotes"},
		"curly quotes":     {"“sesame-open-now”", "is in typographic quotes"},
		"white space":      {" \n", "is nothing but white space"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(file, []byte(c.value+"\n"), 0o600); err != nil { // one break is stripped
				t.Fatal(err)
			}
			for from, written := range map[string]string{
				"variable": `"${S}"`, "file": `"${file:` + file + `}"`, "document": strconv.Quote(c.value), "default": `"${UNSET:-x}${S}"`,
			} {
				if strings.Contains(c.value, "\x00") && from == "document" || from == "file" && strings.HasSuffix(c.value, "\r") {
					continue // no YAML; and CR LF is one break
				}
				for key, text := range map[string]string{
					"admin.token":                "admin: {token: %s}",
					"admin.viewer_token":         "admin: {viewer_token: %s}",
					"telemetry.traces.headers.X": "telemetry: {traces: {headers: {X: %s}}}",
					"journal.jetstream.password": "journal: {jetstream: {password: %s}}",
					"journal.jetstream.token":    "journal: {jetstream: {token: %s}}",

					"journal.jetstream.embedded.secret": "journal: {jetstream: {embedded: {secret: %s}}}",
					"sinks[0].keys[1]":                  "sinks: [{name: a, type: post, subject: s, keys: [good, %s]}]",
					"sinks[0].token":                    "sinks: [{name: a, type: post, subject: s, token: %s}]",
					"sinks[0].auth.key":                 "sinks: [{name: a, type: post, subject: s, auth: {key: %s}}]",
				} {
					_, _, err := check("postwire.yaml", fmt.Sprintf(text, written), map[string]string{"S": c.value})
					want := key + ": " + c.seen
					if from == "default" && strings.HasPrefix(c.seen, "begins") || from == "default" && strings.HasPrefix(c.seen, "is ") {
						want = key + ": ${S} " + c.seen // the part, inside of a longer value
					}
					if from == "default" && c.seen == "is nothing but white space" {
						want = key + ": ends with"
					}
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("%s of %s: %v, want %q", key, from, err, want)
					} else if strings.Contains(err.Error(), "sesame") {
						t.Errorf("%s of %s: the secret is shown: %v", key, from, err)
					}
					if from == "variable" && err != nil && !strings.Contains(err.Error(), "check ${S}") {
						t.Errorf("%s: it is not said where the value comes from: %v", key, err)
					}
				}
			}
		})
	}
	for _, good := range []string{"sesame", "open sesame", `"`, `a"b`, "'", "it's", `"open" and "sesame"x`, "ö", "日本"} {
		if what, _ := config.Stray(good); what != "" {
			t.Errorf("%q %s", good, what)
		}
	}
}

// One line break at the end of a file is none of the secret, whatever its style.
func TestLineBreakAtTheEndOfAFile(t *testing.T) {
	for _, end := range []string{"", "\n", "\r\n", "\r"} {
		file := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(file, []byte("open-sesame-0123456789"+end), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.Parse("postwire.yaml", []byte(`admin: {token: "${file:`+file+`}"}`), nil)
		if err != nil || c.Admin.Token.Reveal() != "open-sesame-0123456789" {
			t.Errorf("%q: %v", end, err)
		}
		if secret, err := config.ReadSecret(file); err != nil || secret.Reveal() != "open-sesame-0123456789" {
			t.Errorf("%q: %v", end, err)
		}
	}
}

// Below a key that holds secrets no value is quoted, whatever slip put it there.
func TestSlipsDoNotShowSecrets(t *testing.T) {
	const secret = "T0psecret-of-mine"
	for _, slip := range []string{
		"admin: %s", "admin: [%s]", "admin: {listen: %s}", "admin: {token: [%s]}", "admin: {token: {%s}}", "admin: {%s}", "admin: {token: !%s x}", "admin: {token %s}", "admin: {%s: x}", "admin: {token: {%s: x}}", "admin: {token-%s: x}", "admin: {token: *%s}",
		"telemetry: {traces: %s}", "telemetry: {traces: {headers: %s}}", "telemetry: {traces: {headers: [%s]}}", "telemetry: {traces: {protocol: %s}}", "telemetry: {traces: {sample_ratio: %s}}",
		"telemetry: {traces: {headers: {'Bearer %s': x}}}", "telemetry: {traces: {endpoint: 'https://%s@host:4318'}}", "telemetry: {traces: {endpoint: '%s'}}",
		"journal: {jetstream: %s}", "journal: {jetstream: {replicas: %s}}", "journal: {jetstream: {url: %s, stream: '%s x'}}", "journal: {jetstream: {tls: %s}}",
		"%s", "sinks: %s", "sinks: [%s]", "sources: [%s]",
		"sinks: [{name: a, type: post, subject: s, auth: %s}]", "sinks: [{name: a, type: post, subject: s, auth: [%s]}]", "sinks: [{name: a, type: post, subject: s, auth: {%s}}]",
		"sinks: [{name: a, type: post, subject: s, auth: {wait: %s}}]", "sinks: [{name: a, type: post, subject: s, keys: %s}]", "sinks: [{name: a, type: post, subject: s, keys: {%s}}]",
		"sinks: [{name: a, type: post, subject: s, token: [%s]}]", "sinks: [{name: a, type: post, subject: s, keys: [[%s]]}]",
	} {
		text := strings.ReplaceAll(slip, "%s", secret)
		_, _, err := check("postwire.yaml", text, nil)
		if err == nil {
			t.Errorf("%s is right", text)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", text, err)
		}
		expanded := strings.ReplaceAll(slip, "%s", "\"${S}\"")
		if strings.ContainsAny(slip, "!*'") {
			continue
		}
		if _, _, err := check("postwire.yaml", expanded, map[string]string{"S": secret}); err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", expanded, err)
		}
	}
	// Numbers and booleans are secrets as well.
	for _, slip := range []string{"admin: {token: 31415926}", "admin: 31415926", "sinks: [{name: a, type: post, subject: s, auth: 31415926}]", "sinks: [{name: a, type: post, subject: s, auth: {wait: 31415926}}]", "sinks: [{name: a, type: post, subject: s, keys: 31415926}]"} {
		if _, _, err := check("postwire.yaml", slip, nil); err == nil || strings.Contains(err.Error(), "31415926") {
			t.Errorf("%s: %v", slip, err)
		}
	}
}

// Who calls the API proves it by 16 bytes or more; what brokers give may be short.
func TestWeakTokensOfTheAPI(t *testing.T) {
	const weak = "0123456789-15-b"
	for text, want := range map[string]string{
		"admin: {token: " + weak + "}":                              "admin.token: has 15 bytes, but a secret shorter than 16",
		"admin: {token: " + weak + "x, viewer_token: " + weak + "}": "admin.viewer_token: has 15 bytes",
		"admin: {token: " + weak + ", allow_weak: true}":            "",
		"admin: {token: " + weak + "x}":                             "",
		"journal: {jetstream: {password: x, user: y}}":              "",
		"journal: {jetstream: {token: x}}":                          "",
		"telemetry: {traces: {headers: {X: y}}}":                    "",
		"sinks: [{name: a, type: post, subject: s, token: x}]":      "",
	} {
		_, _, err := check("postwire.yaml", text, nil)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func TestURLsHideCredentials(t *testing.T) {
	for written, shown := range map[string]string{
		"nats://localhost:4222":                       "nats://localhost:4222",
		"nats://T0KEN@host:4222":                      "nats://***@host:4222",
		"nats://me:pa55w0rd@host":                     "nats://***@host",
		"nats://me:pa55@w0rd@host":                    "nats://***@host",
		"nats://a:4222,nats://T0KEN@b:4222":           "nats://a:4222,nats://***@b:4222",
		"a:4222, T0KEN@b:4222":                        "a:4222,***@b:4222",
		"nats://me:pa/55w0rd@host":                    "***",
		"nats://me:123?pa55w0rd@host":                 "***",
		"nats://me:pa55w0rd#@host":                    "***",
		"https://x.example/a?code=pa55w0rd&v=1#there": "https://x.example/a?code=***&v=***#there",
		"https://x.example/a?pa55w0rd":                "https://x.example/a?***",
		"https://x.example/@me/a":                     "https://x.example/@me/a",
		"https://me:pa55w0rd@x.example/@me/a":         "https://***@x.example/@me/a",
		"":                                            "",
	} {
		u := config.URL(written)
		j, err := json.Marshal(map[string]config.URL{"u": u})
		if err != nil {
			t.Fatal(err)
		}
		if u.String() != shown || u.Reveal() != written {
			t.Errorf("%q is shown as %q, want %q", written, u.String(), shown)
		}
		for _, out := range []string{fmt.Sprintf("%v %+v %#v %s %q %x", u, u, u, u, u, u), string(j), config.NewScrubber().Text("dialing " + written)} {
			for _, leak := range []string{"T0KEN", "pa55", "w0rd", "70613535"} {
				if strings.Contains(out, leak) && shown != "***" && strings.Contains(written, "://") {
					t.Errorf("%q shows %s", out, leak)
				}
			}
		}
	}
	const text = "journal: {jetstream: {url: \"nats://me:pa55w0rd-long@a:4222\"}}\ntelemetry: {traces: {endpoint: \"https://x.example/?token=t0ken-long\"}}"
	c, err := config.Parse("postwire.yaml", []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	scrub := config.NewScrubber(c.Secrets()...)
	for _, leak := range []string{"pa55w0rd-long", "t0ken-long", base64.StdEncoding.EncodeToString([]byte("me:pa55w0rd-long"))} {
		if got := scrub.Text("x " + leak + " y"); strings.Contains(got, leak) {
			t.Errorf("%s is not scrubbed: %s", leak, got)
		}
	}
	out, err := config.Render(c, nil, nil)
	if err != nil || strings.Contains(string(out), "pa55") || strings.Contains(string(out), "t0ken") {
		t.Errorf("rendered: %s, %v", out, err)
	}
}

// A secret is found in each form in which a library prints it.
func TestScrubber(t *testing.T) {
	for _, secret := range []string{
		"sesame-open-0123456789", "with \"quotes\" and \\", "line\nbreak-and-more", "emoji-😀-password", "a+b/c=d&e?f g%h:i@j", "<script>alert</script>", "hunter2", "\x01control-\x7f-bytes", "ünïcödé-password",
	} {
		s := config.NewScrubber("another-secret-of-all", config.Secret(secret))
		request, _ := http.NewRequest(http.MethodGet, "http://x", nil)
		request.SetBasicAuth("user", secret)
		written, err := json.Marshal(secret)
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{
			"plain": secret, "quoted": fmt.Sprintf("%q", secret), "ascii": fmt.Sprintf("%+q", secret), "single": "'" + secret + "'",
			"query": url.QueryEscape(secret), "path": url.PathEscape(secret), "userinfo": url.UserPassword("u", secret).String(),
			"json": string(written), "hex": fmt.Sprintf("%x", secret), "HEX": fmt.Sprintf("%X", secret),
			"base64": base64.StdEncoding.EncodeToString([]byte(secret)), "base64 of a URL": base64.RawURLEncoding.EncodeToString([]byte(secret)),
			"basic": request.Header.Get("Authorization"), "url": "http://u:" + url.QueryEscape(secret) + "@host",
		} {
			if len(secret) < 8 && strings.Contains(name, "basic") {
				continue // the part that does not depend on what is before it is too short
			}
			got := s.Text("error: " + text + " is bad")
			if strings.Contains(got, text) || !strings.Contains(got, "***") || !strings.HasPrefix(got, "error: ") || !strings.HasSuffix(got, " is bad") {
				t.Errorf("%s of %q: %q", name, secret, got)
			}
		}
	}
	short := config.NewScrubber("nats", "a")
	if got := short.Text("nats: no server a; see nats.go and natsclient"); got != "***: no server a; see ***.go and natsclient" {
		t.Errorf("a short secret: %q", got)
	}
}

// The error is the same for errors.Is and errors.As, and reads without secrets.
func TestScrubbedErrors(t *testing.T) {
	s := config.NewScrubber("sesame-open-0123456789")
	cause := &os.PathError{Op: "open", Path: "sesame-open-0123456789", Err: os.ErrNotExist}
	err := s.Error(fmt.Errorf("connecting: %w", cause))
	if err.Error() != "connecting: open ***: file does not exist" {
		t.Errorf("%v", err)
	}
	if found, ok := errors.AsType[*os.PathError](err); !ok || found != cause || !errors.Is(err, os.ErrNotExist) {
		t.Error("the cause is lost")
	}
	if plain := errors.New("plain"); !errors.Is(s.Error(plain), plain) || s.Error(plain).Error() != "plain" || s.Error(nil) != nil {
		t.Error("an error without secrets is not what it was")
	}
	var none *config.Scrubber
	if got := none.Text("sesame at nats://u:p@host"); got != "sesame at nats://***@host" {
		t.Errorf("no scrubber: %q", got)
	}
	// The one before is known as long as somebody may still quote it.
	s.Add("rotated-0123456789-abc")
	if got := s.Text("sesame-open-0123456789 rotated-0123456789-abc"); got != "*** ***" {
		t.Errorf("after a rotation: %q", got)
	}
	for i := range 100 {
		s.Add(config.Secret(fmt.Sprintf("rotated-again-%d-0123456789", i)))
	}
	if got := s.Text("sesame-open-0123456789 rotated-again-99-0123456789"); got != "sesame-open-0123456789 ***" {
		t.Errorf("after many rotations: %q", got)
	}
}

// FuzzScrubber: a scrubbed text holds no secret, whatever stands around it.
func FuzzScrubber(f *testing.F) {
	f.Add("sesame-open-0123456789", "before", "after")
	f.Add("line\nbreak and more", "://", "@")
	f.Fuzz(func(t *testing.T, secret, before, after string) {
		if len(secret) < 8 || strings.Contains("***", secret) {
			return
		}
		s := config.NewScrubber(config.Secret(secret))
		for _, text := range []string{before + secret + after, before + strconv.Quote(secret) + after, before + url.QueryEscape(secret) + after} {
			got := s.Text(text)
			if strings.Contains(got, secret) && !strings.Contains(strings.ReplaceAll(text, secret, ""), secret) && !strings.Contains(secret, "*") {
				t.Errorf("%q in %q", secret, got)
			}
		}
	})
}

// A secret that is there and empty is a mistake: an emptied token file would open
// what the token guards. An absent one is written ${NAME:-}.
func TestEmptySecretsAreRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	for content, empty := range map[string]bool{"": true, "\n": true, "\r\n": true, "a-token-of-some-length\n": false} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := config.Parse("c.yaml", []byte("admin: {token: '${file:"+file+"}'}\nsources: []\nsinks: []\n"), noEnv)
		if got := err != nil && strings.Contains(err.Error(), "} is empty"); got != empty {
			t.Errorf("a file with %q: %v", content, err)
		}
	}
	for text, empty := range map[string]bool{"${NAME}": true, "${NAME:-}": false} {
		_, err := config.Parse("c.yaml", []byte("admin: {token: '"+text+"'}\nsources: []\nsinks: []\n"), func(string) (string, bool) { return "", true })
		if got := err != nil && strings.Contains(err.Error(), "} is empty"); got != empty {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func noEnv(string) (string, bool) { return "", false }
