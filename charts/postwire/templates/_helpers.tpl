{{/* Names. 52 characters leave room for the suffix that Kubernetes appends to the name of a StatefulSet in a label. */}}
{{- define "postwire.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "postwire.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "postwire.namespace" -}}
{{- default .Release.Namespace .Values.namespaceOverride }}
{{- end }}

{{- define "postwire.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "postwire.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* The Service of the NATS project's chart, with the naming rules of that chart. */}}
{{- define "postwire.natsName" -}}
{{- $nats := .Values.nats }}
{{- $name := default "nats" $nats.nameOverride }}
{{- if $nats.fullnameOverride }}
{{- $nats.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* The first part of a repository is a registry if it has a dot or a port, or is localhost. */}}
{{- define "postwire.image" -}}
{{- with .Values.image }}
{{- $repository := .repository }}
{{- with $.Values.global.imageRegistry }}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) (regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $repository "") }}
{{- end }}
{{- if .digest }}
{{- printf "%s@%s" $repository .digest }}
{{- else }}
{{- printf "%s:%s" $repository (default $.Chart.AppVersion .tag) }}
{{- end }}
{{- end }}
{{- end }}

{{/* The pull secrets of a pod, as a list. */}}
{{- define "postwire.pullSecrets" -}}
{{- $all := .Values.imagePullSecrets }}
{{- range .Values.global.imagePullSecrets }}
{{- $all = append $all (ternary (dict "name" .) . (kindIs "string" .)) }}
{{- end }}
{{- with $all -}}
imagePullSecrets:
  {{- toYaml (uniq .) | nindent 2 }}
{{- end }}
{{- end }}

{{/* The port of the collector of traces: 80 or 443 for a URL without a port; empty for an expression. */}}
{{- define "postwire.collectorPort" -}}
{{- $endpoint := .Values.config.telemetry.traces.endpoint }}
{{- $protocol := dig "protocol" "http" .Values.config.telemetry.traces }}
{{- if not (contains "${" (print $endpoint $protocol)) }}
{{- $url := urlParse $endpoint }}
{{- if regexMatch ":[0-9]+$" $url.host }}
{{- regexFind "[0-9]+$" $url.host }}
{{- else if and (eq $url.scheme "http") (eq $protocol "http") }}
{{- 80 }}
{{- else }}
{{- 443 }}
{{- end }}
{{- end }}
{{- end }}

{{/* Labels. Selector labels must never change: Kubernetes refuses to change the selector of a workload. */}}
{{- define "postwire.selector" -}}
app.kubernetes.io/name: {{ include "postwire.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: relay
{{- end }}

{{- define "postwire.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ include "postwire.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* The metadata of an object: (dict "root" $ "name" … "component" … "labels" … "annotations" …). A later entry overrides an earlier entry. */}}
{{- define "postwire.metadata" -}}
{{- $labels := mergeOverwrite (dict) .root.Values.commonLabels (default dict .labels) (include "postwire.labels" .root | fromYaml) (dict "app.kubernetes.io/component" (default "relay" .component)) }}
{{- $annotations := mergeOverwrite (dict) .root.Values.commonAnnotations (default dict .annotations) -}}
name: {{ default (include "postwire.fullname" .root) .name }}
namespace: {{ include "postwire.namespace" .root }}
labels:
  {{- toYaml $labels | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The configuration, with defaults from the chart: path and size of the volume. */}}
{{- define "postwire.config" -}}
{{- $config := deepCopy .Values.config }}
{{- $journal := $config.journal }}
{{- /* The folders of both engines, so that a relay finds the journal of the other engine on its volume. */}}
{{- if not (hasKey $journal "dir") }}
  {{- $_ := set $journal "dir" "/var/lib/postwire/journal" }}
{{- end }}
{{- $spill := default dict $journal.spill }}
{{- if not (hasKey $spill "dir") }}
  {{- $_ := set $spill "dir" "/var/lib/postwire/spill" }}
{{- end }}
{{- $_ := set $journal "spill" $spill }}
{{- $_ := set $journal "engine" (include "postwire.engine" .) }}
{{- if eq $journal.engine "jetstream" }}
  {{- $cluster := default dict $journal.jetstream }}
  {{- if and .Values.nats.enabled (not $cluster.url) }}
    {{- $_ := set $cluster "url" "${NATS_URL}" }}
  {{- end }}
  {{- $_ := set $journal "jetstream" $cluster }}
  {{- if include "postwire.embedded" . }}
    {{- include "postwire.embeddedConfig" (dict "root" . "journal" $journal) }}
  {{- end }}
{{- else }}
  {{- if and (not (hasKey $journal "max_bytes")) (or (not .Values.persistence.enabled) (not .Values.persistence.existingClaim)) }}
    {{- $size := .Values.persistence.size }}
    {{- $number := regexFind "^[0-9.]+" $size }}
    {{- with regexFind "[KMGT]i?$" $size }}
      {{- $_ := set $journal "max_bytes" (printf "%v%sB" (round (mulf (float64 $number) 0.8) 2) .) }}
    {{- else }}
      {{- $_ := set $journal "max_bytes" (printf "%.0fB" (floor (mulf (float64 (include "postwire.quantity" $size)) 0.8))) }}
    {{- end }}
  {{- end }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* The name of the ConfigMap. With restartOnConfigChange it contains a hash of the configuration, so that no change reaches the pods of an
earlier revision, not even a pod that starts again after an upgrade that Kubernetes refused. */}}
{{- define "postwire.configMapName" -}}
{{- $name := include "postwire.fullname" . }}
{{- if .Values.existingConfigMap }}
{{- .Values.existingConfigMap }}
{{- else if .Values.restartOnConfigChange }}
{{- printf "%s-%s" $name (include "postwire.config" . | sha256sum | trunc 10) }}
{{- else }}
{{- $name }}
{{- end }}
{{- end }}

{{/* A quantity of Kubernetes as a number, such as 1073741824 for 1Gi; empty for a text that is no quantity. A number of YAML is a quantity,
too, and Helm prints a large one with an exponent. */}}
{{- define "postwire.quantity" -}}
{{- $text := toString . }}
{{- $units := dict "n" 1e-9 "u" 1e-6 "m" 1e-3 "" 1.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0 }}
{{- if regexMatch "^[+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+|[KMGTPE]i|[numkMGTPE])?$" $text }}
  {{- $unit := regexFind "([KMGTPE]i|[numkMGTPE])$" $text }}
  {{- printf "%.0f" (floor (mulf (float64 (trimSuffix $unit $text)) (get $units $unit))) }}
{{- end }}
{{- end }}

{{/* The memory limit of Go, in bytes: 80 % of the container's limit. The rest is for stacks, the page tables of mapped files, and garbage that
arrives faster than the collector runs. Empty without a limit. */}}
{{- define "postwire.goMemoryLimit" -}}
{{- with dig "limits" "memory" "" (default dict .Values.resources) }}
{{- with include "postwire.quantity" . }}
{{- printf "%.0f" (floor (mulf (float64 .) 0.8)) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "postwire.port" -}}
{{- regexFind "[0-9]+$" .Values.config.server.listen }}
{{- end }}

{{- define "postwire.adminPort" -}}
{{- regexFind "[0-9]+$" .Values.config.admin.listen }}
{{- end }}

{{- define "postwire.tls" -}}
{{- with .Values.config.server.tls }}{{ .cert_file }}{{ end }}
{{- end }}

{{- define "postwire.scheme" -}}
{{- if include "postwire.tls" . }}https{{ else }}http{{ end }}
{{- end }}

{{- define "postwire.adminTLS" -}}
{{- with .Values.config.admin.tls }}{{ .cert_file }}{{ end }}
{{- end }}

{{- define "postwire.adminScheme" -}}
{{- if include "postwire.adminTLS" . }}https{{ else }}http{{ end }}
{{- end }}

{{/* The scheme of a kubelet's probe on the admin port. A kubelet verifies no certificate, and presents none. */}}
{{- define "postwire.probe" -}}
{{- $get := dict "path" .path "port" "admin" }}
{{- if include "postwire.adminTLS" .root }}
  {{- $_ := set $get "scheme" "HTTPS" }}
{{- end }}
{{- toYaml (dict "httpGet" $get) }}
{{- end }}

{{/* TLS of the scrape, unless tlsConfig of the monitor is set. Prometheus connects to the IP address of a pod, and no certificate contains this address. */}}
{{- define "postwire.scrape" -}}
{{- if include "postwire.adminTLS" .root }}
scheme: https
tlsConfig:
  {{- toYaml (default (dict "insecureSkipVerify" true) .tlsConfig) | nindent 2 }}
{{- end }}
{{- end }}

{{/* The paths for senders, as {paths: [{path: …, prefix: …}]}. With path_token, the path is a prefix, and the token follows. */}}
{{- define "postwire.paths" -}}
{{- $paths := list }}
{{- range $source := .Values.config.sources }}
  {{- $below := false }}
  {{- if kindIs "map" $source.auth }}
    {{- $below = hasKey $source.auth "path_token" }}
  {{- end }}
  {{- range $source.paths }}
    {{- if contains "${" . }}
      {{- fail (printf "config.sources: %s has a path with ${…} in it, and a route must know it: write the path out" $source.name) }}
    {{- end }}
    {{- $paths = append $paths (dict "path" . "prefix" $below) }}
  {{- end }}
{{- end }}
{{- toYaml (dict "paths" $paths) }}
{{- end }}

{{/* The kind of the workload: for local a StatefulSet with one pod; for jetstream a StatefulSet with an embedded cluster or persistent spills, otherwise a Deployment. */}}
{{- define "postwire.kind" -}}
{{- if and (eq (include "postwire.engine" .) "jetstream") (not .Values.spill.persistence.enabled) (not (include "postwire.embedded" .)) }}Deployment{{ else }}StatefulSet{{ end }}
{{- end }}

{{- define "postwire.replicas" -}}
{{- if kindIs "invalid" .Values.replicaCount }}
{{- ternary 3 1 (eq .Values.config.journal.engine "jetstream") }}
{{- else }}
{{- int .Values.replicaCount }}
{{- end }}
{{- end }}

{{/* The engine: local is for one pod, and several pods have the jetstream engine. */}}
{{- define "postwire.engine" -}}
{{- if gt (int (include "postwire.replicas" .)) 1 }}jetstream{{ else }}{{ .Values.config.journal.engine }}{{ end }}
{{- end }}

{{- define "postwire.autoscaled" -}}
{{- if or .Values.autoscaling.enabled .Values.autoscaling.keda.enabled }}true{{ end }}
{{- end }}

{{/* A duration of the configuration in seconds, rounded up; empty for an expression. */}}
{{- define "postwire.seconds" -}}
{{- $text := toString . }}
{{- if regexMatch "^([0-9.]+(ms|s|m|h))+$" $text }}
  {{- $total := 0.0 }}
  {{- range regexFindAll "[0-9.]+(ms|s|m|h)" $text -1 }}
    {{- $unit := regexFind "[a-z]+$" . }}
    {{- $total = addf $total (mulf (float64 (trimSuffix $unit .)) (get (dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0) $unit)) }}
  {{- end }}
  {{- ceil $total }}
{{- end }}
{{- end }}

{{/* The source for helm test: tests.source, or the first source for which `postwire send` can make a sample. */}}
{{- define "postwire.testSource" -}}
{{- $found := dict }}
{{- range $source := .Values.config.sources }}
  {{- $plays := and (eq $source.type "uploadpost") (not (contains "${" (first $source.paths))) }}
  {{- if and $plays (kindIs "map" $source.auth) }}
    {{- $plays = and (eq (keys $source.auth | join ",") "signature") (hasKey (default dict $source.auth.signature) "secrets") }}
  {{- end }}
  {{- if and (not $found.source) (ternary (eq $source.name $.Values.tests.source) $plays (ne $.Values.tests.source "")) }}
    {{- $_ := set $found "source" $source }}
  {{- end }}
{{- end }}
{{- with $found.source }}{{ toYaml . }}{{ end }}
{{- end }}

{{/* Whether helm test can post a sample: it needs a source, and no client certificate that the chart does not have. */}}
{{- define "postwire.testable" -}}
{{- $source := include "postwire.testSource" . | fromYaml }}
{{- $certified := true }}
{{- with .Values.config.admin.tls }}{{ if .client_ca_file }}
  {{- $certified = false }}
  {{- range $.Values.tests.extraEnv }}{{ if eq .name "POSTWIRE_ADMIN_CERT_FILE" }}{{ $certified = true }}{{ end }}{{ end }}
{{- end }}{{ end }}
{{- with .Values.config.server.tls }}{{ if and .client_ca_file (not $.Values.tests.url) }}{{ $certified = false }}{{ end }}{{ end }}
{{- if and .Values.tests.enabled $source.name $certified (not (contains "${" $source.name)) }}true{{ end }}
{{- end }}

{{/* A regular expression for the names of this release's pods, and of no other release's, for PromQL. */}}
{{- define "postwire.podPattern" -}}
{{- include "postwire.fullname" . }}-{{ ternary "[0-9]+" "[a-z0-9]+-[a-z0-9]{5}" (eq (include "postwire.kind" .) "StatefulSet") }}
{{- end }}

{{/* An expression of PromQL for the pods of this release alone; (dict "root" $ "expr" TEXT). Without this, an alert of one release would be
silent because of another release in the namespace. */}}
{{- define "postwire.ofRelease" -}}
{{- $selector := printf "namespace=%q,pod=~%q" (include "postwire.namespace" .root) (include "postwire.podPattern" .root) }}
{{- $expr := regexReplaceAll "(postwire_[a-z_]+)[{]" .expr (printf "${1}{%s," $selector) }}
{{- $expr = regexReplaceAll "(postwire_[a-z_]+)([^a-z_{]|$)" $expr (printf "${1}{%s}${2}" $selector) }}
{{- $expr }}
{{- end }}

{{/* The IP families of a Service. */}}
{{- define "postwire.ipFamilies" -}}
{{- $families := dict }}
{{- with .Values.service.ipFamilyPolicy }}{{ $_ := set $families "ipFamilyPolicy" . }}{{ end }}
{{- with .Values.service.ipFamilies }}{{ $_ := set $families "ipFamilies" . }}{{ end }}
{{- with $families }}{{ toYaml . }}{{ end }}
{{- end }}

{{/* The keys of a value that have a URL with a password as text, a line each; (dict "key" PATH "value" VALUE). */}}
{{- define "postwire.urlPasswords" -}}
{{- $key := .key }}
{{- if kindIs "map" .value }}
{{- range $name, $value := .value }}
{{- include "postwire.urlPasswords" (dict "key" (printf "%s.%s" $key $name) "value" $value) }}
{{- end }}
{{- else if kindIs "slice" .value }}
{{- range $i, $value := .value }}
{{- include "postwire.urlPasswords" (dict "key" (printf "%s[%d]" $key $i) "value" $value) }}
{{- end }}
{{- else if kindIs "string" .value }}
{{- if regexMatch "://[^/?#@:\\s]*:[^/?#@\\s]+@" (regexReplaceAll "[$][{][^}]*[}]" .value "") }}
{{- printf "%s\n" $key }}
{{- end }}
{{- end }}
{{- end }}
