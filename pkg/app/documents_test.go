package app

import (
	"slices"
	"strings"
	"testing"

	"github.com/postwire/postwire/config"
)

const manifests = `# Source: postwire/templates/configmap.yaml
---
apiVersion: v1
kind: ConfigMap
metadata: {name: postwire-1}
data:
  postwire.yaml: "log: {level: debug}"
---
apiVersion: v1
kind: ConfigMap
metadata: {name: postwire-check}
data: {postwire.yaml: "log: {level: debug}"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: dashboard}
data: {postwire.json: "{}"}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: postwire}
spec: {template: {spec: {containers: [{name: postwire, env: [{name: POSTWIRE_TEST_GIVEN, value: text}, {name: POSTWIRE_TEST_SECRET, valueFrom: {secretKeyRef: {name: s, key: k}}}]}]}}}
---
apiVersion: example.com/v1
kind: Other
metadata: {name: other}
data: [1, 2]
spec: {template: text}
`

func TestDocumentsOfManifests(t *testing.T) {
	found, err := ReadDocuments(strings.NewReader(manifests))
	if err != nil || len(found) != 1 {
		t.Fatalf("%d configurations, %v", len(found), err)
	}
	d := found[0]
	if d.Name != "ConfigMap/postwire-1/postwire.yaml" || string(d.Text) != "log: {level: debug}" {
		t.Errorf("found %s: %s", d.Name, d.Text)
	}
	if value, ok := d.Env("POSTWIRE_TEST_GIVEN"); !ok || value != "text" {
		t.Errorf("a variable of the container: %q, %v", value, ok)
	}
	if value, ok := d.Env("POSTWIRE_TEST_SECRET"); ok {
		t.Errorf("a variable from a Secret is %q", value)
	}
	t.Setenv("POSTWIRE_TEST_GIVEN", "other")
	if value, _ := d.Env("POSTWIRE_TEST_GIVEN"); value != "other" {
		t.Errorf("a variable of this process is %q", value)
	}
}

func TestDocuments(t *testing.T) {
	for text, want := range map[string]string{
		"":    "standard input is empty",
		" \n": "standard input is empty",
		"apiVersion: v1\nkind: Service\nmetadata: {name: a}\n":            "has 1 Kubernetes objects, and no ConfigMap with the key postwire.yaml",
		"apiVersion: v1\nkind: Service\nmetadata: {name: a}\n---\na: [\n": "after Service/a",
	} {
		if _, err := ReadDocuments(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	const plain = "log: {level: debug}\n"
	found, err := ReadDocuments(strings.NewReader(plain))
	if err != nil || len(found) != 1 || string(found[0].Text) != plain || found[0].Name != "standard input" {
		t.Errorf("a configuration: %+v, %v", found, err)
	}
}

func TestWhatIsMissingHidesNoOtherError(t *testing.T) {
	d := Document{Name: "postwire.yaml", Env: func(string) (string, bool) { return "", false }, Text: []byte(`
log: {level: "${POSTWIRE_TEST_LEVEL:-info}"}
admin: {token: "${POSTWIRE_TEST_TOKEN}"}
journal: {engine: jetstream, jetstream: {url: "nats://nats", tls: {enabled: true, ca_file: /nowhere/ca.crt}}}
sources:
  - {name: all, type: uploadpost, paths: [/a], auth: {signature: {secrets: ["${file:/nowhere/secret}"]}}}
sinks:
  - {name: bot, type: telegram, token: "${POSTWIRE_TEST_BOT}", chat_id: "1", template: "$${literal}"}
  - {name: out, type: nats, url: "nats://nats", mode: core, subject: "a.{plaform}", tls: {enabled: true, ca_file: /nowhere/ca.crt}}
`)}
	missing, wrong, err := d.ParseWithoutSecrets()
	if err != nil {
		t.Fatal(err)
	}
	keys := func(p config.Problems) (keys []string) {
		for _, p := range p {
			keys = append(keys, p.Key)
		}
		slices.Sort(keys)
		return keys
	}
	if got, want := keys(missing), []string{"admin.token", "journal.jetstream.tls.ca_file", "sinks[0].token", "sinks[1].tls.ca_file", "sources[0].auth.signature.secrets[0]"}; !slices.Equal(got, want) {
		t.Errorf("missing are %v, want %v", got, want)
	}
	if len(wrong) != 0 {
		t.Errorf("errors while a file of the sink is missing: %v", wrong)
	}
	d.Text = []byte(strings.ReplaceAll(string(d.Text), ", ca_file: /nowhere/ca.crt", ""))
	if _, wrong, err = d.ParseWithoutSecrets(); err != nil || len(wrong) != 1 || wrong[0].Key != "sinks[1].subject" || !strings.Contains(wrong[0].Hint, "did you mean {platform}") {
		t.Errorf("errors: %v, %v", wrong, err)
	}
}
