package charts

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
)

const keepPolicy = "helm.sh/resource-policy"

// cluster is a Kubernetes cluster with the objects of one release, as far as Helm changes
// objects: an upgrade creates and updates what is rendered, and deletes what only the
// previous revision has rendered, except objects that are annotated to be kept.
type cluster struct {
	objects  map[string]object // by title
	rendered []string          // titles of the last revision
	now      time.Time
	// refuses makes an upgrade fail after the ConfigMaps are changed, as it is when
	// Kubernetes refuses a change of the StatefulSet.
	refuses bool
}

func newCluster() *cluster {
	return &cluster{objects: map[string]object{}, now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
}

// GetClientFor implements engine.ClientProvider, for the template function lookup.
func (c *cluster) GetClientFor(_, kind string) (dynamic.NamespaceableResourceInterface, bool, error) {
	return &resources{cluster: c, kind: kind}, true, nil
}

// resources implements the reading part of the client of one kind.
type resources struct {
	dynamic.NamespaceableResourceInterface
	cluster *cluster
	kind    string
	ns      string
}

func (r *resources) Namespace(ns string) dynamic.ResourceInterface {
	return &resources{cluster: r.cluster, kind: r.kind, ns: ns}
}

func (r *resources) List(context.Context, metav1.ListOptions) (*unstructured.UnstructuredList, error) {
	list := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": "v1", "kind": r.kind + "List"}}
	for _, name := range slices.Sorted(maps.Keys(r.cluster.objects)) {
		if o := r.cluster.objects[name]; kind(o) == r.kind && o.GetNamespace() == r.ns {
			u, err := unstructuredOf(o)
			if err != nil {
				return nil, err
			}
			list.Items = append(list.Items, *u)
		}
	}
	return list, nil
}

func (r *resources) Get(_ context.Context, name string, _ metav1.GetOptions, _ ...string) (*unstructured.Unstructured, error) {
	if o, ok := r.cluster.objects[r.kind+"/"+name]; ok && o.GetNamespace() == r.ns {
		return unstructuredOf(o)
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: r.kind}, name)
}

func unstructuredOf(o object) (*unstructured.Unstructured, error) {
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	return &unstructured.Unstructured{Object: m}, err
}

// render renders an upgrade of the release in the cluster.
func (c *cluster) render(t *testing.T, values map[string]any) ([]object, error) {
	t.Helper()
	chart := loadChart(t)
	vals, err := util.ToRenderValues(chart, values, common.ReleaseOptions{Name: "postwire", Namespace: namespace, Revision: 2, IsUpgrade: true}, common.DefaultCapabilities)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.RenderWithClientProvider(chart, vals, c)
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(files, func(path, text string) bool {
		return strings.TrimSpace(text) == "" || strings.Contains(path, "/_") || strings.Contains(text, "helm.sh/hook:")
	})
	return objects(t, files), nil
}

// upgrade installs or upgrades the release, and returns the configuration that new pods
// mount.
func (c *cluster) upgrade(t *testing.T, values map[string]any) *corev1.ConfigMap {
	t.Helper()
	all, err := c.render(t, values)
	if err != nil {
		t.Fatal(err)
	}
	var titles []string
	for _, o := range all {
		name := title(o)
		if c.refuses && kind(o) == "StatefulSet" {
			continue
		}
		c.now = c.now.Add(time.Minute)
		o.SetCreationTimestamp(metav1.NewTime(c.now))
		if old := c.objects[name]; old != nil {
			o.SetCreationTimestamp(old.GetCreationTimestamp())
		}
		c.objects[name], titles = o, append(titles, name)
	}
	if c.refuses { // Helm deletes nothing, and compares the next revision with the last good one
		return c.mounted(t, all)
	}
	for _, name := range c.rendered {
		if !slices.Contains(titles, name) && c.objects[name].GetAnnotations()[keepPolicy] != "keep" {
			delete(c.objects, name)
		}
	}
	c.rendered = titles
	return c.mounted(t, all)
}

// mounted returns the ConfigMap that the pods of the rendered workload mount.
func (c *cluster) mounted(t *testing.T, all []object) *corev1.ConfigMap {
	t.Helper()
	for _, p := range pods(all) {
		if !p.isRelay() {
			continue
		}
		for _, v := range p.spec.Volumes {
			if v.Name != "config" {
				continue
			}
			m, ok := c.objects["ConfigMap/"+v.ConfigMap.Name].(*corev1.ConfigMap)
			if !ok {
				t.Fatalf("the pods mount the ConfigMap %s, which does not exist", v.ConfigMap.Name)
			}
			return m
		}
	}
	t.Fatal("no pod mounts a configuration")
	return nil
}

func (c *cluster) configs() []string {
	var names []string
	for _, o := range c.objects {
		if m, ok := o.(*corev1.ConfigMap); ok && m.Data["postwire.yaml"] != "" {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return names
}

func level(name string) map[string]any {
	return map[string]any{"config": map[string]any{"log": map[string]any{"level": name}}}
}

// A pod of an earlier revision that starts again finds the configuration of this
// revision, also after an upgrade that Kubernetes refused. The cluster keeps the
// configurations of the last three revisions and at most one that is about to be deleted.
func TestConfigMapsOfRevisions(t *testing.T) {
	c := newCluster()
	first := c.upgrade(t, level("info"))
	if !strings.HasPrefix(first.Name, "postwire-") || first.Immutable == nil || !*first.Immutable || first.Annotations[keepPolicy] != "keep" {
		t.Errorf("the ConfigMap is %s, immutable: %v, with annotations %v", first.Name, first.Immutable, first.Annotations)
	}
	if again := c.upgrade(t, level("info")); again.Name != first.Name || len(c.configs()) != 1 {
		t.Errorf("an upgrade without a change of the configuration: %s, was %s; there are %v", again.Name, first.Name, c.configs())
	}

	c.refuses = true
	refused := c.upgrade(t, level("debug"))
	if refused.Name == first.Name || c.objects["ConfigMap/"+first.Name] == nil {
		t.Errorf("a refused upgrade leaves %v, the running pods mount %s", c.configs(), first.Name)
	}
	c.refuses = false
	second := c.upgrade(t, level("warn"))
	for _, m := range []*corev1.ConfigMap{first, refused, second} {
		got, ok := c.objects["ConfigMap/"+m.Name].(*corev1.ConfigMap)
		if !ok || got.Annotations[keepPolicy] != "keep" || got.Data["postwire.yaml"] != m.Data["postwire.yaml"] {
			t.Errorf("ConfigMap %s after the upgrade: %+v", m.Name, got)
		}
	}

	// The name of a ConfigMap depends on the content alone.
	if back := c.upgrade(t, level("info")); back.Name != first.Name {
		t.Errorf("the first configuration is in %s now, was in %s", back.Name, first.Name)
	}

	for i := range 8 {
		before := c.mountedNow(t)
		now := c.upgrade(t, map[string]any{"config": map[string]any{"server": map[string]any{"max_connections": 1000 + i}}})
		if names := c.configs(); len(names) > 4 || !slices.Contains(names, before) || !slices.Contains(names, now.Name) {
			t.Errorf("after %s follows %s: the cluster has %v", before, now.Name, names)
		}
	}

	// A ConfigMap of another release, or of another program, is not touched.
	foreign := &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}, ObjectMeta: metav1.ObjectMeta{
		Name: "other-0123456789", Namespace: namespace, Annotations: map[string]string{keepPolicy: "keep"},
		Labels: map[string]string{"app.kubernetes.io/name": "postwire", "app.kubernetes.io/instance": "other", "app.kubernetes.io/component": "config"},
	}, Immutable: new(true), Data: map[string]string{"postwire.yaml": "{}"}}
	c.objects["ConfigMap/"+foreign.Name] = foreign
	all, err := c.render(t, level("error"))
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(all, func(o object) bool { return o.GetName() == foreign.Name }) {
		t.Errorf("ConfigMap %s of another release is rendered", foreign.Name)
	}
}

// mountedNow returns the name of the ConfigMap that the pods of the cluster mount.
func (c *cluster) mountedNow(t *testing.T) string {
	t.Helper()
	return c.mounted(t, slices.Collect(maps.Values(c.objects))).Name
}

// With hot reload the pods must see the changed file, so the name stays.
func TestConfigMapOfHotReload(t *testing.T) {
	c := newCluster()
	values := func(name string) map[string]any {
		v := level(name)
		v["restartOnConfigChange"] = false
		return v
	}
	before := c.upgrade(t, values("info"))
	after := c.upgrade(t, values("debug"))
	if before.Name != "postwire" || after.Name != "postwire" || after.Immutable != nil || after.Annotations[keepPolicy] != "" {
		t.Errorf("ConfigMap %s, then %s, immutable: %v, annotations %v", before.Name, after.Name, after.Immutable, after.Annotations)
	}
	if !strings.Contains(after.Data["postwire.yaml"], "level: debug") {
		t.Errorf("the file has not changed:\n%s", after.Data["postwire.yaml"])
	}
}

// A changed engine leaves undelivered events in the old journal, and Kubernetes refuses a
// changed claim template after the other objects are changed. The chart refuses both before
// an object is changed.
func TestUpgradesThatAreRefused(t *testing.T) {
	local, embedded := map[string]any{}, map[string]any{"replicaCount": 3}
	cluster := map[string]any{"config": map[string]any{"journal": map[string]any{"engine": "jetstream", "jetstream": map[string]any{"url": "nats://nats:4222"}}}}
	deployment := map[string]any{"config": cluster["config"], "spill": map[string]any{"persistence": map[string]any{"enabled": false}}}
	for _, c := range []struct {
		name       string
		from, to   map[string]any
		refusedFor string
	}{
		{"nothing", local, local, ""},
		{"local to jetstream", local, cluster, "config.journal asks for the engine jetstream with NATS servers, and the pods of this release use the engine local"},
		{"jetstream to local", cluster, local, "config.journal asks for the engine local, and the pods of this release use the engine jetstream with NATS servers"},
		{"a Deployment to local", deployment, local, "config.journal asks for the engine local, and the pods of this release use the engine jetstream with NATS servers"},
		{"one pod to an embedded cluster", local, embedded, ""},
		{"one pod to an embedded cluster, with the engine", local, sets(t)["embedded"], ""},
		{"an embedded cluster to one pod", embedded, local, "config.journal asks for the engine local, and the pods of this release use the engine jetstream with an embedded cluster"},
		{"an embedded cluster to NATS servers", embedded, cluster, "config.journal asks for the engine jetstream with NATS servers, and the pods of this release use the engine jetstream with an embedded cluster"},
		{"NATS servers to an embedded cluster", cluster, embedded, "config.journal asks for the engine jetstream with an embedded cluster, and the pods of this release use the engine jetstream with NATS servers"},
		{"an embedded cluster of two", local, map[string]any{"replicaCount": 2}, "replicaCount is 2, and the embedded cluster accepts events while more than half of its pods are available"},
		{"one pod with a claim of its own", map[string]any{"persistence": map[string]any{"existingClaim": "mine"}, "config": map[string]any{"journal": map[string]any{"max_bytes": "1GiB"}}}, map[string]any{"replicaCount": 3, "persistence": map[string]any{"existingClaim": "mine"}}, "persistence.existingClaim is one claim"},
		{"one pod with a ConfigMap of its own", local, map[string]any{"replicaCount": 3, "existingConfigMap": "mine"}, "existingConfigMap is set"},
		{"a size on the way to a cluster", local, map[string]any{"replicaCount": 3, "persistence": map[string]any{"size": "30Gi"}}, "persistence.size is 30Gi, and the volumes of this release have 20Gi"},
		{"a size in another unit", local, map[string]any{"persistence": map[string]any{"size": "20480Mi"}}, ""},
		{"another size", local, map[string]any{"persistence": map[string]any{"size": "30Gi"}}, "persistence.size is 30Gi, and the volumes of this release have 20Gi"},
		{"another size of the spill", cluster, map[string]any{"config": cluster["config"], "spill": map[string]any{"persistence": map[string]any{"size": "9Gi"}}}, "spill.persistence.size is 9Gi, and the volumes of this release have 2Gi"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newCluster()
			k.upgrade(t, c.from)
			_, err := k.render(t, c.to)
			if got := fmt.Sprint(err); c.refusedFor == "" && err != nil || c.refusedFor != "" && !strings.Contains(got, c.refusedFor) {
				t.Errorf("the upgrade: %s; want %q", got, c.refusedFor)
			}
		})
	}
}

// The hook runs the product on the configuration that the upgrade brings, with the
// environment and the files of the relay, and ends without a Secret.
func TestValidationHook(t *testing.T) {
	each(t, func(t *testing.T, _ string, values map[string]any) {
		all := objects(t, mustRender(t, "postwire", values))
		i := slices.IndexFunc(all, func(o object) bool { return kind(o) == "Job" })
		if i < 0 {
			t.Fatal("there is no Job")
		}
		job, _ := all[i].(*batchv1.Job)
		if !strings.Contains(job.Annotations["helm.sh/hook"], "pre-upgrade") || !strings.Contains(job.Annotations["helm.sh/hook-delete-policy"], "before-hook-creation") || *job.Spec.BackoffLimit != 0 || *job.Spec.ActiveDeadlineSeconds < 60 {
			t.Errorf("the Job: %+v, %+v", job.Annotations, job.Spec)
		}
		relay := relayContainer(t, values)
		c := job.Spec.Template.Spec.Containers[0]
		without := slices.DeleteFunc(slices.Clone(relay.Env), func(v corev1.EnvVar) bool { return v.Name == "GOMEMLIMIT" && v.Value != "900MiB" })
		if diff := cmp.Diff(without, c.Env, cmpopts.EquateEmpty()) + cmp.Diff(relay.EnvFrom, c.EnvFrom); diff != "" {
			t.Errorf("the environment (- relay, + hook):\n%s", diff)
		}
		if c.Image != relay.Image {
			t.Errorf("the image is %s, and the relay has %s", c.Image, relay.Image)
		}
		for _, m := range relay.VolumeMounts {
			files := strings.HasPrefix(m.Name, "file-") || m.Name == "config" || m.Name == "extra"
			if slices.ContainsFunc(c.VolumeMounts, func(own corev1.VolumeMount) bool { return own.MountPath == m.MountPath }) != files {
				t.Errorf("the mount of %s at %s: the hook has it: %v", m.Name, m.MountPath, !files)
			}
		}
		name, weights := "", map[string]string{}
		for _, v := range job.Spec.Template.Spec.Volumes {
			if v.Name == "config" {
				name = v.ConfigMap.Name
			}
		}
		for _, o := range all {
			weights[title(o)] = o.GetAnnotations()["helm.sh/hook-weight"]
		}
		if weights["ConfigMap/"+name] != "-1" {
			t.Errorf("the ConfigMap %s of the hook has the weight %q", name, weights["ConfigMap/"+name])
		}
	})
	off := map[string]any{"validation": map[string]any{"enabled": false}}
	if _, found := mustRender(t, "postwire", off)["postwire/templates/validation.yaml"]; found {
		t.Error("the hook is rendered although validation.enabled is false")
	}
}

// A release with one pod becomes an embedded cluster: Kubernetes accepts the new StatefulSet, and
// the pods know which of them has the journal.
func TestOnePodBecomesACluster(t *testing.T) {
	k := newCluster()
	k.upgrade(t, map[string]any{})
	before, _ := k.objects["StatefulSet/postwire"].(*appsv1.StatefulSet)
	config := k.upgrade(t, map[string]any{"replicaCount": 3})
	after, _ := k.objects["StatefulSet/postwire"].(*appsv1.StatefulSet)
	if *before.Spec.Replicas != 1 || *after.Spec.Replicas != 3 {
		t.Errorf("%d pods become %d", *before.Spec.Replicas, *after.Spec.Replicas)
	}
	// What Kubernetes lets nobody change.
	fixed := func(s *appsv1.StatefulSet) appsv1.StatefulSetSpec {
		return appsv1.StatefulSetSpec{Selector: s.Spec.Selector, ServiceName: s.Spec.ServiceName, PodManagementPolicy: s.Spec.PodManagementPolicy, VolumeClaimTemplates: s.Spec.VolumeClaimTemplates}
	}
	if diff := cmp.Diff(fixed(before), fixed(after)); diff != "" {
		t.Errorf("Kubernetes refuses the upgrade (- one pod, + cluster):\n%s", diff)
	}
	for _, want := range []string{"engine: jetstream", "dir: /var/lib/postwire/journal", "relay: postwire-0", "url: http://postwire-0.postwire-admin:8080", "- postwire-0.postwire-admin:6222", "- postwire-2.postwire-admin:6222"} {
		if !strings.Contains(config.Data["postwire.yaml"], want) {
			t.Errorf("the configuration has no %q:\n%s", want, config.Data["postwire.yaml"])
		}
	}
}
