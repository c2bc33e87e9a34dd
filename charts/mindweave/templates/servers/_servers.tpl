{{- /* A list, as JSON, of the in-cluster servers: name, port, and the flag of a service that uses it ("all": each). */ -}}
{{- define "mindweave.servers" -}}
{{- $found := list -}}
{{- if include "mindweave.hasPostgresql" . -}}
  {{- $found = append $found (dict "name" "postgresql" "port" 5432 "users" "database") -}}
{{- end -}}
{{- if include "mindweave.hasKafka" . -}}
  {{- $found = append $found (dict "name" "kafka" "port" 9092 "users" "all") -}}
{{- end -}}
{{- if include "mindweave.hasBroker" . -}}
  {{- $found = append $found (dict "name" "broker" "port" 6379 "users" "all") -}}
{{- end -}}
{{- if include "mindweave.hasCache" . -}}
  {{- $found = append $found (dict "name" "cache" "port" 6379 "users" "cache") -}}
{{- end -}}
{{- $found | toJson -}}
{{- end -}}

{{- /* Its Service, and all of its StatefulSet but the containers. */ -}}
{{- define "mindweave.server" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  labels: {{- include "mindweave.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .name }}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {{- include "mindweave.selector" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .name }}
  ports:
    - name: tcp-{{ .name }}
      port: {{ .port }}
      targetPort: {{ .port }}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ .name }}
  labels: {{- include "mindweave.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .name }}
spec:
  serviceName: {{ .name }}
  replicas: 1
  # It goes with the release: what is to stay is not kept here.
  persistentVolumeClaimRetentionPolicy: { whenDeleted: Delete, whenScaled: Retain }
  selector:
    matchLabels: {{- include "mindweave.selector" .root | nindent 6 }}
      app.kubernetes.io/name: {{ .name }}
  template:
    metadata:
      labels: {{- include "mindweave.labels" .root | nindent 8 }}
        app.kubernetes.io/name: {{ .name }}
        app.kubernetes.io/component: {{ .name }}
        # Clients speak to it by its own protocol and password.
        sidecar.istio.io/inject: "false"
    spec:
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: 60
      securityContext: {{- include "mindweave.podSecurity" .user | nindent 8 }}
      containers:
        {{- .container | nindent 8 }}
      volumes:
        - name: tmp
          emptyDir: { sizeLimit: 64Mi }
        {{- with .configMap }}
        - name: configuration
          configMap:
            name: {{ . }}
        {{- end }}
        {{- if not .root.Values.servers.persistence.enabled }}
        - name: data
          emptyDir: {}
        {{- end }}
  {{- with .root.Values.servers.persistence }}
  {{- if .enabled }}
  volumeClaimTemplates:
    - apiVersion: v1
      kind: PersistentVolumeClaim
      metadata:
        name: data
      spec:
        accessModes: [ReadWriteOnce]
        {{- with .storageClassName }}
        storageClassName: {{ . }}
        {{- end }}
        resources:
          requests:
            storage: {{ .size }}
  {{- end }}
  {{- end }}
{{- end -}}
