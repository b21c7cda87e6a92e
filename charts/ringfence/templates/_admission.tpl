{{/* The admin ports as a CEL list: a map has no order. Takes the context. */}}
{{- define "ringfence.adminPorts" -}}
[{{ range $i, $port := .Values.recommendations.adminPorts.ports }}{{ if $i }}, {{ end }}{{ int $port }}{{ end }}]
{{- end -}}

{{/* CEL: a map from admin ports to what people call them. Takes the context. */}}
{{- define "ringfence.adminPortNames" -}}
{{- $names := dict "22" "SSH" "23" "Telnet" "135" "RPC" "445" "SMB" "1433" "SQL Server" "1521" "Oracle" "2375" "Docker" "2376" "Docker" "2379" "etcd" "2380" "etcd" "3306" "MySQL" "3389" "RDP" "5432" "PostgreSQL" "5900" "VNC" "5985" "WinRM" "5986" "WinRM" "6379" "Redis" "6443" "Kubernetes API" "9200" "Elasticsearch" "10250" "kubelet" "11211" "memcached" "27017" "MongoDB" -}}
{{- $entries := list -}}
{{- range .Values.recommendations.adminPorts.ports -}}
{{- $port := toString (int .) -}}
{{- $label := $port -}}
{{- with get $names $port -}}{{- $label = printf "%s (%s)" $port . -}}{{- end -}}
{{- $entries = append $entries (printf "%s: '%s'" $port $label) -}}
{{- end -}}
{ {{- join ", " $entries -}} }
{{- end -}}

{{/* CEL: the ingress rule `r` opens the TCP port `port`. Text that is no port or range opens nothing: it is refused elsewhere. */}}
{{- define "ringfence.opens" -}}
(r.protocol == 'Any' || r.protocol == 'TCP' && (!has(r.ports) || r.ports.exists(p, type(p) == string ? p.matches('^[0-9]{1,5}(-[0-9]{1,5})?$') && int(p.split('-')[0]) <= port && port <= int(p.split('-')[size(p.split('-')) - 1]) : int(p) == port)))
{{- end -}}

{{/* CEL: the CIDR `c` is a network too wide for admin ports. Takes the context. */}}
{{- define "ringfence.isWide" -}}
{{- $ports := .Values.recommendations.adminPorts -}}
isCIDR(c) && cidr(c).prefixLength() < (cidr(c).ip().family() == 4 ? {{ $ports.ipv4Prefix }} : {{ $ports.ipv6Prefix }})
{{- end -}}

{{/* The binding that puts a policy into force. Takes (list labels name action). */}}
{{- define "ringfence.policyBinding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ index . 1 }}
  labels: {{- index . 0 | nindent 4 }}
spec:
  policyName: {{ index . 1 }}
  validationActions: [{{ index . 2 }}]
{{- end -}}
