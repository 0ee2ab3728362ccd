{{/* What an upgrade needs to know about the cluster. lookup finds nothing in helm template, and where the release is new. */}}

{{/*
The ConfigMaps of earlier revisions, newest first, as [{name, data, annotations}]. Helm keeps a ConfigMap with the annotation, also when a
rollback or a refused upgrade leaves its revision. The newest two keep the annotation. An older one loses the annotation in one upgrade, and Helm
deletes it in the next upgrade, because it is not rendered then.
*/}}
{{- define "postwire.earlierConfigs" -}}
{{- $current := include "postwire.configMapName" . }}
{{- $selector := dict "app.kubernetes.io/name" (include "postwire.name" .) "app.kubernetes.io/instance" .Release.Name "app.kubernetes.io/component" "config" }}
{{- $found := dict }}
{{- range (lookup "v1" "ConfigMap" (include "postwire.namespace" .) "").items }}
  {{- $labels := default dict .metadata.labels }}
  {{- $ours := and .immutable (ne .metadata.name $current) }}
  {{- range $key, $value := $selector }}
    {{- if ne $value (default "" (get $labels $key)) }}{{ $ours = false }}{{ end }}
  {{- end }}
  {{- if $ours }}{{ $_ := set $found (printf "%s %s" .metadata.creationTimestamp .metadata.name) . }}{{ end }}
{{- end }}
{{- $earlier := list }}
{{- range $i, $key := keys $found | sortAlpha | reverse }}
  {{- $config := get $found $key }}
  {{- $kept := hasKey (default dict $config.metadata.annotations) "helm.sh/resource-policy" }}
  {{- if lt $i 2 }}
    {{- $earlier = append $earlier (dict "name" $config.metadata.name "data" $config.data "annotations" (dict "helm.sh/resource-policy" "keep")) }}
  {{- else if $kept }}
    {{- $earlier = append $earlier (dict "name" $config.metadata.name "data" $config.data "annotations" dict) }}
  {{- end }}
{{- end }}
{{- toYaml $earlier }}
{{- end }}

{{/* The engine of the running pods: data, spill or cluster; empty without a release. Only the pods of an embedded cluster have a port of this name. */}}
{{- define "postwire.runs" -}}
{{- $name := include "postwire.fullname" . }}
{{- $namespace := include "postwire.namespace" . }}
{{- $runs := "" }}
{{- $set := lookup "apps/v1" "StatefulSet" $namespace $name }}
{{- if $set }}
  {{- $runs = "data" }}
  {{- range $set.spec.volumeClaimTemplates }}{{ if eq .metadata.name "spill" }}{{ $runs = "spill" }}{{ end }}{{ end }}
  {{- range $set.spec.template.spec.containers }}{{ range .ports }}{{ if eq .name "cluster" }}{{ $runs = "cluster" }}{{ end }}{{ end }}{{ end }}
{{- else if lookup "apps/v1" "Deployment" $namespace $name }}
  {{- $runs = "spill" }}
{{- end }}
{{- $runs }}
{{- end }}

{{/* The errors of an upgrade that would change the engine, or a claim template, which Kubernetes refuses to change; as a list. */}}
{{- define "postwire.upgradeErrors" -}}
{{- $wrong := list }}
{{- $name := include "postwire.fullname" . }}
{{- $namespace := include "postwire.namespace" . }}
{{- $journal := .Values.config.journal }}
{{- $engines := dict "data" "local" "spill" "jetstream with NATS servers" "cluster" "jetstream with an embedded cluster" }}
{{- $claim := include "postwire.claim" . }}
{{- $wanted := ternary "cluster" $claim (eq (include "postwire.embedded" .) "true") }}
{{- $running := include "postwire.runs" . }}
{{- $set := lookup "apps/v1" "StatefulSet" $namespace $name }}
{{- /* One pod becomes an embedded cluster: the pod carries its journal into the cluster. */}}
{{- $grows := and (eq $running "data") (eq $wanted "cluster") }}
{{- if and $running (ne $running $wanted) (not $grows) }}
  {{- $wrong = append $wrong (printf "config.journal asks for the engine %s, and the pods of this release use the engine %s, whose journal may hold undelivered events: keep the engine, or install a second release with the other engine, as \"Topologies\" in the README of the chart describes" (get $engines $wanted) (get $engines $running)) }}
{{- end }}
{{- $volume := ternary .Values.spill.persistence .Values.persistence (eq $claim "spill") }}
{{- $key := ternary "spill.persistence.size" "persistence.size" (eq $claim "spill") }}
{{- if and $set (or $grows (eq $running $wanted)) $volume.enabled (not $volume.existingClaim) }}
  {{- range $set.spec.volumeClaimTemplates }}
    {{- $size := .spec.resources.requests.storage }}
    {{- if and (eq .metadata.name $claim) (ne (include "postwire.quantity" $size) (include "postwire.quantity" $volume.size)) }}
      {{- $wrong = append $wrong (printf "%s is %s, and the volumes of this release have %s: Kubernetes refuses to change the claim template of a StatefulSet. To grow a volume, follow \"Grow a volume\" in docs/howto/kubernetes.md; otherwise use %s" $key $volume.size $size $size) }}
    {{- end }}
  {{- end }}
{{- end }}
{{- toYaml $wrong }}
{{- end }}
