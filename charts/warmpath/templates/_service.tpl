{{/* The Service of one role, as in _deployment.tpl. */}}

{{- define "warmpath.service" -}}
{{- $role := . -}}
{{- with .root -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "warmpath.roleName" $role | quote }}
  namespace: {{ .Release.Namespace | quote }}
  labels:
    {{- include "warmpath.labels" . | nindent 4 }}
  {{- with .Values.service.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ .Values.service.type }}
  {{- if .Values.service.headless }}
  clusterIP: None
  {{- end }}
  selector:
    {{- include "warmpath.roleLabels" $role | nindent 4 }}
  ports:
    # Without TLS the protocol must be said; with TLS it is negotiated.
    - { name: grpc, port: 9002, targetPort: grpc{{ if eq .Values.tls.mode "none" }}, appProtocol: kubernetes.io/h2c{{ end }} }
    - { name: admin, port: 9090, targetPort: admin, appProtocol: http }
{{- end }}
{{- end }}
