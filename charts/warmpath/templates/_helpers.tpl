{{/* Names and everything that more than one object must say alike. */}}

{{- define "warmpath.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "warmpath.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "warmpath.labels" -}}
{{ include "warmpath.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "warmpath.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "warmpath.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "warmpath.podsNamespace" -}}
{{- default .Release.Namespace .Values.pods.namespace -}}
{{- end }}

{{- define "warmpath.gatewayNamespace" -}}
{{- default .Release.Namespace .Values.gateway.namespace -}}
{{- end }}

{{- define "warmpath.routeName" -}}
{{- default (include "warmpath.fullname" .) .Values.gateway.httpRoute.name -}}
{{- end }}

{{/* Service of the model servers, behind the route. */}}
{{- define "warmpath.podsService" -}}
{{- printf "%s-pods" (include "warmpath.fullname" .) -}}
{{- end }}

{{- define "warmpath.tlsSecret" -}}
{{- default (printf "%s-tls" (include "warmpath.fullname" .)) .Values.tls.secretName -}}
{{- end }}

{{/* Name of the InferencePool that is followed; empty = none. */}}
{{- define "warmpath.inferencePool" -}}
{{- if or .Values.inferencePool.create .Values.inferencePool.name -}}
{{- default (include "warmpath.fullname" .) .Values.inferencePool.name -}}
{{- end -}}
{{- end }}

{{/* `key=value,…` of pods.matchLabels, as the API server takes it; always in the same order. */}}
{{- define "warmpath.labelSelector" -}}
{{- $parts := list -}}
{{- range $key := keys .Values.pods.matchLabels | sortAlpha -}}
{{- $parts = append $parts (printf "%s=%s" $key (get $.Values.pods.matchLabels $key)) -}}
{{- end -}}
{{- join "," $parts -}}
{{- end }}

{{/* The configuration file: what other values say, then `config` over it. */}}
{{- define "warmpath.config" -}}
{{- $server := dict -}}
{{- if eq .Values.tls.mode "selfSigned" -}}
{{- $_ := set $server "tls" (dict "selfSigned" true) -}}
{{- else if ne .Values.tls.mode "none" -}}
{{- $tls := dict "certFile" "/etc/warmpath/tls/tls.crt" "keyFile" "/etc/warmpath/tls/tls.key" -}}
{{- if .Values.tls.mutual -}}{{- $_ := set $tls "clientCaFile" "/etc/warmpath/tls/ca.crt" -}}{{- end -}}
{{- $_ := set $server "tls" $tls -}}
{{- end -}}
{{- if and .Values.gateway.name .Values.gateway.extensionPolicy.create -}}
{{- if eq .Values.gateway.bodyMode "Buffered" -}}
{{- /* The policy has no field for response trailers; asking for them keeps the side stream until the answer is over. */ -}}
{{- $_ := set $server "responseTrailers" "ask" -}}
{{- else -}}
{{- /* Mode override does not apply in this mode, so the end of an answer is not seen. */ -}}
{{- $_ := set $server "completion" "estimate" -}}
{{- end -}}
{{- end -}}
{{- $kubernetes := dict "namespace" (include "warmpath.podsNamespace" .) -}}
{{- with include "warmpath.inferencePool" . -}}{{- $_ := set $kubernetes "inferencePool" . -}}{{- end -}}
{{- with include "warmpath.labelSelector" . -}}{{- $_ := set $kubernetes "labelSelector" . -}}{{- end -}}
{{- $discovery := dict "mode" "kubernetes" -}}
{{- $given := default dict .Values.config.discovery -}}
{{- if ne (default "kubernetes" $given.mode) "static" -}}{{- $_ := set $discovery "kubernetes" $kubernetes -}}{{- end -}}
{{- $base := dict "discovery" $discovery -}}
{{- if $server -}}{{- $_ := set $base "server" $server -}}{{- end -}}
{{- if include "warmpath.inferencePool" . -}}
{{- /* Many data planes dial the destination as it is written: one address. */ -}}
{{- $_ := set $base "routing" (dict "fallbackEndpoints" 0) -}}
{{- end -}}
{{- toYaml (mergeOverwrite $base (deepCopy .Values.config)) -}}
{{- end }}

{{/* `true` where a certificate is mounted; empty otherwise. */}}
{{- define "warmpath.hasCertificate" -}}
{{- if has .Values.tls.mode (list "secret" "certManager") -}}true{{- end -}}
{{- end }}

{{/* What a replica reads at its start only: the configuration without the keys that take effect while it runs. */}}
{{- define "warmpath.startConfig" -}}
{{- $config := include "warmpath.config" . | fromYaml -}}
{{- range .Files.Lines "files/live-keys.txt" -}}
{{- $at := $config -}}
{{- $path := splitList "." . -}}
{{- range initial $path -}}{{- $at = default dict (get $at .) -}}{{- end -}}
{{- $_ := unset $at (last $path) -}}
{{- if not (get $config (first $path)) -}}{{- $_ := unset $config (first $path) -}}{{- end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end }}

{{/* `true` where pods are found through the API server; empty otherwise. */}}
{{- define "warmpath.usesApi" -}}
{{- if eq (dig "discovery" "mode" "kubernetes" .Values.config) "kubernetes" -}}true{{- end -}}
{{- end }}

{{/* Port of a listen address of the configuration: (list . "grpcListen" 9002) */}}
{{- define "warmpath.port" -}}
{{- $address := dig "server" (index . 1) "" (index . 0).Values.config -}}
{{- if $address -}}{{- $address | toString | splitList ":" | last | int -}}{{- else -}}{{- index . 2 -}}{{- end -}}
{{- end }}

{{/* Mistakes that no schema sees, told before anything is rendered. */}}
{{- define "warmpath.validate" -}}
{{- if and .Values.inferencePool.create (not .Values.pods.matchLabels) -}}
{{- fail "inferencePool.create needs pods.matchLabels: a pool selects by labels with values, got none" -}}
{{- end -}}
{{- if and .Values.inferencePool.create (eq .Values.tls.mode "none") -}}
{{- fail "inferencePool.create needs tls.mode: gateways reach an endpoint picker by TLS only, got none" -}}
{{- end -}}
{{- if and .Values.inferencePool.create (ne (include "warmpath.podsNamespace" .) .Release.Namespace) -}}
{{- fail (printf "inferencePool.create needs pods.namespace to be the release's namespace %s: a pool refers to pods and picker of its own, got %s" .Release.Namespace .Values.pods.namespace) -}}
{{- end -}}
{{- if and .Values.gateway.name .Values.gateway.httpRoute.create (not .Values.inferencePool.create) (not .Values.pods.matchLabels) -}}
{{- fail "gateway.httpRoute.create needs pods.matchLabels: a Service selects by labels with values, got none" -}}
{{- end -}}
{{- if and .Values.gateway.name (not .Values.gateway.httpRoute.create) (not .Values.gateway.httpRoute.name) -}}
{{- fail "gateway.httpRoute.name must name your HTTPRoute where gateway.httpRoute.create is false, got nothing" -}}
{{- end -}}
{{- if and (eq .Values.tls.mode "secret") (not .Values.tls.secretName) -}}
{{- fail "tls.secretName must name the Secret where tls.mode is secret, got nothing" -}}
{{- end -}}
{{- if and (eq .Values.tls.mode "certManager") (not .Values.tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef.name must name the issuer where tls.mode is certManager, got nothing" -}}
{{- end -}}
{{- if and .Values.tls.mutual (not (include "warmpath.hasCertificate" .)) -}}
{{- fail (printf "tls.mutual needs a Secret with ca.crt: tls.mode secret or certManager, got %s" .Values.tls.mode) -}}
{{- end -}}
{{- if and (eq .Values.tls.mode "selfSigned") .Values.gateway.name .Values.gateway.extensionPolicy.create (not .Values.inferencePool.create) -}}
{{- fail "tls.mode selfSigned is for InferencePools: Envoy Gateway verifies, so secret or certManager is needed, or none" -}}
{{- end -}}
{{- $timeout := .Values.gateway.extensionPolicy.messageTimeout -}}
{{- if and .Values.gateway.name (regexMatch "^[0-9]+(ms|s)$" $timeout) -}}
{{- $timeoutMs := ternary (trimSuffix "ms" $timeout | int) (mul 1000 (trimSuffix "s" $timeout | int)) (hasSuffix "ms" $timeout) | int -}}
{{- $budgetMs := dig "tokenizer" "budgetMs" 50 .Values.config | int -}}
{{- $deadlineMs := dig "server" "decisionDeadlineMs" (add $budgetMs 300) .Values.config | int -}}
{{- if le $timeoutMs $deadlineMs -}}
{{- fail (printf "gateway.extensionPolicy.messageTimeout must be above Warmpath's own deadline of %d ms (server.decisionDeadlineMs, else tokenizer.budgetMs + 300), got %s" $deadlineMs $timeout) -}}
{{- end -}}
{{- end -}}
{{- $most := ternary .Values.autoscaling.maxReplicas .Values.replicas .Values.autoscaling.enabled | int -}}
{{- if and (dig "kvEvents" "listen" "" .Values.config) (gt $most 1) -}}
{{- fail (printf "config.kvEvents.listen needs one replica: an engine that connects has one connection, so only one of several would hear it; got %s %d. Let engines bind, or set replicas: 1" (ternary "autoscaling.maxReplicas" "replicas" .Values.autoscaling.enabled) $most) -}}
{{- end -}}
{{- if and .Values.tls.mutual .Values.gateway.name -}}
{{- fail "tls.mutual and gateway.name exclude each other: Envoy Gateway shows ext_proc servers no certificate" -}}
{{- end -}}
{{- end }}
