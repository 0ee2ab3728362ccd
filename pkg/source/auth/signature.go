package auth

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // some senders use only SHA-1; HMAC-SHA1 is not broken
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/source"
)

var _ config.Value = (*Signature)(nil)

// DefaultTolerance is the tolerance that known senders recommend.
const DefaultTolerance = 5 * time.Minute

const (
	sha1Name   = "sha1"
	sha256Name = "sha256"
	sha512Name = "sha512"

	hexName    = "hex"
	base64Name = "base64"
)

// Signature is the signature format of the sender: a preset, or the keys after it.
type Signature struct {
	Preset    Preset          `yaml:"preset" enum:"upload-post,standard-webhooks,github,stripe,slack" doc:"Verify signatures in this sender's format. Replaces algorithm, header, prefix, encoding, signed, timestamp_header and id_header. Without preset and header, a source of type uploadpost uses upload-post, and a source of type webhook uses its own preset."`
	Secrets   []config.Secret `yaml:"secrets" doc:"Valid shared secrets. One match is enough, so that a rotation loses no webhooks. Required unless from_api is set." example:"[\"${WEBHOOK_SECRET}\"]"`
	AllowWeak bool            `yaml:"allow_weak" doc:"Accept secrets shorter than 16 bytes, or shorter than the secrets of the preset's sender. An attacker who guesses a secret can sign webhooks."`
	FromAPI   bool            `yaml:"from_api" doc:"Read the secret from the sender's API at start and when signatures stop matching, at most once in five seconds. The previous secret is valid for another hour. Only for sources of type uploadpost with api.key."`
	Tolerance time.Duration   `yaml:"tolerance" doc:"Maximum difference between the signed timestamp and the current time, in either direction; webhooks beyond the difference are answered 401. A repeat within the tolerance is a duplicate, if dedupe.window is at least twice as long. Default is 5m."`

	Algorithm       string `yaml:"algorithm" enum:"sha256,sha1,sha512" doc:"Hash of the HMAC. Default is sha256."`
	Header          string `yaml:"header" doc:"Header with the signature. Required without a preset." example:"X-Signature"`
	Prefix          string `yaml:"prefix" doc:"Text before the signature in the header." example:"sha256="`
	Encoding        string `yaml:"encoding" enum:"hex,base64" doc:"Encoding of the signature. Default is hex."`
	Signed          string `yaml:"signed" doc:"Signed text, with placeholders: {body} is the unchanged body, {timestamp}, {id}, and {url}, the whole URL as the sender wrote the URL. Behind a proxy, {url} needs the proxy in server.trusted_proxies, and X-Forwarded-Proto and X-Forwarded-Host if the proxy changes scheme or host. Default is {body}." example:"{timestamp}.{body}"`
	TimestampHeader string `yaml:"timestamp_header" doc:"Header with {timestamp}, in Unix seconds." example:"X-Timestamp"`
	IDHeader        string `yaml:"id_header" doc:"Header with {id}." example:"X-Webhook-Id"`
}

// UnmarshalConfig implements config.Value.
func (s *Signature) UnmarshalConfig(n config.Node) error { return n.Decode(s) }

// MarshalConfig implements config.Value. It returns the format in effect in the configured
// form.
func (s *Signature) MarshalConfig() any {
	how, err := s.scheme()
	if err != nil {
		return nil
	}
	var tolerance *time.Duration
	if t, err := parseTemplate(how.signed); err == nil && t.has(fieldTimestamp) {
		tolerance = new(s.tolerance())
	}
	if s.Preset != "" {
		return struct {
			Preset    Preset          `yaml:"preset"`
			Secrets   []config.Secret `yaml:"secrets"`
			AllowWeak bool            `yaml:"allow_weak"`
			FromAPI   bool            `yaml:"from_api"`
			Tolerance *time.Duration  `yaml:"tolerance"`
		}{s.Preset, s.Secrets, s.AllowWeak, s.FromAPI, tolerance}
	}
	return struct {
		Secrets         []config.Secret `yaml:"secrets"`
		AllowWeak       bool            `yaml:"allow_weak"`
		Tolerance       *time.Duration  `yaml:"tolerance"`
		Algorithm       string          `yaml:"algorithm"`
		Header          string          `yaml:"header"`
		Prefix          string          `yaml:"prefix"`
		Encoding        string          `yaml:"encoding"`
		Signed          string          `yaml:"signed"`
		TimestampHeader string          `yaml:"timestamp_header"`
		IDHeader        string          `yaml:"id_header"`
	}{s.Secrets, s.AllowWeak, tolerance, how.algorithm, s.Header, s.Prefix, how.encoding, how.signed, s.TimestampHeader, s.IDHeader}
}

// DescribeConfig implements config.Value.
func (s *Signature) DescribeConfig() config.Syntax {
	return config.Syntax{Type: "mapping", Fields: true}
}

func (s *Signature) tolerance() time.Duration { return cmp.Or(s.Tolerance, DefaultTolerance) }

// spelledOut returns the configured keys that a preset replaces.
func (s *Signature) spelledOut() []string {
	var keys []string
	for _, key := range []struct{ name, value string }{
		{"algorithm", s.Algorithm},
		{"header", s.Header},
		{"prefix", s.Prefix},
		{"encoding", s.Encoding},
		{"signed", s.Signed},
		{"timestamp_header", s.TimestampHeader},
		{"id_header", s.IDHeader},
	} {
		if key.value != "" {
			keys = append(keys, key.name)
		}
	}
	return keys
}

// scheme returns the format. The parts of a format without a preset may be invalid.
func (s *Signature) scheme() (scheme, error) {
	if s.Preset != "" {
		how, ok := s.Preset.scheme()
		if !ok {
			return scheme{}, fmt.Errorf("%q is not a preset", string(s.Preset))
		}
		return how, nil
	}
	return scheme{
		algorithm: cmp.Or(s.Algorithm, sha256Name), encoding: cmp.Or(s.Encoding, hexName),
		signed: cmp.Or(s.Signed, "{"+string(fieldBody)+"}"), prefix: s.Prefix,
		headers: []headers{{s.Header, s.TimestampHeader, s.IDHeader}},
	}, nil
}

// Validate returns all errors.
func (s Signature) Validate() error {
	var p config.Invalids
	how, err := s.scheme()
	switch spelled := s.spelledOut(); {
	case err != nil:
		p.Add("preset", err.Error(), "use one of "+presetList())
	case s.Preset == "" && len(spelled) == 0:
		p.Add("preset", "is missing, and nothing else says how the sender signs", "set it to one of "+presetList()+"; or spell out header, signed, and what else differs from the defaults")
	case s.Preset == "":
		s.checkSpelledOut(&p)
	default:
		for _, key := range spelled {
			p.Add(key, fmt.Sprintf("cannot stand beside preset: %s, which says it already", s.Preset), "remove it; or remove preset, and spell out all that differs from the defaults")
		}
	}
	checkSecrets(&p, "secrets", "secret", "sign", s.Secrets, s.FromAPI, true, func(secret string) (what, hint string) {
		if _, err := how.keyOf(secret); err != nil {
			return err.Error(), "copy it whole from the sender's page"
		}
		return "", ""
	})
	for i, secret := range s.Secrets {
		if key, err := how.keyOf(secret.Reveal()); err == nil && len(key) > 0 {
			config.CheckProof(&p, fmt.Sprintf("secrets[%d]", i), len(key), cmp.Or(how.minSecret, config.MinProof), s.AllowWeak)
		}
	}
	if s.Tolerance < 0 {
		p.Add("tolerance", "is negative", "for example 5m")
	}
	if t, err := parseTemplate(how.signed); s.Tolerance > 0 && err == nil && len(t) > 0 && !t.has(fieldTimestamp) {
		hint := "remove it; or add {timestamp} to signed, where the sender signs it"
		if s.Preset != "" {
			hint = "remove it: with preset " + string(s.Preset) + " a repeat is known by its content alone"
		}
		p.Add("tolerance", "has no effect: no timestamp is signed", hint)
	}
	return p.Err()
}

// checkSpelledOut reports errors of a format without a preset.
func (s Signature) checkSpelledOut(p *config.Invalids) {
	for _, key := range []struct {
		name, value string
		known       []string
	}{
		{"algorithm", s.Algorithm, []string{"", sha256Name, sha1Name, sha512Name}},
		{"encoding", s.Encoding, []string{"", hexName, base64Name}},
	} {
		if !slices.Contains(key.known, key.value) {
			p.Add(key.name, fmt.Sprintf("%q is not one of the values", key.value), "use "+strings.Join(key.known[1:], ", "))
		}
	}
	if s.Header == "" {
		p.Add("header", "is missing: the signature must be somewhere", "name the header, for example X-Signature")
	} else {
		checkHeaderName(p, "header", s.Header)
	}
	how, _ := s.scheme() // the error concerns presets only
	signed, err := parseTemplate(how.signed)
	if err != nil {
		p.Add("signed", err.Error(), "the parts are {body}, {timestamp}, {id} and {url}")
		return
	}
	if a, b, found := signed.ambiguous(); found {
		p.Add("signed", fmt.Sprintf("%q has {%s} beside {%s}, and each may hold anything: where one ends and the other begins is not signed", how.signed, a, b), "write what the sender signs; between the two must stand {timestamp}, which has a fixed form")
	}
	if !signed.has(fieldBody) {
		p.Add("signed", fmt.Sprintf("%q has no {body}: any body would pass", s.Signed), "write what the sender signs, for example {timestamp}.{body}")
	}
	for _, part := range []struct {
		field       field
		key, header string
	}{
		{fieldTimestamp, "timestamp_header", s.TimestampHeader},
		{fieldID, "id_header", s.IDHeader},
	} {
		switch {
		case signed.has(part.field) && part.header == "":
			p.Add(part.key, fmt.Sprintf("is missing, and signed has {%s}", part.field), "name the header that holds it")
		case part.header != "" && !signed.has(part.field):
			p.Add(part.key, fmt.Sprintf("has no effect: signed has no {%s}, so anybody could change it", part.field), fmt.Sprintf("remove it, or add {%s} to signed where the sender signs it", part.field))
		case part.header != "":
			checkHeaderName(p, part.key, part.header)
		}
	}
}

func presetList() string {
	names := make([]string, len(Presets()))
	for i, preset := range Presets() {
		names[i] = string(preset)
	}
	return strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
}

// signing verifies signatures of one format.
type signing struct {
	scheme
	template template
	keys     [][]byte
	hash     func() hash.Hash
	size     int // length of a signature in bytes
	decode   func(text string) ([]byte, error)
	encode   func(signature []byte) string

	tolerance time.Duration
	macs      []*sync.Pool // of *mac, one pool per key
}

// compile prepares a format with its secrets.
func (how scheme) compile(secrets []string) (*signing, error) {
	s := &signing{scheme: how, hash: sha256.New, decode: hex.DecodeString, encode: hex.EncodeToString}
	switch how.algorithm {
	case sha1Name:
		s.hash = sha1.New
	case sha512Name:
		s.hash = sha512.New
	}
	s.size = s.hash().Size()
	if how.encoding == base64Name {
		s.decode, s.encode = base64.StdEncoding.Strict().DecodeString, base64.StdEncoding.EncodeToString
	}
	var err error
	if s.template, err = parseTemplate(how.signed); err != nil {
		return nil, err
	}
	s.headers = slices.Clone(how.headers)
	for i, names := range s.headers {
		s.headers[i] = headers{
			http.CanonicalHeaderKey(names.signature), http.CanonicalHeaderKey(names.timestamp), http.CanonicalHeaderKey(names.id),
		}
	}
	for _, secret := range secrets {
		key, err := how.keyOf(secret)
		if err != nil {
			return nil, fmt.Errorf("a secret %w", err)
		}
		s.keys = append(s.keys, key)
	}
	return s, nil
}

// newSigning prepares a configured signature for verification.
func newSigning(c Signature) (*signing, error) {
	how, err := c.scheme()
	if err != nil {
		return nil, err
	}
	secrets := make([]string, len(c.Secrets))
	for i, secret := range c.Secrets {
		secrets[i] = secret.Reveal()
	}
	s, err := how.compile(secrets)
	if err != nil {
		return nil, err
	}
	s.tolerance = c.tolerance()
	for _, key := range s.keys {
		s.macs = append(s.macs, &sync.Pool{New: func() any { return newMAC(s.hash, key) }})
	}
	return s, nil
}

// secretHeaders returns the headers with signatures.
func (s *signing) secretHeaders() []string {
	var names []string
	for _, h := range s.headers {
		names = append(names, h.signature)
	}
	return names
}

// headerSets returns the header names of each delivery, as in source.Proof.
func (s *signing) headerSets() [][]string {
	var sets [][]string
	for _, h := range s.headers {
		set := []string{h.signature}
		for _, name := range []string{h.timestamp, h.id} {
			if name != "" {
				set = append(set, name)
			}
		}
		sets = append(sets, set)
	}
	return sets
}

// signs returns the signed parts besides the body.
func (s *signing) signs() *source.Signs {
	signs := &source.Signs{URL: s.template.has(fieldURL)}
	for _, h := range s.headers {
		for _, part := range []struct {
			field field
			name  string
		}{{fieldTimestamp, h.timestamp}, {fieldID, h.id}} {
			if part.name != "" && s.template.has(part.field) {
				signs.Headers = append(signs.Headers, strings.ToLower(part.name))
			}
		}
	}
	return signs
}

// verify verifies the signature of a request. It is a way.
func (s *signing) verify(r *source.Request) error {
	names := s.headers[0]
	for _, h := range s.headers {
		if len(r.Header[h.signature]) > 0 { // the order of Proof.Set
			names = h
			break
		}
	}
	value, err := one(r.Header, names.signature)
	if err != nil {
		return err
	}
	timestamp, given, err := s.read(names.signature, value)
	if err != nil {
		return err
	}
	if names.timestamp != "" {
		if timestamp, err = one(r.Header, names.timestamp); err != nil {
			return err
		}
	}
	if s.template.has(fieldTimestamp) {
		if err := s.fresh(timestamp, cmp.Or(names.timestamp, names.signature), r.Received); err != nil {
			return err
		}
	}
	id := ""
	if names.id != "" {
		if id, err = one(r.Header, names.id); err != nil {
			return err
		}
		// An ID that contains its separator could be split in two ways: a part of the body
		// could become a timestamp.
		if end := s.template.endOf(fieldID); end != "" && strings.Contains(id, end) {
			return fmt.Errorf("header %s holds %q, which ends it in what is signed", names.id, end)
		}
	}
	// Compare every secret, so that timing does not reveal the matching one.
	match := 0
	for _, pool := range s.macs {
		m := pool.Get().(*mac)
		sum := m.sum(s.template, r, timestamp, id)
		for _, signature := range given {
			match |= subtle.ConstantTimeCompare(sum, signature)
		}
		pool.Put(m)
	}
	if match == 0 {
		return source.ErrWrongSecret
	}
	return nil
}

// read parses the signatures in a header value, and the timestamp if the header contains
// it.
func (s *signing) read(name, value string) (timestamp string, signatures [][]byte, err error) {
	if s.separator == "" {
		text, ok := strings.CutPrefix(value, s.prefix)
		signature, err := s.decode(text)
		if !ok || err != nil || len(signature) != s.size {
			return "", nil, fmt.Errorf("header %s is not %s", name, s.form())
		}
		return "", [][]byte{signature}, nil
	}
	stamps := 0
	for entry := range strings.SplitSeq(value, s.separator) {
		if text, ok := strings.CutPrefix(entry, s.timestampPrefix); ok && s.timestampPrefix != "" {
			timestamp = text
			stamps++
		}
		// Ignore a malformed entry like an entry of another version.
		if text, ok := strings.CutPrefix(entry, s.prefix); ok {
			if signature, err := s.decode(text); err == nil && len(signature) == s.size {
				signatures = append(signatures, signature)
			}
		}
	}
	switch {
	case s.timestampPrefix != "" && stamps != 1:
		return "", nil, fmt.Errorf("header %s does not hold one timestamp %s", name, s.timestampPrefix)
	case len(signatures) == 0:
		return "", nil, fmt.Errorf("header %s holds no %s", name, s.form())
	}
	return timestamp, signatures, nil
}

// form describes a signature for error messages: `sha256= and 64 hex digits`.
func (s *signing) form() string {
	form := fmt.Sprintf("%d hex digits", hex.EncodedLen(s.size))
	if s.encoding == base64Name {
		form = fmt.Sprintf("%d characters of base64", base64.StdEncoding.EncodedLen(s.size))
	}
	if s.prefix != "" {
		form = s.prefix + " and " + form
	}
	return form
}

// fresh checks that a timestamp is within the tolerance.
func (s *signing) fresh(timestamp, header string, now time.Time) error {
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if err != nil {
		return fmt.Errorf("the timestamp in header %s is not a number of seconds", header)
	}
	// With two spellings, a digit could belong to the neighboring field.
	if strconv.FormatInt(seconds, 10) != timestamp {
		return fmt.Errorf("the timestamp in header %s has a sign or leading zeros", header)
	}
	// Compare without subtraction, because the sender's number could overflow.
	if most := int64(s.tolerance / time.Second); seconds < now.Unix()-most || seconds > now.Unix()+most {
		return fmt.Errorf("the timestamp is more than %v from this machine's clock", s.tolerance)
	}
	return nil
}

// mac is an HMAC with its key and buffers. It is reused, because a new HMAC costs a dozen
// allocations.
type mac struct {
	hash   hash.Hash
	text   []byte // text to hash
	result []byte
}

func newMAC(h func() hash.Hash, key []byte) *mac { return &mac{hash: hmac.New(h, key)} }

// sum returns the MAC of a request. The result is valid until the next call.
func (m *mac) sum(t template, r *source.Request, timestamp, id string) []byte {
	m.hash.Reset()
	t.write(m, r, timestamp, id)
	m.result = m.hash.Sum(m.result[:0])
	return m.result
}

// flush hashes the text.
func (m *mac) flush() {
	m.hash.Write(m.text)
	m.text = m.text[:0]
}
