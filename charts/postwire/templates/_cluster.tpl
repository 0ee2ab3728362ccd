{{/* The embedded cluster: the jetstream engine without the address of NATS servers. Every pod runs a server of the cluster. */}}
{{- define "postwire.embedded" -}}
{{- $journal := .Values.config.journal }}
{{- if and (eq (include "postwire.engine" .) "jetstream") (not .Values.nats.enabled) (not (dig "jetstream" "url" "" $journal)) }}true{{ end }}
{{- end }}

{{- define "postwire.clusterPort" -}}
{{- regexFind "[0-9]+$" (dig "jetstream" "embedded" "listen" ":6222" .Values.config.journal) }}
{{- end }}

{{/* The volume that the claims of the StatefulSet describe: persistence where the pods hold the journal, spill.persistence where NATS servers do.
Kubernetes refuses to rename a claim, so one pod and an embedded cluster have claims of one name: one pod can become a cluster. */}}
{{- define "postwire.claim" -}}
{{- if and (eq (include "postwire.engine" .) "jetstream") (not (include "postwire.embedded" .)) }}spill{{ else }}data{{ end }}
{{- end }}

{{/* The addresses of all pods: names of the headless Service, which has the pods that are not ready, too. */}}
{{- define "postwire.peers" -}}
{{- $name := include "postwire.fullname" . }}
{{- $peers := list }}
{{- range $i := until (int (include "postwire.replicas" .)) }}
  {{- $peers = append $peers (printf "%s-%d.%s-admin:%s" $name $i $name (include "postwire.clusterPort" $)) }}
{{- end }}
{{- toYaml $peers }}
{{- end }}

{{/* The name of the Secret with the shared secret of the pods; empty if the configuration has the secret. */}}
{{- define "postwire.clusterSecret" -}}
{{- if and (include "postwire.embedded" .) (not (dig "jetstream" "embedded" "secret" "" .Values.config.journal)) }}
{{- include "postwire.fullname" . }}-cluster
{{- end }}
{{- end }}

{{/* The keys of journal for the embedded cluster: (dict "root" $ "journal" …). */}}
{{- define "postwire.embeddedConfig" -}}
{{- $root := .root }}
{{- $journal := .journal }}
{{- $embedded := default dict $journal.jetstream.embedded }}
{{- if not (hasKey $embedded "peers") }}
  {{- $_ := set $embedded "peers" (include "postwire.peers" $root | fromYamlArray) }}
  {{- if not (hasKey $embedded "founder") }}
    {{- /* The pod of a release with one pod: it has the journal. */}}
    {{- $name := include "postwire.fullname" $root }}
    {{- $_ := set $embedded "founder" (dict "relay" (printf "%s-0" $name) "url" (printf "%s://%s-0.%s-admin:%s" (include "postwire.scheme" $root) $name $name (include "postwire.port" $root))) }}
  {{- end }}
{{- end }}
{{- if not (hasKey $embedded "dir") }}
  {{- $_ := set $embedded "dir" "/var/lib/postwire/cluster" }}
{{- end }}
{{- if include "postwire.clusterSecret" $root }}
  {{- $_ := set $embedded "secret" "${POSTWIRE_CLUSTER_SECRET}" }}
{{- end }}
{{- $_ := set $journal.jetstream "embedded" $embedded }}
{{- if not (hasKey $journal "max_bytes") }}
  {{- $size := $root.Values.persistence.size }}
  {{- with regexFind "[KMGT]i?$" $size }}
    {{- $_ := set $journal "max_bytes" (printf "%v%sB" (round (mulf (float64 (regexFind "^[0-9.]+" $size)) 0.5) 2) .) }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The errors of values with the embedded cluster, as a list. */}}
{{- define "postwire.embeddedErrors" -}}
{{- $wrong := list }}
{{- $v := .Values }}
{{- $replicas := int (include "postwire.replicas" .) }}
{{- $external := "or name NATS servers in config.journal.jetstream.url" }}
{{- if include "postwire.embedded" . }}
  {{- if include "postwire.autoscaled" . }}
    {{- $wrong = append $wrong (printf "autoscaling is enabled, and every pod of the embedded cluster holds a replica of the journal: disable autoscaling, %s" $external) }}
  {{- end }}
  {{- if not $v.spill.persistence.enabled }}
    {{- $wrong = append $wrong (printf "spill.persistence.enabled is false, which creates a Deployment, and the pods of the embedded cluster need names and volumes that stay: use true, %s" $external) }}
  {{- end }}
  {{- if lt $replicas 3 }}
    {{- $wrong = append $wrong (printf "replicaCount is %d, and the embedded cluster accepts events while more than half of its pods are available: use 3 or more, or 1 with config.journal.engine local" $replicas) }}
  {{- end }}
  {{- if and $v.existingConfigMap (ne $v.config.journal.engine "jetstream") }}
    {{- $wrong = append $wrong "existingConfigMap is set, so the chart cannot add the embedded cluster to the configuration: describe the cluster in the ConfigMap, and set config.journal.engine to jetstream" }}
  {{- end }}
  {{- if $v.persistence.existingClaim }}
    {{- $wrong = append $wrong "persistence.existingClaim is one claim, and every pod of the embedded cluster needs a volume of its own: remove it" }}
  {{- end }}
  {{- if and $v.podDisruptionBudget.enabled (lt $replicas 5) (ne (toString $v.podDisruptionBudget.maxUnavailable) "1") }}
    {{- $wrong = append $wrong (printf "podDisruptionBudget.maxUnavailable is %v, and the embedded cluster of %d pods accepts no events without two of them: use 1" $v.podDisruptionBudget.maxUnavailable $replicas) }}
  {{- end }}
{{- end }}
{{- toYaml $wrong }}
{{- end }}
