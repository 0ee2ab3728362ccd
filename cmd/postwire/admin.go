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

// adminFlags say which relay a command asks, and how it proves itself.
type adminFlags struct{ url, tokenFile, config, caFile, certFile, keyFile string }

func (f *adminFlags) register(cmd *cobra.Command) {
	p := cmd.PersistentFlags()
	p.StringVar(&f.url, "admin", "", "URL of the relay's admin port (default $POSTWIRE_ADMIN, else http://127.0.0.1:9090)")
	p.StringVar(&f.tokenFile, "token-file", "", "file with your token of the relay's admin API (default $POSTWIRE_ADMIN_TOKEN)")
	p.StringVar(&f.caFile, "ca-file", "", "file with the authorities, PEM, that the certificate of the admin port is checked by (default $POSTWIRE_ADMIN_CA_FILE, else those of the system; with -c the admin port's own certificate)")
	p.StringVar(&f.certFile, "cert-file", "", "file with the client certificate, PEM, where the admin port asks for one (default $POSTWIRE_ADMIN_CERT_FILE)")
	p.StringVar(&f.keyFile, "key-file", "", "file with the private key of the client certificate, PEM (default $POSTWIRE_ADMIN_KEY_FILE)")
	p.StringVarP(&f.config, "config", "c", "", "read the admin URL and admin.token from this configuration file of the relay")
}

// client makes a client of what the flags and the environment say.
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
		return nil, fmt.Errorf("%w: %s has tokens of named persons only: give yours by --token-file or POSTWIRE_ADMIN_TOKEN", errUsage, f.config)
	}
	return c, nil
}

// transport makes a transport that speaks TLS as the flags and the environment say.
// served is the certificate file of the admin port, where its configuration is known.
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
		// Whoever can read the configuration knows the very certificate. It need not
		// bear the name by which this machine, or a Service, is asked.
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

// readCertificates reads the certificates of a file; there is at least one.
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
		return nil, fmt.Errorf("%s holds no certificate in PEM form", path)
	}
	return all, nil
}

// explain adds what to do to an error of the client.
func explain(err error) error {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("%w\nName the authority of the relay's certificate by --ca-file or POSTWIRE_ADMIN_CA_FILE", err)
	}
	if errors.Is(err, admin.ErrUnreachable) {
		return fmt.Errorf("%w\nIs 'postwire serve' running? Name its admin port by --admin, POSTWIRE_ADMIN, or -c with its configuration", err)
	}
	if r, ok := errors.AsType[*admin.RefusedError](err); ok && r.Status == http.StatusUnauthorized {
		return fmt.Errorf("%w\nGive it by POSTWIRE_ADMIN_TOKEN, --token-file, or -c with the relay's configuration", err)
	}
	return err
}

// asking is a command that asks a relay.
func asking(f *adminFlags, do func(cmd *cobra.Command, c *admin.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := f.client()
		if err != nil {
			return err
		}
		return explain(do(cmd, c, args))
	}
}

// output is how a list is printed.
type output string

func (o *output) register(cmd *cobra.Command, def string) {
	cmd.Flags().StringVarP((*string)(o), "output", "o", def, def+" or json")
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

// table prints rows under a header.
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

// oneLine makes a text from outside one cell, or one part of a line.
func oneLine(s string) string {
	if s == "" {
		return "-"
	}
	return terminal.Line(s)
}
