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
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* `true` where one replica decides and the others stand by; empty = all decide. */}}
{{- define "warmpath.standby" -}}
{{- if eq (toString .Values.standby.enabled) "auto" -}}
{{- $attached := and .Values.gateway.name .Values.gateway.extensionPolicy.create (not (include "warmpath.inferencePool" .)) -}}
{{- /* Until it is seen that the first one is gone, a request has to be able to go on without a choice. */ -}}
{{- $goesOn := and (eq .Values.gateway.bodyMode "Buffered") .Values.gateway.extensionPolicy.failOpen -}}
{{- if and $attached $goesOn (not .Values.autoscaling.enabled) (ge (int .Values.replicas) 2) -}}true{{- end -}}
{{- else if .Values.standby.enabled -}}
true
{{- end -}}
{{- end }}

{{/* Pods of the standby have a name of their own, so that no selector of the first ones finds them. */}}
{{- define "warmpath.standbyLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 55 | trimSuffix "-" }}-standby
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Labels and names of a role: (dict "root" . "role" "first"), or "standby". Without a standby every replica is a first one. */}}
{{- define "warmpath.roleLabels" -}}
{{- include (ternary "warmpath.standbyLabels" "warmpath.selectorLabels" (eq .role "standby")) .root -}}
{{- end }}

{{- define "warmpath.roleName" -}}
{{- include "warmpath.fullname" .root -}}{{- if eq .role "standby" -}}-standby{{- end -}}
{{- end }}

{{- define "warmpath.otherRole" -}}
{{- ternary "first" "standby" (eq .role "standby") -}}
{{- end }}

{{/* Selector of every replica, whatever its role. */}}
{{- define "warmpath.anyRole" -}}
{{- if include "warmpath.standby" . -}}
matchLabels:
  app.kubernetes.io/instance: {{ .Release.Name | quote }}
matchExpressions:
  - key: app.kubernetes.io/name
    operator: In
    values:
      - {{ get (include "warmpath.selectorLabels" . | fromYaml) "app.kubernetes.io/name" | quote }}
      - {{ get (include "warmpath.standbyLabels" . | fromYaml) "app.kubernetes.io/name" | quote }}
{{- else -}}
matchLabels:
  {{- include "warmpath.selectorLabels" . | nindent 2 }}
{{- end -}}
{{- end }}

{{/* Where the other role's replica can be asked what engines no longer replay; empty = nowhere. */}}
{{- define "warmpath.sibling" -}}
{{- $other := dict "root" .root "role" (include "warmpath.otherRole" .) -}}
{{- with .root -}}
{{- $canAsk := and (ne .Values.tls.mode "selfSigned") (not .Values.tls.mutual) (dig "kvEvents" "enabled" true .Values.config) -}}
{{- if and (include "warmpath.standby" .) $canAsk (not (dig "kvEvents" "siblings" "" .Values.config)) -}}
{{- $port := ternary (include "warmpath.port" (list . "grpcListen" 9002)) "9002" .Values.service.headless -}}
{{- printf "%s.%s.svc:%s" (include "warmpath.roleName" $other) .Release.Namespace $port -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* What the values say, and the two roles on two nodes where there are two. */}}
{{- define "warmpath.affinity" -}}
{{- $affinity := deepCopy .root.Values.affinity -}}
{{- if include "warmpath.standby" .root -}}
{{- $other := include "warmpath.roleLabels" (dict "root" .root "role" (include "warmpath.otherRole" .)) | fromYaml -}}
{{- $terms := dig "podAntiAffinity" "preferredDuringSchedulingIgnoredDuringExecution" list $affinity -}}
{{- range $weight, $key := dict "100" "kubernetes.io/hostname" "50" "topology.kubernetes.io/zone" -}}
{{- $term := dict "topologyKey" $key "labelSelector" (dict "matchLabels" $other) -}}
{{- $terms = append $terms (dict "weight" (int $weight) "podAffinityTerm" $term) -}}
{{- end -}}
{{- $anti := set (dig "podAntiAffinity" dict $affinity) "preferredDuringSchedulingIgnoredDuringExecution" $terms -}}
{{- $_ := set $affinity "podAntiAffinity" $anti -}}
{{- end -}}
{{- toYaml $affinity -}}
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

{{/* A file that asks for Prometheus' jobs of Warmpath, with the name these have here: (dict "root" . "file" "files/alerts.yaml") */}}
{{- define "warmpath.monitoringFile" -}}
{{- $name := include "warmpath.fullname" .root -}}
{{- $jobs := ternary ".*warmpath.*" (printf ".*(warmpath|%s).*" $name) (contains "warmpath" $name) -}}
{{- .root.Files.Get .file | replace ".*warmpath.*" $jobs -}}
{{- end }}

{{- define "warmpath.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "warmpath.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end }}

{{- define "warmpath.podsNamespace" -}}
{{- default (default .Release.Namespace .Values.pods.namespace) (dig "discovery" "kubernetes" "namespace" "" .Values.config) -}}
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
{{- else -}}
{{- dig "discovery" "kubernetes" "inferencePool" "" .Values.config | default "" -}}
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
{{- if include "warmpath.standby" . -}}
{{- /* All requests come back at once to a first replica that was away: not before it has caught up. */ -}}
{{- $_ := set $base "kvEvents" (dict "readyWhen" "replayed") -}}
{{- end -}}
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
{{- $name := include "warmpath.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "names must begin with a lower-case letter and go on with such letters, digits and -, got %s from fullnameOverride, else nameOverride and the release's name" $name) -}}
{{- end -}}
{{- range $key := concat (keys .Values.commonLabels) (keys .Values.podLabels) -}}
{{- if has $key (list "app.kubernetes.io/name" "app.kubernetes.io/instance") -}}
{{- fail (printf "commonLabels and podLabels must not have %s: selectors are made of it (nameOverride changes the name)" $key) -}}
{{- end -}}
{{- end -}}
{{- range $key := keys .Values.commonLabels -}}
{{- if has $key (list "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "helm.sh/chart") -}}
{{- fail (printf "commonLabels must not have %s: every object has it already" $key) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail (printf "autoscaling.minReplicas must be at most autoscaling.maxReplicas, got %d and %d" (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and .Values.inferencePool.create (not .Values.pods.matchLabels) -}}
{{- fail "inferencePool.create needs pods.matchLabels: a pool selects by labels with values, got none" -}}
{{- end -}}
{{- if and .Values.inferencePool.create (eq .Values.tls.mode "none") -}}
{{- fail "inferencePool.create needs tls.mode: gateways reach an endpoint picker by TLS only, got none" -}}
{{- end -}}
{{- if and .Values.inferencePool.create (ne (include "warmpath.podsNamespace" .) .Release.Namespace) -}}
{{- fail (printf "inferencePool.create needs pods.namespace to be the release's namespace %s: a pool refers to pods and picker of its own, got %s" .Release.Namespace (include "warmpath.podsNamespace" .)) -}}
{{- end -}}
{{- if and .Values.gateway.name .Values.gateway.httpRoute.create (not .Values.inferencePool.create) (not .Values.pods.matchLabels) -}}
{{- fail "gateway.httpRoute.create needs pods.matchLabels: a Service selects by labels with values, got none" -}}
{{- end -}}
{{- if and .Values.gateway.name (not .Values.gateway.httpRoute.create) (not .Values.gateway.httpRoute.name) -}}
{{- fail "gateway.httpRoute.name must name your HTTPRoute where gateway.httpRoute.create is false, got nothing" -}}
{{- end -}}
{{- if and .Values.service.headless (ne .Values.service.type "ClusterIP") -}}
{{- fail (printf "service.headless needs service.type ClusterIP: a Service without an address can be nothing else, got %s" .Values.service.type) -}}
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
{{- if and (include "warmpath.standby" .) .Values.autoscaling.enabled -}}
{{- fail "standby.enabled and autoscaling.enabled exclude each other: with a standby one replica decides; where one is not enough, let all of several serve" -}}
{{- end -}}
{{- if and (include "warmpath.standby" .) (lt (int .Values.replicas) 2) -}}
{{- fail (printf "standby.enabled needs replicas 2 or more: one decides, the others stand by; got %d" (int .Values.replicas)) -}}
{{- end -}}
{{- if and (include "warmpath.standby" .) (include "warmpath.inferencePool" .) -}}
{{- fail "standby.enabled and inferencePool exclude each other: a pool names one Service as its picker, without a second choice. Take replicas: 1, or 2 that both serve" -}}
{{- end -}}
{{- $many := "" -}}
{{- if .Values.autoscaling.enabled -}}
{{- if gt (int .Values.autoscaling.maxReplicas) 1 -}}{{- $many = printf "autoscaling.maxReplicas %d" (int .Values.autoscaling.maxReplicas) -}}{{- end -}}
{{- else if gt (int .Values.replicas) 1 -}}
{{- $many = printf "replicas %d" (int .Values.replicas) -}}
{{- end -}}
{{- if and (dig "kvEvents" "listen" "" .Values.config) $many -}}
{{- fail (printf "config.kvEvents.listen needs one replica: an engine that connects has one connection, so only one of several would hear it; got %s. Let engines bind, or set replicas: 1" $many) -}}
{{- end -}}
{{- if and .Values.tls.mutual .Values.gateway.name -}}
{{- fail "tls.mutual and gateway.name exclude each other: Envoy Gateway shows ext_proc servers no certificate" -}}
{{- end -}}
{{- end }}
