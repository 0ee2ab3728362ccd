package charts

import (
	"testing"

	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// Every pod is one that a namespace with the Pod Security Standard restricted
// takes, today's and the one of the oldest Kubernetes that is supported.
func TestPodSecurity(t *testing.T) {
	judge, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	each(t, func(t *testing.T, _ string, values map[string]any) {
		all := pods(objects(t, mustRender(t, "postwire", values)))
		if len(all) == 0 {
			t.Fatal("no pods")
		}
		for _, p := range all {
			for _, version := range []api.Version{api.LatestVersion(), api.MajorMinorVersion(1, 30)} {
				verdict := policy.AggregateCheckResults(judge.EvaluatePod(api.LevelVersion{Level: api.LevelRestricted, Version: version}, &p.meta, &p.spec))
				if !verdict.Allowed {
					t.Errorf("%s, by the standard of %s: %s: %s", title(p.of), version.String(), verdict.ForbiddenReason(), verdict.ForbiddenDetail())
				}
			}
			// What the standard does not ask for.
			for _, c := range p.spec.Containers {
				if c.Name != "beside" && (c.SecurityContext.ReadOnlyRootFilesystem == nil || !*c.SecurityContext.ReadOnlyRootFilesystem) {
					t.Errorf("%s: container %s can write to its root", title(p.of), c.Name)
				}
			}
			if s := p.spec.SecurityContext; s.RunAsUser == nil || *s.RunAsUser != 65532 {
				t.Errorf("%s runs as %v", title(p.of), s.RunAsUser)
			}
		}
	})
}

// The judge does refuse what it should.
func TestPodSecurityRefuses(t *testing.T) {
	judge, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]any{"securityContext": map[string]any{"allowPrivilegeEscalation": true}}
	for _, p := range pods(objects(t, mustRender(t, "postwire", values))) {
		if policy.AggregateCheckResults(judge.EvaluatePod(api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}, &p.meta, &p.spec)).Allowed {
			t.Errorf("%s may gain privileges, and is let in", title(p.of))
		}
	}
}
