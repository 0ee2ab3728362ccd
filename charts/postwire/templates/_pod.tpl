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
  {{- if .restartOnConfigChange }}
    {{- $_ := set $annotations "checksum/config" (include "postwire.config" $root | sha256sum) }}
  {{- end }}
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
  {{- with .imagePullSecrets }}
  imagePullSecrets:
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
      {{- with include "postwire.environment" $root }}
      {{- . | nindent 6 }}
      {{- end }}
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
    {{- include "postwire.volumes" $root | nindent 4 }}
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
  {{- else if eq .config.journal.engine "jetstream" }}
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
  {{- $env = prepend $env (dict "name" "NATS_URL" "value" (printf "nats://%s:4222" (include "postwire.natsName" .))) }}
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

{{- define "postwire.volumes" -}}
- name: config
  configMap:
    name: {{ include "postwire.fullname" . }}
{{- range $name, $file := .Values.files }}
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
