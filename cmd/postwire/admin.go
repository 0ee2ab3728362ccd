package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/postwire/postwire/config"
	"github.com/postwire/postwire/internal/terminal"
	"github.com/postwire/postwire/pkg/admin"
	"github.com/postwire/postwire/pkg/app"
)

// adminFlags are the address of a relay's admin port, and the credentials for it.
type adminFlags struct{ url, tokenFile, config, caFile, certFile, keyFile string }

func (f *adminFlags) register(cmd *cobra.Command) {
	p := cmd.PersistentFlags()
	p.StringVar(&f.url, "admin", "", "URL of the relay's admin port (default $POSTWIRE_ADMIN or http://127.0.0.1:9090)")
	p.StringVar(&f.tokenFile, "token-file", "", "file with your token for the admin API (default $POSTWIRE_ADMIN_TOKEN)")
	p.StringVar(&f.caFile, "ca-file", "", "PEM file with certificate authorities for the certificate of the admin port (default $POSTWIRE_ADMIN_CA_FILE or the system's authorities; with -c, exactly the certificate in admin.tls.cert_file)")
	p.StringVar(&f.certFile, "cert-file", "", "PEM file with the client certificate, for an admin port with admin.tls.client_ca_file (default $POSTWIRE_ADMIN_CERT_FILE)")
	p.StringVar(&f.keyFile, "key-file", "", "PEM file with the private key of the client certificate (default $POSTWIRE_ADMIN_KEY_FILE)")
	p.StringVarP(&f.config, "config", "c", "", "read the admin URL and admin.token from this configuration file of the relay")
}

// client creates a client of the admin API from the flags and the environment.
func (f *adminFlags) client() (*admin.Client, error) {
	c := &admin.Client{URL: "http://127.0.0.1:9090", HTTP: &http.Client{}}
	named := false
	var served string // the certificate file of the admin port
	if f.config != "" {
		plan, err := app.Load(f.config)
		if err != nil {
			return nil, err
		}
		host, port, err := net.SplitHostPort(plan.Config.Admin.Listen)
		if err != nil {
			return nil, err
		}
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		named = len(plan.Config.Admin.Tokens) > 0
		scheme := "http"
		if served = plan.Config.Admin.TLS.CertFile; served != "" {
			scheme = "https"
		}
		c.URL, c.Token = scheme+"://"+net.JoinHostPort(host, port), plan.Config.Admin.Token.Reveal()
	}
	if env := os.Getenv("POSTWIRE_ADMIN"); env != "" && f.config == "" {
		c.URL = env
	}
	if f.url != "" {
		c.URL = f.url
	}
	if !strings.Contains(c.URL, "://") {
		c.URL = "http://" + c.URL
	}
	if f.tokenFile != "" {
		token, err := config.ReadSecret(f.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("%w: --token-file: %w", errUsage, err)
		}
		c.Token = token.Reveal()
	} else if c.Token == "" {
		token, err := config.LookupSecret("POSTWIRE_ADMIN_TOKEN")
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errUsage, err)
		}
		c.Token = token.Reveal()
	}
	var err error
	if c.HTTP.Transport, err = f.transport(served); err != nil {
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	if c.Token == "" && named {
		return nil, fmt.Errorf("%w: %s has only named tokens (admin.tokens): set your token by --token-file or POSTWIRE_ADMIN_TOKEN", errUsage, f.config)
	}
	return c, nil
}

// transport creates a transport with the TLS settings of the flags and the
// environment. served is the certificate file of the admin port, or "" without -c.
func (f *adminFlags) transport(served string) (*http.Transport, error) {
	var c tls.Config
	caFile := cmp.Or(f.caFile, os.Getenv("POSTWIRE_ADMIN_CA_FILE"))
	switch {
	case caFile != "":
		authorities, err := readCertificates(caFile)
		if err != nil {
			return nil, fmt.Errorf("--ca-file: %w", err)
		}
		c.RootCAs = pool(authorities...)
	case served != "":
		// The configuration names the certificate file: trust exactly this certificate,
		// whatever its names, because the URL may have the name of this machine or of a
		// Service.
		own, err := readCertificates(served)
		if err != nil {
			return nil, fmt.Errorf("admin.tls.cert_file: %w", err)
		}
		c.RootCAs = pool(own[0])
		switch leaf := own[0]; {
		case len(leaf.DNSNames) > 0:
			c.ServerName = strings.Replace(leaf.DNSNames[0], "*", "relay", 1)
		case len(leaf.IPAddresses) > 0:
			c.ServerName = leaf.IPAddresses[0].String()
		}
	}
	certFile, keyFile := cmp.Or(f.certFile, os.Getenv("POSTWIRE_ADMIN_CERT_FILE")), cmp.Or(f.keyFile, os.Getenv("POSTWIRE_ADMIN_KEY_FILE"))
	if certFile != "" || keyFile != "" {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("--cert-file and --key-file: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	c.MinVersion = tls.VersionTLS12
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &c
	return t, nil
}

func pool(authorities ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, a := range authorities {
		p.AddCert(a)
	}
	return p
}

// readCertificates reads the certificates of a file. A file without a certificate is
// an error.
func readCertificates(path string) (all []*x509.Certificate, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		one, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, one)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s contains no PEM certificate", path)
	}
	return all, nil
}

// explain adds advice to an error of the client.
func explain(err error) error {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("%w\nSet the certificate authority of the relay's certificate by --ca-file or POSTWIRE_ADMIN_CA_FILE", err)
	}
	if errors.Is(err, admin.ErrUnreachable) {
		return fmt.Errorf("%w\nIs 'postwire serve' running? Set the URL of the admin port by --admin or POSTWIRE_ADMIN, or name the relay's configuration by -c", err)
	}
	if r, ok := errors.AsType[*admin.RefusedError](err); ok && r.Status == http.StatusUnauthorized {
		return fmt.Errorf("%w\nSet the token by POSTWIRE_ADMIN_TOKEN or --token-file, or name the relay's configuration by -c", err)
	}
	return err
}

// withAdmin is the RunE of a command that calls the admin API.
func withAdmin(f *adminFlags, do func(cmd *cobra.Command, c *admin.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := f.client()
		if err != nil {
			return err
		}
		return explain(do(cmd, c, args))
	}
}

// output is the output format of a command.
type output string

func (o *output) register(cmd *cobra.Command, def string) {
	cmd.Flags().StringVarP((*string)(o), "output", "o", def, "output format: "+def+" or json")
}

func (o *output) check(def string) error {
	if *o == "json" || string(*o) == def {
		return nil
	}
	return fmt.Errorf("%w: -o %s: use %s or json", errUsage, *o, def)
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table prints aligned rows below a header.
func table(w io.Writer, header string, rows func(row func(cells ...any)) error) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.ReplaceAll(header, " ", "\t"))
	err := rows(func(cells ...any) {
		text := make([]string, len(cells))
		for i, c := range cells {
			text[i] = oneLine(fmt.Sprint(c))
		}
		fmt.Fprintln(t, strings.Join(text, "\t"))
	})
	return errors.Join(err, t.Flush())
}

// oneLine escapes line breaks and control characters of a text from outside.
func oneLine(s string) string {
	if s == "" {
		return "-"
	}
	return terminal.Line(s)
}
