# shellcheck shell=bash
# A worker node: containerd, kubelet, kube-proxy and the plugin that connects
# its pods. Paths are those of a real node, see host-init.sh.

prepare_node() {
	local node=$1 folder=$state/$1
	mkdir -p "$folder/etc/cni/net.d" "$folder/etc/cni/multus/net.d" "$folder/opt/cni/bin"
	# No name server but the cluster's own.
	echo "# This node resolves no names." >"$folder/etc/resolv.conf"
	cp -L "$tools"/{bridge,host-device,host-local,ipvlan,loopback,macvlan,portmap,ptp,static,tap} \
		"$images/secondary-networks" "$folder/opt/cni/bin/"
	pod_network "$node" >"$folder/etc/cni/net.d/10-pods.conflist"
	bridge_network "$node" bridge 2 7f >"$folder/etc/cni/multus/net.d/bridge.conflist"
	bridge_network "$node" gated 80 fe '{"type": "ringfence-cni", "timeoutSeconds": 3}' >"$folder/etc/cni/multus/net.d/gated.conflist"
	containerd_config >"$folder/containerd.toml"
	kubelet_config "$node" >"$folder/kubelet.yaml"
	kube_proxy_config "$node" >"$folder/kube-proxy.yaml"

	define_service "$node" containerd containerd --config "$folder/containerd.toml"
	define_service "$node" kubelet kubelet \
		--config="$folder/kubelet.yaml" \
		--kubeconfig="$folder/kubelet.kubeconfig" \
		--hostname-override="$node" \
		--node-ip="$(node_v4 "$node"),$(node_v6 "$node")"
	define_service "$node" kube-proxy kube-proxy --config="$folder/kube-proxy.yaml"
}

# Both kinds of network are routed and keep source addresses; they differ in
# what stands between two pods of a node.
pod_network() {
	local node=$1 main
	case $CNI in
	ptp) main='"type": "ptp"' ;;
	bridge) main='"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true' ;;
	esac
	cat <<-END
		{
		  "cniVersion": "1.0.0",
		  "name": "pods",
		  "plugins": [
		    {
		      $main,
		      "ipMasq": false,
		      "ipam": {
		        "type": "host-local",
		        "ranges": [[{"subnet": "$(node_pods_v4 "$node")"}], [{"subnet": "$(node_pods_v6 "$node")"}]],
		        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
		      }
		    },
		    {"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"},
		    {"type": "secondary-networks", "kubeconfig": "$state/$node/networks.kubeconfig"}
		  ]
		}
	END
}

# bridge_network NODE NAME FIRST LAST [PLUGIN] is what a definition of
# manifests/networks.yaml means on this node: it is one for all nodes, and each
# has a range of its own, from the FIRST to the LAST (hexadecimal), routed like
# the pods'. Another PLUGIN may come last.
bridge_network() {
	local node=$1 name=$2 first=$3 last=$4 v4 v6
	v4=$(node_bridge_v4 "$node") v6=$(node_bridge_v6 "$node")
	cat <<-END
		{
		  "cniVersion": "1.0.0",
		  "name": "$name",
		  "plugins": [
		    {
		      "type": "bridge", "bridge": "br1", "isGateway": true, "hairpinMode": true,
		      "ipMasq": false,
		      "ipam": {
		        "type": "host-local",
		        "ranges": [
		          [{"subnet": "$v4", "rangeStart": "${v4%.*}.$((16#$first))", "rangeEnd": "${v4%.*}.$((16#$last))"}],
		          [{"subnet": "$v6", "rangeStart": "${v6%/*}$first", "rangeEnd": "${v6%/*}$last"}]
		        ],
		        "routes": [{"dst": "$bridges_v4"}, {"dst": "$bridges_v6"}]
		      }
		    }${5:+, $5}
		  ]
		}
	END
}

# Containers may run where CAP_SYS_RESOURCE is missing; there, runc cannot
# lower an OOM score.
containerd_config() {
	cat <<-'END'
		version = 3
		root = "/var/lib/containerd"
		state = "/run/containerd"

		[grpc]
		address = "/run/containerd/containerd.sock"

		[plugins."io.containerd.cri.v1.runtime"]
		restrict_oom_score_adj = true

		[plugins."io.containerd.cri.v1.runtime".cni]
		bin_dirs = ["/opt/cni/bin"]
		conf_dir = "/etc/cni/net.d"

		[plugins."io.containerd.cri.v1.images".pinned_images]
		sandbox = "ringfence.test/toolbox:1"
	END
}

# Much of this lets a kubelet run on a machine it has not for itself: cgroups
# of either version, swap, no limits on its own resources, a disk that others
# fill.
kubelet_config() {
	local node=$1
	cat <<-END
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		authentication:
		  anonymous: {enabled: false}
		  webhook: {enabled: true}
		  x509: {clientCAFile: $state/pki/ca.crt}
		authorization: {mode: Webhook}
		clusterDomain: cluster.local
		clusterDNS: [$dns_v4]
		resolvConf: /etc/resolv.conf
		containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
		cgroupDriver: cgroupfs
		cgroupRoot: /$prefix-$node
		cgroupsPerQOS: false
		enforceNodeAllocatable: []
		failCgroupV1: false
		failSwapOn: false
		localStorageCapacityIsolation: false
		imageGCHighThresholdPercent: 100
		evictionHard: {nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}
		nodeStatusUpdateFrequency: 2s
	END
}

# The conntrack limits belong to the whole machine and stay as they are. A new
# service works at once, instead of after a second.
kube_proxy_config() {
	local node=$1
	cat <<-END
		apiVersion: kubeproxy.config.k8s.io/v1alpha1
		kind: KubeProxyConfiguration
		mode: nftables
		hostnameOverride: $node
		clientConnection: {kubeconfig: $state/$node/kube-proxy.kubeconfig}
		clusterCIDR: "$pods_v4,$pods_v6"
		conntrack: {maxPerCore: 0, min: 0}
		nftables: {minSyncPeriod: 100ms, syncPeriod: 30s}
	END
}

# load_images NODE ARCHIVE…
load_images() {
	local node=$1 archive
	shift
	for archive; do
		ctr --address "$state/$node/run/containerd/containerd.sock" --namespace k8s.io \
			images import "$archive" >>"$state/logs/$node-images.log" 2>&1
	done
}
