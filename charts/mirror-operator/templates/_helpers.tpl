{{- define "mirror-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "mirror-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains (include "mirror-operator.name" .) .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "mirror-operator.name" .) | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* The pods that the operator starts bear the same name label: instance and component tell them apart. */}}
{{- define "mirror-operator.selector" -}}
app.kubernetes.io/name: {{ include "mirror-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "mirror-operator.labels" -}}
{{ include "mirror-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "mirror-operator.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "mirror-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "mirror-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* What the operator may do where Mirrors are. It opens no database connection and has no verb for Secrets: the pods that it starts mount them. */}}
{{- define "mirror-operator.rules" -}}
# Reads its three kinds and notices their changes.
- apiGroups: [mirror-operator.io]
  resources: [peers, mirrors, mirrorresyncs]
  verbs: [get, list, watch]
# Puts finalizers on and takes them off, so that no slot is left at a source. Never writes a spec.
- apiGroups: [mirror-operator.io]
  resources: [mirrors, mirrorresyncs]
  verbs: [patch]
# Makes the first load of a Mirror, and with resyncPolicy Automatic the one that replaces a lost slot; of these it keeps the newest.
- apiGroups: [mirror-operator.io]
  resources: [mirrorresyncs]
  verbs: [create, delete]
# Names them as owners of what it makes, where the cluster asks for this right (OwnerReferencesPermissionEnforcement, as on OpenShift).
- apiGroups: [mirror-operator.io]
  resources: [peers/finalizers, mirrors/finalizers, mirrorresyncs/finalizers]
  verbs: [update]
# Tells what it found. Status is written whole (PUT).
- apiGroups: [mirror-operator.io]
  resources: [peers/status, mirrors/status, mirrorresyncs/status]
  verbs: [update]
# The pipeline pod of each epoch; patched for replicas (suspend), image (upgrade), resources and placement.
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
# Check, snapshot, swap, cleanup and forget; patched for parallelism and suspend.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
# The brief that an epoch's pods mount (immutable), and the Service through which workers ask for the snapshot.
- apiGroups: [""]
  resources: [configmaps, services]
  verbs: [get, create, delete]
# Addresses of pipeline pods, results of finished ones, and why one does not start.
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
# Says in words what happens; a repeated Event is patched.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}
