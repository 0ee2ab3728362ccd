package charts

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// relayContainer returns the container of Postwire.
func relayContainer(t *testing.T, values map[string]any) corev1.Container {
	t.Helper()
	for _, p := range pods(objects(t, mustRender(t, "postwire", values))) {
		for _, c := range p.spec.Containers {
			if c.Name == "postwire" {
				return c
			}
		}
	}
	t.Fatal("there is no container of Postwire")
	return corev1.Container{}
}

func variables(c corev1.Container, name string) (values []string) {
	for _, v := range c.Env {
		if v.Name == name {
			values = append(values, v.Value)
		}
	}
	return values
}

// GOMEMLIMIT is 80 % of the memory limit for every way to write a quantity.
func TestMemoryLimit(t *testing.T) {
	var table strings.Builder
	for _, limit := range []any{
		"1Gi", "1.5Gi", "512Mi", "1048576Ki", "2Ti", "0.5Pi", "0.001Ei", "1G", "900M", "1000000k", "1T", "0.01P", "0.001E",
		"1e9", "1.5E9", "+2e+9", "12e-1G", "1073741824", "1073741824.", ".5Gi", "2147483648000m", "1000000000000000u", "1000000000000000000n",
		1073741824, 1.5e9,
	} {
		text := fmt.Sprint(limit)
		want, err := resource.ParseQuantity(text)
		if _, isText := limit.(string); isText && err != nil {
			fmt.Fprintf(&table, "%-24s refused\n", text)
			if _, err := render(t, loadChart(t), "postwire", limited(limit)); err == nil {
				t.Errorf("the memory limit %s is no quantity, and the chart renders", text)
			}
			continue
		}
		got := variables(relayContainer(t, limited(limit)), "GOMEMLIMIT")
		if err == nil && (len(got) != 1 || got[0] != fmt.Sprint(want.Value()*8/10)) {
			t.Errorf("the memory limit %s: GOMEMLIMIT is %v, want 80 %% of %d", text, got, want.Value())
		}
		fmt.Fprintf(&table, "%-24s %s\n", text, strings.Join(got, " "))
	}
	golden(t, "golden/memory.txt", table.String())
}

func limited(limit any) map[string]any {
	return map[string]any{"resources": map[string]any{"limits": map[string]any{"memory": limit}}}
}

func TestMemoryLimitIsNotSet(t *testing.T) {
	for name, values := range map[string]map[string]any{
		"without a memory limit": {"resources": map[string]any{"limits": nil}},
		"with a CPU limit":       {"resources": map[string]any{"limits": map[string]any{"memory": nil, "cpu": "1"}}},
	} {
		if got := variables(relayContainer(t, values), "GOMEMLIMIT"); got != nil {
			t.Errorf("%s: GOMEMLIMIT is %v", name, got)
		}
	}
	own := limited("1Gi")
	own["extraEnv"] = []any{map[string]any{"name": "GOMEMLIMIT", "value": "600MiB"}}
	if got := variables(relayContainer(t, own), "GOMEMLIMIT"); len(got) != 1 || got[0] != "600MiB" {
		t.Errorf("with GOMEMLIMIT in extraEnv: %v", got)
	}
}
