package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
)

// Value is implemented, with pointer receivers, by types whose YAML form
// differs from the Go kind: a size as 1MiB, or the word none instead of a
// mapping. Assert the interface beside the type, because a misspelled method
// would otherwise go unnoticed:
//
//	var _ config.Value = (*Auth)(nil)
type Value interface {
	// UnmarshalConfig reads the value from n. To read a mapping into its own
	// fields, UnmarshalConfig passes itself to n.Decode. UnmarshalConfig
	// returns n.Problem, n.Want, the error of n.Decode, or Invalids with keys
	// relative to n; any other error becomes a Problem at n. UnmarshalConfig is
	// not called if the key is absent or null.
	UnmarshalConfig(n Node) error

	// MarshalConfig returns the YAML form of the value, without secrets: a
	// string, an integer, a slice, a map or a struct; or nil to write the
	// value's own fields.
	MarshalConfig() any

	// DescribeConfig returns the allowed YAML forms of the value.
	// DescribeConfig is called on a zero value.
	DescribeConfig() Syntax
}

// Syntax describes the allowed YAML forms of a Value, for the schema and the
// reference page.
type Syntax struct {
	Type    string   // name on the reference page: "size", "none or a mapping"
	Words   []string // allowed words
	Pattern string   // regular expression of the allowed text
	Integer bool     // a whole number may be written
	Fields  bool     // a mapping of the type's own fields may be written
}

// hidden replaces a secret.
const hidden = "***"

// Secret is text that is never shown: every way of printing or encoding a
// Secret gives ***, or nothing if the Secret is empty. Only Reveal returns the
// text. Do not use a Secret as the key of a map, because encoding/json would
// write the text.
type Secret string

// Reveal returns the text itself.
func (s Secret) Reveal() string { return string(s) }

// MinProof is the minimum length in bytes of a secret that authenticates a
// sender or a caller of the API: shorter secrets can be guessed.
const MinProof = 16

// CheckProof adds a problem at key if a secret that authenticates a sender or a
// caller of the API is shorter than least bytes, unless the setting allow_weak
// beside the secret allows short secrets. Length is the length of the decoded
// secret if the secret is in base64.
func CheckProof(p *Invalids, key string, length, least int, allowed bool) {
	if length < least && !allowed {
		p.Add(key, fmt.Sprintf("has %d bytes, but a secret shorter than %d bytes can be guessed", length, least),
			"make a secret with openssl rand -hex 32; or, if the sender supports only short secrets, set allow_weak: true beside the secret")
	}
}

// check returns the result of Stray as an error.
func (s Secret) check() error {
	if what, hint := Stray(s.Reveal()); what != "" {
		return errors.New(what + "; " + hint)
	}
	return nil
}

// String returns ***, or nothing if the secret is empty.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return hidden
}

// GoString returns the quoted text of String.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// Format prints the text of String for every verb, because %x would otherwise
// spell the secret in hex.
func (s Secret) Format(f fmt.State, verb rune) {
	text := s.String()
	if verb == 'q' || (verb == 'v' && f.Flag('#')) {
		text = s.GoString()
	}
	_, _ = io.WriteString(f, text) // fmt.State keeps the error
}

// MarshalText encodes the text of String.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalJSON encodes the text of String.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(strconv.Quote(s.String())), nil }

// MarshalYAML encodes the text of String.
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }

// Size is a number of bytes, written as an integer or with a unit: 1048576,
// 64KiB, 1.5GB.
type Size int64

var _ Value = (*Size)(nil)

type sizeUnit struct {
	name  string
	bytes int64
}

// sizeUnits returns the units of Size, the largest first, with powers of 1024
// before powers of 1000.
func sizeUnits() []sizeUnit {
	return []sizeUnit{
		{"TiB", 1 << 40},
		{"GiB", 1 << 30},
		{"MiB", 1 << 20},
		{"KiB", 1 << 10},
		{"TB", 1e12},
		{"GB", 1e9},
		{"MB", 1e6},
		{"kB", 1e3},
		{"B", 1},
	}
}

// ParseSize reads a size. Units are taken in any case, and may stand after a
// space.
func ParseSize(text string) (Size, error) {
	digits := strings.TrimRightFunc(text, func(r rune) bool { return r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' })
	name := text[len(digits):]
	factor := int64(1)
	if name != "" {
		factor = 0
		for _, u := range sizeUnits() {
			if strings.EqualFold(u.name, name) {
				factor = u.bytes
			}
		}
		if factor == 0 {
			return 0, fmt.Errorf("%q is not a unit of size", name)
		}
	}
	digits = strings.TrimSpace(digits)
	if n, err := strconv.ParseInt(digits, 10, 64); err == nil {
		if n > math.MaxInt64/factor || n < math.MinInt64/factor {
			return 0, errors.New("size is too large")
		}
		return Size(n * factor), nil
	}
	if strings.Trim(digits, "0123456789.+-") != "" || name == "" {
		return 0, errors.New("size is not a number of bytes")
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return 0, errors.New("size is not a number of bytes")
	}
	if f *= float64(factor); math.Abs(f) >= math.MaxInt64 {
		return 0, errors.New("size is too large")
	}
	return Size(f), nil
}

// String returns the size in the largest unit that divides the size: 64KiB,
// 1000.
func (s Size) String() string {
	if s != 0 {
		for _, u := range sizeUnits()[:4] { // powers of 1000 would hide the exact value 1000000
			if int64(s)%u.bytes == 0 {
				return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
			}
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// UnmarshalConfig implements Value.
func (s *Size) UnmarshalConfig(n Node) error {
	const hint = "write bytes such as 65536, or with a unit: 64KiB, 1MiB, 1GB"
	text, ok := n.Text()
	if !ok {
		return n.Want("a size", hint)
	}
	size, err := ParseSize(text)
	if err != nil {
		return n.Problem(n.Written()+" is not a size", hint)
	}
	*s = size
	return nil
}

// MarshalConfig implements Value.
func (s *Size) MarshalConfig() any {
	if text := s.String(); strings.HasSuffix(text, "B") {
		return text
	}
	return int64(*s)
}

// DescribeConfig implements Value.
func (s *Size) DescribeConfig() Syntax {
	return Syntax{Type: "size", Pattern: `^([0-9]+|[0-9]+(\.[0-9]+)? *([KMGTkmgt][Ii]?)?[Bb])$`, Integer: true}
}

// ParseDuration reads a duration: the units of time.ParseDuration, d for 24
// hours and w for 7 days. A number without a unit is an error, except 0.
func ParseDuration(text string) (time.Duration, error) {
	rest, negative := strings.CutPrefix(text, "-")
	if !negative {
		rest = strings.TrimPrefix(rest, "+")
	}
	if rest == "0" {
		return 0, nil
	}
	if rest == "" {
		return 0, errors.New("duration is empty")
	}
	var total time.Duration
	for rest != "" {
		number := len(rest) - len(strings.TrimLeft(rest, "0123456789."))
		unit := len(strings.TrimLeft(rest, "0123456789.")) - len(strings.TrimLeft(rest[number:], "abcdefghijklmnopqrstuvwxyzµμ"))
		digits, name := rest[:number], rest[number:number+unit]
		rest = rest[number+unit:]
		if digits == "" || name == "" {
			return 0, errors.New("duration is not numbers with units")
		}
		var part time.Duration
		switch name {
		case "d", "w":
			f, err := strconv.ParseFloat(digits, 64)
			if err != nil {
				return 0, errors.New("duration is not numbers with units")
			}
			f *= 24 * float64(time.Hour)
			if name == "w" {
				f *= 7
			}
			if f >= math.MaxInt64 {
				return 0, errors.New("duration is too long")
			}
			part = time.Duration(f)
		default:
			var err error
			if part, err = time.ParseDuration(digits + name); err != nil {
				return 0, errors.New("duration is not numbers with units")
			}
		}
		if total > math.MaxInt64-part {
			return 0, errors.New("duration is too long")
		}
		total += part
	}
	if negative {
		total = -total
	}
	return total, nil
}

// FormatDuration returns d in the format of ParseDuration, without zero parts:
// 24h rather than 24h0m0s.
func FormatDuration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// TLS configures the encryption of an outgoing connection. The zero TLS does
// not encrypt.
type TLS struct {
	Enabled            bool   `yaml:"enabled" doc:"Encrypt the connection."`
	CAFile             string `yaml:"ca_file" doc:"CA certificates to trust, PEM. Empty trusts the CA certificates of the system." example:"/etc/postwire/tls/ca.crt"`
	CertFile           string `yaml:"cert_file" doc:"Client certificate, PEM." example:"/etc/postwire/tls/tls.crt"`
	KeyFile            string `yaml:"key_file" doc:"Private key of the certificate, PEM." example:"/etc/postwire/tls/tls.key"`
	ServerName         string `yaml:"server_name" doc:"Name in the server's certificate, if different from the host name of the address."`
	InsecureSkipVerify bool   `yaml:"insecure_skip_verify" doc:"Accept any server certificate. Allows a man in the middle to read and change all data."`
}

// Config reads the files and returns the settings for a client, nil if TLS is
// not enabled. Nothing below TLS 1.2 is spoken.
func (t TLS) Config() (*tls.Config, error) {
	if !t.Enabled {
		return nil, nil //nolint:nilnil // nil is what clients take for "no TLS"
	}
	c := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         t.ServerName,
		InsecureSkipVerify: t.InsecureSkipVerify, //nolint:gosec // the operator asked for it, by a name that warns
	}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("tls: ca_file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls: ca_file: %s contains no certificate in PEM", t.CAFile)
		}
	}
	if t.CertFile != "" || t.KeyFile != "" {
		cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("tls: cert_file and key_file: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c, nil
}

// Check adds all errors to p, with keys below prefix: unreadable files, a
// certificate without a key, and settings without effect.
func (t TLS) Check(prefix string, p *Invalids) {
	files := []struct{ key, path string }{
		{"ca_file", t.CAFile},
		{"cert_file", t.CertFile},
		{"key_file", t.KeyFile},
	}
	if !t.Enabled {
		set := func(key string, is bool) {
			if is {
				p.Add(join(prefix, key), "has no effect, because enabled is false", "add enabled: true beside it, or remove it")
			}
		}
		for _, f := range files {
			set(f.key, f.path != "")
		}
		set("server_name", t.ServerName != "")
		set("insecure_skip_verify", t.InsecureSkipVerify)
		return
	}
	for _, f := range files {
		CheckFile(p, join(prefix, f.key), f.path, "name a PEM file that is readable by this process")
	}
	switch {
	case t.CertFile != "" && t.KeyFile == "":
		p.Add(join(prefix, "cert_file"), "has no key_file beside it", "name the private key of the certificate")
	case t.CertFile == "" && t.KeyFile != "":
		p.Add(join(prefix, "key_file"), "has no cert_file beside it", "name the certificate of the key")
	default:
		t.checkContents(prefix, p)
	}
}

// checkContents adds problems for readable files with wrong contents.
func (t TLS) checkContents(prefix string, p *Invalids) {
	if t.CAFile != "" && unreadable(t.CAFile) == "" {
		if _, err := (TLS{Enabled: true, CAFile: t.CAFile}).Config(); err != nil {
			p.Add(join(prefix, "ca_file"), fmt.Sprintf("file %s contains no certificate in PEM", t.CAFile), "name the certificates of the authorities")
		}
	}
	if t.CertFile != "" && unreadable(t.CertFile) == "" && unreadable(t.KeyFile) == "" {
		if _, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile); err != nil {
			p.Add(join(prefix, "cert_file"), "cannot be used with key_file: "+err.Error(), "name a certificate and its private key, in PEM")
		}
	}
}

// absent is the reason of a file that does not exist.
const absent = "does not exist"

// CheckFile adds a problem at key if the file cannot be read or is larger than
// 1 MiB. An empty path names no file.
func CheckFile(p *Invalids, key, path, hint string) {
	if path == "" {
		return
	}
	if reason := unreadable(path); reason != "" {
		*p = append(*p, Invalid{Key: key, What: fmt.Sprintf("file %s %s", path, reason), Hint: hint, Missing: reason == absent})
	}
}

// unreadable returns the reason why a file cannot be read, or "".
func unreadable(path string) string {
	if _, err := readRegular(path, maxFile); err != nil {
		return fileReason(err)
	}
	return ""
}

// fileReason returns the reason why a file could not be read, without the
// file's name.
func fileReason(err error) string {
	var path *os.PathError
	switch {
	case errors.Is(err, os.ErrNotExist):
		return absent
	case errors.Is(err, os.ErrPermission):
		return "is not readable by this process"
	case errors.As(err, &path):
		return "cannot be read: " + path.Err.Error()
	}
	return "cannot be read: " + err.Error()
}
