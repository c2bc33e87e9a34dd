{{- /* A service's name in Kubernetes. */ -}}
{{- define "mindweave.kebab" -}}
{{ . | replace "_" "-" }}
{{- end -}}

{{- /* A list, as JSON, with a dict for each Deployment: what `services` says of it, over `defaults`, and its names. */ -}}
{{- define "mindweave.workloads" -}}
{{- $found := list -}}
{{- range $code, $given := .Values.services -}}
  {{- $said := $given | default dict -}}
  {{- range $role, $more := $said.workloads | default (dict "both" dict) -}}
    {{- $merged := mustMergeOverwrite (deepCopy $.Values.defaults) (deepCopy (omit $said "workloads")) (deepCopy ($more | default dict)) -}}
    {{- $service := include "mindweave.kebab" $code -}}
    {{- $serves := ne $role "work" -}}
    {{- $_ := set $merged "code" $code -}}
    {{- $_ := set $merged "service" $service -}}
    {{- $_ := set $merged "name" (ternary $service (printf "%s-%s" $service $role) $serves) -}}
    {{- $_ := set $merged "argument" (ternary $code (printf "%s:%s" $code $role) (eq $role "both")) -}}
    {{- $_ := set $merged "serves" $serves -}}
    {{- $_ := set $merged "answers" (and $serves $merged.rest) -}}
    {{- $_ := set $merged "track" "stable" -}}
    {{- $found = append $found $merged -}}
    {{- if and $serves $merged.canary.tag -}}
      {{- $canary := mustMergeOverwrite (deepCopy $merged) (dict "name" (printf "%s-canary" $merged.name) "track" "canary" "scaled" false "tag" $merged.canary.tag "replicas" ($merged.canary.replicas | default 1)) -}}
      {{- $found = append $found $canary -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- $found | toJson -}}
{{- end -}}

{{- /* A list, as JSON, with a dict for each service: of its workload that serves. */ -}}
{{- define "mindweave.services" -}}
{{- $found := list -}}
{{- range include "mindweave.workloads" . | fromJsonArray -}}
  {{- if and .serves (eq .track "stable") -}}
    {{- $found = append $found . -}}
  {{- end -}}
{{- end -}}
{{- $found | toJson -}}
{{- end -}}

{{- /* A list, as JSON, of the services here that a service may call, itself included. */ -}}
{{- define "mindweave.callees" -}}
{{- $table := (.root.Files.Get "files/callers.yaml" | fromYaml).callees -}}
{{- $found := list -}}
{{- range include "mindweave.services" .root | fromJsonArray -}}
  {{- if or (eq .code $.code) (has .code (get $table $.code | default list)) -}}
    {{- $found = append $found .service -}}
  {{- end -}}
{{- end -}}
{{- $found | toJson -}}
{{- end -}}

{{- /* A list, as JSON, of the services here that may call one, itself included. */ -}}
{{- define "mindweave.callers" -}}
{{- $found := list -}}
{{- range include "mindweave.services" .root | fromJsonArray -}}
  {{- if has $.service (include "mindweave.callees" (dict "root" $.root "code" .code) | fromJsonArray) -}}
    {{- $found = append $found .service -}}
  {{- end -}}
{{- end -}}
{{- $found | toJson -}}
{{- end -}}

{{- define "mindweave.selector" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "mindweave.labels" -}}
{{ include "mindweave.selector" . }}
app.kubernetes.io/part-of: mindweave
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "mindweave.tag" -}}
{{ .tag | default .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{- define "mindweave.image" -}}
{{- $tag := include "mindweave.tag" . -}}
{{- $digest := ternary (get .root.Values.image.digests .service) "" (eq $tag .root.Chart.AppVersion) -}}
{{ .root.Values.image.registry }}/{{ .service }}:{{ $tag }}{{ with $digest }}@{{ . }}{{ end }}
{{- end -}}

{{- /* What holds for every pod of ours. */ -}}
{{- define "mindweave.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "mindweave.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "mindweave.secret" -}}
- name: {{ .variable }}
  valueFrom:
    secretKeyRef:
      name: {{ .name }}
      key: {{ .key }}
{{- end -}}

{{- /* The address of a service's PostgreSQL, "host:port". */ -}}
{{- define "mindweave.databaseAddress" -}}
{{- .databaseAddress | default .root.Values.database.address | default "postgresql:5432" -}}
{{- end -}}

{{- /* Of all databases; only migrations know an administrator, so there is none in it. */ -}}
{{- define "mindweave.databaseUrl" -}}
{{- $parameters := .root.Values.database.parameters -}}
postgresql://{{ include "mindweave.databaseAddress" . }}/postgres{{ with $parameters }}?{{ . }}{{ end }}
{{- end -}}

{{- define "mindweave.hasPostgresql" -}}
{{- if not .Values.database.address -}}true{{- end -}}
{{- end -}}

{{- define "mindweave.hasKafka" -}}
{{- if and (eq .Values.broker.kind "kafka") (not .Values.broker.address) -}}true{{- end -}}
{{- end -}}

{{- define "mindweave.hasBroker" -}}
{{- if and (eq .Values.broker.kind "redis-streams") (not .Values.broker.address) -}}true{{- end -}}
{{- end -}}

{{- define "mindweave.hasCache" -}}
{{- if not .Values.cache.address -}}true{{- end -}}
{{- end -}}

{{- define "mindweave.hasEdge" -}}
{{- if and .Values.edge.enabled (not .Values.mesh.enabled) -}}true{{- end -}}
{{- end -}}
