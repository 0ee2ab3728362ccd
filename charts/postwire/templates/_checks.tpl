{{/* Checks of two values together, for which a schema is not enough. All errors are reported at once. */}}
{{- define "postwire.checks" -}}
{{- $wrong := list }}
{{- $v := .Values }}
{{- $jetstream := eq (include "postwire.engine" .) "jetstream" }}
{{- $autoscaled := include "postwire.autoscaled" . }}

{{- if and (not $jetstream) $autoscaled }}
  {{- $wrong = append $wrong "autoscaling is enabled, and the local engine has one pod: disable autoscaling, or use config.journal.engine jetstream" }}
{{- end }}
{{- if and $v.autoscaling.enabled $v.autoscaling.keda.enabled }}
  {{- $wrong = append $wrong "autoscaling.enabled and autoscaling.keda.enabled are true: enable only one autoscaler" }}
{{- end }}
{{- if and $autoscaled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) }}
  {{- $wrong = append $wrong "autoscaling.minReplicas is more than autoscaling.maxReplicas" }}
{{- end }}
{{- if and $v.autoscaling.enabled (not $v.autoscaling.targetCPUUtilizationPercentage) (not $v.autoscaling.metrics) }}
  {{- $wrong = append $wrong "autoscaling.enabled has no metric: set targetCPUUtilizationPercentage, or metrics" }}
{{- end }}
{{- if and $v.autoscaling.enabled $v.autoscaling.targetCPUUtilizationPercentage (not (dig "requests" "cpu" "" $v.resources)) }}
  {{- $wrong = append $wrong "autoscaling.enabled needs resources.requests.cpu: the target is a percentage of the requested CPU" }}
{{- end }}
{{- if and $v.autoscaling.keda.enabled (not $v.autoscaling.keda.serverAddress) (not $v.autoscaling.keda.triggers) }}
  {{- $wrong = append $wrong "autoscaling.keda has no trigger: set serverAddress, for example http://prometheus-operated.monitoring:9090, or triggers" }}
{{- end }}
{{- $wrong = concat $wrong (include "postwire.embeddedErrors" . | fromYamlArray) }}

{{- if regexMatch "^(127\\.|localhost|\\[::1\\])" $v.config.admin.listen }}
  {{- $wrong = append $wrong (printf "config.admin.listen is %s, and the probes of the kubelet cannot reach this address: use \":9090\"" $v.config.admin.listen) }}
{{- end }}
{{- $operator := default "" $v.config.admin.token }}
{{- range default list $v.config.admin.tokens }}
  {{- if ne .role "viewer" }}{{ $operator = default $operator .token }}{{ end }}
{{- end }}
{{- if not $operator }}
  {{- $wrong = append $wrong "config.admin.token is missing and config.admin.tokens has no operator, but every pod of the cluster can reach the admin API: use ${POSTWIRE_ADMIN_TOKEN}, and put POSTWIRE_ADMIN_TOKEN into existingSecret" }}
{{- end }}
{{- if eq (include "postwire.port" .) (include "postwire.adminPort" .) }}
  {{- $wrong = append $wrong "config.server.listen and config.admin.listen have the same port: use two ports, so that no route for webhooks leads to the admin port" }}
{{- end }}
{{- if not $v.config.sources }}
  {{- $wrong = append $wrong "config.sources is empty: configure a sender of webhooks" }}
{{- end }}
{{- if not $v.config.sinks }}
  {{- $wrong = append $wrong "config.sinks is empty: configure a destination of events" }}
{{- end }}
{{- range splitList "\n" (include "postwire.urlPasswords" (dict "key" "config" "value" $v.config) | trim) }}
  {{- if . }}
    {{- $wrong = append $wrong (printf "%s has a URL with a password, which would be readable in the ConfigMap: use the keys for user and password, or ${NAME} for the URL" .) }}
  {{- end }}
{{- end }}
{{- $folder := "" }}
{{- if $jetstream }}
  {{- $folder = dig "spill" "dir" "" $v.config.journal }}
{{- else }}
  {{- $folder = default "" $v.config.journal.dir }}
{{- end }}
{{- if and (hasPrefix "/" $folder) (not (hasPrefix "/var/lib/postwire/" (printf "%s/" $folder))) (not $v.extraVolumeMounts) }}
  {{- $wrong = append $wrong (printf "config.journal keeps its events in %s, outside the volume of the chart: use a folder below /var/lib/postwire" $folder) }}
{{- end }}
{{- if and (not $jetstream) $v.persistence.enabled $v.persistence.existingClaim (not $v.config.journal.max_bytes) }}
  {{- $wrong = append $wrong "config.journal.max_bytes is missing: the chart does not know the size of the volume of persistence.existingClaim; use four fifths of the size, for example 16GiB for a volume of 20Gi, so that Postwire removes the oldest delivered events before the volume is full" }}
{{- end }}
{{- $stop := include "postwire.seconds" (default "25s" $v.config.server.shutdown_timeout) }}
{{- if $stop }}
  {{- $needed := add (int $v.preStopSleepSeconds) (int $stop) }}
  {{- if gt $needed (int64 $v.terminationGracePeriodSeconds) }}
    {{- $wrong = append $wrong (printf "terminationGracePeriodSeconds is %v, less than the sum of preStopSleepSeconds and config.server.shutdown_timeout: use %d or more, or a shutdown repeats events in flight" $v.terminationGracePeriodSeconds $needed) }}
  {{- end }}
{{- end }}

{{- if and $v.ingress.enabled (not $v.ingress.hosts) }}
  {{- $wrong = append $wrong "ingress.hosts is empty: add the public host name" }}
{{- end }}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) }}
  {{- $wrong = append $wrong "httpRoute.parentRefs is empty: name the Gateway, for example [{name: public, namespace: gateways}]" }}
{{- end }}
{{- $away := list }}
{{- range $v.config.sinks }}
  {{- if ne .type "stdout" }}{{ $away = append $away .name }}{{ end }}
{{- end }}
{{- if and $v.networkPolicy.enabled (not $v.networkPolicy.brokers) (not $v.nats.enabled) (or $away (and $jetstream (not (include "postwire.embedded" .)))) }}
  {{- $wrong = append $wrong "networkPolicy.brokers is empty: the policy would block every connection to a broker; for example [{ports: [{port: 4222, protocol: TCP}]}]" }}
{{- end }}
{{- if and $v.metrics.podMonitor.enabled $v.metrics.serviceMonitor.enabled }}
  {{- $wrong = append $wrong "metrics.podMonitor and metrics.serviceMonitor are enabled: enable only one monitor, because Prometheus would scrape each pod twice" }}
{{- end }}
{{- if and $v.tests.source (not (include "postwire.testSource" .)) }}
  {{- $wrong = append $wrong (printf "tests.source: there is no source %q in config.sources" $v.tests.source) }}
{{- else if and $v.tests.source (not $v.tests.url) (contains "${" (first (include "postwire.testSource" . | fromYaml).paths)) }}
  {{- $wrong = append $wrong "tests.url is missing: the path of tests.source is an expression" }}
{{- end }}
{{- $wrong = concat $wrong (include "postwire.upgradeErrors" . | fromYamlArray) }}
{{- if $wrong }}
  {{- fail (printf "\n\n  - %s\n" (join "\n  - " $wrong)) }}
{{- end }}
{{- end }}
