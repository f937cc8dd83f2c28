{{/* The Deployment of one role: (dict "root" . "role" "first"), or "standby". Both run the same. */}}

{{- define "warmpath.deployment" -}}
{{- $role := . -}}
{{- $name := include "warmpath.roleName" $role -}}
{{- $selectorLabels := include "warmpath.roleLabels" $role -}}
{{- with .root -}}
{{- $drainMs := add (dig "server" "drainDelayMs" 5000 .Values.config | int) (dig "server" "drainTimeoutMs" 30000 .Values.config | int) -}}
{{- $usesApi := include "warmpath.usesApi" . -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name | quote }}
  namespace: {{ .Release.Namespace | quote }}
  labels:
    {{- include "warmpath.labels" . | nindent 4 }}
spec:
  {{- if include "warmpath.standby" . }}
  replicas: {{ ternary (sub (int .Values.replicas) 1) 1 (eq $role.role "standby") }}
  {{- else if not .Values.autoscaling.enabled }}
  replicas: {{ .Values.replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  minReadySeconds: {{ .Values.minReadySeconds }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      # Never fewer than before: the new one has learnt the caches when the old one goes.
      maxUnavailable: 0
      maxSurge: 1
  selector:
    matchLabels:
      {{- $selectorLabels | nindent 6 }}
  template:
    metadata:
      labels:
        {{- $selectorLabels | nindent 8 }}
        {{- with merge (dict) .Values.podLabels .Values.commonLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      annotations:
        # What is read at the start only makes new pods; the rest is followed in the mounted file.
        checksum/config: {{ include "warmpath.startConfig" . | sha256sum | quote }}
        {{- with .Values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "warmpath.serviceAccountName" . | quote }}
      # Only discovery through the API server needs a token.
      automountServiceAccountToken: {{ ternary "true" "false" (eq $usesApi "true") }}
      # Variables of every Service would be read as mistyped configuration.
      enableServiceLinks: false
      {{- with .Values.image.pullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - name: {{ . | quote }}
        {{- end }}
      {{- end }}
      {{- with .Values.priorityClassName }}
      priorityClassName: {{ . | quote }}
      {{- end }}
      securityContext:
        {{- toYaml .Values.podSecurityContext | nindent 8 }}
      # SIGTERM: not ready for server.drainDelayMs while still serving, then server.drainTimeoutMs for what is open. The
      # process does the waiting, so no preStop hook is needed; 10 s are left for closing.
      terminationGracePeriodSeconds: {{ add (div (add $drainMs 999) 1000) 10 }}
      containers:
        - name: warmpath
          {{- if .Values.image.digest }}
          image: {{ printf "%s@%s" .Values.image.repository .Values.image.digest }}
          {{- else }}
          image: {{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
          {{- end }}
          imagePullPolicy: {{ .Values.image.pullPolicy }}
          args: [serve, --config, /etc/warmpath/config/warmpath.yaml{{ with include "warmpath.sibling" $role }}, --set, 'kvEvents.siblings={{ . }}'{{ end }}]
          {{- with .Values.extraEnv }}
          env:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          ports:
            - { name: grpc, containerPort: {{ include "warmpath.port" (list . "grpcListen" 9002) }}, protocol: TCP }
            - { name: health, containerPort: {{ include "warmpath.port" (list . "healthListen" 9003) }}, protocol: TCP }
            - { name: admin, containerPort: {{ include "warmpath.port" (list . "adminListen" 9090) }}, protocol: TCP }
          # Answered before the first list of pods is there: an API server that is away restarts nobody.
          startupProbe:
            grpc: { port: {{ include "warmpath.port" (list . "healthListen" 9003) }}, service: liveness }
            periodSeconds: 2
            timeoutSeconds: 1
            failureThreshold: 150
          # The process answers; what it knows is readiness.
          livenessProbe:
            grpc: { port: {{ include "warmpath.port" (list . "healthListen" 9003) }}, service: liveness }
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            grpc: { port: {{ include "warmpath.port" (list . "healthListen" 9003) }}, service: readiness }
            periodSeconds: 2
            timeoutSeconds: 2
            failureThreshold: 2
          resources:
            {{- toYaml .Values.resources | nindent 12 }}
          securityContext:
            {{- toYaml .Values.securityContext | nindent 12 }}
          volumeMounts:
            - { name: config, mountPath: /etc/warmpath/config, readOnly: true }
            {{- if include "warmpath.hasCertificate" . }}
            - { name: tls, mountPath: /etc/warmpath/tls, readOnly: true }
            {{- end }}
            {{- with .Values.extraVolumeMounts }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
      volumes:
        - name: config
          configMap: { name: {{ include "warmpath.fullname" . | quote }} }
        {{- if include "warmpath.hasCertificate" . }}
        - name: tls
          secret: { secretName: {{ include "warmpath.tlsSecret" . | quote }}, defaultMode: 0440 }
        {{- end }}
        {{- with .Values.extraVolumes }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .Values.topologySpreadConstraints }}
      topologySpreadConstraints:
        {{- range . }}
        - {{- toYaml . | nindent 10 }}
          {{- if not .labelSelector }}
          labelSelector:
            matchLabels:
              {{- $selectorLabels | nindent 14 }}
          {{- end }}
        {{- end }}
      {{- end }}
      {{- with .Values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with include "warmpath.affinity" $role | fromYaml }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end }}
{{- end }}
