{{- define "nodemem.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{/* Cut so that "-controller" and the hash of a pod still fit into a label. */}}
{{- define "nodemem.fullname" -}}
{{- $name := include "nodemem.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* (dict "root" $ "component" "agent"); component may be left out, here and below. */}}
{{- define "nodemem.selector" -}}
app.kubernetes.io/name: {{ include "nodemem.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{/* What the chart says of an object wins over what values add to it. */}}
{{- define "nodemem.labels" -}}
{{- $own := include "nodemem.selector" . | fromYaml -}}
{{- $chart := printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" -}}
{{- if not .pod -}}
{{- $_ := set $own "helm.sh/chart" $chart -}}
{{- end -}}
{{- $_ := set $own "app.kubernetes.io/version" (.root.Chart.AppVersion | toString) -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- toYaml (merge $own (deepCopy (.labels | default dict)) (deepCopy .root.Values.commonLabels)) -}}
{{- end }}

{{/* (dict "root" $ "component" "agent" "labels" (dict ...) "annotations" (dict ...) "pod" true). A pod doesn't name the
chart's version: with the same image it need not start again. */}}
{{- define "nodemem.metadata" -}}
labels:
  {{- include "nodemem.labels" . | nindent 2 }}
{{- with merge (deepCopy (.annotations | default dict)) (deepCopy .root.Values.commonAnnotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "nodemem.image" -}}
{{- $image := .Values.image -}}
{{- $tag := default .Chart.AppVersion $image.tag -}}
{{- if $image.digest -}}
{{- printf "%s:%s@%s" $image.repository $tag $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository $tag -}}
{{- end -}}
{{- end }}

{{- define "nodemem.agent.serviceAccount" -}}
{{- $account := .Values.agent.serviceAccount -}}
{{- if $account.create -}}
{{- default (printf "%s-agent" (include "nodemem.fullname" .)) $account.name -}}
{{- else -}}
{{- required "agent.serviceAccount.create is false: say in agent.serviceAccount.name which account to use" $account.name -}}
{{- end -}}
{{- end }}

{{- define "nodemem.controller.serviceAccount" -}}
{{- $account := .Values.controller.serviceAccount -}}
{{- if $account.create -}}
{{- default (printf "%s-controller" (include "nodemem.fullname" .)) $account.name -}}
{{- else -}}
{{- required "controller.serviceAccount.create is false: say in controller.serviceAccount.name which account to use" $account.name -}}
{{- end -}}
{{- end }}

{{/* ValidatingAdmissionPolicy v1 and node names in the tokens of pods: both are there from 1.30 on. */}}
{{- define "nodemem.admissionPolicy" -}}
{{- if and .Values.admissionPolicy.enabled (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version) -}}true{{- end -}}
{{- end }}
