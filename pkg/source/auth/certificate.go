package auth

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/pkg/source"
)

// ClientCertificate lists the allowed client certificates.
type ClientCertificate struct {
	Subjects []string `yaml:"subjects" doc:"Subjects: a common name or, with an equals sign, the whole distinguished name as in RFC 4514, with the last part first." example:"[\"CN=hooks,O=Example\"]"`
	SANs     []string `yaml:"sans" doc:"Alternative names: a DNS name, an e-mail address, or a URI. Wildcards are not supported." example:"[hooks.example.com]"`
}

// Validate returns all errors.
func (c ClientCertificate) Validate() error {
	var p config.Invalids
	if len(c.Subjects)+len(c.SANs) == 0 {
		p.Add("", "allows no certificate", "list at least one entry under subjects or sans")
	}
	for i, name := range c.Subjects {
		if name == "" {
			p.Add(fmt.Sprintf("subjects[%d]", i), "is empty", "write a common name or a whole subject, or remove it")
		}
	}
	for i, name := range c.SANs {
		switch key := fmt.Sprintf("sans[%d]", i); {
		case name == "":
			p.Add(key, "is empty", "write a DNS name, an e-mail address or a URI, or remove it")
		case strings.Contains(name, "*"):
			p.Add(key, fmt.Sprintf("%q has a wildcard, and names are compared whole", name), "list each name")
		}
	}
	return p.Err()
}

func (c ClientCertificate) check() check {
	return func(r *source.Request) error {
		if r.Client == nil {
			return errors.New("there is no verified client certificate")
		}
		if !slices.ContainsFunc(c.Subjects, func(name string) bool { return isSubject(r.Client, name) }) &&
			!slices.ContainsFunc(c.SANs, func(name string) bool { return isSAN(r.Client, name) }) {
			return errors.New("the client certificate bears none of the names in auth.client_certificate")
		}
		return nil
	}
}

// isSubject reports whether a certificate has this subject. The form of the entry decides
// the comparison: a common name of "CN=a,O=b" must not match the name CN=a,O=b.
func isSubject(c *x509.Certificate, name string) bool {
	if strings.Contains(name, "=") {
		var subject pkix.RDNSequence // c.Subject does not keep the order
		rest, err := asn1.Unmarshal(c.RawSubject, &subject)
		return err == nil && len(rest) == 0 && subject.String() == name
	}
	return c.Subject.CommonName == name
}

// isSAN reports whether a certificate has this alternative name. The form of the entry
// decides the type of the name.
func isSAN(c *x509.Certificate, name string) bool {
	switch {
	case name == "":
		return false
	case strings.Contains(name, ":"):
		return slices.ContainsFunc(c.URIs, func(u *url.URL) bool { return u.String() == name })
	case strings.Contains(name, "@"):
		return slices.Contains(c.EmailAddresses, name)
	}
	return slices.ContainsFunc(c.DNSNames, func(dns string) bool { return strings.EqualFold(dns, name) })
}
