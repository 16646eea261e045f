#!/usr/bin/env bash
# Renders the chart and compares with what is stored here; --update stores it. Needs helm; no cluster.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."
chart=charts/mirror-operator here=tests/chart status=0

fail() { echo "chart: $*" >&2; status=1; }

render() { helm template mirror-operator "$chart" --namespace mirror-operator --kube-version 1.35.0 "$@"; }

compare() {
  local golden=$here/$1.yaml
  shift
  # The CRDs have a check of their own: `mirror-operator crds --check`.
  local made
  made=$(render --set crds.install=false "$@")
  if [[ $update ]]; then
    echo "$made" >"$golden"
  else
    diff -u "$golden" <(echo "$made") || fail "$golden is not what the chart renders; tests/chart/golden.sh --update if that is right"
  fi
}

# refused WORDS --set …: the schema refuses these values, and says WORDS.
refused() {
  local words=$1 said
  shift
  if said=$(render "$@" 2>&1); then fail "accepted: $*"; return; fi
  [[ $said == *"$words"* ]] || fail "$* is refused for another reason: $said"
}

update=''
[[ ${1-} != --update ]] || update=yes
helm lint --strict "$chart" >/dev/null || fail "helm lint"
compare default
compare all --values "$here/all.values.yaml"

kept=$(render | grep -c 'helm.sh/resource-policy: keep') || true
[[ $kept == 3 ]] || fail "$kept CRDs are rendered and kept, not 3"
! render --set crds.install=false | grep -E '(resources|verbs|apiGroups):.*(secrets|\*)' || fail "RBAC names secrets or everything"
! render --values "$here/all.values.yaml" | grep -w ClusterRole || fail "rights outside of watchNamespace"

refused /replicas --set replicas=9
refused /watchNamespace --set watchNamespace=A_b
refused /image/digest --set image.digest=latest
refused /image/pullPolicy --set image.pullPolicy=Sometimes
refused /logLevel --set logLevel=
refused "'replica' not allowed" --set replica=2
exit "$status"
