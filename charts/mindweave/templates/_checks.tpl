{{- /* What a schema cannot say; each complaint begins with the value's name. */ -}}
{{- define "mindweave.checks" -}}
{{- $given := .Values -}}
{{- if and $given.secrets.generate $given.secrets.external.enabled -}}
  {{- fail "secrets.generate: cannot be together with secrets.external.enabled" -}}
{{- end -}}
{{- if and $given.secrets.external.enabled (not $given.secrets.external.storeName) -}}
  {{- fail "secrets.external.storeName: is needed with secrets.external.enabled" -}}
{{- end -}}
{{- if and $given.secrets.generate (or $given.database.address $given.broker.address $given.cache.address) -}}
  {{- fail "secrets.generate: makes secrets of in-cluster servers alone; name those of yours by secrets.name" -}}
{{- end -}}
{{- if and $given.mesh.enabled (not $given.mesh.host) -}}
  {{- fail "mesh.host: is needed with mesh.enabled" -}}
{{- end -}}
{{- if and $given.edge.ingress.enabled (not $given.edge.ingress.host) -}}
  {{- fail "edge.ingress.host: is needed with edge.ingress.enabled" -}}
{{- end -}}
{{- if and $given.edge.ingress.enabled (not $given.edge.trustedHops) -}}
  {{- fail "edge.trustedHops: must be 1 or more with edge.ingress.enabled" -}}
{{- end -}}
{{- if gt (int $given.autoscaling.minReplicas) (int $given.autoscaling.maxReplicas) -}}
  {{- fail "autoscaling.minReplicas: is more than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and $given.rejoin.enabled (eq $given.broker.kind "redis-streams") -}}
  {{- fail "rejoin.enabled: needs Kafka; Redis Streams keep nothing for databases that were copied by other means" -}}
{{- end -}}
{{- if $given.networkPolicy.enabled -}}
  {{- range $server := list "database" "broker" "cache" -}}
    {{- if and (get $given $server).address (not (get $given.networkPolicy.egress $server)) -}}
      {{- fail (printf "networkPolicy.egress.%s: is needed with %s.address" $server $server) -}}
    {{- end -}}
  {{- end -}}
  {{- if and (hasKey $given.settings "OTEL_EXPORTER_OTLP_ENDPOINT") (not $given.networkPolicy.egress.telemetry) -}}
    {{- fail "networkPolicy.egress.telemetry: is needed with settings.OTEL_EXPORTER_OTLP_ENDPOINT" -}}
  {{- end -}}
{{- end -}}
{{- $known := keys (.Files.Get "files/callers.yaml" | fromYaml).callees -}}
{{- range $code, $said := $given.services -}}
  {{- if not (has $code $known) -}}
    {{- fail (printf "services.%s: is not in the table of callers" $code) -}}
  {{- end -}}
  {{- if and $said $said.canary (not $given.mesh.enabled) -}}
    {{- fail (printf "services.%s.canary: needs mesh.enabled" $code) -}}
  {{- end -}}
{{- end -}}
{{- range include "mindweave.workloads" . | fromJsonArray -}}
  {{- if and $given.networkPolicy.enabled .databaseAddress (not $given.networkPolicy.egress.database) -}}
    {{- fail (printf "networkPolicy.egress.database: is needed with services.%s.databaseAddress" .code) -}}
  {{- end -}}
{{- end -}}
{{- end -}}
