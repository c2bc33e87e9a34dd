{{- /* The environment of a process: settings from ConfigMaps, secrets by reference, of databases its own alone. */ -}}
{{- define "mindweave.environment" -}}
{{- $secrets := .root.Values.secrets.name -}}
- name: MINDWEAVE_INSTANCE
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{ include "mindweave.secret" (dict "variable" "MINDWEAVE_SECRET" "name" $secrets "key" "secret") }}
{{- if .database }}
{{- with .databaseSecrets.runtime }}
{{ include "mindweave.secret" (dict "variable" (printf "DATABASE_URL_%s" ($.code | upper)) "name" .name "key" .key) }}
{{- else }}
- name: DATABASE_URL
  value: {{ include "mindweave.databaseUrl" . | quote }}
{{- end }}
{{- end }}
{{- if eq .root.Values.broker.kind "redis-streams" }}
{{ include "mindweave.secret" (dict "variable" "REDIS_URL" "name" $secrets "key" "broker-url") }}
{{- else if hasPrefix "SASL" .root.Values.broker.securityProtocol }}
{{ include "mindweave.secret" (dict "variable" "MINDWEAVE_KAFKA_USERNAME" "name" $secrets "key" "kafka-username") }}
{{ include "mindweave.secret" (dict "variable" "MINDWEAVE_KAFKA_PASSWORD" "name" $secrets "key" "kafka-password") }}
{{- end }}
{{- if .cache }}
{{ include "mindweave.secret" (dict "variable" "REDIS_CACHE_URL" "name" $secrets "key" "cache-url") }}
{{- end }}
{{- range $name, $value := .settings }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- define "mindweave.podLabels" -}}
{{ include "mindweave.labels" .root }}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/component: {{ .service }}
app.kubernetes.io/version: {{ .tag | default .root.Values.image.tag | default .root.Chart.AppVersion | quote }}
{{- if .root.Values.mesh.enabled }}
sidecar.istio.io/inject: "true"
{{- end }}
mindweave/serves: {{ .serves | quote }}
mindweave/track: {{ .track }}
{{- end -}}

{{- define "mindweave.graceSeconds" -}}
{{- $settings := .root.Values.settings -}}
{{- $delay := $settings.MINDWEAVE_DRAIN_DELAY | default "0" | float64 | ceil | int -}}
{{- $drain := $settings.MINDWEAVE_DRAIN_TIMEOUT | default "20" | float64 | ceil | int -}}
{{- /* preStop; then one after another: the delay, REST, what works in the background (10 s), gRPC. */ -}}
{{- add 2 $delay (mul 2 $drain) 15 -}}
{{- end -}}

{{- /*
A Deployment's pods on different nodes, and zones where nodes have such. Zones are no constraint of their own: where nodes
have none, Kubernetes would look at neither. Pods of the release before do not count.
*/ -}}
{{- define "mindweave.spread" -}}
topologySpreadConstraints:
  - topologyKey: kubernetes.io/hostname
    maxSkew: 1
    whenUnsatisfiable: ScheduleAnyway
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels: {{- include "mindweave.selector" .root | nindent 8 }}
        app.kubernetes.io/name: {{ .name }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: topology.kubernetes.io/zone
          matchLabelKeys: [pod-template-hash]
          labelSelector:
            matchLabels: {{- include "mindweave.selector" .root | nindent 14 }}
              app.kubernetes.io/name: {{ .name }}
{{- end -}}
