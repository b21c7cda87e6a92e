# shellcheck shell=bash
# The control plane: its services, none of them with a quorum to wait for.

define_control_plane() {
	local pki=$state/pki
	define_service control etcd etcd \
		--data-dir=/var/lib/etcd \
		--unsafe-no-fsync \
		--log-level=warn

	define_service control apiserver kube-apiserver \
		--etcd-servers=http://127.0.0.1:2379 \
		--advertise-address="$control_v4" \
		--secure-port=6443 \
		--tls-cert-file="$pki/apiserver.crt" \
		--tls-private-key-file="$pki/apiserver.key" \
		--client-ca-file="$pki/ca.crt" \
		--token-auth-file="$pki/tokens.csv" \
		--authorization-mode=Node,RBAC \
		--enable-admission-plugins=NodeRestriction \
		--service-account-issuer=https://kubernetes.default.svc \
		--service-account-key-file="$pki/service-accounts.pub" \
		--service-account-signing-key-file="$pki/service-accounts.key" \
		--service-cluster-ip-range="$services_v4,$services_v6" \
		--kubelet-client-certificate="$pki/kubelet-client.crt" \
		--kubelet-client-key="$pki/kubelet-client.key" \
		--kubelet-preferred-address-types=InternalIP \
		--enable-aggregator-routing=true `# webhooks are called by pod address` \
		--allow-privileged=true

	# Pod ranges are fixed by the node's number, not handed out in the order
	# in which nodes happen to register.
	define_service control controller-manager kube-controller-manager \
		--kubeconfig="$state/control/controller-manager.kubeconfig" \
		--use-service-account-credentials=true \
		--service-account-private-key-file="$pki/service-accounts.key" \
		--root-ca-file="$pki/ca.crt" \
		--cluster-signing-cert-file="$pki/ca.crt" \
		--cluster-signing-key-file="$pki/ca.key" \
		--allocate-node-cidrs=false \
		--leader-elect=false

	define_service control scheduler kube-scheduler \
		--kubeconfig="$state/control/scheduler.kubeconfig" \
		--leader-elect=false
}

# Nodes are made before their kubelets report, which is how they get the pod
# ranges that the routes already lead to.
node_objects() {
	local node
	for node in "${nodes[@]}"; do
		cat <<-END
			---
			apiVersion: v1
			kind: Node
			metadata: {name: $node, labels: {kubernetes.io/hostname: $node}}
			spec:
			  podCIDR: $(node_pods_v4 "$node")
			  podCIDRs: ["$(node_pods_v4 "$node")", "$(node_pods_v6 "$node")"]
		END
	done
}
