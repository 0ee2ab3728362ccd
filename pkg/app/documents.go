package app

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/postwire/postwire/config"
)

// configKey is the key of a ConfigMap that has a configuration, as the Helm chart writes it.
const configKey = "postwire.yaml"

// maxDocuments limits the text that ReadDocuments reads.
const maxDocuments = 32 << 20

// Document is the text of a configuration.
type Document struct {
	Name string // file name, or a name that replaces it in messages
	Text []byte
	Env  func(string) (string, bool)
}

// ReadDocument reads the configuration at path.
func ReadDocument(path string) (Document, error) {
	text, err := config.Read(path)
	return Document{Name: path, Text: text, Env: os.LookupEnv}, err
}

// Parse parses the document. See the function Parse.
func (d Document) Parse() (*Plan, error) { return Parse(d.Name, d.Text, d.Env) }

// ParseWithoutSecrets returns the problems of a document on a machine that does not have
// the variables and files that the document names: what is missing, and all other errors.
// A value that is missing is not checked.
func (d Document) ParseWithoutSecrets() (missing, wrong config.Problems, err error) {
	keys := map[string]bool{} // of missing values
	_, err = d.Parse()
	problems, ok := errors.AsType[config.Problems](err)
	if err != nil && !ok {
		return nil, nil, err
	}
	for _, p := range problems {
		if p.Missing {
			missing, keys[p.Key] = append(missing, p), true
		} else {
			wrong = append(wrong, p)
		}
	}
	if len(missing) == 0 {
		return nil, wrong, nil
	}
	// A missing value hides errors in its source, and the attributes of the source. So
	// parse again with a value in its place, and ignore what is wrong with this value.
	_, err = d.withPlaceholders().Parse()
	problems, ok = errors.AsType[config.Problems](err)
	if err != nil && !ok {
		return nil, nil, err
	}
	for _, p := range problems {
		known := slices.ContainsFunc(wrong, func(w config.Problem) bool { return w.Key == p.Key && w.What == p.What })
		switch {
		case keys[p.Key] || known:
		case p.Missing:
			missing = append(missing, p)
		default:
			wrong = append(wrong, p)
		}
	}
	return missing, wrong, nil
}

// placeholder is a secret that most senders and brokers could have: long, and base64.
const placeholder = "cGxhY2Vob2xkZXI="

// reference matches ${NAME} and ${file:/path}, with the $ before it that makes it a plain
// text.
var reference = regexp.MustCompile(`\$?\$\{(?:file:([^}]+)|([A-Za-z_][A-Za-z0-9_]*))\}`)

// withPlaceholders returns the document with a value in place of every variable and every
// file that is missing.
func (d Document) withPlaceholders() Document {
	d.Text = reference.ReplaceAllFunc(d.Text, func(match []byte) []byte {
		if bytes.HasPrefix(match, []byte("$$")) {
			return match
		}
		found := reference.FindSubmatch(match)
		if path, name := string(found[1]), string(found[2]); name != "" {
			if _, ok := d.Env(name); ok {
				return match
			}
		} else {
			if !filepath.IsAbs(path) {
				path = filepath.Join(filepath.Dir(d.Name), path)
			}
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
				return match
			}
		}
		return []byte(placeholder)
	})
	return d
}

// manifest is the part of a Kubernetes object that ReadDocuments needs.
type manifest struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct{ Name string }
	Data       map[string]string
	Spec       struct {
		Template struct {
			Spec struct {
				Containers []struct {
					Env []struct{ Name, Value string }
				}
			}
		}
	}
}

// ReadDocuments reads a configuration, or the configurations in a stream of Kubernetes
// objects: the key postwire.yaml of every ConfigMap, each text once. The environment of
// such a configuration is that of this process, and then the variables that the objects
// give a container as text.
func ReadDocuments(r io.Reader) ([]Document, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxDocuments+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading standard input: %w", err)
	case len(text) > maxDocuments:
		return nil, fmt.Errorf("standard input has more than %d MiB", maxDocuments>>20)
	case len(bytes.TrimSpace(text)) == 0:
		return nil, errors.New("standard input is empty: pipe a configuration, or the output of helm template, into the command")
	}
	manifests, err := readManifests(text)
	if err != nil {
		return nil, err
	}
	if len(manifests) == 0 {
		return []Document{{Name: "standard input", Text: text, Env: os.LookupEnv}}, nil
	}
	given := map[string]string{}
	for _, m := range manifests {
		for _, c := range m.Spec.Template.Spec.Containers {
			for _, e := range c.Env {
				if e.Value != "" {
					given[e.Name] = e.Value
				}
			}
		}
	}
	env := func(name string) (string, bool) {
		if value, ok := os.LookupEnv(name); ok {
			return value, true
		}
		value, ok := given[name]
		return value, ok
	}
	var found []Document
	for _, m := range manifests {
		text, ok := m.Data[configKey]
		if m.Kind != "ConfigMap" || !ok || slices.ContainsFunc(found, func(d Document) bool { return string(d.Text) == text }) {
			continue
		}
		found = append(found, Document{Name: "ConfigMap/" + m.Metadata.Name + "/" + configKey, Text: []byte(text), Env: env})
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("standard input has %d Kubernetes objects, and no ConfigMap with the key %s: pipe the complete output of helm template into the command", len(manifests), configKey)
	}
	return found, nil
}

// readManifests returns the Kubernetes objects in a stream of YAML documents: none for a
// configuration.
func readManifests(text []byte) ([]manifest, error) {
	var all []manifest
	in := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var m manifest
		err := in.Decode(&m)
		if _, other := errors.AsType[*yaml.TypeError](err); other {
			err = nil // a kind with fields of other types
		}
		switch {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil && len(all) > 0:
			return nil, fmt.Errorf("standard input, after %s/%s: %w", all[len(all)-1].Kind, all[len(all)-1].Metadata.Name, err)
		case err != nil:
			return nil, nil //nolint:nilerr // Parse says what is wrong
		case m.APIVersion != "" && m.Kind != "":
			all = append(all, m)
		}
	}
}
