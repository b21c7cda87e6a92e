# shellcheck shell=bash
# Who is who in the cluster. Programs prove themselves with tokens, which cost
# nothing to make; certificates only where Kubernetes knows no other way.

create_credentials() {
	mkdir -p "$state/pki"
	: >"$state/pki/tokens.csv"
	openssl req -x509 -days 3650 -subj /CN=cluster-ca "${ec_key[@]}" \
		-keyout "$state/pki/ca.key" -out "$state/pki/ca.crt" 2>/dev/null
	certify apiserver /CN=kube-apiserver serverAuth \
		"DNS:kubernetes.default.svc,DNS:kubernetes.default,DNS:kubernetes,IP:$control_v4,IP:$control_v6,IP:$kubernetes_v4,IP:127.0.0.1"
	certify kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth DNS:kube-apiserver
	openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$state/pki/service-accounts.key" 2>/dev/null
	openssl pkey -in "$state/pki/service-accounts.key" -pubout -out "$state/pki/service-accounts.pub"

	local node
	grant "$state/kubeconfig" admin system:masters
	grant "$state/control/controller-manager.kubeconfig" system:kube-controller-manager
	grant "$state/control/scheduler.kubeconfig" system:kube-scheduler
	for node in "${nodes[@]}"; do
		grant "$state/$node/kubelet.kubeconfig" "system:node:$node" system:nodes
		grant "$state/$node/kube-proxy.kubeconfig" system:kube-proxy
		grant "$state/$node/networks.kubeconfig" secondary-networks
	done
}

ec_key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)

# certify NAME SUBJECT USAGE ALTERNATIVE_NAMES
# With a configuration of its own: the system's makes every certificate an authority, which strict clients refuse.
certify() {
	openssl req -x509 -config <(printf '[req]\ndistinguished_name = dn\n[dn]\n') -addext "basicConstraints=critical,CA:FALSE" \
		-days 3650 -CA "$state/pki/ca.crt" -CAkey "$state/pki/ca.key" \
		-subj "$2" -addext "extendedKeyUsage=$3" -addext "subjectAltName=$4" "${ec_key[@]}" \
		-keyout "$state/pki/$1.key" -out "$state/pki/$1.crt" 2>/dev/null
}

# grant FILE USER [GROUP] writes a kubeconfig with a new token for that user.
grant() {
	local file=$1 user=$2 group=${3:-} token
	token=$(openssl rand -hex 16)
	echo "$token,$user,$user,\"$group\"" >>"$state/pki/tokens.csv"
	mkdir -p "$(dirname "$file")"
	cat >"$file" <<-END
		apiVersion: v1
		kind: Config
		clusters:
		- name: cluster
		  cluster:
		    server: https://$control_v4:6443
		    certificate-authority-data: $(base64 -w0 "$state/pki/ca.crt")
		users:
		- name: user
		  user: {token: $token}
		contexts:
		- name: cluster
		  context: {cluster: cluster, user: user}
		current-context: cluster
	END
	chmod 600 "$file"
}
