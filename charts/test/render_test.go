package charts

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// What is rendered is what was reviewed, and the same every time.
func TestRender(t *testing.T) {
	each(t, func(t *testing.T, name string, values map[string]any) {
		got := withoutSecret(joined(mustRender(t, "postwire", values)))
		if again := withoutSecret(joined(mustRender(t, "postwire", values))); again != got {
			t.Error("it is rendered in another way the second time")
		}
		golden(t, "golden/"+name+".yaml", strings.ReplaceAll(got, "helm.sh/chart: postwire-"+loadChart(t).Metadata.Version, "helm.sh/chart: postwire-VERSION"))
	})
}

// withoutSecret removes the secret of the embedded cluster, which is random in a first
// install.
func withoutSecret(rendered string) string {
	return regexp.MustCompile(`(POSTWIRE_CLUSTER_SECRET: )[A-Za-z0-9+/=]{60}\n`).ReplaceAllString(rendered, "${1}RANDOM\n")
}

// Every object is one that Kubernetes knows, down to the last field, and they
// fit together: what one of them names, another has.
func TestObjects(t *testing.T) {
	each(t, func(t *testing.T, _ string, values map[string]any) {
		checkObjects(t, objects(t, mustRender(t, "postwire", values)), namespaceOf(values))
	})
}

// Kubernetes bounds names and labels; a release's name may have 53 characters.
func TestLongNames(t *testing.T) {
	long := strings.Repeat("long-", 10) + "rel"
	for name, values := range sets(t) {
		if len(long) != 53 {
			t.Fatal(len(long))
		}
		t.Run(name, func(t *testing.T) {
			checkObjects(t, objects(t, mustRender(t, long, values)), namespaceOf(values))
		})
	}
}

// namespaceOf returns the namespace of the objects of a value set.
func namespaceOf(values map[string]any) string {
	if override, ok := values["namespaceOverride"].(string); ok {
		return override
	}
	return namespace
}

func checkObjects(t *testing.T, all []object, namespace string) {
	t.Helper()
	seen := map[string]bool{}
	for _, o := range all {
		if seen[title(o)] {
			t.Errorf("%s is made twice", title(o))
		}
		seen[title(o)] = true
		if wrong := content.IsDNS1123Subdomain(o.GetName()); len(wrong) > 0 {
			t.Errorf("%s: %v", title(o), wrong)
		}
		checkLabels(t, title(o), o.GetLabels())
		if strings.HasSuffix(o.GetName(), "-extra") || strings.HasSuffix(o.GetName(), "-text") {
			continue // of extraObjects
		}
		if o.GetNamespace() != namespace {
			t.Errorf("%s is in namespace %q", title(o), o.GetNamespace())
		}
		for _, label := range []string{"name", "instance", "version", "component", "managed-by"} {
			if o.GetLabels()["app.kubernetes.io/"+label] == "" {
				t.Errorf("%s has no label app.kubernetes.io/%s", title(o), label)
			}
		}
		if kind(o) == "Secret" && o.GetLabels()["app.kubernetes.io/component"] != "cluster" {
			t.Errorf("%s: secrets of senders and brokers are not the chart's", title(o))
		}
	}
	workload := checkWorkload(t, all)
	services := checkServices(t, all, workload)
	checkRoutes(t, all, services)
	checkPods(t, all)
}

func checkLabels(t *testing.T, of string, set map[string]string) {
	t.Helper()
	for key, value := range set {
		if wrong := append(content.IsLabelKey(key), content.IsLabelValue(value)...); len(wrong) > 0 {
			t.Errorf("%s: label %s: %s: %v", of, key, value, wrong)
		}
	}
}

// checkWorkload returns the template of the relay's pods.
func checkWorkload(t *testing.T, all []object) pod {
	t.Helper()
	var selector *metav1.LabelSelector
	var found []pod
	for _, p := range pods(all) {
		switch o := p.of.(type) {
		case *appsv1.StatefulSet:
			selector, found = o.Spec.Selector, append(found, p)
			// The name and a hash of eleven characters are a label of the pods.
			if len(o.Name) > 52 {
				t.Errorf("%s: a name of %d characters", title(o), len(o.Name))
			}
			if !slices.ContainsFunc(only[*corev1.Service](all), func(s *corev1.Service) bool { return s.Name == o.Spec.ServiceName && s.Spec.ClusterIP == "None" }) {
				t.Errorf("%s: there is no headless Service %s", title(o), o.Spec.ServiceName)
			}
			if retain := o.Spec.PersistentVolumeClaimRetentionPolicy; len(o.Spec.VolumeClaimTemplates) > 0 &&
				(retain == nil || retain.WhenScaled != appsv1.RetainPersistentVolumeClaimRetentionPolicyType || retain.WhenDeleted != appsv1.RetainPersistentVolumeClaimRetentionPolicyType) {
				t.Errorf("%s: claims go with their pods: %+v", title(o), retain)
			}
		case *appsv1.Deployment:
			selector, found = o.Spec.Selector, append(found, p)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d workloads", len(found))
	}
	if s, err := metav1.LabelSelectorAsSelector(selector); err != nil || !s.Matches(labels.Set(found[0].meta.Labels)) {
		t.Errorf("the workload does not select its own pods: %v", err)
	}
	return found[0]
}

// checkServices returns the number of the container's port behind each port of
// each Service, by service and port.
func checkServices(t *testing.T, all []object, workload pod) map[string]string {
	t.Helper()
	behind := map[string]string{}
	for _, s := range only[*corev1.Service](all) {
		selector := labels.SelectorFromSet(s.Spec.Selector)
		for _, p := range pods(all) {
			if selects := selector.Matches(labels.Set(p.meta.Labels)); selects != p.isRelay() {
				t.Errorf("%s selects pods of %s: %v", title(s), title(p.of), selects)
			}
		}
		for _, port := range s.Spec.Ports {
			if port.TargetPort.Type != intstr.String || !slices.ContainsFunc(workload.spec.Containers[0].Ports, func(c corev1.ContainerPort) bool { return c.Name == port.TargetPort.StrVal }) {
				t.Errorf("%s: port %s leads to %v, which the container does not have", title(s), port.Name, port.TargetPort)
			}
			behind[s.Name+":"+port.Name] = port.TargetPort.StrVal
			behind[fmt.Sprintf("%s:%d", s.Name, port.Port)] = port.TargetPort.StrVal
		}
	}
	return behind
}

// checkRoutes holds that routes lead to the webhooks, by paths that are
// written out, and never to the admin port.
func checkRoutes(t *testing.T, all []object, behind map[string]string) {
	t.Helper()
	leads := func(o object, target, path string) {
		t.Helper()
		if behind[target] != "http" {
			t.Errorf("%s leads %s to %s, which is %q", title(o), path, target, behind[target])
		}
		if path == "" || path == "/" {
			t.Errorf("%s leads everything to %s", title(o), target)
		}
	}
	for _, i := range only[*networkingv1.Ingress](all) {
		if i.Spec.DefaultBackend != nil {
			t.Errorf("%s has a default backend", title(i))
		}
		for _, rule := range i.Spec.Rules {
			for _, p := range rule.HTTP.Paths {
				leads(i, p.Backend.Service.Name+":"+p.Backend.Service.Port.Name, p.Path)
			}
		}
	}
	for _, r := range only[*gatewayv1.HTTPRoute](all) {
		if len(r.Spec.Rules) == 0 || len(r.Spec.Rules) > 16 {
			t.Errorf("%s has %d rules", title(r), len(r.Spec.Rules))
		}
		for _, rule := range r.Spec.Rules {
			if len(rule.Matches) == 0 || len(rule.Matches) > 8 {
				t.Errorf("%s has a rule of %d matches", title(r), len(rule.Matches))
			}
			for _, m := range rule.Matches {
				for _, b := range rule.BackendRefs {
					leads(r, fmt.Sprintf("%s:%d", b.Name, *b.Port), *m.Path.Value)
				}
			}
		}
	}
}

// checkPods holds that mounts have volumes, and probes ports.
func checkPods(t *testing.T, all []object) {
	t.Helper()
	for _, p := range pods(all) {
		of := title(p.of)
		checkLabels(t, of, p.meta.Labels)
		volumes := map[string]bool{}
		for _, v := range p.spec.Volumes {
			if volumes[v.Name] {
				t.Errorf("%s: volume %s is there twice", of, v.Name)
			}
			volumes[v.Name] = true
			if wrong := content.IsDNS1123Label(v.Name); len(wrong) > 0 {
				t.Errorf("%s: volume %s: %v", of, v.Name, wrong)
			}
			if v.ConfigMap != nil && v.Name == "config" && !slices.ContainsFunc(only[*corev1.ConfigMap](all), func(c *corev1.ConfigMap) bool { return c.Name == v.ConfigMap.Name }) {
				t.Errorf("%s: there is no ConfigMap %s", of, v.ConfigMap.Name)
			}
		}
		if s, ok := p.of.(*appsv1.StatefulSet); ok {
			for _, c := range s.Spec.VolumeClaimTemplates {
				volumes[c.Name] = true
			}
		}
		if p.spec.AutomountServiceAccountToken == nil || *p.spec.AutomountServiceAccountToken {
			t.Errorf("%s: the token of the service account is mounted", of)
		}
		for _, c := range slices.Concat(p.spec.InitContainers, p.spec.Containers) {
			// The reason of a failed start is then in kubectl describe pod.
			if strings.Contains(c.Image, "postwire") && c.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError {
				t.Errorf("%s: container %s has the terminationMessagePolicy %q", of, c.Name, c.TerminationMessagePolicy)
			}
			mounted := map[string]bool{}
			for _, m := range c.VolumeMounts {
				if !volumes[m.Name] {
					t.Errorf("%s: container %s mounts %s, which is no volume", of, c.Name, m.Name)
				}
				if mounted[m.MountPath] {
					t.Errorf("%s: container %s mounts two volumes at %s", of, c.Name, m.MountPath)
				}
				mounted[m.MountPath] = true
			}
			for _, probe := range []*corev1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
				if c.Name == "postwire" && (probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Port.StrVal != "admin") {
					t.Errorf("%s: probe %+v", of, probe)
				}
			}
			if c.Name == "postwire" && !mounted["/var/lib/postwire"] {
				t.Errorf("%s: the journal's folder is no volume", of)
			}
		}
	}
}

// The chart of NATS is asked for where it is wanted, by the values that are
// said to be its own.
func TestDependency(t *testing.T) {
	nats := &chart.Chart{Metadata: &chart.Metadata{APIVersion: "v2", Name: "nats", Version: "2.14.2"}, Values: map[string]any{"own": true}}
	for _, enabled := range []bool{true, false} {
		c := loadChart(t)
		c.AddDependency(nats)
		values := map[string]any{"nats": map[string]any{"enabled": enabled}}
		if _, err := render(t, c, "postwire", values); err != nil {
			t.Fatal(err)
		}
		if got := len(c.Dependencies()) == 1; got != enabled {
			t.Errorf("nats.enabled is %v, and it is installed: %v", enabled, got)
		}
	}
	want := loadChart(t).Metadata.Dependencies[0]
	if want.Name != "nats" || want.Version != nats.Metadata.Version || want.Condition != "nats.enabled" || !strings.HasPrefix(want.Repository, "https://nats-io.github.io/") {
		t.Errorf("the dependency is %+v", *want)
	}
}

// The notes have a URL and commands that fit the values.
func TestNotes(t *testing.T) {
	notes := func(t *testing.T, values map[string]any, wants ...string) {
		t.Helper()
		text := mustRender(t, "postwire", values)["postwire/templates/NOTES.txt"]
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("the notes lack %q:\n%s", want, text)
			}
		}
	}
	for name, wants := range map[string][]string{
		"minimal":              {"--from-literal=UPLOAD_POST_WEBHOOK_SECRET=…", "http://postwire.relay/webhooks/upload-post\n", "helm test postwire -n relay"},
		"local":                {"https://relay.example.com/webhooks/upload-post", "postwire register --url https://relay.example.com/webhooks/upload-post"},
		"local-tls":            {"https://$(kubectl get nodes -o jsonpath='{.items[0].status.addresses[0].address}'):30443/events\n", "use a host name of this certificate", "statefulset/postwire"},
		"local-ephemeral":      {"are lost with the pod"},
		"jetstream-deployment": {"deployment/postwire", "lost with its pod"},
	} {
		t.Run(name, func(t *testing.T) { notes(t, sets(t)[name], wants...) })
	}
	const address = "$(kubectl -n relay get service postwire -o jsonpath='{.status.loadBalancer.ingress[0].hostname}{.status.loadBalancer.ingress[0].ip}')"
	for text, want := range map[string]string{
		"service: {type: LoadBalancer}":                                  "http://" + address + "/webhooks/upload-post\n",
		"service: {type: LoadBalancer, port: 8080}":                      "http://" + address + ":8080/webhooks/upload-post\n",
		"service: {type: NodePort}":                                      ":$(kubectl -n relay get service postwire -o jsonpath='{.spec.ports[0].nodePort}')/webhooks/upload-post\n",
		"service: {port: 443}\nconfig: {server: {tls: {cert_file: /c}}}": "https://postwire.relay/webhooks/upload-post\n",
		"config: {server: {tls: {cert_file: /c}}}":                       "https://postwire.relay:80/webhooks/upload-post\n",
		"namespaceOverride: hooks":                                       "http://postwire.hooks/webhooks/upload-post\n",
		"config: {sources: [{name: a, type: uploadpost, paths: [/a], auth: {path_token: {tokens: [\"${T}\"]}}}]}": "http://postwire.relay/a/TOKEN\n",
	} {
		values, err := loader.LoadValues(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		t.Run(text, func(t *testing.T) { notes(t, values, want) })
	}
	if all := slices.Sorted(maps.Keys(mustRender(t, "postwire", sets(t)["webhooks"]))); slices.Contains(all, "postwire/templates/tests/send.yaml") {
		t.Error("a test that can only fail is installed")
	}
}

// The README's values are those of the set local, which the other tests run
// on.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chartDir, "README.in.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(text), "```yaml\n")
	block, _, found := strings.Cut(block, "```")
	if !found {
		t.Fatal("there are no values in it")
	}
	values, err := loader.LoadValues(strings.NewReader(block))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sets(t)["local"], values); diff != "" {
		t.Errorf("(- ci/local-values.yaml, + README):\n%s", diff)
	}
}

// Where traces are sent, the policy lets the collector be reached, at its port and
// nowhere else; where they are not, or no policy is asked for, nothing is opened.
func TestCollectorIsReached(t *testing.T) {
	egress := func(traces, policy map[string]any) []networkingv1.NetworkPolicyEgressRule {
		t.Helper()
		values := map[string]any{"networkPolicy": policy, "config": map[string]any{"telemetry": map[string]any{"traces": traces}}}
		policies := only[*networkingv1.NetworkPolicy](objects(t, mustRender(t, "postwire", values)))
		if len(policies) != 1 {
			t.Fatalf("there are %d policies", len(policies))
		}
		return policies[0].Spec.Egress[1:] // behind that of DNS
	}
	for endpoint, want := range map[string]int{
		"http://otel-collector.monitoring:4318": 4318, "https://[2001:db8::1]:14318/v1/traces": 14318,
		"http://otel-collector.monitoring": 80, "https://otel-collector.monitoring/otlp": 443, "http://${COLLECTOR}:4318": 0,
	} {
		rules := egress(map[string]any{"endpoint": endpoint}, map[string]any{"enabled": true})
		if len(rules) != 1 || len(rules[0].To) != 1 || rules[0].To[0].NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"] != "monitoring" {
			t.Errorf("%s: the rules are %+v", endpoint, rules)
			continue
		}
		switch ports := rules[0].Ports; {
		case want == 0 && len(ports) == 0:
		case len(ports) != 1 || ports[0].Port.IntValue() != want || *ports[0].Protocol != corev1.ProtocolTCP:
			t.Errorf("%s: the ports are %+v, want %d", endpoint, ports, want)
		}
	}
	if rules := egress(map[string]any{"endpoint": "http://c", "protocol": "grpc"}, map[string]any{"enabled": true}); len(rules) != 1 || rules[0].Ports[0].Port.IntValue() != 443 {
		t.Errorf("over gRPC without a port: %+v", rules)
	}
	for what, rules := range map[string][]networkingv1.NetworkPolicyEgressRule{
		"without traces":     egress(nil, map[string]any{"enabled": true}),
		"without an address": egress(map[string]any{"endpoint": ""}, map[string]any{"enabled": true}),
		"to nobody":          egress(map[string]any{"endpoint": "http://c:4318"}, map[string]any{"enabled": true, "collector": []any{}}),
	} {
		if len(rules) != 0 {
			t.Errorf("%s: the rules are %+v", what, rules)
		}
	}
}

// A clone without a network can be installed: the chart that Postwire depends on is in the
// clone, as Chart.lock says.
func TestDependencyIsIncluded(t *testing.T) {
	c, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	want := c.Metadata.Dependencies
	if all := c.Dependencies(); len(all) != 1 || all[0].Name() != want[0].Name || all[0].Metadata.Version != want[0].Version {
		t.Fatalf("the chart includes %d charts", len(all))
	}
	if c.Lock == nil || len(c.Lock.Dependencies) != 1 || c.Lock.Dependencies[0].Version != want[0].Version || c.Lock.Dependencies[0].Repository != want[0].Repository {
		t.Fatalf("Chart.lock: %+v", c.Lock)
	}
	text, err := json.Marshal([2][]*chart.Dependency{want, c.Lock.Dependencies})
	if err != nil {
		t.Fatal(err)
	}
	if digest := fmt.Sprintf("sha256:%x", sha256.Sum256(text)); c.Lock.Digest != digest {
		t.Errorf("Chart.lock has the digest %s, want %s", c.Lock.Digest, digest)
	}
	files, err := render(t, c, "postwire", sets(t)["jetstream-nats"])
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(slices.Collect(maps.Keys(files)), func(path string) bool { return strings.HasPrefix(path, "postwire/charts/nats/templates/stateful-set") }) {
		t.Errorf("the servers of NATS are not rendered, but %v", slices.Sorted(maps.Keys(files)))
	}
}

// With existingConfigMap the chart makes no configuration, and every pod mounts the given one.
func TestExistingConfigMap(t *testing.T) {
	all := objects(t, mustRender(t, "postwire", map[string]any{"existingConfigMap": "relay-config"}))
	for _, c := range only[*corev1.ConfigMap](all) {
		t.Errorf("%s is rendered", title(c))
	}
	if len(pods(all)) != 3 {
		t.Errorf("there are %d pods, want the relay, the test and the validation", len(pods(all)))
	}
	for _, p := range pods(all) {
		if !slices.ContainsFunc(p.spec.Volumes, func(v corev1.Volume) bool { return v.ConfigMap != nil && v.ConfigMap.Name == "relay-config" }) {
			t.Errorf("%s does not mount the ConfigMap", title(p.of))
		}
	}
}

// The only pod answers 503 while its journal is full; of several pods, Services choose one that
// is ready.
func TestServicesOfPodsThatAreNotReady(t *testing.T) {
	for name, want := range map[string]bool{"local": true, "jetstream": false, "local-platform": false} {
		for _, s := range only[*corev1.Service](objects(t, mustRender(t, "postwire", sets(t)[name]))) {
			if s.Name == "postwire" && s.Spec.PublishNotReadyAddresses != want {
				t.Errorf("%s: publishNotReadyAddresses is %v", name, s.Spec.PublishNotReadyAddresses)
			}
		}
	}
}

func TestImageRegistry(t *testing.T) {
	for repository, want := range map[string]string{
		"ghcr.io/postwire/postwire": "mirror.example.com/hub/postwire/postwire", "postwire/postwire": "mirror.example.com/hub/postwire/postwire",
		"localhost/postwire": "mirror.example.com/hub/postwire", "registry:5000/a/postwire": "mirror.example.com/hub/a/postwire",
	} {
		c := relayContainer(t, map[string]any{
			"global": map[string]any{"imageRegistry": "mirror.example.com/hub", "other": "of another chart"}, "image": map[string]any{"repository": repository, "tag": "1.0"},
		})
		if c.Image != want+":1.0" {
			t.Errorf("%s: the image is %s", repository, c.Image)
		}
	}
}
