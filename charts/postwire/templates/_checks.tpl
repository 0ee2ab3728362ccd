{{/* What the schema cannot say, because it takes two values to see it. All of it is told at once. */}}
{{- define "postwire.checks" -}}
{{- $wrong := list }}
{{- $v := .Values }}
{{- $jetstream := eq $v.config.journal.engine "jetstream" }}
{{- $autoscaled := include "postwire.autoscaled" . }}

{{- if and (not $jetstream) (gt (int (include "postwire.replicas" .)) 1) }}
  {{- $wrong = append $wrong (printf "replicaCount is %v, and the pebble engine keeps its events in one folder of one pod: use 1, or config.journal.engine jetstream" $v.replicaCount) }}
{{- end }}
{{- if and (not $jetstream) $autoscaled }}
  {{- $wrong = append $wrong "autoscaling is on, and the pebble engine has one pod: turn it off, or use config.journal.engine jetstream" }}
{{- end }}
{{- if and $v.autoscaling.enabled $v.autoscaling.keda.enabled }}
  {{- $wrong = append $wrong "autoscaling.enabled and autoscaling.keda.enabled would work against each other: use one of them" }}
{{- end }}
{{- if and $autoscaled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) }}
  {{- $wrong = append $wrong "autoscaling.minReplicas is more than autoscaling.maxReplicas" }}
{{- end }}
{{- if and $v.autoscaling.enabled (not (dig "requests" "cpu" "" $v.resources)) }}
  {{- $wrong = append $wrong "autoscaling.enabled goes by a share of resources.requests.cpu, which is not set" }}
{{- end }}
{{- if and $v.autoscaling.keda.enabled (not $v.autoscaling.keda.serverAddress) (not $v.autoscaling.keda.triggers) }}
  {{- $wrong = append $wrong "autoscaling.keda has nothing to go by: set serverAddress, for example http://prometheus-operated.monitoring:9090, or triggers" }}
{{- end }}
{{- if and $jetstream (not (dig "jetstream" "url" "" $v.config.journal)) (not $v.nats.enabled) }}
  {{- $wrong = append $wrong "config.journal.jetstream.url is missing: name the servers, for example nats://nats:4222, or set nats.enabled" }}
{{- end }}

{{- if regexMatch "^(127\\.|localhost|\\[::1\\])" $v.config.admin.listen }}
  {{- $wrong = append $wrong (printf "config.admin.listen is %s, which the kubelet's probes do not reach: use \":9090\"" $v.config.admin.listen) }}
{{- end }}
{{- $operator := default "" $v.config.admin.token }}
{{- range default list $v.config.admin.tokens }}
  {{- if ne .role "viewer" }}{{ $operator = default $operator .token }}{{ end }}
{{- end }}
{{- if not $operator }}
  {{- $wrong = append $wrong "config.admin.token is missing, config.admin.tokens has no operator, and the API is within reach of the cluster: use ${POSTWIRE_ADMIN_TOKEN} and put that into existingSecret" }}
{{- end }}
{{- if eq (include "postwire.port" .) (include "postwire.adminPort" .) }}
  {{- $wrong = append $wrong "config.server.listen and config.admin.listen have the same port: what is routed must not lead to the admin port" }}
{{- end }}
{{- if not $v.config.sources }}
  {{- $wrong = append $wrong "config.sources is empty: there is nothing to take webhooks from" }}
{{- end }}
{{- if not $v.config.sinks }}
  {{- $wrong = append $wrong "config.sinks is empty: events would go nowhere" }}
{{- end }}
{{- $folder := "" }}
{{- if $jetstream }}
  {{- $folder = dig "spill" "dir" "" $v.config.journal }}
{{- else }}
  {{- $folder = default "" $v.config.journal.dir }}
{{- end }}
{{- if and (hasPrefix "/" $folder) (not (hasPrefix "/var/lib/postwire/" (printf "%s/" $folder))) (not $v.extraVolumeMounts) }}
  {{- $wrong = append $wrong (printf "config.journal keeps its events in %s, which is not on the chart's volume: use a folder below /var/lib/postwire" $folder) }}
{{- end }}
{{- $stop := include "postwire.seconds" (default "25s" $v.config.server.shutdown_timeout) }}
{{- if $stop }}
  {{- $needed := add (int $v.preStopSleepSeconds) (int $stop) }}
  {{- if gt $needed (int64 $v.terminationGracePeriodSeconds) }}
    {{- $wrong = append $wrong (printf "terminationGracePeriodSeconds is %v, less than preStopSleepSeconds and config.server.shutdown_timeout together: use %d or more, or events in flight are sent twice" $v.terminationGracePeriodSeconds $needed) }}
  {{- end }}
{{- end }}

{{- if and $v.ingress.enabled (not $v.ingress.hosts) }}
  {{- $wrong = append $wrong "ingress.hosts is empty: name the host that senders know" }}
{{- end }}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) }}
  {{- $wrong = append $wrong "httpRoute.parentRefs is empty: name the Gateway, for example [{name: public, namespace: gateways}]" }}
{{- end }}
{{- $away := list }}
{{- range $v.config.sinks }}
  {{- if ne .type "stdout" }}{{ $away = append $away .name }}{{ end }}
{{- end }}
{{- if and $v.networkPolicy.enabled (not $v.networkPolicy.brokers) (not $v.nats.enabled) (or $away $jetstream) }}
  {{- $wrong = append $wrong "networkPolicy.brokers is empty: nothing would reach a broker; for example [{ports: [{port: 4222, protocol: TCP}]}]" }}
{{- end }}
{{- if and $v.metrics.podMonitor.enabled $v.metrics.serviceMonitor.enabled }}
  {{- $wrong = append $wrong "metrics.podMonitor and metrics.serviceMonitor are both on: each pod would be counted twice" }}
{{- end }}
{{- if and $v.tests.source (not (include "postwire.testSource" .)) }}
  {{- $wrong = append $wrong (printf "tests.source: there is no source %q in config.sources" $v.tests.source) }}
{{- else if and $v.tests.source (not $v.tests.url) (contains "${" (first (include "postwire.testSource" . | fromYaml).paths)) }}
  {{- $wrong = append $wrong "tests.url is missing: the path of tests.source is not written out" }}
{{- end }}
{{- if $wrong }}
  {{- fail (printf "\n\n  - %s\n" (join "\n  - " $wrong)) }}
{{- end }}
{{- end }}
