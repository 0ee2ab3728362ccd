{{/* The pod of a StatefulSet or a Deployment; (dict "root" $ "claim" NAME), where NAME is the claim from a claim template. */}}
{{- define "postwire.pod" -}}
{{- $root := .root }}
{{- $claim := .claim }}
{{- with $root.Values -}}
metadata:
  labels:
    {{- /* Not the chart's version: a new chart alone starts no new pods. */}}
    {{- toYaml (mergeOverwrite (dict) .commonLabels .podLabels (dict "app.kubernetes.io/version" $root.Chart.AppVersion) (include "postwire.selector" $root | fromYaml)) | nindent 4 }}
  {{- $annotations := mergeOverwrite (dict) .commonAnnotations .podAnnotations }}
  annotations:
    {{- toYaml (mergeOverwrite (dict "kubectl.kubernetes.io/default-container" "postwire") $annotations) | nindent 4 }}
spec:
  serviceAccountName: {{ include "postwire.serviceAccountName" $root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int .terminationGracePeriodSeconds }}
  {{- with .priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with include "postwire.pullSecrets" $root }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with .runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .schedulerName }}
  schedulerName: {{ . }}
  {{- end }}
  {{- with .dnsPolicy }}
  dnsPolicy: {{ . }}
  {{- end }}
  {{- with .dnsConfig }}
  dnsConfig:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .hostAliases }}
  hostAliases:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml .podSecurityContext | nindent 4 }}
  {{- with .initContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: postwire
      image: {{ include "postwire.image" $root }}
      imagePullPolicy: {{ .image.pullPolicy }}
      args: [serve, -c, /etc/postwire/postwire.yaml]
      {{- $environment := include "postwire.environment" $root | fromYaml }}
      {{- $env := default list $environment.env }}
      {{- $named := dict }}
      {{- range $env }}{{ $_ := set $named .name true }}{{ end }}
      {{- with include "postwire.goMemoryLimit" $root }}
        {{- if not (hasKey $named "GOMEMLIMIT") }}
          {{- $env = append $env (dict "name" "GOMEMLIMIT" "value" .) }}
        {{- end }}
      {{- end }}
      {{- with $env }}
      env:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $environment.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      terminationMessagePolicy: FallbackToLogsOnError
      ports:
        - name: http
          containerPort: {{ include "postwire.port" $root }}
        - name: admin
          containerPort: {{ include "postwire.adminPort" $root }}
        {{- if include "postwire.embedded" $root }}
        - name: cluster
          containerPort: {{ include "postwire.clusterPort" $root }}
        {{- end }}
      startupProbe:
        {{- toYaml (merge (include "postwire.probe" (dict "root" $root "path" "/livez") | fromYaml) .startupProbe) | nindent 8 }}
      livenessProbe:
        {{- toYaml (merge (include "postwire.probe" (dict "root" $root "path" "/livez") | fromYaml) .livenessProbe) | nindent 8 }}
      readinessProbe:
        {{- toYaml (merge (include "postwire.probe" (dict "root" $root "path" "/readyz") | fromYaml) .readinessProbe) | nindent 8 }}
      {{- with int .preStopSleepSeconds }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ . }}
      {{- end }}
      resources:
        {{- toYaml .resources | nindent 8 }}
      securityContext:
        {{- toYaml .securityContext | nindent 8 }}
      volumeMounts:
        - name: {{ default "data" $claim }}
          mountPath: /var/lib/postwire
        {{- include "postwire.mounts" $root | nindent 8 }}
        {{- with .extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with .extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- if not $claim }}
    - name: data
      {{- if eq (include "postwire.claim" $root) "spill" }}
      emptyDir:
        sizeLimit: {{ .spill.sizeLimit }}
      {{- else if and .persistence.enabled .persistence.existingClaim }}
      persistentVolumeClaim:
        claimName: {{ .persistence.existingClaim }}
      {{- else }}
      emptyDir:
        sizeLimit: {{ .persistence.size }}
      {{- end }}
    {{- end }}
    {{- include "postwire.volumes" (dict "root" $root "configMap" (include "postwire.configMapName" $root)) | nindent 4 }}
    {{- with .extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if kindIs "slice" .topologySpreadConstraints }}
  {{- with .topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- else if eq (include "postwire.engine" $root) "jetstream" }}
  topologySpreadConstraints:
    {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - topologyKey: {{ . }}
      maxSkew: 1
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "postwire.selector" $root | nindent 10 }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The environment for ${NAME}. The test pod needs the environment, too, because the test reads the configuration. */}}
{{- define "postwire.environment" -}}
{{- $env := .Values.extraEnv }}
{{- if .Values.nats.enabled }}
  {{- $env = prepend $env (dict "name" "NATS_URL" "value" (printf "nats://%s%s:4222" (include "postwire.natsName" .) (ternary "" (printf ".%s" .Release.Namespace) (empty .Values.namespaceOverride)))) }}
{{- end }}
{{- with include "postwire.clusterSecret" . }}
  {{- $env = prepend $env (dict "name" "POSTWIRE_CLUSTER_SECRET" "valueFrom" (dict "secretKeyRef" (dict "name" . "key" "POSTWIRE_CLUSTER_SECRET"))) }}
{{- end }}
{{- with $env -}}
env:
  {{- toYaml . | nindent 2 }}
{{ end }}
{{- $from := .Values.extraEnvFrom }}
{{- with .Values.existingSecret }}
  {{- $from = prepend $from (dict "secretRef" (dict "name" .)) }}
{{- end }}
{{- with $from -}}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Mounts of folders, not of single files: the kubelet updates only mounted folders. */}}
{{- define "postwire.mounts" -}}
- name: config
  mountPath: /etc/postwire
  readOnly: true
{{- range $name, $file := .Values.files }}
- name: file-{{ $name }}
  mountPath: {{ default (printf "/run/secrets/%s" $name) $file.mountPath }}
  readOnly: true
{{- end }}
{{- end }}

{{/* The volumes of the configuration; (dict "root" $ "configMap" NAME). */}}
{{- define "postwire.volumes" -}}
- name: config
  configMap:
    name: {{ .configMap }}
{{- range $name, $file := .root.Values.files }}
- name: file-{{ $name }}
  {{- if $file.secret }}
  secret:
    secretName: {{ $file.secret }}
    defaultMode: 0440
  {{- else }}
  configMap:
    name: {{ $file.configMap }}
  {{- end }}
    {{- with $file.items }}
    items:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with $file.optional }}
    optional: {{ . }}
    {{- end }}
{{- end }}
{{- end }}

{{/* The extra volumes with files of the configuration and their mounts, as {volumes, mounts}, for pods that are no relay: they never mount a disk
of a relay. */}}
{{- define "postwire.fileVolumes" -}}
{{- $volumes := list }}
{{- $mounts := list }}
{{- range $volume := .Values.extraVolumes }}
  {{- if or $volume.secret $volume.configMap $volume.projected $volume.csi }}
    {{- $volumes = append $volumes $volume }}
    {{- range $.Values.extraVolumeMounts }}
      {{- if eq .name $volume.name }}{{ $mounts = append $mounts . }}{{ end }}
    {{- end }}
  {{- end }}
{{- end }}
{{- toYaml (dict "volumes" $volumes "mounts" $mounts) }}
{{- end }}

{{/* The part of a pod that no relay runs in: scheduling, and a security context as the relay's. */}}
{{- define "postwire.shortLived" -}}
restartPolicy: Never
automountServiceAccountToken: false
enableServiceLinks: false
{{- with include "postwire.pullSecrets" . }}
{{ . }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- with .Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
